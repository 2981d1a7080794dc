//! NodePorts: who is reached through them, by which addresses, and who sees whom.

use std::{collections::BTreeSet, sync::atomic::AtomicU64};

use anyhow::{Context as _, ensure};
use sluice_tests::{
    harness::{Setup, with_agents},
    service::{PORT, Port, Service, TARGET_PORT},
    topology::{Addresses, Family},
    traffic::{Connection, Direction, Protocol, Server, Source, Spread},
    wait::wait_until,
};

use crate::{
    Backend,
    expect::{Seen, ask, expect_all_reach, expect_reach, expect_refused},
};

const NODE_PORT: u16 = 30_080;

/// E2E-010, E2E-087. A client outside keeps its address towards a backend of the node that it asked, and only there.
#[test]
pub(crate) fn outside_reaches_a_backend_through_every_node() {
    with_agents(2, |cluster, agents| {
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        for backend in [&near, &far] {
            let service = Service::new("echo", 1).with(&backend.pod).with_node_port(NODE_PORT);
            agents.serve(&service)?;
            for node in &cluster.nodes {
                let here = node.name == backend.pod.node;
                let seen = if here { Seen::Client } else { Seen::As(node.addresses) };
                expect_reach(&cluster.client, node.addresses.at(NODE_PORT), backend.pod.name(), &seen)?;
            }
        }
        Ok(())
    });
}

/// E2E-010, NP-14. A pod keeps its address behind the ports of its own node.
#[test]
pub(crate) fn a_pod_reaches_backends_through_its_own_node_as_itself() {
    with_agents(2, |cluster, agents| {
        let node = &cluster.nodes[0];
        let client = node.add_pod("client")?;
        let near = Backend::on(node, "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        for backend in [&near, &far] {
            let service = Service::new("echo", 1).with(&backend.pod).with_node_port(NODE_PORT);
            agents.serve(&service)?;
            // Without --nodeport-addresses, every address of the node has its NodePorts (NP-06).
            for addresses in node.own_addresses() {
                let to = addresses.at(NODE_PORT);
                expect_reach(&client.machine, to, backend.pod.name(), &Seen::Client)?;
            }
        }
        Ok(())
    });
}

/// E2E-010, DEC-27. What a pod sends to another node's port is that node's business, and the pod is outside there.
#[test]
pub(crate) fn a_pod_reaches_backends_through_the_other_node() {
    with_agents(2, |cluster, agents| {
        let client = cluster.nodes[0].add_pod("client")?;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let other = cluster.nodes[1].addresses;
        for (backend, seen) in [(&near, Seen::As(other)), (&far, Seen::Client)] {
            let service = Service::new("echo", 1).with(&backend.pod).with_node_port(NODE_PORT);
            agents.serve(&service)?;
            expect_reach(&client.machine, other.at(NODE_PORT), backend.pod.name(), &seen)?;
        }
        Ok(())
    });
}

/// E2E-010, E2E-087.
#[test]
fn flows_spread_evenly_over_backends_here_and_elsewhere() {
    with_agents(2, |cluster, agents| {
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let service = Service::new("echo", 1).with(&near.pod).with(&far.pod).with_node_port(NODE_PORT);
        agents.serve(&service)?;
        for family in Family::ALL {
            for protocol in Protocol::ALL {
                let to = cluster.nodes[0].addresses.at(NODE_PORT).of(family);
                Spread::measure(&cluster.client.namespace, to, protocol, 300, |_| {})?
                    .expect_uniform_over(&["near", "far"])
                    .with_context(|| format!("{protocol} over {family}"))?;
            }
        }
        Ok(())
    });
}

/// E2E-012, PROTO-02.
#[test]
fn one_number_serves_tcp_and_udp_of_different_services() {
    with_agents(2, |cluster, agents| {
        let one = Backend::on(&cluster.nodes[0], "one")?;
        let two = Backend::on(&cluster.nodes[1], "two")?;
        let tcp = Port::new("tcp", Protocol::Tcp, PORT, TARGET_PORT);
        let udp = Port::new("udp", Protocol::Udp, PORT, TARGET_PORT);
        let streams = Service::new("streams", 1).with_ports([tcp]).with(&one.pod);
        let datagrams = Service::new("datagrams", 2).with_ports([udp]).with(&two.pod);
        for service in [streams, datagrams] {
            agents.serve(&service.with_node_port(NODE_PORT))?;
        }
        for family in Family::ALL {
            let to = cluster.nodes[0].addresses.at(NODE_PORT).of(family);
            let reached =
                [ask(&cluster.client, to, Protocol::Tcp)?, ask(&cluster.client, to, Protocol::Udp)?]
                    .map(|heard| heard.backend);
            ensure!(reached == ["one", "two"], "{family}: {reached:?}");
        }
        Ok(())
    });
}

/// E2E-018, E2E-086, NP-03, NP-15. Nobody listens on a NodePort: a process may have it, and gets what the service does
/// not take.
#[test]
fn a_port_is_free_for_the_nodes_own_processes_and_theirs_when_the_service_goes() {
    with_agents(1, |cluster, agents| {
        let node = &cluster.nodes[0];
        let near = Backend::on(node, "near")?;
        let service = Service::new("echo", 1).with(&near.pod).with_node_port(NODE_PORT);
        let to = node.addresses.at(NODE_PORT);
        agents.serve(&service)?;
        let own = Server::start(&node.machine(), NODE_PORT)?;
        expect_reach(&cluster.client, to, "near", &Seen::Client)?;
        // As a service of the cluster only.
        agents.serve(&Service::new("echo", 1).with(&near.pod))?;
        expect_reach(&cluster.client, to, "node-1", &Seen::Client)?;
        agents.serve(&service)?;
        expect_reach(&cluster.client, to, "near", &Seen::Client)?;
        agents.withdraw(&service)?;
        expect_reach(&cluster.client, to, "node-1", &Seen::Client)?;
        drop(own);
        expect_refused(&cluster.client, to)
    });
}

