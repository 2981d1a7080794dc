//! Whatever happens to the agent, a thousand open connections, streams of datagrams and new connections do not notice.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::loaded_programs;
use proxy_agent::datapath::{Pins, SocketHook, pinned_hooks, socket_hooks};
use sluice_tests::{
    agent::Agent,
    deployment::Deployment,
    harness::Setup,
    sandbox::Sandbox,
    scrape::HEALTH_PORT,
    service::Service,
    topology::{Cluster, Family},
    traffic::{Chatter, Connection, Passed, Source, Steady},
    variant::Variant,
    wait::wait_until,
};

use crate::Backend;

/// Connections that are open all the time.
const OPEN: usize = 1000;
const NODE_PORT: u16 = 30_080;

/// Where it happens.
struct Scene<'a> {
    cluster: &'a Cluster,
    agents: &'a mut Deployment,
    service: &'a Service,
    steady: &'a Steady,
}

/// There is such traffic from a pod and from the node itself, and some from outside, to a backend on the same node and one on another, while the
/// event happens.
fn undisturbed_by(event: fn(Scene<'_>) -> Result<()>) {
    let passed = happen(event);
    assert!(passed.is_none_or(|passed| passed.moves == 0), "streams went to other backends: {passed:?}");
}

/// As that, but datagrams may go to another backend. Returns what passed, unless this machine cannot do it.
fn happen(event: fn(Scene<'_>) -> Result<()>) -> Option<Passed> {
    let mut result = None;
    Setup::new(2).alone().run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let client = node.add_pod("client")?;
        let near = Backend::patient_on(node, "near")?;
        let far = Backend::patient_on(&cluster.nodes[1], "far")?;
        let service = Service::new("echo", 1).with(&near.pod).with(&far.pod).with_node_port(NODE_PORT);
        agents.serve(&service)?;
        // Those with the backend on the other node have the node's address there.
        let outside = (0..8).map(|number| {
            let to = node.addresses.at(NODE_PORT).of(Family::ALL[number % 2]);
            Chatter::start(Connection::open(&cluster.client.namespace, to, Source::AnyPort)?)
        });
        let outside = outside.collect::<Result<Vec<_>>>()?;
        let clients = [&client.machine.namespace, &node.namespace];
        let servers = [&near, &far].map(|backend| &backend.pod.machine.namespace);
        let steady = Steady::start(&clients, &service, &servers, OPEN)?;
        steady.expect_use()?;
        event(Scene { cluster, agents, service: &service, steady: &steady })?;
        steady.expect_use()?;
        outside.iter().try_for_each(|talk| talk.expect_more(2)).context("from outside")?;
        outside.into_iter().try_for_each(|talk| talk.stop().map(drop))?;
        let passed = steady.stop()?;
        println!("nothing was lost: {passed:?}");
        ensure!(passed.connections == OPEN, "{passed:?}");
        result = Some(passed);
        // They go on doing as they are told.
        agents.serve(&service.without("near"))
    });
    result
}

/// The agents end, and others run from now on.
fn replace(agents: &mut Deployment, binary: &Path) -> Result<()> {
    terminate(agents)?;
    agents.agents.iter_mut().for_each(|agent| agent.run_from(binary.to_owned()));
    resume(agents)
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
    let programs = agent.namespace().run(|| {
        let pins = Pins::new(agent.bpffs());
        let devices = pinned_hooks(&pins)?.into_iter().map(|hook| (hook.program.name(), hook.program_id));
        let sockets = socket_hooks(&pins).into_iter().map(|(program, hook)| match hook {
            SocketHook::Attached { program: id, .. } => (program.name(), Some(id)),
            _ => (program.name(), None),
        });
        Ok(devices.chain(sockets).collect::<Vec<_>>())
    })?;
    let tags: BTreeMap<_, _> =
        loaded_programs().flatten().map(|program| (program.id(), program.tag())).collect();
    let tag = |id: Option<u32>| id.and_then(|id| tags.get(&id)).copied().context("a program of that id");
    programs.into_iter().map(|(name, id)| Ok((name, tag(id)?))).collect()
}

fn all_code(agents: &Deployment) -> Result<Vec<BTreeMap<&'static str, u64>>> {
    agents.agents.iter().map(code).collect()
}

#[test]
fn restarts_are_not_noticed() {
    undisturbed_by(|Scene { agents, steady, .. }| {
        terminate(agents)?;
        steady.expect_use().context("without agents")?;
        resume(agents)
    });
}

#[test]
fn agents_that_are_killed_are_not_missed() {
    undisturbed_by(|Scene { agents, steady, .. }| {
        agents.agents.iter_mut().try_for_each(Agent::kill)?;
        steady.expect_use().context("without agents")?;
        resume(agents)
    });
}

