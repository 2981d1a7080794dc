//! Sockets whose backend goes away.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use sluice_tests::{harness::with_agents, service::Service, topology::Family, traffic::UdpClient};

use super::{LOOPBACK, NODE_PORT};
use crate::Backend;

/// The port of the sender in the tests of Kubernetes (VER-08).
const FIXED_PORT: u16 = 12_345;

/// E2E-073, CT-08d, BPF-05.
#[test]
fn a_sender_on_the_host_follows_when_its_backend_is_replaced() {
    with_agents(2, |cluster, agents| {
        let node = &cluster.nodes[0];
        let near = [Backend::on(node, "near-1")?, Backend::on(node, "near-2")?];
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let service = Service::new("echo", 1).with_node_port(NODE_PORT);
        for ends in [service.vip(), node.addresses.at(NODE_PORT), LOOPBACK.at(NODE_PORT)] {
            let senders = Family::ALL.map(|family| {
                // The socket for IPv6 would take the port for both.
                let port = if family == Family::V4 { FIXED_PORT } else { FIXED_PORT + 1 };
                let own = SocketAddr::new(family.unspecified(), port);
                UdpClient::bind_to(&node.namespace, own).map(|socket| (ends.of(family), socket))
            });
            let senders = senders.into_iter().collect::<Result<Vec<_>>>()?;
            for backend in [&near[0], &near[1], &far, &near[0]] {
                agents.serve(&service.clone().with(&backend.pod))?;
                for (to, socket) in &senders {
                    for number in 0..3 {
                        let answer = socket.ask(*to, number)?;
                        let expected = backend.pod.name();
                        ensure!(answer.backend == expected && answer.from == *to, "{expected}: {answer:?}");
                    }
                }
            }
            // One that stays keeps its senders.
            agents.serve(&service.clone().with(&near[0].pod).with(&far.pod).with(&near[1].pod))?;
            for (to, socket) in &senders {
                for number in 0..20 {
                    let answer = socket.ask(*to, number)?;
                    ensure!(answer.backend == "near-1", "{answer:?}");
                }
            }
        }
        Ok(())
    });
}
