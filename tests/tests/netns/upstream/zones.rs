//! Endpoints meant for zones and nodes: section 38.6.

use anyhow::Result;
use sluice_tests::{
    deployment::Deployment,
    harness::with_agents,
    service::{Member, Service},
    topology::{Cluster, Pod},
};

use super::networking::expect_all_endpoints;
use crate::Backend;

/// Nodes in zones, a pod on each that asks.
fn with_zones(zones: &[&str], test: impl FnOnce(&Cluster, &Deployment, &[Pod]) -> Result<()>) {
    let nodes = u8::try_from(zones.len()).unwrap_or(u8::MAX);
    with_agents(nodes, |cluster, agents| {
        for ((node, agent), zone) in cluster.nodes.iter().zip(&agents.agents).zip(zones) {
            agent.manifests.publish_node_in(node, zone)?;
        }
        let pods = cluster.nodes.iter().map(|node| node.add_pod(&format!("pod-{}", node.number)));
        let pods: Vec<_> = pods.collect::<Result<_>>()?;
        test(cluster, agents, &pods)
    });
}

/// Every pod reaches these.
fn expect_same(pods: &[Pod], service: &Service, names: &[&str]) -> Result<()> {
    pods.iter().try_for_each(|pod| expect_all_endpoints(&pod.machine, service.vip(), names))
}

/// Whom each pod reaches.
fn expect_each(pods: &[Pod], service: &Service, names: &[&[&str]]) -> Result<()> {
    pods.iter()
        .zip(names)
        .try_for_each(|(pod, names)| expect_all_endpoints(&pod.machine, service.vip(), names))
}

/// E2E-107 too: what the annotation `topology-mode: Auto` comes to is in the hints.
#[test]
fn e2e_102_104_and_107_clients_stay_in_their_zone() {
    with_zones(&["a", "b", "c"], |cluster, agents, pods| {
        let backends = [0, 1, 2].map(|n| Backend::on(&cluster.nodes[n], ["in-a", "in-b", "in-c"][n]));
        let [a, b, c] = backends;
        let (a, b, c) = (a?, b?, c?);
        let member = |backend: &Backend, zone: &str| Member::of(&backend.pod).for_zone(zone);
        let service = Service::new("echo", 1)
            .with_member(member(&a, "a"))
            .with_member(member(&b, "b"))
            .with_member(member(&c, "c"));
        agents.serve(&service)?;
        expect_each(pods, &service, &[&["in-a"], &["in-b"], &["in-c"]])?;
        // TOPO-09: a node that moves takes its clients along.
        agents.agents[0].manifests.publish_node_in(&cluster.nodes[0], "b")?;
        agents.settle()?;
        expect_each(pods, &service, &[&["in-b"], &["in-b"], &["in-c"]])
    });
}

#[test]
fn e2e_103_and_104_a_zone_has_several_endpoints_or_none() {
    with_zones(&["a", "a", "b"], |cluster, agents, pods| {
        let one = Backend::on(&cluster.nodes[0], "one")?;
        let two = Backend::on(&cluster.nodes[1], "two")?;
        let service = Service::new("echo", 1)
            .with_member(Member::of(&one.pod).for_zone("a"))
            .with_member(Member::of(&two.pod).for_zone("a"));
        agents.serve(&service)?;
        // Nobody is meant for zone b, so everybody is.
        expect_same(pods, &service, &["one", "two"])?;
        let three = Backend::on(&cluster.nodes[2], "three")?;
        let service = service.with_member(Member::of(&three.pod).for_zone("b"));
        agents.serve(&service)?;
        expect_each(pods, &service, &[&["one", "two"], &["one", "two"], &["three"]])?;
        // TOPO-05: one endpoint without a hint, and none counts.
        let four = Backend::on(&cluster.nodes[2], "four")?;
        let service = service.with(&four.pod);
        agents.serve(&service)?;
        expect_same(pods, &service, &["one", "two", "three", "four"])
    });
}

#[test]
fn e2e_105_clients_prefer_their_node_then_their_zone_then_anybody() {
    with_zones(&["a", "a", "b"], |cluster, agents, pods| {
        let one = Backend::on(&cluster.nodes[0], "one")?;
        let service =
            Service::new("echo", 1).with_member(Member::of(&one.pod).for_zone("a").for_node("node-1"));
        agents.serve(&service)?;
        expect_same(pods, &service, &["one"])?;
        let two = Backend::on(&cluster.nodes[2], "two")?;
        let service = service.with_member(Member::of(&two.pod).for_zone("b").for_node("node-3"));
        agents.serve(&service)?;
        expect_each(pods, &service, &[&["one"], &["one"], &["two"]])
    });
}

#[test]
fn e2e_106_a_client_falls_back_while_its_nodes_endpoint_is_away() {
    with_zones(&["a", "b"], |cluster, agents, pods| {
        let one = Backend::on(&cluster.nodes[0], "one")?;
        let two = Backend::on(&cluster.nodes[1], "two")?;
        let service = Service::new("echo", 1)
            .with_member(Member::of(&one.pod).for_zone("a").for_node("node-1"))
            .with_member(Member::of(&two.pod).for_zone("b").for_node("node-2"));
        for _ in 0..2 {
            agents.serve(&service)?;
            expect_each(pods, &service, &[&["one"], &["two"]])?;
            agents.serve(&service.clone().without("one"))?;
            expect_each(pods, &service, &[&["two"], &["two"]])?;
        }
        Ok(())
    });
}
