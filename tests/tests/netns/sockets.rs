//! Processes in the node's own network, which never cross a hook of packets: they get their backend at their sockets.
//!
//! Whom they reach ([`reach`]) and under what rules ([`policy`]), who else is served ([`modes`]), what if a backend goes
//! ([`gone`], [`reset`]) or a program ([`hooks`]).

mod gone;
mod hooks;
pub(crate) mod modes;
mod policy;
mod reach;
mod reset;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    topology::{Addresses, Ends, Family, Machine, Node},
    traffic::{Connection, Source},
};
use socket2::{Domain, Socket, Type};

pub(crate) use self::gone::{all_ways, can_abort};
use crate::expect::{Seen, expect_reach, expect_tcp_refused};

const NODE_PORT: u16 = 30_080;
/// What is said at once is said within this time: far less than anybody waits for an answer.
const AT_ONCE: Duration = Duration::from_secs(2);
const EXTERNAL: u8 = 250;
const BALANCER: u8 = 251;

/// Loopback addresses, which every machine has.
const LOOPBACK: Addresses = Addresses { v4: Ipv4Addr::LOCALHOST, v6: Ipv6Addr::LOCALHOST };

/// The processes of a node, which leave it to the kernel what address they have.
fn host(node: &Node) -> Machine {
    node.machine().known_as(Addresses { v4: Ipv4Addr::UNSPECIFIED, v6: Ipv6Addr::UNSPECIFIED })
}

/// As the refusal of packets, but of the calls themselves: nothing is sent.
fn expect_refused_at_once(host: &Machine, to: Ends) -> Result<()> {
    let start = Instant::now();
    for family in Family::ALL {
        let to = to.of(family);
        expect_tcp_refused(&host.namespace, to)?;
        for (call, result) in udp_calls(host, to)? {
            let error = result.err().with_context(|| format!("UDP to {to}: {call} should fail"))?;
            ensure!(error.kind() == io::ErrorKind::ConnectionRefused, "UDP to {to}: {call}: {error}");
        }
    }
    ensure!(start.elapsed() < AT_ONCE, "it took {:?}", start.elapsed());
    Ok(())
}

/// Whatever tries to reach `to` fails at once.
fn expect_failure_at_once(host: &Machine, to: Ends) -> Result<()> {
    let start = Instant::now();
    for family in Family::ALL {
        let to = to.of(family);
        let connected = Connection::open(&host.namespace, to, Source::AnyPort);
        ensure!(connected.is_err(), "TCP to {to}: {connected:?}");
        for (call, result) in udp_calls(host, to)? {
            ensure!(result.is_err(), "UDP to {to}: {call} should fail");
        }
    }
    ensure!(start.elapsed() < AT_ONCE, "it took {:?}", start.elapsed());
    Ok(())
}

/// What both calls that name a receiver return.
fn udp_calls(host: &Machine, to: SocketAddr) -> Result<[(&'static str, io::Result<()>); 2]> {
    host.namespace.run(|| {
        let socket = || UdpSocket::bind((Family::of(to.ip()).unspecified(), 0));
        Ok([
            ("connect", socket()?.connect(to)),
            ("sendto", socket()?.send_to(b"anybody there?", to).map(drop)),
        ])
    })
}

/// A datagram and its answer on a connected socket. The process sees nobody but the service.
fn expect_connected_udp(host: &Machine, own: IpAddr, to: SocketAddr, backend: &str) -> Result<()> {
    let socket = host.namespace.run(|| Ok(UdpSocket::bind((own, 0))?))?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    socket.connect(to).with_context(|| format!("connect to {to}"))?;
    ensure!(socket.peer_addr()? == to, "the peer of a socket to {to} is {}", socket.peer_addr()?);
    for number in 0..3 {
        socket.send(number.to_string().as_bytes())?;
        let mut buffer = [0; 256];
        let (length, from) = socket.recv_from(&mut buffer).with_context(|| format!("answer from {to}"))?;
        let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
        ensure!(from == to, "asked {to}, the answer came from {from}");
        ensure!(
            answer.starts_with(&format!("{backend} ")) && answer.ends_with(&format!(" {number}")),
            "{answer}"
        );
    }
    Ok(())
}

fn mapped(end: SocketAddr) -> Option<SocketAddr> {
    match end.ip() {
        IpAddr::V4(ip) => Some((ip.to_ipv6_mapped(), end.port()).into()),
        IpAddr::V6(_) => None,
    }
}

/// By TCP and UDP, on sockets that are connected and that are not, of their own family and of the other one.
fn expect_reach_every_way(host: &Machine, to: Ends, backend: &str, seen: &Seen) -> Result<()> {
    expect_reach(host, to, backend, seen)?;
    for family in Family::ALL {
        let to = to.of(family);
        expect_connected_udp(host, family.unspecified(), to, backend)?;
        if let Some(to) = mapped(to) {
            expect_reach_mapped(host, to, backend)?;
        }
    }
    Ok(())
}

/// A socket of IPv6 that talks IPv4.
fn expect_reach_mapped(host: &Machine, to: SocketAddr, backend: &str) -> Result<()> {
    let any = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    expect_connected_udp(host, any, to, backend).context("mapped")?;
    let (datagrams, stream) = host.namespace.run(|| {
        let datagrams = Socket::new(Domain::IPV6, Type::DGRAM, None)?;
        datagrams.set_only_v6(false)?;
        datagrams.bind(&SocketAddr::new(any, 0).into())?;
        let stream = Socket::new(Domain::IPV6, Type::STREAM, None)?;
        stream.set_only_v6(false)?;
        stream.connect(&to.into()).with_context(|| format!("connect to {to}"))?;
        Ok((UdpSocket::from(datagrams), stream))
    })?;
    let peer = stream.peer_addr()?.as_socket();
    ensure!(peer == Some(to), "the peer of a connection to {to} is {peer:?}");
    let mut greeting = [0; 64];
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let length = io::Read::read(&mut &stream, &mut greeting)?;
    let greeting = String::from_utf8_lossy(&greeting[..length]);
    ensure!(greeting.starts_with(&format!("{backend} ")), "{to} is {greeting:?}");

    datagrams.set_read_timeout(Some(Duration::from_secs(10)))?;
    datagrams.send_to(b"7", to)?;
    let mut buffer = [0; 256];
    let (length, from) = datagrams.recv_from(&mut buffer).with_context(|| format!("answer from {to}"))?;
    let answer = String::from_utf8_lossy(&buffer[..length]);
    ensure!(from == to && answer.starts_with(backend), "asked {to}, {from} said {answer:?}");
    Ok(())
}

/// So many links to a cgroup are pinned, and none of them for a while only.
fn expect_pinned(pins: Vec<PathBuf>, count: usize) -> Result<()> {
    let names = pins.iter().filter_map(|path| path.file_name()?.to_str());
    let links: Vec<_> = names.filter(|name| name.starts_with("cgroup-")).collect();
    ensure!(links.len() == count && !links.iter().any(|name| name.ends_with("-next")), "{links:?}");
    Ok(())
}
