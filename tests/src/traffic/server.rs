//! The server of a pod.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result};
use futures::future::join_all;
use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{SockaddrStorage, setsockopt, sockopt::RcvBufForce},
};
use socket2::{Domain, Socket, Type};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    runtime,
    sync::oneshot,
};

use super::{
    GREETING, Request,
    bulk::{BLOCK, Digest, Stream},
};
use crate::topology::{Ends, Family, Machine};

/// Answers TCP and UDP, IPv4 and IPv6, on one port of a machine, with the machine's name.
#[derive(Debug)]
pub struct Server {
    name: String,
    counts: Arc<Counts>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Counts {
    connections: AtomicU64,
    datagrams: AtomicU64,
    bytes: AtomicU64,
}

impl Server {
    /// Starts one; it listens when this returns, and until it is dropped. TCP at all addresses, UDP at those that the machine
    /// has when this starts.
    ///
    /// # Errors
    ///
    /// If the port cannot be had.
    pub fn start(machine: &Machine, port: u16) -> Result<Self> {
        Self::start_with(machine, port, socket2::Protocol::TCP)
    }

    /// As [`Server::start`], with Multipath TCP (RFC 8684) for clients that know it.
    ///
    /// # Errors
    ///
    /// If the port cannot be had, or the kernel has no such sockets.
    pub fn start_multipath(machine: &Machine, port: u16) -> Result<Self> {
        Self::start_with(machine, port, socket2::Protocol::MPTCP)
    }

    fn start_with(machine: &Machine, port: u16, streams: socket2::Protocol) -> Result<Self> {
        Self::listen(machine, port, move || {
            let tcp = listener(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), streams)?;
            // A socket for each address: one for all would answer from the address of the way back, which on a machine
            // with several need not be the one that was asked.
            let udp = own_addresses()?.into_iter().map(|address| receiver((address, port).into()));
            Ok((vec![tcp], udp.collect::<io::Result<_>>()?))
        })
    }

    /// Starts one that is bound to these two addresses of the machine and to nothing else.
    ///
    /// # Errors
    ///
    /// If the machine does not have them, or somebody else has the port there.
    pub fn start_at(machine: &Machine, ends: Ends) -> Result<Self> {
        Self::listen(machine, ends.port, move || {
            let ends = Family::ALL.map(|family| ends.of(family));
            let tcp = ends.into_iter().map(|end| listener(end, socket2::Protocol::TCP));
            Ok((tcp.collect::<io::Result<_>>()?, ends.into_iter().map(receiver).collect::<io::Result<_>>()?))
        })
    }

    fn listen(
        machine: &Machine,
        port: u16,
        bind: impl FnOnce() -> io::Result<(Vec<TcpListener>, Vec<UdpSocket>)> + Send + 'static,
    ) -> Result<Self> {
        let (ready, listening) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let counts = Arc::new(Counts::default());
        let service = Service { name: machine.name.clone(), counts: Arc::clone(&counts) };
        let namespace = machine.namespace.clone();
        let thread = thread::spawn(move || {
            let started = namespace.enter().and_then(|()| {
                let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
                let sockets = runtime.block_on(async { bind() })?;
                Ok((runtime, sockets))
            });
            match started {
                Ok((runtime, (listeners, sockets))) => {
                    // Whoever started the server has given up waiting if this fails: it ends by `stopped`.
                    drop(ready.send(Ok(())));
                    runtime.block_on(async {
                        tokio::select! {
                            _ = join_all(listeners.into_iter().map(|listener| service.accept(listener))) => {}
                            _ = join_all(sockets.into_iter().map(|socket| service.answer(socket))) => {}
                            _ = stopped => {}
                        }
                    });
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        });
        let started = listening.recv().context("the server's thread ended").and_then(|result| result);
        started.with_context(|| format!("start a server on port {port} of {}", machine.name))?;
        Ok(Self { name: machine.name.clone(), counts, stop: Some(stop), thread: Some(thread) })
    }

    /// Name of the machine.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// TCP connections taken so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.counts.connections.load(Ordering::SeqCst)
    }

    /// UDP datagrams received so far.
    #[must_use]
    pub fn datagrams(&self) -> u64 {
        self.counts.datagrams.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic in there has been printed; the clients have noticed.
            drop(thread.join());
        }
    }
}

