//! ICMP errors find their way back through a service.

use std::{io, net::UdpSocket, sync::atomic::AtomicU64, time::Duration};

use anyhow::{bail, ensure};
use sluice_tests::{
    harness::{Setup, with_agents},
    service::Service,
    topology::Family,
    traffic::{Connection, Direction, Source},
};

use crate::Backend;

#[test]
fn a_client_learns_that_the_backends_port_is_closed() {
    with_agents(2, |cluster, agents| {
        let client = cluster.nodes[0].add_pod("client")?;
        for node in &cluster.nodes {
            // A pod in which nothing listens: its own kernel refuses, by an ICMP error from the pod's address.
            let idle = node.add_pod("idle")?;
            let service = Service::new("echo", 1).with(&idle);
            agents.serve(&service)?;
            for family in Family::ALL {
                let to = service.frontend(family);
                client.machine.namespace.run(|| {
                    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
                    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
                    socket.connect(to)?;
                    socket.send(b"anybody there?")?;
                    match socket.recv(&mut [0; 64]) {
                        Ok(length) => bail!("{length} bytes from {to}, where nobody listens"),
                        Err(error) => {
                            let refused = error.kind() == io::ErrorKind::ConnectionRefused;
                            ensure!(refused, "{} on {}: {error}", family, node.name);
                            Ok(())
                        }
                    }
                })?;
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
        for family in Family::ALL {
            let mut connection =
                Connection::open(&client.machine.namespace, service.frontend(family), Source::AnyPort)?;
            connection.transfer(Direction::Upload, 8 << 20, &AtomicU64::new(0))?;
        }
        Ok(())
    });
}
