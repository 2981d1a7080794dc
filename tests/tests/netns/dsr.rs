//! Direct server return: backends on other nodes see clients outside, and answer them past the node that was asked.

use std::{
    net::{SocketAddr, UdpSocket},
    process::Command,
    sync::atomic::AtomicU64,
};

use anyhow::{Context as _, Result, ensure};
use proxy_common::drop::DropReason;
use sluice_tests::{
    agent::Agent,
    harness::Setup,
    service::{PORT, Service},
    topology::{Addresses, Cluster, Family, Overlay, PodNetwork, Shape},
    traffic::{Connection, Direction, Source, UdpClient},
    wait::wait_until,
};

use crate::{
    Backend,
    expect::{Seen, expect_reach},
};

/// How a Service asks for it, or for the opposite.
const ANNOTATION: &str = "sluice.io/external-forwarding";
const NODE_PORT: u16 = 30_080;

fn directly(nodes: u8) -> Setup {
    Setup::new(nodes).telling(&["--external-forwarding=dsr"])
}

/// Packets of services over a family that an agent's node has seen: from clients, and from backends.
fn seen(agent: &Agent, family: Family) -> Result<[u64; 2]> {
    let told = agent.ask_json(&["services"])?;
    let end = if family == Family::V4 { "/IPv4" } else { "/IPv6" };
    let services = told["services"].as_array().context("services")?;
    let counted = |field: &str| {
        let ours = services
            .iter()
            .filter(|service| service["name"].as_str().is_some_and(|name| name.ends_with(end)));
        ours.filter_map(|service| service[field].as_u64()).sum()
    };
    Ok([counted("packets"), counted("reply_packets")])
}

/// An address of a load balancer, which the client sends to the first node.
fn balanced(cluster: &Cluster) -> Result<Addresses> {
    let addresses = Addresses::elsewhere(250);
    cluster.client.route(addresses, &cluster.nodes[0])?;
    Ok(addresses)
}

#[test]
fn a_backend_sees_the_client_and_answers_past_the_node_that_was_asked() {
    directly(2).run(|cluster, agents| {
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let vip = balanced(cluster)?;
        let service =
            Service::new("echo", 1).with(&far.pod).with_node_port(NODE_PORT).with_load_balancer(vip, "VIP");
        agents.serve(&service)?;
        let all = || -> Result<Vec<_>> {
            let each = agents.agents.iter().flat_map(|agent| Family::ALL.map(|family| seen(agent, family)));
            each.collect()
        };
        let before = all()?;
        for to in [cluster.nodes[0].addresses.at(NODE_PORT), vip.at(PORT)] {
            expect_reach(&cluster.client, to, "far", &Seen::Client)?;
        }
        // The first node's two families, then the second's.
        for (at, (before, after)) in before.into_iter().zip(all()?).enumerate() {
            ensure!(after[0] > before[0], "{at}: {before:?}, then {after:?}");
            ensure!((after[1] > before[1]) == (at >= 2), "{at}: {before:?}, then {after:?}");
        }
        Ok(())
    });
}

/// The Service decides, whatever the nodes were told; and nothing changes for backends of the node that is asked.
#[test]
fn a_service_asks_for_it_or_declines() {
    for (told, annotation, direct) in
        [(None, "dsr", true), (Some("--external-forwarding=dsr"), "snat", false)]
    {
        Setup::new(2).telling(told.as_slice()).run(|cluster, agents| {
            let near = Backend::on(&cluster.nodes[0], "near")?;
            let far = Backend::on(&cluster.nodes[1], "far")?;
            let vip = balanced(cluster)?;
            let masqueraded = Seen::As(cluster.nodes[0].addresses);
            for (backend, seen) in
                [(&near, Seen::Client), (&far, if direct { Seen::Client } else { masqueraded })]
            {
                let service = Service::new("echo", 1)
                    .with(&backend.pod)
                    .annotated(ANNOTATION, annotation)
                    .with_load_balancer(vip, "VIP");
                agents.serve(&service)?;
                expect_reach(&cluster.client, vip.at(PORT), backend.pod.name(), &seen)?;
                // A ClusterIP is not for clients outside.
                let seen = if backend.pod.node == cluster.nodes[0].name {
                    Seen::Client
                } else {
                    Seen::As(cluster.nodes[0].addresses)
                };
                expect_reach(&cluster.client, service.vip(), backend.pod.name(), &seen)?;
            }
            Ok(())
        });
    }
}

