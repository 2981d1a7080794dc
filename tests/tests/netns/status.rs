//! What `sluice status` says is so.

use anyhow::ensure;
use proxy_common::drop::DropReason;
use sluice_tests::{harness::Setup, service::Service};

use crate::expect::expect_refused;

#[test]
fn status_names_the_devices_and_counts_the_drops_that_there_are() {
    Setup::new(1).alone().run(|cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let agent = &agents.agents[0];
        let service = Service::new("echo", 1);
        agents.serve(&service)?;
        let (devices, before) = agent.status()?;
        ensure!(devices == agent.attached()? && devices.contains(&pod.device), "attached to {devices:?}");
        ensure!(
            before.len() == DropReason::ALL.len() && before.values().all(|&count| count == 0),
            "{before:?}"
        );
        expect_refused(&pod.machine, service.vip())?;
        let (_, after) = agent.status()?;
        for reason in DropReason::ALL {
            let count = after.get(reason.as_str()).copied();
            ensure!(count == Some(agent.drops(reason)?), "{reason:?}: {after:?}");
            // A SYN and a datagram of each family. A socket that is just sending when the refusal comes sends again.
            let refused = count.is_some_and(|count| count >= 4);
            ensure!(refused == (reason == DropReason::NoBackend), "{reason:?}: {after:?}");
        }
        Ok(())
    });
}
