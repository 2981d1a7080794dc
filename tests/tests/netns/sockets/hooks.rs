//! The programs for sockets, when the agent is gone or somebody meddles with them.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{harness::Setup, service::Service};

use super::{LOOPBACK, NODE_PORT, expect_pinned, expect_reach_every_way, expect_refused_at_once, host};
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
