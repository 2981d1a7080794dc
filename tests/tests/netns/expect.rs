//! What tests expect of traffic, by both families and both protocols that have sockets.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    ops::Range,
    panic,
    sync::atomic::{AtomicU16, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use proxy_common::drop::DropReason;
use sluice_tests::{
    agent::Agent,
    netns::Namespace,
    service::Service,
    topology::{Addresses, Ends, Family, Machine, Node},
    traffic::{Connection, Protocol, Source, UdpClient, connect_raw},
    wait::wait_until,
};
use socket2::{Domain, Socket, Type};

/// Far longer than an answer takes; only a client that gets none waits for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whom a backend takes its client for.
#[derive(Clone, Debug)]
pub(crate) enum Seen {
    /// The client, address and port.
    Client,
    /// Somebody with these addresses.
    As(Addresses),
    /// The node, by whichever of its addresses.
    Node(Vec<Addresses>),
}

impl Seen {
    /// The node, by whichever of its addresses.
    pub(crate) fn node(node: &Node) -> Self {
        Self::Node(node.own_addresses())
    }

    fn check(&self, heard: &Heard) -> Result<()> {
        let family = Family::of(heard.own.ip());
        let matches = match self {
            Self::Client => heard.seen_as == heard.own,
            Self::As(addresses) => heard.seen_as.ip() == addresses.of(family),
            Self::Node(all) => all.iter().any(|addresses| heard.seen_as.ip() == addresses.of(family)),
        };
        ensure!(matches, "{} sees {} as {}, not as {self:?}", heard.backend, heard.own, heard.seen_as);
        Ok(())
    }
}

/// What a client learned.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    /// Who answered.
    pub(crate) backend: String,
    /// Where that one saw it come from.
    pub(crate) seen_as: SocketAddr,
    /// Where it came from.
    pub(crate) own: SocketAddr,
}

/// Asks whoever serves `to`, from the client's first address. The client must see `to` as its peer.
pub(crate) fn ask(client: &Machine, to: SocketAddr, protocol: Protocol) -> Result<Heard> {
    let own = client.addresses.at(0).of(Family::of(to.ip()));
    ask_from(&client.namespace, own, to, protocol)
}

/// As [`ask`], from this address, and this port unless it is 0.
pub(crate) fn ask_from(
    from: &Namespace,
    own: SocketAddr,
    to: SocketAddr,
    protocol: Protocol,
) -> Result<Heard> {
    let heard = match protocol {
        Protocol::Tcp => {
            let connection = Connection::open(from, to, Source::At(own))?;
            ensure!(connection.peer()? == to, "the peer of a connection to {to} is {}", connection.peer()?);
            let own = connection.local()?;
            Heard { own, seen_as: connection.seen_as, backend: connection.backend }
        }
        Protocol::Udp => {
            let port = if own.port() == 0 { fresh_port() } else { own.port() };
            let socket = UdpClient::bind_to(from, SocketAddr::new(own.ip(), port))?;
            let answer = socket.ask(to, 1)?;
            ensure!(answer.from == to, "asked {to}, the answer came from {}", answer.from);
            Heard { own: socket.local()?, seen_as: answer.seen_as, backend: answer.backend }
        }
        Protocol::Sctp => bail!("SCTP has no sockets here"),
    };
    Ok(heard)
}

/// A port that nobody has used lately. The kernel's choice is random: now and then it would continue a flow of a socket
/// that is gone, which keeps its backend while that serves.
fn fresh_port() -> u16 {
    /// Below those that kernels choose themselves, and below NodePorts.
    const PORTS: Range<u16> = 10_000..30_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    PORTS.start + NEXT.fetch_add(1, Ordering::Relaxed) % (PORTS.end - PORTS.start)
}

/// `client` reaches `backend`, which is the only one there is, and is seen as said.
pub(crate) fn expect_reach(client: &Machine, to: Ends, backend: &str, seen: &Seen) -> Result<()> {
    for family in Family::ALL {
        for protocol in Protocol::ALL {
            let to = to.of(family);
            let context = || format!("{protocol} from {} to {to}", client.name);
            let heard = ask(client, to, protocol).with_context(context)?;
            ensure!(heard.backend == backend, "{}: reached {}, not {backend}", context(), heard.backend);
            seen.check(&heard).with_context(context)?;
        }
    }
    Ok(())
}

