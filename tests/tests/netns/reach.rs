//! Clients reach backends through the service's address, and neither end sees a wrong one.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use sluice_tests::{
    harness::{Setup, with_agents},
    service::{Service, TARGET_PORT},
    topology::{BridgeNetfilter, Family},
    traffic::{Connection, Source, UdpClient},
};

use crate::{Backend, expect::expect_all_reach};

#[test]
fn pod_reaches_a_backend_on_the_same_bridge() {
    Setup::new(1).alone().run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let client = node.add_pod("client")?;
        let near = Backend::on(node, "near")?;
        let service = Service::new("echo", 1).with(&near.pod);
        agents.serve(&service)?;
        // The answer crosses the bridge without being routed, so it must not matter whether netfilter sees it.
        for setting in [BridgeNetfilter::Off, BridgeNetfilter::On] {
            node.set_bridge_netfilter(setting)?;
            let context = || format!("with bridge netfilter {setting:?}");
            expect_all_reach(&client.machine, &service, "near").with_context(context)?;
        }
        Ok(())
    });
}

#[test]
pub(crate) fn pod_reaches_a_backend_on_the_other_node() {
    with_agents(2, |cluster, agents| {
        let client = cluster.nodes[0].add_pod("client")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let service = Service::new("echo", 1).with(&far.pod);
        agents.serve(&service)?;
        expect_all_reach(&client.machine, &service, "far")
    });
}

#[test]
pub(crate) fn client_outside_reaches_a_backend_on_the_node_it_asks() {
    with_agents(2, |cluster, agents| {
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let service = Service::new("echo", 1).with(&near.pod);
        agents.serve(&service)?;
        expect_all_reach(&cluster.client, &service, "near")
    });
}

#[test]
pub(crate) fn pods_on_different_nodes_reach_each_other_through_two_services() {
    with_agents(2, |cluster, agents| {
        let one = Backend::on(&cluster.nodes[0], "one")?;
        let two = Backend::on(&cluster.nodes[1], "two")?;
        let (to_one, to_two) = (Service::new("one", 1).with(&one.pod), Service::new("two", 2).with(&two.pod));
        agents.serve(&to_one)?;
        agents.serve(&to_two)?;
        expect_all_reach(&one.pod.machine, &to_two, "two")?;
        expect_all_reach(&two.pod.machine, &to_one, "one")
    });
}

#[test]
fn traffic_between_pods_is_left_alone() {
    with_agents(2, |cluster, agents| {
        let client = cluster.nodes[0].add_pod("client")?;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let stranger = Backend::on(&cluster.nodes[1], "stranger")?;
        let service = Service::new("echo", 1).with(&near.pod).with(&far.pod);
        agents.serve(&service)?;
        let from = &client.machine.namespace;
        for backend in [&near, &far, &stranger] {
            for family in Family::ALL {
                let to = SocketAddr::new(backend.pod.machine.addresses.of(family), TARGET_PORT);
                let own = client.machine.addresses.of(family);
                let connection = Connection::open(from, to, Source::AnyPort)?;
                ensure!(connection.peer()? == to && connection.seen_as.ip() == own, "{connection:?}");
                let answer = UdpClient::bind(from, family)?.ask(to, 1)?;
                ensure!(answer.from == to && answer.seen_as.ip() == own, "asked {to}: {answer:?}");
            }
        }
        Ok(())
    });
}

#[test]
fn a_port_that_used_the_service_may_dial_the_backend_directly_next() {
    with_agents(2, |cluster, agents| {
        let client = cluster.nodes[0].add_pod("client")?;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let service = Service::new("echo", 1).with(&near.pod);
        agents.serve(&service)?;
        let from = &client.machine.namespace;
        for family in Family::ALL {
            let direct = SocketAddr::new(near.pod.machine.addresses.of(family), TARGET_PORT);
            for round in 0..5 {
                for to in [service.frontend(family), direct] {
                    let connection = Connection::open(from, to, Source::Port(7000))
                        .with_context(|| format!("round {round}"))?;
                    connection.abort()?;
                }
            }
        }
        Ok(())
    });
}

#[test]
fn a_port_that_no_service_has_is_not_served() {
    with_agents(1, |cluster, agents| {
        let client = cluster.nodes[0].add_pod("client")?;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let service = Service::new("echo", 1).with(&near.pod);
        agents.serve(&service)?;
        for family in Family::ALL {
            let to = SocketAddr::new(service.frontend(family).ip(), TARGET_PORT);
            let result = Connection::open(&client.machine.namespace, to, Source::AnyPort);
            ensure!(result.is_err(), "{to} answered");
        }
        ensure!(near.server.connections() == 0);
        Ok(())
    });
}
