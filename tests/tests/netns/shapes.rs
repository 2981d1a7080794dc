//! Nodes and pods joined in other ways than by bridges and routes.

use std::{net::SocketAddr, sync::atomic::AtomicU64};

use anyhow::{Context as _, Result};
use sluice_tests::{
    deployment::Deployment,
    harness::Setup,
    service::Service,
    topology::{Addresses, Cluster, Family, Machine, Overlay, PodNetwork, Shape, Uplink},
    traffic::{Connection, Direction, Source},
};

use crate::{
    Backend,
    expect::{Seen, expect_all_reach, expect_reach, expect_refused},
};

const NODE_PORT: u16 = 30_080;

/// Everything that depends on how packets come and go, on a cluster of that shape. A node gives what it sends to the
/// other for a client outside the addresses of the device that it leaves by (MASQ-09): `sent_as`.
fn expect_service(shape: Shape, sent_as: fn(u8) -> Addresses) {
    Setup::new(2).shaped(shape).run(|cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let node = cluster.nodes[0].addresses;
        for (backend, outside) in [(&near, Seen::Client), (&far, Seen::As(sent_as(1)))] {
            let service = Service::new("echo", 1).with(&backend.pod).with_node_port(NODE_PORT);
            agents.serve(&service)?;
            let name = backend.pod.name();
            expect_all_reach(&pod.machine, &service, name)?;
            for to in [service.vip(), node.at(NODE_PORT)] {
                expect_reach(&cluster.client, to, name, &outside).context("a client outside")?;
                expect_transfer(&cluster.client, to.of(Family::V4))?;
                expect_transfer(&cluster.client, to.of(Family::V6))?;
            }
            expect_reach(&pod.machine, node.at(NODE_PORT), name, &Seen::Client)?;
            expect_transfer(&pod.machine, service.frontend(Family::V4))?;
        }
        expect_hairpin(cluster, agents)?;
        let nobody = Service::new("nobody", 3);
        agents.serve(&nobody)?;
        expect_refused(&pod.machine, nobody.vip())?;
        expect_refused(&cluster.client, nobody.vip())
    });
}

/// MASQ-08.
fn expect_hairpin(cluster: &Cluster, agents: &Deployment) -> Result<()> {
    let node = &cluster.nodes[0];
    let own = Backend::on(node, "itself")?;
    let service = Service::new("hairpin", 2).with(&own.pod);
    agents.serve(&service)?;
    expect_reach(&own.pod.machine, service.vip(), "itself", &Seen::node(node))
}

fn expect_transfer(client: &Machine, to: SocketAddr) -> Result<()> {
    let mut connection = Connection::open(&client.namespace, to, Source::AnyPort)?;
    for direction in Direction::ALL {
        connection.transfer(direction, 4 << 20, &AtomicU64::new(0)).with_context(|| format!("with {to}"))?;
    }
    Ok(())
}

#[test]
fn services_work_over_a_vlan() {
    expect_service(Shape { uplink: Uplink::Vlan, ..Shape::default() }, Addresses::on_fabric);
}

#[test]
fn services_work_over_a_bond() {
    expect_service(Shape { uplink: Uplink::Bond, ..Shape::default() }, Addresses::on_fabric);
}

/// As flannel joins nodes.
#[test]
fn services_work_over_vxlan() {
    expect_service(Shape { overlay: Overlay::Vxlan, ..Shape::default() }, Addresses::on_tunnel);
}

/// As WireGuard and IPIP join nodes.
#[test]
fn services_work_over_a_device_without_ethernet_headers() {
    expect_service(Shape { overlay: Overlay::Headerless, ..Shape::default() }, Addresses::on_tunnel);
}

/// As Calico and the AWS VPC CNI join pods.
#[test]
pub(crate) fn services_work_for_pods_that_are_routed_to() {
    expect_service(Shape { pods: PodNetwork::Routed, ..Shape::default() }, Addresses::on_fabric);
}

/// A client that comes to the node through a tunnel is outside like any other.
#[test]
fn a_client_behind_a_device_without_ethernet_headers_reaches_node_ports() {
    let shape = Shape { overlay: Overlay::Headerless, ..Shape::default() };
    Setup::new(2).shaped(shape).run(|cluster, agents| {
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let client = cluster.nodes[1].add_pod("client")?;
        agents.serve(&Service::new("echo", 1).with(&near.pod).with_node_port(NODE_PORT))?;
        // The addresses that node-1 has on the bridge are routed through the tunnel, as its pods are.
        let to = cluster.nodes[0].gateway().at(NODE_PORT);
        expect_reach(&client.machine, to, "near", &Seen::Client)
    });
}
