//! Full tables, and other capacities for those that are in use.

use std::{
    panic,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Result, ensure};
use sluice_tests::{
    agent::Agent,
    deployment::Deployment,
    harness::Setup,
    netns::Namespace,
    service::Service,
    topology::Family,
    traffic::UdpClient,
    wait::{catch, wait_until},
};

use crate::{
    Backend,
    lifecycle::{Witnesses, new_connections},
};

/// Room for little. A service with two pods takes eight backends: one for each pod, port and family.
const SMALL: [&str; 6] = [
    "--max-services=32",
    "--max-frontends=64",
    "--max-backends=16",
    "--max-flow-entries=262144",
    "--max-affinities=1024",
    "--max-sockets=1024",
];

/// Room for more.
const LARGE: [&str; 6] = [
    "--max-services=64",
    "--max-frontends=128",
    "--max-backends=64",
    "--max-flow-entries=1048576",
    "--max-affinities=2048",
    "--max-sockets=2048",
];

/// UDP flows that were there before: no datagram is lost, and none goes to another backend.
fn talk(from: &Namespace, service: &Service, over: &AtomicBool) -> Result<()> {
    let mut flows = Vec::new();
    for family in Family::ALL {
        let client = UdpClient::bind(from, family)?;
        let backend = client.ask(service.frontend(family), 0)?.backend;
        flows.push((client, service.frontend(family), backend));
    }
    let mut number = 1;
    while !over.load(Ordering::Relaxed) {
        for (client, to, backend) in &flows {
            let answer = client.ask(*to, number)?;
            ensure!(answer.backend == *backend, "{answer:?} after {backend}");
        }
        number += 1;
    }
    Ok(())
}

/// Does something to the agents while datagrams go back and forth and connections are made.
fn under_traffic(from: &Namespace, service: &Service, act: impl FnOnce() -> Result<()>) -> Result<()> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let talking = scope.spawn(|| talk(from, service, &over));
        let connecting = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                new_connections(from, service)?;
            }
            Ok(())
        });
        let acted = act();
        over.store(true, Ordering::Relaxed);
        let results = [talking.join(), connecting.join()];
        results.into_iter().fold(acted, |so_far, result| {
            so_far.and(result.unwrap_or_else(|panicked| panic::resume_unwind(panicked)))
        })
    })
}

/// Ends all agents and starts them with other arguments.
fn restart(agents: &mut Deployment, arguments: &[&str]) -> Result<()> {
    for agent in &mut agents.agents {
        agent.terminate()?;
        agent.tell(arguments);
        agent.resume()?;
        agent.wait_until_synced()?;
        // Moved after the programs have been attached, before anything else.
        wait_until("nothing is left to move", || Ok(is_moved(agent)?.then_some(())))?;
    }
    Ok(())
}

fn is_pinned(agent: &Agent, name: &str) -> Result<bool> {
    Ok(agent.pins()?.iter().any(|pin| pin.ends_with(name)))
}

/// Whether no table is being given another capacity.
fn is_moved(agent: &Agent) -> Result<bool> {
    Ok(!agent.pins()?.iter().any(|pin| pin.to_string_lossy().ends_with("-next")))
}

fn expect_capacity(agent: &Agent, table: &str, capacity: u32) -> Result<()> {
    let status = agent.ask(&["status"])?;
    let found = status.lines().find(|line| line.split_whitespace().next() == Some(table));
    let last = found.and_then(|line| line.split_whitespace().last());
    ensure!(last == Some(capacity.to_string().as_str()), "{table}: {last:?}, not {capacity}:\n{status}");
    Ok(())
}

