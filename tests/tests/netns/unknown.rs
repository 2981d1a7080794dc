//! What is no service's on a service's address: refused at once, and nothing travels in circles (CIP-03).

use anyhow::{Result, ensure};
use proxy_common::drop::DropReason;
use sluice_tests::{
    counters,
    harness::{Setup, with_agents},
    service::{Port, Service, TARGET_PORT},
    topology::{Addresses, Family, SERVICES_V4, SERVICES_V6},
    traffic::{Pong, Protocol, SctpClient, ping},
    wait::wait_until,
};

use crate::{
    Backend,
    expect::{expect_all_reach, expect_refused, expect_tcp_refused, expect_udp_refused},
};

#[test]
fn an_unknown_port_or_protocol_of_a_service_is_refused() {
    with_agents(2, |cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let tcp = Port::new("tcp", Protocol::Tcp, 80, TARGET_PORT);
        let udp = Port::new("udp", Protocol::Udp, 81, TARGET_PORT);
        for backend in [&near, &far] {
            agents
                .serve(&Service::new("echo", 1).with_ports([tcp.clone(), udp.clone()]).with(&backend.pod))?;
            let vip = Addresses::vip(1);
            for client in [&pod.machine, &cluster.client] {
                // The port that the backend has is not the service's.
                for port in [TARGET_PORT, 82] {
                    expect_refused(client, vip.at(port))?;
                }
                for family in Family::ALL {
                    expect_udp_refused(&client.namespace, vip.at(80).of(family))?;
                    expect_tcp_refused(&client.namespace, vip.at(81).of(family))?;
                }
            }
            ensure!(backend.server.connections() == 0 && backend.server.datagrams() == 0);
        }
        Ok(())
    });
}

#[test]
fn a_ping_of_a_service_is_refused() {
    with_agents(1, |cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let service = Service::new("echo", 1).with(&near.pod);
        agents.serve(&service)?;
        for client in [&pod.machine, &cluster.client] {
            for family in Family::ALL {
                let to = service.frontend(family).ip();
                let pong = ping(&client.namespace, to)?;
                // Port unreachable (NOEP-01): the node would say something else for an address without a route.
                let expected = Pong::Unreachable(if family == Family::V4 { 3 } else { 4 });
                ensure!(pong == expected, "{} pings {to}: {pong:?}", client.name);
            }
        }
        expect_all_reach(&pod.machine, &service, "near")
    });
}

/// An SCTP packet is to a service without SCTP what an unknown port is.
#[test]
fn sctp_to_a_service_without_it_reaches_nobody() {
    with_agents(1, |cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let service = Service::new("echo", 1).with(&near.pod);
        agents.serve(&service)?;
        let agent = &agents.agents[0];
        for family in Family::ALL {
            let before = agent.drops(DropReason::UnknownPort)?;
            SctpClient::new(&pod.machine.namespace, family, 1000)?.tell(service.frontend(family), 1)?;
            wait_until("the INIT is refused", || {
                Ok((agent.drops(DropReason::UnknownPort)? > before).then_some(()))
            })?;
        }
        Ok(())
    });
}

/// A packet to a service's address that a node let pass would go to its default gateway, which sends it back.
#[test]
fn nothing_travels_in_circles_between_the_node_and_its_gateway() {
    Setup::new(1).alone().run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let near = Backend::on(node, "near")?;
        let pod = node.add_pod("pod")?;
        let service = Service::new("echo", 1).with(&near.pod);
        let empty = Service::new("empty", 2);
        agents.serve(&service)?;
        agents.serve(&empty)?;
        // The client outside is the gateway: it has a route for services through the node, and the node one through it.
        let gateway = &cluster.client;
        gateway.namespace.sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
        for (range, via) in
            [(SERVICES_V4, gateway.addresses.v4.to_string()), (SERVICES_V6, gateway.addresses.v6.to_string())]
        {
            node.namespace.ip(&format!("route add {range} via {via}"))?;
        }
        let count = || -> Result<u64> { Ok(counters::received(&node.namespace, "eth0")?.frames) };
        let before = count()?;
        for family in Family::ALL {
            for to in [service.vip().addresses.at(9), empty.vip()] {
                expect_tcp_refused(&pod.machine.namespace, to.of(family))?;
                expect_udp_refused(&pod.machine.namespace, to.of(family))?;
            }
            ping(&pod.machine.namespace, service.frontend(family).ip())?;
        }
        // A packet in circles is seen here thirty times before its hops are used up. Neighbours are looked for now and
        // then.
        let frames = count()? - before;
        ensure!(frames < 20, "{frames} frames came back");
        expect_all_reach(gateway, &service, "near")
    });
}
