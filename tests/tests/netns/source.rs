//! Whom backends take their clients for, beyond the ordinary (section 15).

use std::{collections::BTreeSet, net::SocketAddr, thread};

use anyhow::{Context as _, Result, ensure};
use proxy_common::drop::DropReason;
use sluice_tests::{
    deployment::Deployment,
    harness::{Setup, with_agents},
    netns::Namespace,
    service::{PORT, Service},
    topology::{Addresses, Family},
    traffic::{Connection, Protocol, Source, UdpClient},
    wait::wait_until,
};

use crate::{
    Backend,
    expect::{Seen, ask, ask_from, expect_all_reach, expect_reach},
};

const NODE_PORT: u16 = 30_080;

/// E2E-005, MASQ-08: to a pod that reaches itself, its own address would be no reason to answer through the service.
#[test]
fn a_pod_reaches_itself_and_takes_itself_for_the_node() {
    with_agents(1, |cluster, agents| {
        let node = &cluster.nodes[0];
        let own = Backend::on(node, "itself")?;
        let elsewhere = Addresses::elsewhere(250);
        let service = Service::new("echo", 1)
            .with(&own.pod)
            .with_load_balancer(elsewhere, "VIP")
            .with_node_port(NODE_PORT);
        agents.serve(&service)?;
        for to in [service.vip(), node.addresses.at(NODE_PORT), elsewhere.at(PORT)] {
            expect_reach(&own.pod.machine, to, "itself", &Seen::node(node))?;
        }
        Ok(())
    });
}

/// E2E-083: and itself only; towards the other backends it keeps its address.
#[test]
pub(crate) fn a_backend_reaches_all_backends_of_its_service() {
    with_agents(2, |cluster, agents| {
        let node = &cluster.nodes[0];
        let own = Backend::on(node, "itself")?;
        let near = Backend::on(node, "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let service =
            Service::new("echo", 1).with(&own.pod).with(&near.pod).with(&far.pod).with_node_port(NODE_PORT);
        agents.serve(&service)?;
        for to in [service.vip(), node.addresses.at(NODE_PORT)] {
            for family in Family::ALL {
                for protocol in Protocol::ALL {
                    let mut reached = BTreeSet::new();
                    wait_until("a backend has reached all three", || {
                        let heard = ask(&own.pod.machine, to.of(family), protocol)?;
                        let kept = heard.seen_as == heard.own;
                        ensure!(kept == (heard.backend != "itself"), "{protocol} over {family}: {heard:?}");
                        reached.insert(heard.backend);
                        Ok((reached.len() == 3).then_some(()))
                    })?;
                }
            }
        }
        Ok(())
    });
}

/// E2E-004, DEC-31.
#[test]
fn pods_keep_their_addresses_towards_backends_everywhere() {
    with_agents(2, |cluster, agents| {
        let pods = [cluster.nodes[0].add_pod("pod-1")?, cluster.nodes[1].add_pod("pod-2")?];
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        for backend in [&near, &far] {
            let service = Service::new("echo", 1).with(&backend.pod);
            agents.serve(&service)?;
            for pod in &pods {
                expect_all_reach(&pod.machine, &service, backend.pod.name())?;
            }
        }
        Ok(())
    });
}

/// CIP-01: a route for the services to any node is a supported trick, whichever node the backend is on.
#[test]
fn a_client_outside_reaches_a_cluster_ip_with_a_backend_on_another_node() {
    with_agents(2, |cluster, agents| {
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let seen_from = [(&near, Seen::Client), (&far, Seen::As(cluster.nodes[0].addresses))];
        for (backend, seen) in seen_from {
            let service = Service::new("echo", 1).with(&backend.pod);
            agents.serve(&service)?;
            expect_reach(&cluster.client, service.vip(), backend.pod.name(), &seen)?;
        }
        Ok(())
    });
}

/// MASQ-01, DEC-30: all ClusterIP traffic comes from the node; external addresses are as without it.
#[test]
fn masquerade_all_hides_pods_behind_their_node() {
    Setup::new(2).telling(&["--masquerade-all"]).run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let pod = node.add_pod("pod")?;
        let near = Backend::on(node, "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        for (backend, device) in [(&near, node.gateway()), (&far, node.addresses)] {
            let service = Service::new("echo", 1).with(&backend.pod).with_node_port(NODE_PORT);
            agents.serve(&service)?;
            let name = backend.pod.name();
            expect_reach(&pod.machine, service.vip(), name, &Seen::As(device))?;
            expect_reach(&cluster.client, service.vip(), name, &Seen::As(device))?;
            expect_reach(&pod.machine, node.addresses.at(NODE_PORT), name, &Seen::Client)?;
        }
        Ok(())
    });
}

/// Somebody who knows better than the agent who is behind a device says so.
#[test]
fn clients_behind_a_device_that_is_called_an_uplink_are_outside() {
    Setup::new(2).telling(&["--uplink-devices", "veth*"]).run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let pod = node.add_pod("pod")?;
        let near = Backend::on(node, "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        for (backend, seen) in [(&near, Seen::Client), (&far, Seen::As(node.addresses))] {
            let service = Service::new("echo", 1).with(&backend.pod).with_node_port(NODE_PORT);
            agents.serve(&service)?;
            for to in [service.vip(), node.addresses.at(NODE_PORT)] {
                expect_reach(&pod.machine, to, backend.pod.name(), &seen)?;
            }
        }
        Ok(())
    });
}

