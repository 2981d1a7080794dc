//! ICMP errors find their way back through a service.

use std::sync::atomic::AtomicU64;

use anyhow::{Context as _, Result};
use sluice_tests::{
    harness::{Setup, with_agents},
    service::Service,
    topology::{BRIDGE, Ends, Family, Machine},
    traffic::{Connection, Direction, Source},
};

use crate::{Backend, expect::expect_refused};

const NODE_PORT: u16 = 30_080;

/// The backend's own kernel refuses, by an ICMP error from the pod's address, to whom it took the client for.
#[test]
pub(crate) fn a_client_learns_that_the_backends_port_is_closed() {
    with_agents(2, |cluster, agents| {
        let client = cluster.nodes[0].add_pod("client")?;
        for node in &cluster.nodes {
            // A pod in which nothing listens.
            let idle = node.add_pod("idle")?;
            let service = Service::new("echo", 1).with(&idle).with_node_port(NODE_PORT);
            agents.serve(&service)?;
            for client in [&client.machine, &cluster.client] {
                for to in [service.vip(), cluster.nodes[0].addresses.at(NODE_PORT)] {
                    let context = || format!("from {} to {to:?} on {}", client.name, node.name);
                    expect_refused(client, to).with_context(context)?;
                }
            }
        }
        Ok(())
    });
}

#[test]
fn a_sender_adapts_to_a_narrow_path_behind_the_service() {
    Setup::new(2).alone().run(|cluster, agents| {
        let client = cluster.nodes[0].add_pod("client")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let service = Service::new("echo", 1).with(&far.pod);
        agents.serve(&service)?;
        // The node cannot forward what the client sends: it says so to the client, about a packet to the backend.
        cluster.nodes[0].namespace.ip("link set eth0 mtu 1400")?;
        expect_upload(&client.machine, service.vip())
    });
}

/// The next node says so to this one, which it takes for the client, and this one to the client (NAT-02).
#[test]
fn a_sender_outside_adapts_to_a_narrow_path_behind_the_node_that_it_asks() {
    Setup::new(2).alone().run(|cluster, agents| {
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let service = Service::new("echo", 1).with(&far.pod).with_node_port(NODE_PORT);
        agents.serve(&service)?;
        cluster.nodes[1].namespace.ip(&format!("link set {BRIDGE} mtu 1400"))?;
        expect_upload(&cluster.client, cluster.nodes[0].addresses.at(NODE_PORT))
    });
}

fn expect_upload(client: &Machine, to: Ends) -> Result<()> {
    for family in Family::ALL {
        let mut connection = Connection::open(&client.namespace, to.of(family), Source::AnyPort)?;
        connection.transfer(Direction::Upload, 8 << 20, &AtomicU64::new(0)).context(family)?;
    }
    Ok(())
}