#[test]
fn a_node_port_without_endpoints_refuses_everybody() {
    with_agents(2, |cluster, agents| {
        let client = cluster.nodes[0].add_pod("client")?;
        agents.serve(&Service::new("echo", 1).with_node_port(NODE_PORT))?;
        for client in [&cluster.client, &client.machine] {
            for node in &cluster.nodes {
                expect_refused(client, node.addresses.at(NODE_PORT))?;
            }
        }
        Ok(())
    });
}

/// NP-06. The node's addresses are followed while the agent runs.
#[test]
fn an_address_has_the_ports_from_when_the_node_gets_it_until_it_loses_it() {
    Setup::new(1).alone().run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let near = Backend::on(node, "near")?;
        agents.serve(&Service::new("echo", 1).with(&near.pod).with_node_port(NODE_PORT))?;
        let more = Addresses::elsewhere(7);
        cluster.client.route(more, node)?;
        let to = more.at(NODE_PORT);
        let change = |verb: &str| {
            node.namespace
                .ip(&format!("addr {verb} {}/32 dev eth0\naddr {verb} {}/128 dev eth0", more.v4, more.v6))
        };
        for _ in 0..2 {
            change("add")?;
            for family in Family::ALL {
                wait_until("the new address has the NodePort", || {
                    Ok(ask(&cluster.client, to.of(family), Protocol::Tcp).ok())
                })?;
            }
            expect_reach(&cluster.client, to, "near", &Seen::Client)?;
            change("del")?;
            for family in Family::ALL {
                wait_until("the address has no NodePort any more", || {
                    Ok(ask(&cluster.client, to.of(family), Protocol::Tcp).is_err().then_some(()))
                })?;
            }
        }
        expect_reach(&cluster.client, node.addresses.at(NODE_PORT), "near", &Seen::Client)
    });
}

/// NP-05, NP-07.
#[test]
fn only_addresses_in_the_given_ranges_have_the_ports() {
    let ranges = ["--nodeport-addresses", "192.168.100.0/24,fd00:100::/64"];
    Setup::new(1).telling(&ranges).run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let client = node.add_pod("client")?;
        let near = Backend::on(node, "near")?;
        let service = Service::new("echo", 1).with(&near.pod).with_node_port(NODE_PORT);
        agents.serve(&service)?;
        for client in [&cluster.client, &client.machine] {
            expect_reach(client, node.addresses.at(NODE_PORT), "near", &Seen::Client)?;
        }
        expect_refused(&client.machine, node.gateway().at(NODE_PORT))?;
        expect_all_reach(&client.machine, &service, "near")?;
        // NP-13: without endpoints too, the other addresses are the node's own business.
        agents.serve(&Service::new("echo", 1).with_node_port(NODE_PORT))?;
        let _own = Server::start(&node.machine(), NODE_PORT)?;
        expect_reach(&client.machine, node.gateway().at(NODE_PORT), "node-1", &Seen::Client)?;
        expect_refused(&client.machine, node.addresses.at(NODE_PORT))
    });
}

/// NP-08.
#[test]
fn only_the_primary_addresses_have_the_ports_if_that_is_asked_for() {
    Setup::new(1).telling(&["--nodeport-addresses", "primary"]).alone().run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let near = Backend::on(node, "near")?;
        let second = Addresses::on_fabric(51);
        node.namespace
            .ip(&format!("addr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad", second.v4, second.v6))?;
        agents.serve(&Service::new("echo", 1).with(&near.pod).with_node_port(NODE_PORT))?;
        expect_reach(&cluster.client, node.addresses.at(NODE_PORT), "near", &Seen::Client)?;
        expect_refused(&cluster.client, second.at(NODE_PORT))
    });
}

/// Every one is told from the others by the port that the node gives it.
#[test]
fn five_hundred_connections_from_outside_to_another_node_are_open_at_once() {
    with_agents(2, |cluster, agents| {
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let node = &cluster.nodes[0];
        agents.serve(&Service::new("echo", 1).with(&far.pod).with_node_port(NODE_PORT))?;
        for family in Family::ALL {
            let to = node.addresses.at(NODE_PORT).of(family);
            let mut connections = Connection::open_many(&cluster.client.namespace, to, 500)?;
            let seen: BTreeSet<_> = connections.iter().map(|connection| connection.seen_as).collect();
            ensure!(seen.len() == 500, "the backend tells {} of 500 connections apart", seen.len());
            let own = node.addresses.of(family);
            ensure!(seen.iter().all(|seen| seen.ip() == own), "{family}: not all came from {own}");
            connections.iter_mut().try_for_each(Connection::start_echo)?;
            for (connection, number) in connections.iter_mut().zip(0..) {
                connection.echo(number).with_context(|| format!("connection {number}"))?;
            }
        }
        Ok(())
    });
}

#[test]
fn large_transfers_from_outside_to_another_node_arrive_whole() {
    with_agents(2, |cluster, agents| {
        let far = Backend::on(&cluster.nodes[1], "far")?;
        agents.serve(&Service::new("echo", 1).with(&far.pod).with_node_port(NODE_PORT))?;
        for family in Family::ALL {
            let to = cluster.nodes[0].addresses.at(NODE_PORT).of(family);
            let mut connection = Connection::open(&cluster.client.namespace, to, Source::AnyPort)?;
            for direction in Direction::ALL {
                connection.transfer(direction, 200 << 20, &AtomicU64::new(0))?;
            }
        }
        Ok(())
    });
}