/// Segments of many packets' length, as devices hand them on, in both directions.
#[test]
fn large_transfers_are_whole() {
    directly(2).run(|cluster, agents| {
        let far = Backend::on(&cluster.nodes[1], "far")?;
        agents.serve(&Service::new("echo", 1).with(&far.pod).with_node_port(NODE_PORT))?;
        let to = cluster.nodes[0].addresses.at(NODE_PORT);
        for family in Family::ALL {
            for direction in [Direction::Upload, Direction::Download] {
                let mut connection =
                    Connection::open(&cluster.client.namespace, to.of(family), Source::AnyPort)?;
                connection.transfer(direction, 32 << 20, &AtomicU64::new(0)).context(family)?;
            }
        }
        Ok(())
    });
}

/// What would fit without the encapsulation, and does not fit with it: the client hears that, and what fits.
#[test]
fn a_client_learns_what_fits() {
    directly(2).alone().run(|cluster, agents| {
        let far = Backend::on(&cluster.nodes[1], "far")?;
        agents.serve(&Service::new("echo", 1).with(&far.pod).with_node_port(NODE_PORT))?;
        let to = cluster.nodes[0].addresses.at(NODE_PORT);
        let agent = &agents.agents[0];
        // Packets as they are on wires, each for itself.
        cluster.client.namespace.ip("link set eth0 gso_max_segs 1")?;
        for family in Family::ALL {
            let before = agent.drops(DropReason::TooBig)?;
            expect_upload(cluster, to.of(family), 1 << 20)?;
            let told = agent.drops(DropReason::TooBig)? - before;
            ensure!(told > 0, "{family}: nothing was too big");
        }
        Ok(())
    });
}

/// A datagram in fragments, each of which is encapsulated.
#[test]
fn fragments_arrive() {
    directly(2).alone().run(|cluster, agents| {
        let far = Backend::on(&cluster.nodes[1], "far")?;
        agents.serve(&Service::new("echo", 1).with(&far.pod).with_node_port(NODE_PORT))?;
        let from = &cluster.client.namespace;
        for (family, room) in [(Family::V4, 48), (Family::V6, 80)] {
            let to = cluster.nodes[0].addresses.at(NODE_PORT).of(family);
            let own = cluster.client.addresses.at(7_001).of(family);
            // The first fragment of this one is too big.
            from.run(|| Ok(UdpSocket::bind((own.ip(), 0))?.send_to(&[b'x'; 4_000], to)?))?;
            wait_until("the client knows what fits", || {
                let route = from.output(Command::new("ip").args(["route", "get", &to.ip().to_string()]))?;
                Ok(route.contains(&format!("mtu {}", 1_500 - room)).then_some(()))
            })?;
            let answer = UdpClient::bind_to(from, own)?.exchange(to, &[b'x'; 4_000])?;
            ensure!(answer.backend == "far" && answer.seen_as == own && answer.from == to, "{answer:?}");
        }
        Ok(())
    });
}

