//! Files of configuration, and the flags that end at once.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType, loaded_programs};
use proxy_agent::datapath::{ArrayTable, HashTable, Pins, SocketHook, pinned_hooks, socket_hooks};
use proxy_common::{
    flow::FlowState,
    tables::{Flows, Settings},
};
use sluice_tests::{
    agent::Agent,
    harness::Setup,
    sandbox::{FILES, Sandbox},
    service::Service,
    topology::Family,
    traffic::{Connection, Source},
    wait::wait_until,
};

use crate::{Backend, expect::expect_all_reach};

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

/// The kernel's ids of the programs that an agent has attached.
fn programs(agent: &Agent) -> Result<BTreeSet<u32>> {
    agent.namespace().run(|| {
        let pins = Pins::new(agent.bpffs());
        let devices = pinned_hooks(&pins)?.into_iter().filter_map(|hook| hook.program_id);
        let sockets = socket_hooks(&pins).into_iter().filter_map(|(_, hook)| match hook {
            SocketHook::Attached { program, .. } => Some(program),
            _ => None,
        });
        Ok(devices.chain(sockets).collect())
    })
}

/// No program is on any device of these.
fn expect_bare(agent: &Agent, devices: &BTreeSet<String>) -> Result<()> {
    agent.namespace().run(|| {
        for (device, at) in devices
            .iter()
            .flat_map(|device| [TcAttachType::Ingress, TcAttachType::Egress].map(|at| (device, at)))
        {
            let (_, found) = SchedClassifier::query_tcx(device, at)?;
            ensure!(found.is_empty(), "{device} has programs: {found:?}");
        }
        Ok(())
    })
}

/// LIFE-09, LIFE-10, BPF-10.
#[test]
fn cleanup_leaves_nothing_and_initialisation_attaches_nothing() {
    Setup::new(1).alone().run(|cluster, agents| {
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let client = cluster.nodes[0].add_pod("client")?;
        let service = Service::new("echo", 1).with(&near.pod);
        agents.serve(&service)?;
        expect_all_reach(&client.machine, &service, "near")?;
        let agent = &mut agents.agents[0];
        agent.wait_until_attached()?;
        let (devices, programs) = (agent.attached()?, programs(agent)?);
        ensure!(devices.contains(&client.device) && programs.len() > 2, "{devices:?} {programs:?}");
        agent.terminate()?;

        agent.ask(&["run", "--cleanup"])?;
        // A link has no id any more a moment before it is detached (`bpf_link_free`).
        wait_until("no device has programs", || Ok(expect_bare(agent, &devices).ok()))?;
        ensure!(!Sandbox::shared()?.view(agent.bpffs()).exists(), "pins are left");
        // Freed a moment after the last reference is gone.
        wait_until("the kernel has none of the programs", || {
            let left = loaded_programs().flatten().any(|program| programs.contains(&program.id()));
            Ok((!left).then_some(()))
        })?;
        // Nothing left to do is no failure.
        agent.ask(&["run", "--cleanup"])?;

        agent.ask(&["run", "--init-only"])?;
        let pins = agent.pins()?;
        let is_map = |pin: &Path| pin.parent().is_some_and(|parent| parent.ends_with("maps"));
        // Whoever reads the tables needs the kernel's clock.
        let is_clock = |pin: &Path| pin.ends_with("programs/sluice_clock");
        ensure!(!pins.is_empty() && pins.iter().all(|pin| is_map(pin) || is_clock(pin)), "{pins:?}");
        expect_bare(agent, &devices)?;

        agent.resume()?;
        agent.wait_until_synced()?;
        agents.settle()?;
        expect_all_reach(&client.machine, &service, "near")
    });
}

/// LIFE-12: the datapath goes on while the agent is gone.
#[test]
fn an_agent_whose_file_changes_ends_and_does_as_the_file_says_when_it_is_back() {
    Setup::new(1).alone().run(|cluster, agents| {
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let client = cluster.nodes[0].add_pod("client")?;
        let from = &client.machine.namespace;
        let service = Service::new("echo", 1).with(&near.pod);
        agents.serve(&service)?;
        let inside = Path::new(FILES).join("kube-proxy.conf");
        let file = Sandbox::shared()?.view(&inside);
        fs::write(&file, HEAD)?;
        let agent = &mut agents.agents[0];
        agent.terminate()?;
        agent.tell(&[&format!("--config={}", inside.display())]);
        agent.resume()?;
        agent.wait_until_synced()?;
        expect_timeout(agent, FlowState::ESTABLISHED, 86_400)?;

        // What means the same, or nothing, ends nobody.
        fs::write(&file, format!("{HEAD}# nothing new\nmode: nonsense\n"))?;
        wait_until("the agent has said what it thinks of it", || {
            Ok(agent.log()?.contains("mode: \"nonsense\": must be iptables").then_some(()))
        })?;
        fs::write(
            &file,
            format!(
                "{HEAD}conntrack: {{tcpEstablishedTimeout: 1h1s, tcpCloseWaitTimeout: 61s, udpTimeout: 7s, \
                 udpStreamTimeout: 77s}}\n"
            ),
        )?;
        let status = agent.wait_until_ended()?;
        ensure!(status.code() == Some(1), "{status}");
        let log = agent.log()?;
        let last = log.lines().last().context("it says why")?;
        ensure!(last.contains("kube-proxy.conf changed: ending"), "{last}");
        expect_all_reach(&client.machine, &service, "near")?;

        agent.resume()?;
        agent.wait_until_synced()?;
        for (state, seconds) in [
            (FlowState::ESTABLISHED, 3_601),
            (FlowState::CLIENT_CLOSED, 61),
            (FlowState::BACKEND_CLOSED, 61),
            (FlowState::UNREPLIED, 7),
            (FlowState::REPLIED, 77),
            (FlowState::SYN_SENT, 120),
        ] {
            expect_timeout(agent, state, seconds)?;
        }
        // CT-32, CT-35: flows live by that from now on.
        let connections = Family::ALL
            .into_iter()
            .map(|family| Connection::open(from, service.frontend(family), Source::AnyPort))
            .collect::<Result<Vec<_>>>()?;
        expect_all_reach(&client.machine, &service, "near")?;
        expect_flows(agent, &[(FlowState::ESTABLISHED, 3_601), (FlowState::REPLIED, 77)])?;
        drop(connections);
        Ok(())
    });
}

fn expect_timeout(agent: &Agent, state: FlowState, seconds: u32) -> Result<()> {
    agent.namespace().run(|| {
        let settings =
            ArrayTable::<Settings>::open(&Pins::new(agent.bpffs()))?.get(0)?.context("settings")?;
        let (found, expected) = (settings.timeouts.of(state), settings.ticks(seconds));
        ensure!(found == expected, "{state:?}: {found:?} and not {expected:?}");
        Ok(())
    })
}

/// There is a flow in each of these states that may be silent for so many seconds.
fn expect_flows(agent: &Agent, expected: &[(FlowState, u32)]) -> Result<()> {
    agent.namespace().run(|| {
        let pins = Pins::new(agent.bpffs());
        let settings = ArrayTable::<Settings>::open(&pins)?.get(0)?.context("settings")?;
        let flows = HashTable::<Flows>::open(&pins)?;
        let entries = flows.entries().collect::<Result<Vec<_>, _>>()?;
        for &(state, seconds) in expected {
            let timeout = settings.ticks(seconds);
            let found =
                entries.iter().any(|(_, flow)| flow.head.state == state && flow.head.timeout == timeout);
            ensure!(found, "no flow in {state:?} lives {seconds} s: {entries:?}");
        }
        Ok(())
    })
}