/// NAT-05. One client port, one backend, two services: both connections work at the same time, and the backend can tell
/// them apart.
#[test]
pub(crate) fn one_client_port_uses_two_services_in_front_of_one_backend() {
    with_agents(2, |cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        for backend in [&near, &far] {
            let services = [1, 2].map(|n| Service::new(&format!("echo-{n}"), n).with(&backend.pod));
            services.iter().try_for_each(|service| agents.serve(service))?;
            for client in [&pod.machine, &cluster.client] {
                for family in Family::ALL {
                    let own = client.addresses.at(7_000).of(family);
                    let ends = [0, 1].map(|n| services[n].frontend(family));
                    together(&client.namespace, own, ends).with_context(|| {
                        format!("{} to {} over {family}", client.name, backend.pod.name())
                    })?;
                }
            }
        }
        Ok(())
    });
}

/// Uses both ends at once, from one port, by both protocols.
fn together(from: &Namespace, own: SocketAddr, ends: [SocketAddr; 2]) -> Result<()> {
    let mut connections =
        ends.iter().map(|&to| Connection::open(from, to, Source::At(own))).collect::<Result<Vec<_>>>()?;
    let seen: BTreeSet<_> = connections.iter().map(|connection| connection.seen_as).collect();
    ensure!(seen.len() == 2, "both connections are {seen:?} to the backend");
    connections.iter_mut().try_for_each(Connection::start_echo)?;
    for number in 0..10 {
        connections.iter_mut().try_for_each(|connection| connection.echo(number))?;
    }
    connections.into_iter().try_for_each(Connection::abort)?;
    let socket = UdpClient::bind_to(from, own)?;
    let mut seen = BTreeSet::new();
    for number in 0..10 {
        for to in ends {
            let answer = socket.ask(to, number)?;
            ensure!(answer.from == to, "asked {to}, the answer came from {}", answer.from);
            seen.insert(answer.seen_as);
        }
    }
    ensure!(seen.len() == 2, "the flows are {seen:?} to the backend");
    Ok(())
}

/// Ports that a host's own socket may have are not given to clients, whatever port a client has itself.
#[test]
fn clients_behind_the_node_have_none_of_its_own_ports() {
    with_agents(2, |cluster, agents| {
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let service = Service::new("echo", 1).with(&far.pod).with_node_port(NODE_PORT);
        agents.serve(&service)?;
        let to = cluster.nodes[0].addresses.at(NODE_PORT);
        for family in Family::ALL {
            for protocol in Protocol::ALL {
                // Of the node's ephemeral ports, of the NodePorts, and of neither.
                for port in [40_000, 31_000, 5_000] {
                    let own = cluster.client.addresses.at(port).of(family);
                    let heard = ask_from(&cluster.client.namespace, own, to.of(family), protocol)?;
                    let given = heard.seen_as.port();
                    let free = !(32_768..=60_999).contains(&given) && !(30_000..=32_767).contains(&given);
                    ensure!(free, "{protocol} over {family}: {port} became {given}");
                    ensure!(port != 5_000 || given == port, "{port} was free, but became {given}");
                }
            }
        }
        Ok(())
    });
}

/// How many source ports are left to the node.
const PORTS_LEFT: usize = 8;

/// The node runs out of ports towards a backend: every one is used, nobody gets another's, the rest wait and are counted,
/// and the next one gets what the first that ends has left.
#[test]
fn all_source_ports_are_used_and_used_again() {
    Setup::new(2).run_bare(|cluster| {
        let node = &cluster.nodes[0];
        node.namespace.sysctl(&[("ipv4/ip_local_port_range", "1024 60999")])?;
        let arguments = ["--node-port-range", "61000-65527"].map(str::to_owned);
        let agents = Deployment::start(cluster, &arguments)?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let node_port = 61_080;
        agents.serve(&Service::new("echo", 1).with(&far.pod).with_node_port(node_port))?;
        let agent = &agents.agents[0];
        for family in Family::ALL {
            let to = node.addresses.at(node_port).of(family);
            let from = &cluster.client.namespace;
            let mut connections = Connection::open_many(from, to, PORTS_LEFT)?;
            let used: BTreeSet<_> = connections.iter().map(|connection| connection.seen_as.port()).collect();
            ensure!(used == (65_528..=65_535).collect(), "{family}: {used:?} are used");
            connections.iter_mut().try_for_each(Connection::start_echo)?;

            let before = agent.drops(DropReason::NoSourcePort)?;
            thread::scope(|scope| {
                let waiting = scope.spawn(|| Connection::open(from, to, Source::AnyPort));
                wait_until("a connection without a port is counted", || {
                    Ok((agent.drops(DropReason::NoSourcePort)? > before).then_some(()))
                })?;
                connections.iter_mut().try_for_each(|connection| connection.echo(1))?;
                let ended = connections.pop().context("a connection")?;
                let freed = ended.seen_as.port();
                ended.abort()?;
                let connection = waiting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                let given = connection.seen_as.port();
                ensure!(given == freed, "{family}: the port {freed} was free, {given} was given");
                Ok(())
            })?;
            connections.iter_mut().try_for_each(|connection| connection.echo(2))?;
            connections.into_iter().try_for_each(Connection::abort)?;
        }
        Ok(())
    });
}
