//! Whatever happens to the agent, a thousand open connections, streams of datagrams and new connections do not notice.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use aya::programs::loaded_programs;
use proxy_agent::datapath::{Pins, pinned_hooks};
use sluice_tests::{
    agent::Agent,
    deployment::Deployment,
    harness::Setup,
    service::Service,
    traffic::{Passed, Steady},
    variant::Variant,
};

use crate::Backend;

/// Connections that are open all the time.
const OPEN: usize = 1000;

/// What happens to the agents, while there is such traffic.
type Event = fn(&mut Deployment, &Steady) -> Result<()>;

/// From a pod and from the node itself, to a backend on the same node and one on another.
fn undisturbed_by(event: Event) {
    Setup::new(2).alone().run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let client = node.add_pod("client")?;
        let near = Backend::on(node, "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let service = Service::new("echo", 1).with(&near.pod).with(&far.pod);
        agents.serve(&service)?;
        let clients = [&client.machine.namespace, &node.namespace];
        let servers = [&near, &far].map(|backend| &backend.pod.machine.namespace);
        let steady = Steady::start(&clients, &service, &servers, OPEN)?;
        steady.expect_use()?;
        event(agents, &steady)?;
        steady.expect_use()?;
        let passed = steady.stop()?;
        let Passed { connections, messages, datagrams, new } = passed;
        println!("{connections} connections, {messages} messages, {datagrams} datagrams, {new} new connections");
        ensure!(connections == OPEN, "{passed:?}");
        // They go on doing as they are told.
        agents.serve(&service.without("near"))
    });
}

/// Every agent runs again, and has caught up.
fn resume(agents: &mut Deployment) -> Result<()> {
    agents.agents.iter_mut().try_for_each(Agent::resume)?;
    agents.agents.iter_mut().try_for_each(Agent::wait_until_synced)?;
    agents.settle()
}

fn terminate(agents: &mut Deployment) -> Result<()> {
    agents.agents.iter_mut().try_for_each(|agent| {
        let status = agent.terminate()?;
        ensure!(status.success(), "the agent of {} ended with {status}", agent.node());
        Ok(())
    })
}

/// The tags of the programs that are attached, which are digests of their code, by program.
fn code(agent: &Agent) -> Result<BTreeMap<&'static str, u64>> {
    let hooks = agent.namespace().run(|| Ok(pinned_hooks(&Pins::new(agent.bpffs()))?))?;
    let tags: BTreeMap<_, _> =
        loaded_programs().flatten().map(|program| (program.id(), program.tag())).collect();
    let tag = |id: Option<u32>| id.and_then(|id| tags.get(&id)).copied().context("a program of that id");
    hooks.iter().map(|hook| Ok((hook.program.name(), tag(hook.program_id)?))).collect()
}

fn all_code(agents: &Deployment) -> Result<Vec<BTreeMap<&'static str, u64>>> {
    agents.agents.iter().map(code).collect()
}

#[test]
fn restarts_are_not_noticed() {
    undisturbed_by(|agents, steady| {
        terminate(agents)?;
        steady.expect_use().context("without agents")?;
        resume(agents)
    });
}

#[test]
fn agents_that_are_killed_are_not_missed() {
    undisturbed_by(|agents, steady| {
        agents.agents.iter_mut().try_for_each(Agent::kill)?;
        steady.expect_use().context("without agents")?;
        resume(agents)
    });
}

/// As soon as they have begun to load, attach or write, and whatever they are at then.
#[test]
fn agents_that_are_killed_while_they_start_are_not_missed() {
    undisturbed_by(|agents, steady| {
        agents.agents.iter_mut().try_for_each(Agent::kill)?;
        for word in ["datapath loaded", " attached ", "attached to sockets", " synced "] {
            for agent in &mut agents.agents {
                agent.resume()?;
                agent.wait_until_said(word)?;
                agent.kill()?;
            }
            steady.expect_use().with_context(|| format!("killed after {word:?}"))?;
        }
        resume(agents)
    });
}

#[test]
fn upgrades_to_other_programs_and_downgrades_are_not_noticed() {
    undisturbed_by(|agents, steady| {
        let built = sluice_tests::agent::binary()?;
        let before = all_code(agents)?;
        for (binary, is_new) in [(Variant::Rewritten.build()?, true), (built, false)] {
            terminate(agents)?;
            agents.agents.iter_mut().for_each(|agent| agent.run_from(binary.clone()));
            resume(agents)?;
            let now = all_code(agents)?;
            ensure!((now != before) == is_new, "{before:x?} {now:x?}");
            steady.expect_use().with_context(|| format!("from {}", binary.display()))?;
        }
        Ok(())
    });
}

#[test]
fn changes_of_configuration_are_not_noticed() {
    undisturbed_by(|agents, steady| {
        for arguments in [&["--masquerade-all"][..], &["--socket-lb=host-only", "--conntrack-udp-timeout=9s"], &[]] {
            terminate(agents)?;
            agents.agents.iter_mut().for_each(|agent| agent.tell(arguments));
            resume(agents)?;
            steady.expect_use().with_context(|| format!("told {arguments:?}"))?;
        }
        Ok(())
    });
}