/// `client` reaches `backend`, which is the service's only one, and is seen as itself.
pub(crate) fn expect_all_reach(client: &Machine, service: &Service, backend: &str) -> Result<()> {
    expect_reach(client, service.vip(), backend, &Seen::Client)
}

/// `client` is told at once that nobody serves `to`.
pub(crate) fn expect_refused(client: &Machine, to: Ends) -> Result<()> {
    // Together: a SYN that is refused while its socket is still busy sending it is sent again a second later.
    thread::scope(|scope| {
        let asking = Family::ALL.map(|family| {
            scope.spawn(move || {
                expect_tcp_refused(&client.namespace, to.of(family))?;
                expect_udp_refused(&client.namespace, to.of(family))
            })
        });
        asking.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|p| panic::resume_unwind(p)))
    })
}

/// The error is the one that a refusal causes, not a time-out.
fn expect_refusal(what: &str, error: &io::Error) -> Result<()> {
    ensure!(error.kind() == io::ErrorKind::ConnectionRefused, "{what}: {error} ({:?})", error.kind());
    Ok(())
}

/// As [`expect_refused`], by TCP.
pub(crate) fn expect_tcp_refused(from: &Namespace, to: SocketAddr) -> Result<()> {
    match connect_raw(from, to, Source::AnyPort, PATIENCE) {
        Ok(_) => bail!("connected to {to}, which nobody serves"),
        Err(error) => {
            let cause = error.downcast_ref::<io::Error>().context("not an error of the socket")?;
            expect_refusal(&format!("TCP to {to}"), cause)
        }
    }
}

/// As [`expect_refused`], by UDP.
pub(crate) fn expect_udp_refused(from: &Namespace, to: SocketAddr) -> Result<()> {
    let socket = send_and_listen(from, to)?;
    match socket.recv(&mut [0; 64]) {
        Ok(length) => bail!("{length} bytes from {to}, which nobody serves"),
        Err(error) => expect_refusal(&format!("UDP to {to}"), &error),
    }
}

/// What `client` sends to `to` is dropped on the node of `agent`, for that reason and without a word.
pub(crate) fn expect_dropped(client: &Machine, to: Ends, agent: &Agent, reason: DropReason) -> Result<()> {
    for family in Family::ALL {
        let to = to.of(family);
        let own = client.addresses.at(0).of(family);
        let from = &client.namespace;
        let before = agent.drops(reason)?;
        let stream = from.run(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            socket.bind(&own.into())?;
            socket.set_nonblocking(true)?;
            match socket.connect(&to.into()) {
                Err(error) if error.raw_os_error() == Some(nix::libc::EINPROGRESS) => Ok(socket),
                other => bail!("TCP to {to}: {other:?}"),
            }
        })?;
        wait_for_drop(agent, reason, before).with_context(|| format!("TCP to {to}"))?;
        let error = stream.take_error()?;
        ensure!(error.is_none(), "TCP to {to} was answered: {error:?}");
        ensure!(stream.peer_addr().is_err(), "TCP to {to} is connected");
        drop(stream);

        let before = agent.drops(reason)?;
        let socket = from.run(|| Ok(UdpSocket::bind((own.ip(), fresh_port()))?))?;
        socket.connect(to)?;
        socket.send(b"anybody there?")?;
        wait_for_drop(agent, reason, before).with_context(|| format!("UDP to {to}"))?;
        socket.set_nonblocking(true)?;
        let answer = socket.recv(&mut [0; 64]);
        let none = answer.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        ensure!(none, "UDP to {to} was answered: {answer:?}");
    }
    Ok(())
}

fn wait_for_drop(agent: &Agent, reason: DropReason, before: u64) -> Result<()> {
    let what = format!("{} drops a packet: {}", agent.node(), reason.as_str());
    let dropped = wait_until(&what, || Ok((agent.drops(reason)? > before).then_some(())));
    dropped.map_err(|error| anyhow!("{error:#}; {:?}, {:#?}", agent.status(), agent.services()))
}

/// A datagram on its way to `to`, and the connected socket that hears what becomes of it.
fn send_and_listen(from: &Namespace, to: SocketAddr) -> Result<UdpSocket> {
    from.run(|| {
        let socket = UdpSocket::bind((Family::of(to.ip()).unspecified(), fresh_port()))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(to)?;
        socket.send(b"anybody there?")?;
        Ok(socket)
    })
}
