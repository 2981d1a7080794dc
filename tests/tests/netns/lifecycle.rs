//! The datapath does not need the agent.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    counters,
    deployment::Deployment,
    harness::Setup,
    netns::Namespace,
    service::Service,
    topology::Family,
    traffic::{Chatter, Connection, Direction, Protocol, Pump, Source, Spread},
};

use crate::Backend;

/// Bytes that show that a transfer goes on, whatever was in buffers.
const SOME: u64 = 50 << 20;

/// Connections that were there before, whatever happens in between.
pub(crate) struct Witnesses {
    pumps: Vec<Pump>,
    talks: Vec<Chatter>,
}

impl Witnesses {
    pub(crate) fn start(from: &Namespace, service: &Service) -> Result<Self> {
        let mut witnesses = Self { pumps: Vec::new(), talks: Vec::new() };
        for (family, direction) in Family::ALL.into_iter().zip(Direction::ALL) {
            let open = || Connection::open(from, service.frontend(family), Source::AnyPort);
            witnesses.pumps.push(Pump::start(open()?, direction));
            witnesses.talks.push(Chatter::start(open()?)?);
        }
        witnesses.expect_progress("at first")?;
        Ok(witnesses)
    }

    pub(crate) fn expect_progress(&self, when: &'static str) -> Result<()> {
        self.pumps.iter().try_for_each(|pump| pump.expect_more(SOME)).context(when)?;
        self.talks.iter().try_for_each(|talk| talk.expect_more(20)).context(when)
    }

    pub(crate) fn stop(self) -> Result<()> {
        self.pumps.into_iter().try_for_each(|pump| pump.stop().map(drop))?;
        self.talks.into_iter().try_for_each(|talk| talk.stop().map(drop))
    }
}

pub(crate) fn new_connections(from: &Namespace, service: &Service) -> Result<()> {
    for family in Family::ALL {
        for protocol in Protocol::ALL {
            let to = service.frontend(family);
            Spread::measure(from, to, protocol, 100, |_| {})?.expect_uniform_over(&service.pods())?;
        }
    }
    let repeated = counters::syn_retransmissions(from)?;
    ensure!(repeated == 0, "{repeated} SYNs were lost");
    Ok(())
}

/// A starting agent sweeps the flow table at once, so this also shows that a sweep spares flows that are busy while it
/// runs.
#[test]
fn a_killed_and_restarted_agent_loses_no_transfer_and_no_new_connection() {
    Setup::new(2).alone().run(|cluster, agents| {
        let client = cluster.nodes[0].add_pod("client")?;
        let from = &client.machine.namespace;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let service = Service::new("echo", 1).with(&near.pod).with(&far.pod);
        agents.serve(&service)?;
        let witnesses = Witnesses::start(from, &service)?;

        agents.agents.iter_mut().try_for_each(|agent| agent.kill())?;
        witnesses.expect_progress("after the agents were killed")?;
        new_connections(from, &service)?;

        // Connections are made all through the restart, not only before and after it.
        agents.agents.iter_mut().try_for_each(|agent| agent.resume())?;
        let restarted = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let connecting = scope.spawn(|| {
                while !restarted.load(Ordering::Relaxed) {
                    new_connections(from, &service)?;
                }
                Ok(())
            });
            let synced = agents.agents.iter_mut().try_for_each(|agent| agent.wait_until_synced());
            restarted.store(true, Ordering::Relaxed);
            let connected = connecting.join();
            synced.and(connected.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked)))
        })?;
        witnesses.expect_progress("after the agents were restarted")?;
        new_connections(from, &service)?;
        witnesses.stop()?;
        expect_obedience(agents, from, &service)
    });
}

#[test]
fn a_terminated_agent_leaves_its_datapath_working() {
    Setup::new(2).alone().run(|cluster, agents| {
        let client = cluster.nodes[0].add_pod("client")?;
        let from = &client.machine.namespace;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let service = Service::new("echo", 1).with(&near.pod).with(&far.pod);
        agents.serve(&service)?;
        let witnesses = Witnesses::start(from, &service)?;
        for agent in &mut agents.agents {
            let status = agent.terminate()?;
            ensure!(status.success(), "the agent of {} ended with {status}", agent.node());
        }
        witnesses.expect_progress("after the agents ended")?;
        new_connections(from, &service)?;
        witnesses.stop()
    });
}

#[test]
fn an_agent_catches_up_with_what_changed_while_it_was_down() {
    Setup::new(2).alone().run(|cluster, agents| {
        let client = cluster.nodes[0].add_pod("client")?;
        let from = &client.machine.namespace;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let service = Service::new("echo", 1).with(&near.pod).with(&far.pod);
        let deleted = Service::new("deleted", 2).with(&near.pod);
        agents.serve(&service)?;
        agents.serve(&deleted)?;
        agents.agents.iter_mut().try_for_each(|agent| agent.kill())?;
        agents.agents.iter().try_for_each(|agent| agent.manifests.withdraw(&deleted))?;
        let changed = service.without("near");
        agents.publish(&changed)?;
        agents.agents.iter_mut().try_for_each(|agent| agent.resume())?;
        for agent in &agents.agents {
            agent.wait_for_service(&changed)?;
            agent.wait_for_absence(&deleted)?;
        }
        new_connections(from, &changed)
    });
}

/// The agents still, or again, do what they are told.
fn expect_obedience(agents: &Deployment, from: &Namespace, service: &Service) -> Result<()> {
    let changed = service.clone().without("near");
    agents.serve(&changed)?;
    new_connections(from, &changed)
}
