//! The test bed itself, without any service: pods reach pods, and nothing about the path makes it easier than a
//! real one.

use std::{net::SocketAddr, sync::atomic::AtomicU64};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    counters,
    harness::with_cluster,
    topology::{Addresses, Family, Machine},
    traffic::{Chatter, Connection, Direction, Protocol, Server, Source, Spread, UdpClient},
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

fn expect_answer(client: &Machine, server: &Machine, family: Family) -> Result<()> {
    let to = SocketAddr::new(server.addresses.of(family), PORT);
    let own = client.addresses.of(family);
    let connection = Connection::open(&client.namespace, to, Source::AnyPort)?;
    ensure!(connection.backend == server.name && connection.seen_as.ip() == own, "{connection:?}");
    let answer = UdpClient::bind(&client.namespace, family)?.ask(to, 1)?;
    ensure!(answer.backend == server.name && answer.seen_as.ip() == own && answer.from == to, "{answer:?}");
    Ok(())
}