/// Room for datagrams that nobody has taken yet, in bytes with what the kernel keeps beside them.
const BUFFER: usize = 4 << 20;

fn listener(at: SocketAddr, protocol: socket2::Protocol) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(protocol))?;
    socket.set_reuse_address(true)?;
    socket.bind(&at.into())?;
    // Room for everybody who connects at once: a full backlog would look like loss on the way.
    socket.listen(4096)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

fn receiver(at: SocketAddr) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind(at)?;
    // The same for datagrams: the ordinary size is half a second's, and a busy machine may need longer.
    setsockopt(&socket, RcvBufForce, &BUFFER)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

/// The addresses of this namespace, without those that are good for one link only.
fn own_addresses() -> io::Result<BTreeSet<IpAddr>> {
    let ip = |address: SockaddrStorage| {
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))
    };
    let all = getifaddrs()?.filter_map(|interface| interface.address).filter_map(ip);
    let is_link_local = |ip: &IpAddr| matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
    Ok(all.filter(|ip| !is_link_local(ip)).collect())
}

#[derive(Clone)]
struct Service {
    name: String,
    counts: Arc<Counts>,
}

impl Service {
    async fn accept(&self, listener: TcpListener) {
        // An error of `accept` concerns one connection that went away again.
        loop {
            if let Ok((stream, peer)) = listener.accept().await {
                self.counts.connections.fetch_add(1, Ordering::SeqCst);
                let service = self.clone();
                tokio::spawn(async move {
                    // The client sees an error too, and is the one to say whether it was expected.
                    drop(service.serve(stream, peer).await);
                });
            }
        }
    }

    async fn serve(&self, mut stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut greeting = [b' '; GREETING];
        let text = format!("{} {}", self.name, seen(peer));
        greeting[..text.len()].copy_from_slice(text.as_bytes());
        stream.write_all(&greeting).await?;
        loop {
            let mut kind = [0];
            if stream.read(&mut kind).await? == 0 {
                return Ok(());
            }
            match Request::parse(kind[0]) {
                Some(Request::Echo) => return echo(&mut stream).await,
                Some(Request::Upload) => self.take(&mut stream).await?,
                Some(Request::Download) => self.give(&mut stream).await?,
                Some(Request::Close) => return Ok(()),
                None => return Err(io::Error::new(io::ErrorKind::InvalidData, "unknown request")),
            }
        }
    }

    async fn take(&self, stream: &mut TcpStream) -> io::Result<()> {
        let mut left = stream.read_u64().await?;
        let mut digest = Digest::new();
        let mut buffer = vec![0; BLOCK];
        while left > 0 {
            let most = usize::try_from(left).map_or(BLOCK, |left| left.min(BLOCK));
            let count = stream.read(&mut buffer[..most]).await?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            digest.add(&buffer[..count], &self.counts.bytes);
            left -= count as u64;
        }
        stream.write_all(&digest.finish()).await
    }

    async fn give(&self, stream: &mut TcpStream) -> io::Result<()> {
        let mut source = Stream::new(stream.read_u64().await?);
        let mut digest = Digest::new();
        loop {
            let block = source.next_block();
            if block.is_empty() {
                return stream.write_all(&digest.finish()).await;
            }
            digest.add(block, &self.counts.bytes);
            stream.write_all(block).await?;
        }
    }

    async fn answer(&self, socket: UdpSocket) {
        let mut buffer = vec![0; 1 << 16];
        loop {
            // Errors are about datagrams sent before (a client that has gone): nothing to do about them.
            if let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
                self.counts.datagrams.fetch_add(1, Ordering::SeqCst);
                let mut answer = format!("{} {} ", self.name, seen(peer)).into_bytes();
                answer.extend_from_slice(&buffer[..length]);
                drop(socket.send_to(&answer, peer).await);
            }
        }
    }
}

async fn echo(stream: &mut TcpStream) -> io::Result<()> {
    let (mut reader, mut writer) = stream.split();
    tokio::io::copy(&mut reader, &mut writer).await.map(drop)
}

/// The peer as it would be on a socket of its own family.
fn seen(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}
