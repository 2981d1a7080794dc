//! The programs for sockets, when the agent is gone or somebody meddles with them.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use proxy_agent::datapath::detach;
use serde_json::Value;
use sluice_tests::{
    agent::Agent,
    harness::{Setup, unsupported},
    sandbox::own_cgroup,
    service::Service,
    wait::{wait_at_most, wait_until},
};

use super::{
    LOOPBACK, NODE_PORT, expect_failure_at_once, expect_pinned, expect_reach_every_way,
    expect_refused_at_once, host,
};
use crate::{Backend, expect::Seen};

/// BPF-10, LIFE-13.
#[test]
fn the_host_is_served_while_the_agent_is_dead_and_all_through_its_restart() {
    Setup::new(1).alone().run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let near = Backend::on(node, "near")?;
        let service = Service::new("echo", 1).with(&near.pod).with_node_port(NODE_PORT);
        agents.serve(&service)?;
        let reach = || -> Result<()> {
            for to in [service.vip(), LOOPBACK.at(NODE_PORT)] {
                expect_reach_every_way(&host(node), to, "near", &Seen::node(node))?;
            }
            Ok(())
        };
        reach().context("at first")?;
        for _ in 0..2 {
            agents.agents[0].kill()?;
            reach().context("after the agent was killed")?;
            agents.agents[0].resume()?;
            let restarted = AtomicBool::new(false);
            thread::scope(|scope| {
                let connecting = scope.spawn(|| -> Result<u32> {
                    let mut rounds = 0;
                    while !restarted.load(Ordering::Relaxed) {
                        reach().context("while the agent was restarted")?;
                        rounds += 1;
                    }
                    Ok(rounds)
                });
                let synced = agents.agents[0].wait_until_synced();
                restarted.store(true, Ordering::Relaxed);
                let rounds =
                    connecting.join().unwrap_or_else(|panicked| std::panic::resume_unwind(panicked))?;
                ensure!(rounds > 0, "nothing was tried");
                synced
            })?;
            expect_pinned(agents.agents[0].pins()?, 8)?;
            reach().context("after the agent was restarted")?;
        }
        agents.serve(&Service::new("echo", 1).with_node_port(NODE_PORT))?;
        expect_refused_at_once(&host(node), service.vip())
    });
}

/// SYNC-06: links that are cut off, and pins that are removed.
#[test]
fn programs_for_sockets_that_somebody_has_detached_are_put_back() {
    Setup::new(1).alone().run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let near = Backend::on(node, "near")?;
        let service = Service::new("echo", 1).with(&near.pod).with_node_port(NODE_PORT);
        agents.serve(&service)?;
        let agent = &mut agents.agents[0];
        let meddle = |agent: &Agent| -> Result<()> {
            for (pin, number) in agent.links("cgroup-")?.iter().zip(0..) {
                match number % 3 {
                    0 => fs::remove_file(pin)?,
                    1 => detach(pin)?,
                    _ => {}
                }
            }
            Ok(())
        };
        meddle(agent)?;
        // The kernel cuts a link some time after its last pin is gone.
        wait_until("nobody is served", || Ok(expect_failure_at_once(&host(node), service.vip()).ok()))?;
        // With every sweep, which is every half minute.
        wait_at_most(Duration::from_secs(60), "the programs are back", || {
            let status = agent.ask(&["status"])?;
            Ok(status.contains("8 of 8 programs attached").then_some(()))
        })?;
        for to in [service.vip(), LOOPBACK.at(NODE_PORT)] {
            expect_reach_every_way(&host(node), to, "near", &Seen::node(node))?;
        }
        expect_pinned(agent.pins()?, 8)?;
        ensure!(agent.log()?.contains("somebody has detached programs from sockets"), "it said nothing");

        // Nobody puts anything back while the agent is dead, and the status says what is wrong.
        agent.kill()?;
        meddle(agent)?;
        let status: Value = serde_json::from_str(&agent.ask(&["status", "-o", "json"])?)?;
        let reasons: Vec<_> = missing(&status).collect();
        let expected = ["detached, or its cgroup is gone", "no pin"];
        ensure!(expected.iter().all(|reason| reasons.contains(reason)) && reasons.len() == 6, "{status:#}");
        let status = agent.ask(&["status"])?;
        ensure!(status.contains("2 of 8 programs attached") && status.contains("no pin"), "{status}");
        agent.resume()?;
        agent.wait_until_synced()?;
        expect_pinned(agent.pins()?, 8)?;
        expect_reach_every_way(&host(node), service.vip(), "near", &Seen::node(node))
    });
}

/// Why programs are missing.
fn missing(status: &Value) -> impl Iterator<Item = &str> {
    status["sockets"]["missing"].as_array().into_iter().flatten().filter_map(|hook| hook["reason"].as_str())
}

/// As in a container that is made again under the same name.
#[test]
fn a_cgroup_that_is_removed_is_served_again_when_it_is_back() {
    let cgroup = match own_cgroup() {
        Ok(own) => own.join("removed"),
        Err(reason) => return unsupported(&reason),
    };
    fs::create_dir(&cgroup).unwrap_or_else(|error| panic!("create {}: {error}", cgroup.display()));
    let told = format!("--cgroup={}", cgroup.display());
    Setup::new(1).telling(&[&told]).alone().run(|_, agents| {
        let agent = &agents.agents[0];
        let status =
            || -> Result<Value> { Ok(serde_json::from_str(&agent.ask(&["status", "-o", "json"])?)?) };
        let attached = |count: usize| {
            move |status: &Value| status["sockets"]["hooks"].as_array().map(Vec::len) == Some(count)
        };
        let before = status()?;
        ensure!(attached(8)(&before) && before["sockets"]["cgroup_is_root"] == false, "{before:#}");
        fs::remove_dir(&cgroup)?;
        // The kernel takes its time.
        let after = wait_until("the links are cut", || Ok(Some(status()?).filter(attached(0))))?;
        let reasons: Vec<_> = missing(&after).collect();
        ensure!(reasons == ["detached, or its cgroup is gone"; 8], "{after:#}");
        fs::create_dir(&cgroup)?;
        wait_at_most(Duration::from_secs(60), "the programs are back", || {
            Ok(attached(8)(&status()?).then_some(()))
        })
    });
    // At worst it stays, and is empty.
    drop(fs::remove_dir(&cgroup));
}
