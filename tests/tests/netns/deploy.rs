//! What the shipped manifest lets the agent's container do is what the agent needs, no less and no more.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    agent::Agent,
    harness::Setup,
    netns::Namespace,
    service::Service,
    shipped::Shipped,
    topology::Family,
    traffic::{Protocol, Spread},
};

use crate::Backend;

const NODE_PORT: u16 = 30_080;

fn expect_served(from: &[&Namespace], service: &Service) -> Result<()> {
    for from in from {
        for family in Family::ALL {
            for protocol in Protocol::ALL {
                let spread = Spread::measure(from, service.frontend(family), protocol, 20, |_| {});
                let served = spread.and_then(|spread| spread.expect_uniform_over(&service.pods()));
                served.with_context(|| format!("{protocol} over {family} from {}", from.name()))?;
            }
        }
    }
    Ok(())
}

/// The agent says which one it lacks, and ends.
fn expect_refusal(agent: &mut Agent, capabilities: &BTreeSet<String>, missing: &str) -> Result<()> {
    let others = capabilities.iter().filter(|other| *other != missing).cloned().collect();
    agent.contain(&others);
    let before = agent.log()?.len();
    agent.resume()?;
    ensure!(agent.wait_until_synced().is_err(), "it works without {missing}");
    let log = agent.log()?;
    let said = log.get(before..).unwrap_or_default();
    ensure!(said.contains(&format!("the process lacks CAP_{missing}")), "without {missing}: {said}");
    Ok(())
}

#[test]
fn an_agent_with_the_capabilities_of_its_container_serves_traffic_and_needs_each_of_them() {
    Setup::new(1).alone().run(|cluster, agents| {
        let capabilities = Shipped::read()?.capabilities()?;
        let node = &cluster.nodes[0];
        let client = node.add_pod("client")?;
        let backend = Backend::on(node, "backend")?;
        let service = Service::new("echo", 1).with(&backend.pod).with_node_port(NODE_PORT);
        agents.publish(&service)?;

        // Nothing is left of an agent that had more.
        let agent = &mut agents.agents[0];
        agent.kill()?;
        agent.forget_everything()?;
        for missing in &capabilities {
            expect_refusal(agent, &capabilities, missing)?;
        }
        agent.contain(&capabilities);
        agent.resume()?;
        agent.wait_until_synced()?;
        agents.settle()?;
        let clients = [&client.machine.namespace, &node.namespace];
        expect_served(&clients, &service)?;

        // What comes later: another device, another agent that takes over.
        let late = node.add_pod("late")?;
        agents.settle()?;
        expect_served(&[&late.machine.namespace], &service)?;
        let agent = &mut agents.agents[0];
        agent.terminate()?;
        agent.resume()?;
        agent.wait_until_synced()?;
        expect_served(&clients, &service)?;
        let (devices, _) = agent.status()?;
        ensure!(devices.contains(&late.device), "status shows {devices:?}");
        Ok(())
    });
}
