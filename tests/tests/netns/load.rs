//! Much at once: large transfers, many connections, one port again and again.

use std::sync::atomic::AtomicU64;

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    counters,
    deployment::Deployment,
    harness::with_agents,
    service::Service,
    topology::{Cluster, Family},
    traffic::{Connection, Direction, Source},
    wait::wait_until,
};

use crate::Backend;

const GIGABYTE: u64 = 1_000_000_000;

#[test]
fn a_gigabyte_each_way_arrives_whole_from_a_backend_on_the_same_node() {
    with_agents(1, |cluster, agents| {
        let near = Backend::on(&cluster.nodes[0], "near")?;
        transfer(cluster, agents, &near, &near.pod.device)
    });
}

#[test]
fn a_gigabyte_each_way_arrives_whole_from_a_backend_on_the_other_node() {
    with_agents(2, |cluster, agents| {
        let far = Backend::on(&cluster.nodes[1], "far")?;
        transfer(cluster, agents, &far, "eth0")
    });
}

/// A gigabyte each way and family, from a pod on the first node, past `device` of that node, in large segments: with
/// the offloads of real devices off, a wrong checksum would show at once, but not one that is still to be finished.
fn transfer(cluster: &Cluster, agents: &Deployment, backend: &Backend, device: &str) -> Result<()> {
    let node = &cluster.nodes[0];
    let client = node.add_pod("client")?;
    let service = Service::new("echo", 1).with(&backend.pod);
    agents.serve(&service)?;
    for family in Family::ALL {
        let to = service.frontend(family);
        let mut connection = Connection::open(&client.machine.namespace, to, Source::AnyPort)?;
        for direction in Direction::ALL {
            let before = counters::received(&node.namespace, device)?;
            connection
                .transfer(direction, GIGABYTE, &AtomicU64::new(0))
                .with_context(|| format!("over {family}"))?;
            let after = counters::received(&node.namespace, device)?;
            // Upwards, this device receives acknowledgements only.
            let mean = (after.bytes - before.bytes) / (after.frames - before.frames).max(1);
            let large = direction == Direction::Upload || mean > 3000;
            ensure!(large, "{family}: {mean} bytes per frame: segmentation offload is off");
        }
    }
    Ok(())
}

#[test]
fn five_hundred_connections_are_open_and_used_at_once() {
    with_agents(2, |cluster, agents| {
        let client = cluster.nodes[0].add_pod("client")?;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let service = Service::new("echo", 1).with(&near.pod).with(&far.pod);
        agents.serve(&service)?;
        for family in Family::ALL {
            let before = near.server.connections() + far.server.connections();
            let to = service.frontend(family);
            let mut connections = Connection::open_many(&client.machine.namespace, to, 500)?;
            let taken = near.server.connections() + far.server.connections() - before;
            ensure!(taken == 500, "{taken} of 500 connections were taken");
            connections.iter_mut().try_for_each(Connection::start_echo)?;
            for round in 0..3 {
                for (connection, n) in connections.iter_mut().zip(0..) {
                    connection.echo(round * 1000 + n).with_context(|| format!("connection {n}"))?;
                }
            }
        }
        let repeated = counters::syn_retransmissions(&client.machine.namespace)?;
        ensure!(repeated == 0, "{repeated} SYNs were lost");
        Ok(())
    });
}

#[test]
fn a_client_port_is_used_again_right_after_a_reset() {
    reuse_port(Connection::abort);
}

#[test]
fn a_client_port_is_used_again_right_after_the_server_closed() {
    reuse_port(Connection::close_there_first);
}

/// Connects fifty times from one port, each time as soon as the last connection has been ended by `end`. With two
/// backends, half of the connections follow one to the other backend.
fn reuse_port(end: fn(Connection) -> Result<()>) {
    with_agents(2, |cluster, agents| {
        let client = cluster.nodes[0].add_pod("client")?;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let service = Service::new("echo", 1).with(&near.pod).with(&far.pod);
        agents.serve(&service)?;
        let from = &client.machine.namespace;
        for family in Family::ALL {
            for n in 0..50 {
                // The client's own kernel holds the port until the last FIN has been acknowledged.
                let connection = wait_until("the port is free", || {
                    match Connection::open(from, service.frontend(family), Source::Port(7000)) {
                        Err(error) if is_taken(&error) => Ok(None),
                        other => other.map(Some),
                    }
                });
                end(connection.with_context(|| format!("connection {n} over {family}"))?)?;
            }
        }
        let repeated = counters::syn_retransmissions(from)?;
        ensure!(repeated == 0, "{repeated} SYNs were lost");
        ensure!(near.server.connections() > 0 && far.server.connections() > 0, "one backend got nothing");
        Ok(())
    });
}

fn is_taken(error: &anyhow::Error) -> bool {
    use std::io::ErrorKind::{AddrInUse, AddrNotAvailable};
    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    matches!(kind, Some(AddrInUse | AddrNotAvailable))
}