/// As soon as they have begun to load, attach or write, and whatever they are at then.
#[test]
fn agents_that_are_killed_while_they_start_are_not_missed() {
    undisturbed_by(|Scene { agents, steady, .. }| {
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
    undisturbed_by(|Scene { agents, steady, .. }| {
        let built = sluice_tests::agent::binary()?;
        let before = all_code(agents)?;
        for (binary, is_new) in [(Variant::Rewritten.build()?, true), (built, false)] {
            replace(agents, &binary)?;
            let now = all_code(agents)?;
            ensure!((now != before) == is_new, "{before:x?} {now:x?}");
            steady.expect_use().with_context(|| format!("from {}", binary.display()))?;
        }
        Ok(())
    });
}

/// Those of the agent before stand in for them, on devices that come later too. The agent says so, and so does whoever asks
/// whether it is ready; load balancers and kubelet have nothing to do about it.
#[test]
fn programs_that_the_kernel_refuses_leave_those_that_serve() {
    undisturbed_by(|Scene { cluster, agents, service, steady }| {
        let built = sluice_tests::agent::binary()?;
        for (program, last) in [("sluice_ingress", "late"), ("sluice_connect4", "later")] {
            // Other ones first, so that it shows whose serve.
            replace(agents, &Variant::Rewritten.build()?)?;
            let before = all_code(agents)?;
            replace(agents, &Variant::Refused(program).build()?)?;
            steady.expect_use().with_context(|| format!("without {program}"))?;
            for (agent, before) in agents.agents.iter().zip(&before) {
                let now = code(agent)?;
                ensure!(before.get(program) == now.get(program), "{program}: {before:x?} {now:x?}");
                ensure!(*before != now, "the other programs are this agent's: {now:x?}");
                let log = agent.log()?;
                let said = log.lines().find(|line| line.contains(&format!("refused program {program}: ")));
                let said = said.with_context(|| format!("nothing is said of {program}"))?;
                ensure!(said.contains("ERROR") && said.contains("Verifier output"), "{said}");
                let reply = agent.ask_over_http(HEALTH_PORT, "/readyz")?;
                ensure!(reply.status == 503 && reply.body.contains(program), "{reply:?}");
                ensure!(agent.scrape()?.value("sluice_refused_programs")? == 1.0);
                ensure!(agent.ask_over_http(HEALTH_PORT, "/livez")?.status == 200);
            }
            let late = cluster.nodes[0].add_pod(last)?;
            agents.settle()?;
            for family in Family::ALL {
                Connection::open(&late.machine.namespace, service.frontend(family), Source::AnyPort)?;
            }
        }
        replace(agents, &built)?;
        for agent in &agents.agents {
            ensure!(agent.ask_over_http(HEALTH_PORT, "/readyz")?.status == 200);
        }
        Ok(())
    });
}

#[test]
fn changes_of_configuration_are_not_noticed() {
    undisturbed_by(|Scene { agents, steady, .. }| {
        for arguments in
            [&["--masquerade-all"][..], &["--socket-lb=host-only", "--conntrack-udp-timeout=9s"], &[]]
        {
            terminate(agents)?;
            agents.agents.iter_mut().for_each(|agent| agent.tell(arguments));
            resume(agents)?;
            steady.expect_use().with_context(|| format!("told {arguments:?}"))?;
        }
        Ok(())
    });
}

/// What this build's pins are below.
fn own(agent: &Agent) -> Result<PathBuf> {
    let root = Pins::new(agent.bpffs()).root().to_owned();
    Ok(Sandbox::shared()?.view(&root))
}

/// The directories of pins, one for each layout.
fn layouts(agent: &Agent) -> Result<Vec<String>> {
    let dir = fs::read_dir(Sandbox::shared()?.view(agent.bpffs()))?;
    let mut names =
        dir.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// The agents are killed, and what they have left is another layout's from now on.
fn leave_behind(agents: &mut Deployment, layout: &str) -> Result<()> {
    agents.agents.iter_mut().try_for_each(|agent| {
        agent.kill()?;
        let own = own(agent)?;
        fs::rename(&own, own.with_file_name(layout)).context("rename the layout")
    })
}

/// Connections of the old layout go on by the programs of the old layout, also when that one comes back. Datagrams go by the
/// new one's at once, which may choose another backend.
#[test]
fn connections_outlive_a_change_of_layout_and_back() {
    let passed = happen(|Scene { cluster, agents, steady, .. }| {
        let from = cluster.nodes[0].add_pod("other")?.machine.namespace;
        let backend = Backend::on(&cluster.nodes[0], "backend")?;
        let gone = Service::new("gone", 2).with(&backend.pod);
        agents.serve(&gone)?;
        Connection::open(&from, gone.frontend(Family::V4), Source::AnyPort)?;

        leave_behind(agents, "v3")?;
        resume(agents)?;
        steady.expect_use().context("in another layout")?;
        agents.withdraw(&gone)?;
        let stale = Connection::open(&from, gone.frontend(Family::V4), Source::AnyPort);
        ensure!(stale.is_err(), "the old layout begins connections: {stale:?}");
        for agent in &agents.agents {
            let own = own(agent)?;
            let own = own.file_name().context("a name")?.to_string_lossy();
            ensure!(layouts(agent)? == ["v3", &*own], "{:?}", layouts(agent));
            ensure!(agent.log()?.contains("another layout begins no more connections"));
        }

        leave_behind(agents, "v9")?;
        for agent in &agents.agents {
            let own = own(agent)?;
            fs::rename(own.with_file_name("v3"), &own)?;
        }
        resume(agents)?;
        steady.expect_use().context("in the first layout again")
    });
    // Two streams, two changes.
    assert!(passed.is_none_or(|passed| passed.moves <= 4), "{passed:?}");
}

/// When every connection had time to end. The timeout stands for that time.
#[test]
fn layouts_that_nobody_needs_any_more_are_removed() {
    Setup::new(1).telling(&["--conntrack-tcp-timeout-established=1s"]).alone().run(|_, agents| {
        leave_behind(agents, "v3")?;
        resume(agents)?;
        let mark = own(&agents.agents[0])?.with_file_name("v3/retired");
        wait_until("the other layout is old enough", || {
            Ok((fs::metadata(&mark)?.modified()?.elapsed()?.as_secs() >= 1).then_some(()))
        })?;
        agents.agents[0].kill()?;
        resume(agents)?;
        let agent = &agents.agents[0];
        ensure!(layouts(agent)?.len() == 1, "{:?}", layouts(agent));
        ensure!(agent.log()?.contains("removed the links and tables of another layout"));
        Ok(())
    });
}