#[test]
fn who_does_not_fit_hurts_nobody_and_is_served_once_there_is_room() {
    Setup::new(2).alone().telling(&SMALL).run(|cluster, agents| {
        let client = cluster.nodes[0].add_pod("client")?;
        let from = &client.machine.namespace;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let service = Service::new("echo", 1).with(&near.pod).with(&far.pod);
        let small = Service::new("small", 2).with(&near.pod);
        let late = Service::new("late", 3).with(&near.pod).with(&far.pod);
        agents.serve(&service)?;
        agents.serve(&small)?;
        agents.publish(&late)?;
        for agent in &agents.agents {
            wait_until("somebody finds no room", || {
                let status = agent.ask(&["status"])?;
                Ok((status.contains("default/late") && status.contains("FULL TABLE")).then_some(()))
            })?;
            let log = agent.log()?;
            ensure!(log.contains("table BACKENDS has no room for 2 more") && log.contains("NoRoom"), "{log}");
            let told = log.lines().filter(|line| line.contains("WARN default/late")).count();
            ensure!(told == 2, "two ports do not fit, and {told} were told of:\n{log}");
        }
        let scrape = agents.agents[0].scrape()?;
        ensure!(scrape.value("sluice_unfit_service_ports{table=\"BACKENDS\"}")? == 2.0, "{}", scrape.text());
        ensure!(scrape.value("sluice_table_capacity{table=\"BACKENDS\"}")? == 16.0);
        new_connections(from, &service)?;
        new_connections(from, &small)?;

        let witnesses = Witnesses::start(from, &service)?;
        under_traffic(from, &service, || restart(agents, &LARGE))?;
        witnesses.expect_progress("after the tables grew")?;
        for agent in &agents.agents {
            agent.wait_for_service(&late)?;
            expect_capacity(agent, "BACKENDS", 64)?;
            expect_capacity(agent, "FLOWS", 1_048_576)?;
            expect_capacity(agent, "SOCKETS", 2_048)?;
            ensure!(!agent.ask(&["status"])?.contains("FULL TABLE"));
        }
        new_connections(from, &late)?;

        // What is there needs more backends than that; flows have room in less.
        under_traffic(from, &service, || restart(agents, &SMALL))?;
        witnesses.expect_progress("after tables were to shrink")?;
        for agent in &agents.agents {
            let log = agent.log()?;
            ensure!(log.contains("--max-backends is too small for what is there"), "{log}");
            expect_capacity(agent, "BACKENDS", 64)?;
            expect_capacity(agent, "FLOWS", 262_144)?;
        }
        [&service, &small, &late].into_iter().try_for_each(|service| new_connections(from, service))?;
        witnesses.stop()
    });
}

/// An agent that ends at the worst moments, and comes back to do the rest or something else.
#[test]
fn an_agent_that_is_killed_while_tables_grow_loses_nothing() {
    Setup::new(1).alone().telling(&SMALL).run(|cluster, agents| {
        let client = cluster.nodes[0].add_pod("client")?;
        let from = &client.machine.namespace;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let service = Service::new("echo", 1).with(&near.pod);
        agents.serve(&service)?;
        let witnesses = Witnesses::start(from, &service)?;
        // Pins that come or go: a copy is being made; new tables are there, and nothing is in them; all flows are moved, or all.
        for (pin, comes, arguments) in [
            ("FRONTENDS-next", true, &LARGE),
            ("FLOWS-next", true, &SMALL),
            ("FLOWS-next", false, &LARGE),
            ("SOCKETS-next", false, &SMALL),
        ] {
            let agent = &mut agents.agents[0];
            agent.terminate()?;
            agent.tell(arguments);
            under_traffic(from, &service, || {
                agent.resume()?;
                catch("it has begun", || Ok(is_pinned(agent, pin)?.then_some(())))?;
                if !comes {
                    catch("it is over", || Ok((!is_pinned(agent, pin)?).then_some(())))?;
                }
                agent.kill()?;
                new_connections(from, &service)?;
                agent.resume()?;
                agent.wait_until_synced()?;
                wait_until("nothing is left to move", || Ok(is_moved(agent)?.then_some(())))
            })?;
            let flows = if *arguments == LARGE { 1_048_576 } else { 262_144 };
            expect_capacity(agent, "FLOWS", flows)?;
            witnesses.expect_progress("after an agent was killed")?;
        }
        witnesses.stop()
    });
}
