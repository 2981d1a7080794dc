//! The test bed itself, without any service: pods reach pods, and nothing about the path makes it easier than a
//! real one.

use std::{net::SocketAddr, sync::atomic::AtomicU64};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    counters,
    harness::{Setup, with_cluster},
    topology::{Addresses, Family, Machine, Overlay, PodNetwork, Shape, Uplink},
    traffic::{
        Chatter, Connection, Datagram, Direction, Pong, Protocol, RawSender, SctpClient, SctpServer, Server,
        Source, Spread, UdpClient, ping,
    },
};

const PORT: u16 = 8080;

#[test]
fn pods_reach_each_other_on_a_node_and_across_nodes_under_their_own_addresses() {
    with_cluster(2, |cluster| {
        let client = cluster.nodes[0].add_pod("client")?;
        let near = cluster.nodes[0].add_pod("near")?;
        let far = cluster.nodes[1].add_pod("far")?;
        for server in [&near, &far] {
            let _server = Server::start(&server.machine, PORT)?;
            for family in Family::ALL {
                expect_answer(&client.machine, &server.machine, family)?;
            }
        }
        Ok(())
    });
}

#[test]
fn the_client_outside_reaches_pods_through_the_first_node() {
    with_cluster(2, |cluster| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let _server = Server::start(&pod.machine, PORT)?;
        Family::ALL.iter().try_for_each(|family| expect_answer(&cluster.client, &pod.machine, *family))
    });
}

#[test]
fn large_transfers_arrive_whole_and_travel_in_large_segments() {
    with_cluster(2, |cluster| {
        let client = cluster.nodes[0].add_pod("client")?;
        let far = cluster.nodes[1].add_pod("far")?;
        let _server = Server::start(&far.machine, PORT)?;
        for family in Family::ALL {
            let to = SocketAddr::new(far.machine.addresses.of(family), PORT);
            let mut connection = Connection::open(&client.machine.namespace, to, Source::AnyPort)?;
            let before = counters::received(&cluster.nodes[1].namespace, "eth0")?;
            for direction in Direction::ALL {
                connection.transfer(direction, 64 << 20, &AtomicU64::new(0))?;
            }
            let after = counters::received(&cluster.nodes[1].namespace, "eth0")?;
            let mean = (after.bytes - before.bytes) / (after.frames - before.frames);
            ensure!(mean > 3000, "{family}: {mean} bytes per frame: segmentation offload is off");
        }
        Ok(())
    });
}

#[test]
fn a_service_address_that_nobody_serves_is_unreachable() {
    with_cluster(1, |cluster| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        for family in Family::ALL {
            let to = SocketAddr::new(Addresses::vip(1).of(family), 80);
            for from in [&pod.machine, &cluster.client] {
                let result = Connection::open(&from.namespace, to, Source::AnyPort);
                ensure!(result.is_err(), "{} reached {to}", from.name);
            }
        }
        Ok(())
    });
}

#[test]
fn nodes_drop_packets_that_come_from_where_their_source_is_not() {
    with_cluster(2, |cluster| {
        let liar = cluster.nodes[0].add_pod("liar")?;
        let near = cluster.nodes[0].add_pod("near")?;
        let far = cluster.nodes[1].add_pod("far")?;
        let server = Server::start(&far.machine, PORT)?;
        // What a load balancer does that rewrites replies before the routing decision: a source that is not
        // routed towards the device it comes from. IPv6 has no such filter.
        let vip = Addresses::vip(1).v4;
        liar.machine.namespace.ip(&format!("addr add {vip}/32 dev lo"))?;
        let to = SocketAddr::new(far.machine.addresses.v4.into(), PORT);
        UdpClient::bind(&near.machine.namespace, Family::V4)?.ask(to, 1)?;
        UdpClient::bind_to(&liar.machine.namespace, (vip, 0).into())?.tell(to, 2)?;
        // On the same way, behind it.
        UdpClient::bind(&liar.machine.namespace, Family::V4)?.ask(to, 3)?;
        ensure!(server.datagrams() == 2, "the datagram from {vip} was not dropped");
        Ok(())
    });
}

#[test]
fn three_hundred_connections_are_open_at_once_and_end_in_every_way() {
    with_cluster(1, |cluster| {
        let client = cluster.nodes[0].add_pod("client")?;
        let near = cluster.nodes[0].add_pod("near")?;
        let server = Server::start(&near.machine, PORT)?;
        let to = SocketAddr::new(near.machine.addresses.v6.into(), PORT);
        let from = &client.machine.namespace;
        let connections = Connection::open_many(from, to, 300)?;
        ensure!(server.connections() == 300);
        let port = connections.first().context("a connection")?.local()?.port();
        connections.into_iter().try_for_each(Connection::abort)?;
        for _ in 0..3 {
            Connection::open(from, to, Source::Port(port))?.abort()?;
        }
        let chatter = Chatter::start(Connection::open(from, to, Source::AnyPort)?)?;
        chatter.expect_more(20)?;
        ensure!(chatter.stop()? >= 20);
        let spread = Spread::measure(from, to, Protocol::Tcp, 120, |_| {})?;
        spread.expect_uniform_over(&["near"])
    });
}

#[test]
fn pods_reach_each_other_over_vlans() {
    pods_reach_each_other(Shape { uplink: Uplink::Vlan, ..Shape::default() });
}

#[test]
fn pods_reach_each_other_over_bonds() {
    pods_reach_each_other(Shape { uplink: Uplink::Bond, ..Shape::default() });
}