/// UDP leaves a backend that is gone.
#[test]
fn datagrams_follow_the_backends() {
    directly(2).run(|cluster, agents| {
        let backends = [Backend::on(&cluster.nodes[1], "one")?, Backend::on(&cluster.nodes[1], "two")?];
        let both = Service::new("echo", 1).with_node_port(NODE_PORT);
        let both = backends.iter().fold(both, |service, backend| service.with(&backend.pod));
        let to = cluster.nodes[0].addresses.at(NODE_PORT);
        for family in Family::ALL {
            agents.serve(&both)?;
            let socket = UdpClient::bind(&cluster.client.namespace, family)?;
            let first = socket.ask(to.of(family), 1)?;
            let again = socket.ask(to.of(family), 2)?;
            ensure!(again.backend == first.backend, "{first:?}, then {again:?}");
            agents.serve(&both.clone().without(&first.backend))?;
            let moved = socket.ask(to.of(family), 3)?;
            ensure!(
                moved.backend != first.backend && moved.from == to.of(family),
                "{first:?}, then {moved:?}"
            );
        }
        Ok(())
    });
}

/// NAT-05, on the backend's node: one client port through two nodes, which cannot know of each other.
#[test]
fn one_client_port_reaches_one_backend_through_two_nodes() {
    directly(2).run(|cluster, agents| {
        let far = Backend::on(&cluster.nodes[1], "far")?;
        agents.serve(&Service::new("echo", 1).with(&far.pod).with_node_port(NODE_PORT))?;
        for family in Family::ALL {
            let own = cluster.client.addresses.at(7_000).of(family);
            let ends = [1, 0].map(|node| cluster.nodes[node].addresses.at(NODE_PORT).of(family));
            let from = &cluster.client.namespace;
            let mut connections = ends
                .iter()
                .map(|&to| Connection::open(from, to, Source::At(own)))
                .collect::<Result<Vec<_>>>()?;
            ensure!(connections[0].seen_as != connections[1].seen_as, "both are {}", connections[0].seen_as);
            connections.iter_mut().try_for_each(Connection::start_echo)?;
            for number in 0..10 {
                connections.iter_mut().try_for_each(|connection| connection.echo(number))?;
            }
            connections.into_iter().try_for_each(Connection::abort)?;
            let socket = UdpClient::bind_to(from, own)?;
            for number in 0..10 {
                for to in ends {
                    let answer = socket.ask(to, number)?;
                    ensure!(answer.from == to, "asked {to}, the answer came from {}", answer.from);
                }
            }
        }
        Ok(())
    });
}

/// Whatever the way between nodes is like, and the way to pods. Packets of clients outside come out of an overlay, by which they
/// would not be answered: its device may not filter by that.
#[test]
fn it_takes_the_way_to_pods() {
    let overlay = |overlay| Shape { overlay, ..Shape::default() };
    for (shape, loose) in [
        (overlay(Overlay::Vxlan), Some("flannel.1")),
        (overlay(Overlay::Headerless), Some("tun0")),
        (Shape { pods: PodNetwork::Routed, ..Shape::default() }, None),
    ] {
        directly(2).shaped(shape).alone().run(|cluster, agents| {
            if let Some(device) = loose {
                let setting = format!("ipv4/conf/{device}/rp_filter");
                cluster.nodes[1].namespace.sysctl(&[(&setting, "2")])?;
            }
            let far = Backend::on(&cluster.nodes[1], "far")?;
            agents.serve(&Service::new("echo", 1).with(&far.pod).with_node_port(NODE_PORT))?;
            let to = cluster.nodes[0].addresses.at(NODE_PORT);
            expect_reach(&cluster.client, to, "far", &Seen::Client).with_context(|| format!("{shape:?}"))?;
            for family in Family::ALL {
                expect_upload(cluster, to.of(family), 8 << 20).with_context(|| format!("{shape:?}"))?;
            }
            Ok(())
        });
    }
}

fn expect_upload(cluster: &Cluster, to: SocketAddr, length: u64) -> Result<()> {
    let mut connection = Connection::open(&cluster.client.namespace, to, Source::AnyPort)?;
    connection.transfer(Direction::Upload, length, &AtomicU64::new(0)).with_context(|| format!("to {to}"))
}
