//! The agent and its programs on nodes made of network namespaces, with real sockets at both ends.
//!
//! One file per question: is it reached ([`reach`]), by whom ([`spread`]), what if nobody serves ([`refuse`], [`errors`]), does it
//! hold ([`load`]), does it follow changes ([`endpoints`], [`devices`], [`manifests`]), does it outlive the agent
//! ([`lifecycle`]), and does the demo tell the truth ([`demo`])?

mod demo;
mod devices;
mod endpoints;
mod errors;
mod lifecycle;
mod load;
mod manifests;
mod reach;
mod refuse;
mod spread;

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use sluice_tests::{
    service::{Service, TARGET_PORT},
    topology::{Family, Machine, Node, Pod},
    traffic::{Connection, Server, Source, UdpClient},
};

/// A pod that serves for as long as this is held.
struct Backend {
    pod: Pod,
    server: Server,
}

impl Backend {
    fn on(node: &Node, name: &str) -> Result<Self> {
        let pod = node.add_pod(name)?;
        let server = Server::start(&pod.machine, TARGET_PORT)?;
        Ok(Self { pod, server })
    }
}

/// Whoever `client` reaches through the service by TCP. The client must see the service as its peer, and the backend
/// must see the client.
fn ask_tcp(client: &Machine, service: &Service, family: Family) -> Result<String> {
    let vip = service.frontend(family);
    let connection = Connection::open(&client.namespace, vip, Source::AnyPort)?;
    ensure!(connection.peer()? == vip, "the peer of a connection to {vip} is {}", connection.peer()?);
    let own = connection.local()?;
    ensure!(connection.seen_as == own, "{} sees {own} as {}", connection.backend, connection.seen_as);
    Ok(connection.backend)
}

/// Whoever `client` reaches through the service by UDP, under the same conditions.
fn ask_udp(client: &Machine, service: &Service, family: Family) -> Result<String> {
    let vip = service.frontend(family);
    let socket = UdpClient::bind(&client.namespace, family)?;
    let answer = socket.ask(vip, 1)?;
    ensure!(answer.from == vip, "asked {vip}, the answer came from {}", answer.from);
    let own = SocketAddr::new(client.addresses.of(family), socket.local()?.port());
    ensure!(answer.seen_as == own, "{} sees {own} as {}", answer.backend, answer.seen_as);
    Ok(answer.backend)
}

/// `client` reaches `backend`, which is the service's only one, by both protocols and both families.
fn expect_all_reach(client: &Machine, service: &Service, backend: &str) -> Result<()> {
    for family in Family::ALL {
        let names = [ask_tcp(client, service, family)?, ask_udp(client, service, family)?];
        ensure!(names == [backend, backend], "{family}: reached {names:?} instead of {backend}");
    }
    Ok(())
}