#[test]
fn pods_reach_each_other_over_vxlan() {
    pods_reach_each_other(Shape { overlay: Overlay::Vxlan, ..Shape::default() });
}

#[test]
fn pods_reach_each_other_over_a_device_without_ethernet_headers() {
    pods_reach_each_other(Shape { overlay: Overlay::Headerless, ..Shape::default() });
}

#[test]
fn pods_reach_each_other_without_a_bridge() {
    pods_reach_each_other(Shape { pods: PodNetwork::Routed, ..Shape::default() });
}

/// On one node and across two, under their own addresses, and in large transfers.
fn pods_reach_each_other(shape: Shape) {
    Setup::new(2).shaped(shape).run_bare(|cluster| {
        let client = cluster.nodes[0].add_pod("client")?;
        let near = cluster.nodes[0].add_pod("near")?;
        let far = cluster.nodes[1].add_pod("far")?;
        for server in [&near, &far] {
            let _server = Server::start(&server.machine, PORT)?;
            for family in Family::ALL {
                expect_answer(&client.machine, &server.machine, family)?;
                let to = SocketAddr::new(server.machine.addresses.of(family), PORT);
                let mut connection = Connection::open(&client.machine.namespace, to, Source::AnyPort)?;
                connection.transfer(Direction::Upload, 1 << 20, &AtomicU64::new(0))?;
            }
        }
        Ok(())
    });
}

#[test]
fn large_datagrams_and_fragments_made_by_hand_arrive_whole() {
    with_cluster(2, |cluster| {
        let client = cluster.nodes[0].add_pod("client")?;
        let far = cluster.nodes[1].add_pod("far")?;
        let _server = Server::start(&far.machine, PORT)?;
        let from = &client.machine.namespace;
        for family in Family::ALL {
            let to = SocketAddr::new(far.machine.addresses.of(family), PORT);
            let socket = UdpClient::bind(from, family)?;
            for length in [2_000, 8_000] {
                let payload = vec![b'x'; length];
                let answer = socket.exchange(to, &payload)?;
                ensure!(answer.backend == "far", "{answer:?}");
            }
            let source = SocketAddr::new(client.machine.addresses.of(family), socket.local()?.port());
            let payload = vec![b'y'; 3_000];
            let mut fragments = Datagram { source, destination: to, payload: &payload }.fragments(7, 1_000);
            fragments.reverse();
            let sender = RawSender::open(from, family)?;
            fragments.iter().try_for_each(|fragment| sender.send(to.ip(), fragment))?;
            let answer = socket.answer(to, &payload)?;
            ensure!(answer.seen_as == source, "{answer:?}");
        }
        Ok(())
    });
}

#[test]
fn sctp_is_answered_by_hand_and_pings_by_the_kernel() {
    with_cluster(2, |cluster| {
        let client = cluster.nodes[0].add_pod("client")?;
        let far = cluster.nodes[1].add_pod("far")?;
        let server = SctpServer::start(&far.machine, PORT)?;
        let from = &client.machine.namespace;
        for family in Family::ALL {
            let to = SocketAddr::new(far.machine.addresses.of(family), PORT);
            let answer = SctpClient::new(from, family, 1000)?.ask(to, 5)?;
            let own = SocketAddr::new(client.machine.addresses.of(family), 1000);
            ensure!(answer.backend == "far" && answer.seen_as == own && answer.from == to, "{answer:?}");
            ensure!(ping(from, to.ip())? == Pong::Reply(to.ip()));
            let nobody = Addresses::vip(1).of(family);
            ensure!(matches!(ping(&cluster.client.namespace, nobody)?, Pong::Unreachable(_)));
        }
        ensure!(server.wrong_checksums() == 0);
        Ok(())
    });
}

#[test]
fn packets_to_addresses_elsewhere_go_to_the_node_that_they_are_routed_to() {
    with_cluster(2, |cluster| {
        let elsewhere = Addresses::elsewhere(1);
        cluster.client.route(elsewhere, &cluster.nodes[1])?;
        let other = Addresses::on_fabric(101);
        cluster.client.add_addresses(&[other])?;
        let second = cluster.client.known_as(other);
        cluster.nodes[1].namespace.ip(&format!(
            "addr add {}/32 dev lo\naddr add {}/128 dev lo nodad",
            elsewhere.v4, elsewhere.v6
        ))?;
        let server = Server::start(&cluster.nodes[1].machine(), PORT)?;
        for family in Family::ALL {
            let (to, from) = (elsewhere.at(PORT).of(family), second.addresses.at(3000).of(family));
            let connection = Connection::open(&second.namespace, to, Source::At(from))?;
            ensure!(connection.seen_as == from && connection.backend == "node-2", "{connection:?}");
        }
        ensure!(server.connections() == 2);
        Ok(())
    });
}

fn expect_answer(client: &Machine, server: &Machine, family: Family) -> Result<()> {
    let to = SocketAddr::new(server.addresses.of(family), PORT);
    let own = client.addresses.of(family);
    let connection = Connection::open(&client.namespace, to, Source::AnyPort)?;
    ensure!(connection.backend == server.name && connection.seen_as.ip() == own, "{connection:?}");
    let answer = UdpClient::bind(&client.namespace, family)?.ask(to, 1)?;
    ensure!(answer.backend == server.name && answer.seen_as.ip() == own && answer.from == to, "{answer:?}");
    Ok(())
}
