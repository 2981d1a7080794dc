//! Policies and source ranges, as processes of the node meet them.

use anyhow::ensure;
use sluice_tests::{
    harness::{Setup, with_agents},
    service::{PORT, Service},
    topology::{Addresses, Family},
    traffic::Protocol,
    wait::wait_until,
};

use super::{BALANCER, EXTERNAL, LOOPBACK, NODE_PORT, expect_failure_at_once, expect_reach_every_way, host};
use crate::{
    Backend,
    expect::{Seen, ask, expect_reach},
};

/// E2E-033, ITP-01, ITP-02: from the host's network to pods.
#[test]
fn internal_local_serves_the_host_of_the_endpoints_node_only() {
    with_agents(2, |cluster, agents| {
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let service = Service::new("echo", 1).local_for_inside();
        for (backend, other, here, there) in [(&near, &far, 0, 1), (&far, &near, 1, 0)] {
            let service = service.clone().with(&backend.pod);
            agents.serve(&service)?;
            let (here, there) = (&cluster.nodes[here], &cluster.nodes[there]);
            expect_reach_every_way(&host(here), service.vip(), backend.pod.name(), &Seen::node(here))?;
            let before = backend.server.connections() + backend.server.datagrams();
            expect_failure_at_once(&host(there), service.vip())?;
            ensure!(backend.server.connections() + backend.server.datagrams() == before, "it was reached");
            // Everybody meets their own.
            agents.serve(&service.with(&other.pod))?;
            for _ in 0..5 {
                expect_reach(&host(here), Addresses::vip(1).at(PORT), backend.pod.name(), &Seen::node(here))?;
            }
        }
        Ok(())
    });
}

/// DEC-21, BPF-03.
#[test]
fn external_local_lets_the_host_reach_any_endpoint_as_the_node() {
    with_agents(2, |cluster, agents| {
        let node = &cluster.nodes[0];
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let service = Service::new("echo", 1)
            .with(&far.pod)
            .with_external_ips(Addresses::elsewhere(EXTERNAL))
            .with_load_balancer(Addresses::elsewhere(BALANCER), "VIP")
            .with_node_port(NODE_PORT)
            .local_for_outside();
        agents.serve(&service)?;
        for to in [
            node.addresses.at(NODE_PORT),
            LOOPBACK.at(NODE_PORT),
            Addresses::elsewhere(EXTERNAL).at(PORT),
            Addresses::elsewhere(BALANCER).at(PORT),
        ] {
            expect_reach_every_way(&host(node), to, "far", &Seen::node(node))?;
        }
        Ok(())
    });
}

/// The host's processes are admitted as the node's address: that of the way out.
#[test]
fn source_ranges_know_the_host_by_the_nodes_address() {
    Setup::new(1).alone().run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let way_out = cluster.client.addresses;
        node.namespace
            .ip(&format!("route add default via {}\nroute add default via {}", way_out.v4, way_out.v6))?;
        let near = Backend::on(node, "near")?;
        let to = Addresses::elsewhere(BALANCER);
        let service = Service::new("echo", 1).with(&near.pod).with_load_balancer(to, "VIP");
        agents.serve(&service.clone().with_source_ranges(&["192.168.100.0/24", "fd00:100::/64"]))?;
        for family in Family::ALL {
            wait_until("the new way out decides", || {
                Ok(ask(&host(node), to.at(PORT).of(family), Protocol::Tcp).ok())
            })?;
        }
        expect_reach(&host(node), to.at(PORT), "near", &Seen::node(node))?;
        agents.serve(&service.with_source_ranges(&["192.0.2.0/24", "2001:db8::/32"]))?;
        expect_failure_at_once(&host(node), to.at(PORT))
    });
}
