//! What people write into manifests.

use anyhow::Result;
use sluice_tests::{agent::Agent, harness::Setup, service::Service, wait::wait_until};

use crate::{Backend, expect::expect_all_reach};

#[test]
fn a_broken_manifest_is_named_and_disturbs_no_other() {
    Setup::new(1).alone().run(|cluster, agents| {
        let client = cluster.nodes[0].add_pod("client")?;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let agent = &agents.agents[0];
        let good = Service::new("good", 1).with(&near.pod);
        agents.serve(&good)?;

        agent.manifests.write_text("unreadable.yaml", "apiVersion: v1\nkind: Service\nmetadata: [\n")?;
        wait_for_log(agent, &["unreadable.yaml"])?;
        let wrong = "apiVersion: v1\nkind: Service\nmetadata: {name: wrong, namespace: default}\n\
                     spec: {clusterIP: 10.96.0.300, clusterIPs: [10.96.0.300], ports: [{port: 80}]}\n";
        agent.manifests.write_text("wrong.yaml", wrong)?;
        wait_for_log(agent, &["wrong", "clusterIP", "10.96.0.300"])?;

        let better = Service::new("better", 2).with(&near.pod);
        agents.serve(&better)?;
        for service in [&good, &better] {
            expect_all_reach(&client.machine, service, "near")?;
        }
        Ok(())
    });
}

#[test]
fn a_manifest_that_breaks_does_not_take_its_service_away_and_serves_again_when_repaired() {
    Setup::new(1).alone().run(|cluster, agents| {
        let client = cluster.nodes[0].add_pod("client")?;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let service = Service::new("echo", 1).with(&near.pod);
        agents.serve(&service)?;
        let agent = &agents.agents[0];
        agent.manifests.write_text("echo.yaml", "kind: Serv")?;
        wait_for_log(agent, &["echo.yaml"])?;
        expect_all_reach(&client.machine, &service, "near")?;
        agents.serve(&service)?;
        expect_all_reach(&client.machine, &service, "near")
    });
}

/// Waits for a line of the log that has all these words.
fn wait_for_log(agent: &Agent, words: &[&str]) -> Result<()> {
    wait_until(&format!("the log names {words:?}"), || {
        let log = agent.log()?;
        Ok(log.lines().any(|line| words.iter().all(|word| line.contains(word))).then_some(()))
    })
}
