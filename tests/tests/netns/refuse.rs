//! Nobody serves: clients learn it at once.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use sluice_tests::{
    harness::with_agents,
    netns::Namespace,
    service::Service,
    topology::Family,
    traffic::{Source, connect_raw},
};

use crate::{Backend, expect_all_reach};

/// Far longer than an answer takes; only a client that gets none waits for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// The error is the one that a refusal causes, not a time-out.
fn expect_refused(what: &str, error: &io::Error) -> Result<()> {
    ensure!(error.kind() == io::ErrorKind::ConnectionRefused, "{what}: {error} ({:?})", error.kind());
    Ok(())
}

fn expect_tcp_refused(from: &Namespace, to: SocketAddr) -> Result<()> {
    match connect_raw(from, to, Source::AnyPort, PATIENCE) {
        Ok(_) => bail!("connected to {to}, which nobody serves"),
        Err(error) => {
            let cause = error.downcast_ref::<io::Error>().context("not an error of the socket")?;
            expect_refused(&format!("TCP to {to}"), cause)
        }
    }
}

fn expect_udp_refused(from: &Namespace, to: SocketAddr) -> Result<()> {
    from.run(|| {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(to)?;
        socket.send(b"anybody there?")?;
        match socket.recv(&mut [0; 64]) {
            Ok(length) => bail!("{length} bytes from {to}, which nobody serves"),
            Err(error) => expect_refused(&format!("UDP to {to}"), &error),
        }
    })
}

#[test]
fn a_service_without_endpoints_refuses_at_once() {
    with_agents(2, |cluster, agents| {
        let pod = cluster.nodes[0].add_pod("client")?;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let service = Service::new("echo", 1);
        agents.serve(&service)?;
        for client in [&pod.machine.namespace, &cluster.client.namespace] {
            for family in Family::ALL {
                expect_tcp_refused(client, service.frontend(family))?;
                expect_udp_refused(client, service.frontend(family))?;
            }
        }
        // And serves as soon as there is somebody, and refuses again when there is not.
        agents.serve(&service.clone().with(&near.pod))?;
        expect_all_reach(&pod.machine, &service, "near")?;
        agents.serve(&service)?;
        expect_tcp_refused(&pod.machine.namespace, service.frontend(Family::V4))?;
        expect_udp_refused(&pod.machine.namespace, service.frontend(Family::V6))
    });
}
