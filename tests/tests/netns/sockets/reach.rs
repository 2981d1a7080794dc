//! Whom processes of the node reach, and by what kinds of sockets.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use proxy_common::drop::DropReason;
use sluice_tests::{
    harness::{Setup, with_agents},
    service::{PORT, Service},
    topology::{Addresses, Family},
    traffic::{Protocol, Spread},
};

use super::{BALANCER, EXTERNAL, LOOPBACK, NODE_PORT, expect_reach_every_way, expect_refused_at_once, host};
use crate::{
    Backend,
    expect::{Seen, ask, expect_reach, expect_tcp_refused},
};

/// CIP-01, BPF-04, DEC-32.
#[test]
fn the_host_reaches_cluster_ips_by_every_kind_of_socket() {
    with_agents(2, |cluster, agents| {
        let node = &cluster.nodes[0];
        let backends = [Backend::on(node, "near")?, Backend::on(&cluster.nodes[1], "far")?];
        for backend in &backends {
            let service = Service::new("echo", 1).with(&backend.pod);
            agents.serve(&service)?;
            let name = backend.pod.name();
            expect_reach_every_way(&host(node), service.vip(), name, &Seen::node(node))?;
            // A socket that has an address already keeps it.
            expect_reach(&node.machine(), service.vip(), name, &Seen::Client)?;
        }
        Ok(())
    });
}

/// E2E-082, BPF-02: all endpoints, through the ClusterIP and through any node's port.
#[test]
fn the_host_reaches_all_endpoints_by_cluster_ip_and_node_port() {
    with_agents(2, |cluster, agents| {
        let node = &cluster.nodes[0];
        let near = Backend::on(node, "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let service = Service::new("echo", 1).with(&near.pod).with(&far.pod).with_node_port(NODE_PORT);
        agents.serve(&service)?;
        for ends in [
            service.vip(),
            node.addresses.at(NODE_PORT),
            LOOPBACK.at(NODE_PORT),
            // Last: the other node remembers flows from ports that a later socket may be given. Its backend's answers to a
            // process that knows the backend itself would look like that flow's.
            cluster.nodes[1].addresses.at(NODE_PORT),
        ] {
            for family in Family::ALL {
                for protocol in Protocol::ALL {
                    let to = ends.of(family);
                    Spread::measure(&node.namespace, to, protocol, 100, |_| {})?
                        .expect_uniform_over(&["near", "far"])
                        .with_context(|| format!("{protocol} to {to}"))?;
                }
            }
        }
        Ok(())
    });
}

/// NP-06, NP-10, XIP-01, LB-01.
#[test]
fn the_host_reaches_node_ports_external_ips_and_load_balancers() {
    with_agents(2, |cluster, agents| {
        let node = &cluster.nodes[0];
        let backends = [Backend::on(node, "near")?, Backend::on(&cluster.nodes[1], "far")?];
        for backend in &backends {
            let service = Service::new("echo", 1)
                .with(&backend.pod)
                .with_external_ips(Addresses::elsewhere(EXTERNAL))
                .with_load_balancer(Addresses::elsewhere(BALANCER), "VIP")
                .with_node_port(NODE_PORT);
            agents.serve(&service)?;
            let own = node.own_addresses().into_iter().map(|addresses| addresses.at(NODE_PORT));
            let others = [
                LOOPBACK.at(NODE_PORT),
                Addresses::elsewhere(EXTERNAL).at(PORT),
                Addresses::elsewhere(BALANCER).at(PORT),
            ];
            for to in own.chain(others) {
                expect_reach_every_way(&host(node), to, backend.pod.name(), &Seen::node(node))?;
            }
            // NP-10: all of 127.0.0.0/8.
            let to = SocketAddr::from(([127, 1, 2, 3], NODE_PORT));
            ensure!(ask(&host(node), to, Protocol::Tcp)?.backend == backend.pod.name());
        }
        Ok(())
    });
}

/// NP-10: what listens at loopback is left alone where NodePorts are not.
#[test]
fn node_ports_are_not_at_loopback_if_that_is_left_out() {
    for flag in ["--localhost-nodeports=false", "--nodeport-addresses=192.168.0.0/16,fd00::/8"] {
        Setup::new(1).telling(&[flag]).alone().run(|cluster, agents| {
            let node = &cluster.nodes[0];
            let near = Backend::on(node, "near")?;
            agents.serve(&Service::new("echo", 1).with(&near.pod).with_node_port(NODE_PORT))?;
            expect_reach(&host(node), node.addresses.at(NODE_PORT), "near", &Seen::node(node))?;
            for family in Family::ALL {
                expect_tcp_refused(&node.namespace, LOOPBACK.at(NODE_PORT).of(family))?;
            }
            Ok(())
        });
    }
}

/// BPF-09.
#[test]
fn services_without_endpoints_and_unknown_ports_refuse_the_host_at_once() {
    with_agents(1, |cluster, agents| {
        let node = &cluster.nodes[0];
        let near = Backend::on(node, "near")?;
        let service = Service::new("echo", 1)
            .with_load_balancer(Addresses::elsewhere(BALANCER), "VIP")
            .with_node_port(NODE_PORT);
        agents.serve(&service)?;
        let ends = [
            service.vip(),
            node.addresses.at(NODE_PORT),
            LOOPBACK.at(NODE_PORT),
            Addresses::elsewhere(BALANCER).at(PORT),
        ];
        for to in ends {
            expect_refused_at_once(&host(node), to)?;
        }
        let service = service.with(&near.pod);
        agents.serve(&service)?;
        for to in ends {
            expect_reach(&host(node), to, "near", &Seen::node(node))?;
        }
        let before = agents.agents[0].drops(DropReason::UnknownPort)?;
        expect_refused_at_once(&host(node), Addresses::vip(1).at(81))?;
        // TCP, and UDP in two ways, of each family.
        let refused = agents.agents[0].drops(DropReason::UnknownPort)? - before;
        ensure!(refused == 6, "{refused} were counted");
        ensure!(near.server.connections() > 0);
        Ok(())
    });
}
