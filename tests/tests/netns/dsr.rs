//! Direct server return: backends on other nodes see clients outside, and answer them past the node that was asked.

use std::{
    io::Read as _,
    net::{IpAddr, SocketAddr, UdpSocket},
    process::Command,
    sync::atomic::AtomicU64,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use proxy_common::drop::DropReason;
use sluice_tests::{
    agent::Agent,
    deployment::Deployment,
    harness::Setup,
    service::{PORT, Service},
    topology::{Addresses, Cluster, Family, Overlay, PodNetwork, Shape},
    traffic::{Connection, Direction, Source, UdpClient},
    wait::wait_until,
};

use socket2::{Domain, Socket, Type};

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

/// A Service with a NodePort, and its backend on the second node.
fn serve_far(cluster: &Cluster, agents: &Deployment) -> Result<Backend> {
    let far = Backend::on(&cluster.nodes[1], "far")?;
    agents.serve(&Service::new("echo", 1).with(&far.pod).with_node_port(NODE_PORT))?;
    Ok(far)
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

/// What travels between the nodes, field by field (RFC 8926 3.4, 3.5).
#[test]
fn packets_travel_to_the_pod_in_geneve() {
    directly(2).run(|cluster, agents| {
        let far = serve_far(cluster, agents)?;
        for (family, words) in [(Family::V4, 2_u8), (Family::V6, 5)] {
            let to = cluster.nodes[0].addresses.at(NODE_PORT).of(family);
            let own = cluster.client.addresses.at(7_002).of(family);
            let wire = cluster.fabric().run(|| {
                let socket = Socket::new(Domain::PACKET, Type::RAW, Some(EVERYTHING.into()))?;
                socket.set_read_timeout(Some(Duration::from_secs(10)))?;
                Ok(socket)
            })?;
            UdpClient::bind_to(&cluster.client.namespace, own)?.ask(to, 7)?;
            let pod = far.pod.machine.addresses.of(family);
            let packet = wait_until("a packet to the pod is seen", || {
                let mut frame = [0; 2_048];
                let length = (&wire).read(&mut frame)?;
                Ok(frame[ETHERNET..length].to_vec())
                    .map(|packet| Some(packet).filter(|packet| goes_to(packet, pod)))
            })?;
            let (outer, behind) = packet.split_at(if family == Family::V4 { 20 } else { 40 });
            let (udp, behind) = behind.split_at(8);
            let (geneve, behind) = behind.split_at(8 + 4 + usize::from(words) * 4);
            let be16 = |bytes: &[u8]| usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
            if family == Family::V4 {
                ensure!(outer[..2] == [0x45, 0] && be16(&outer[2..]) == packet.len(), "{outer:02x?}");
                // Never fragmented, over UDP; and the sum of all is what a right checksum makes it.
                ensure!(outer[4..10] == [0, 0, 0x40, 0, 64, 17], "{outer:02x?}");
                let sum: usize = outer.chunks(2).map(be16).sum();
                ensure!((sum & 0xffff) + (sum >> 16) == 0xffff, "{outer:02x?}");
            } else {
                ensure!(
                    outer[..4] == [0x60, 0, 0, 0] && be16(&outer[4..]) == packet.len() - 40,
                    "{outer:02x?}"
                );
                ensure!(outer[6..8] == [17, 64], "{outer:02x?}");
            }
            ensure!(source(outer) == cluster.nodes[0].addresses.of(family), "{outer:02x?}");
            ensure!(be16(udp) >= 49_152 && be16(&udp[4..]) == packet.len() - outer.len(), "{udp:02x?}");
            ensure!(be16(&udp[2..]) == 6_090 && udp[6..] == [0, 0], "{udp:02x?}");
            let ether_type: u16 = if family == Family::V4 { 0x0800 } else { 0x86dd };
            let mut expected = [&[words + 1, 0x40][..], &ether_type.to_be_bytes(), &[0; 4]].concat();
            expected.extend([0xff, 0x51, 0x81, words]);
            expected.extend(to.port().to_be_bytes());
            expected.extend(own.port().to_be_bytes());
            match to.ip() {
                IpAddr::V4(ip) => expected.extend(ip.octets()),
                IpAddr::V6(ip) => expected.extend(ip.octets()),
            }
            ensure!(geneve == expected, "{geneve:02x?} is not {expected:02x?}");
            ensure!(source(behind) == own.ip() && goes_to(behind, pod), "{behind:02x?}");
        }
        Ok(())
    });
}

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// `ETH_P_ALL`, as sockets take it.
const EVERYTHING: i32 = 3_u16.to_be() as i32;

/// Where a packet comes from.
fn source(packet: &[u8]) -> IpAddr {
    let mut address = [0; 16];
    if packet[0] >> 4 == 4 {
        IpAddr::from([packet[12], packet[13], packet[14], packet[15]])
    } else {
        address.copy_from_slice(&packet[8..24]);
        address.into()
    }
}

/// Whether it goes there, by UDP.
fn goes_to(packet: &[u8], to: IpAddr) -> bool {
    match to {
        IpAddr::V4(to) => packet[0] >> 4 == 4 && packet[9] == 17 && packet[16..20] == to.octets(),
        IpAddr::V6(to) => packet[0] >> 4 == 6 && packet[6] == 17 && packet[24..40] == to.octets(),
    }
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
        let _far = serve_far(cluster, agents)?;
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
        let _far = serve_far(cluster, agents)?;
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
        let _far = serve_far(cluster, agents)?;
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
        let _far = serve_far(cluster, agents)?;
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

/// With tables that all nodes agree on, any node goes on where another has been asked: the backend sees no difference.
#[test]
fn a_connection_goes_on_through_another_node() {
    directly(3).telling(&["--backend-selection=maglev"]).alone().run(|cluster, agents| {
        let backends = [Backend::on(&cluster.nodes[2], "one")?, Backend::on(&cluster.nodes[2], "two")?];
        let vip = balanced(cluster)?;
        let service = Service::new("echo", 1).with_load_balancer(vip, "VIP");
        let service = backends.iter().fold(service, |service, backend| service.with(&backend.pod));
        agents.serve(&service)?;
        for agent in &agents.agents {
            wait_until("connections that are not known go on", || {
                Ok(agent.log()?.contains("go on where their hash leads").then_some(()))
            })?;
        }
        for family in Family::ALL {
            let to = vip.at(PORT).of(family);
            let mut connections = Connection::open_many(&cluster.client.namespace, to, 8)?;
            connections.iter_mut().try_for_each(Connection::start_echo)?;
            // The second and the first are asked, and then the one that the backends are on.
            for (round, node) in (1..).zip([1, 0, 2, 1]) {
                cluster.client.route(vip, &cluster.nodes[node])?;
                for connection in &mut connections {
                    connection
                        .echo(round)
                        .with_context(|| format!("{family} by {}", cluster.nodes[node].name))?;
                }
            }
            cluster.client.route(vip, &cluster.nodes[0])?;
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
            let _far = serve_far(cluster, agents)?;
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
