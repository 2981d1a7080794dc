//! One call, many times, by a thread that has both ends of it.
//!
//! Nobody else has to be waited for: sixty-four calls are timed at once, and whatever they need before and leave behind is done
//! in between. The time is that thread's CPU time, with what the kernel does on it for the packets that a call sends.

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use serde::Serialize;
use sluice_tests::{bench::time, topology::Family, traffic::PATIENCE};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use crate::scene::{Scene, Way};

/// Calls that are timed together.
const BATCH: usize = 64;

/// A call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Call {
    /// `connect` of a UDP socket that has been connected to that end before.
    UdpConnectAgain,
    /// `connect` of a new UDP socket.
    UdpConnect,
    /// `sendto` on a UDP socket that has sent there before.
    UdpSend,
    /// `recvfrom` on a UDP socket that is not connected.
    UdpReceive,
    /// `connect` of a new TCP socket that does not wait, with the whole handshake.
    TcpConnect,
    /// `getpeername` of a TCP connection.
    PeerName,
}

impl Call {
    pub(crate) const ALL: [Self; 6] = [
        Self::UdpConnectAgain,
        Self::UdpConnect,
        Self::UdpSend,
        Self::UdpReceive,
        Self::TcpConnect,
        Self::PeerName,
    ];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::UdpConnectAgain => "UDP connect, same socket",
            Self::UdpConnect => "UDP connect, new socket",
            Self::UdpSend => "UDP sendto",
            Self::UdpReceive => "UDP recvfrom",
            Self::TcpConnect => "TCP connect, handshake",
            Self::PeerName => "TCP getpeername",
        }
    }

    /// The program that sees it.
    pub(crate) const fn hook(self, family: Family) -> &'static str {
        match (self, family) {
            (Self::UdpConnectAgain | Self::UdpConnect | Self::TcpConnect, Family::V4) => "sluice_connect4",
            (Self::UdpConnectAgain | Self::UdpConnect | Self::TcpConnect, Family::V6) => "sluice_connect6",
            (Self::UdpSend, Family::V4) => "sluice_sendmsg4",
            (Self::UdpSend, Family::V6) => "sluice_sendmsg6",
            (Self::UdpReceive, Family::V4) => "sluice_recvmsg4",
            (Self::UdpReceive, Family::V6) => "sluice_recvmsg6",
            (Self::PeerName, Family::V4) => "sluice_getpeername4",
            (Self::PeerName, Family::V6) => "sluice_getpeername6",
        }
    }

    /// Whether each call chooses a backend of a service.
    pub(crate) const fn chooses(self) -> bool {
        matches!(self, Self::UdpConnect | Self::TcpConnect)
    }
}

/// The backend's sockets.
pub(crate) struct Ends {
    datagrams: UdpSocket,
    listener: TcpListener,
}

impl Ends {
    /// Those that clients find on this way.
    pub(crate) fn open(scene: &Scene, way: Way) -> Result<Self> {
        let (namespace, at) = scene.quiet_backend(way);
        namespace.run(|| {
            let datagrams = UdpSocket::bind(at)?;
            datagrams.set_read_timeout(Some(PATIENCE))?;
            let listener = Socket::new(Domain::for_address(at), Type::STREAM, None)?;
            listener.set_read_timeout(Some(PATIENCE))?;
            listener.bind(&at.into())?;
            listener.listen(i32::try_from(2 * BATCH)?)?;
            Ok(Self { datagrams, listener: listener.into() })
        })
    }

    /// Takes a connection, and forgets it with the client.
    fn accept(&self) -> Result<TcpStream> {
        Ok(self.listener.accept().context("take a connection")?.0)
    }

    /// Takes a datagram. Returns whom it is from.
    fn receive(&self) -> Result<SocketAddr> {
        Ok(self.datagrams.recv_from(&mut [0; 64]).context("take a datagram")?.1)
    }
}

/// Somebody who makes one kind of call.
pub(crate) struct Caller<'a> {
    /// Which.
    pub(crate) call: Call,
    /// Whom it names.
    pub(crate) to: SocketAddr,
    /// Who answers.
    pub(crate) ends: &'a Ends,
}

impl Caller<'_> {
    /// Makes at least `count` calls. Returns how many, and the time that they took.
    pub(crate) fn run(&self, count: usize) -> Result<(usize, Duration)> {
        let batches = count.div_ceil(BATCH);
        let time = match self.call {
            Call::UdpConnectAgain => self.connect_again(batches),
            Call::UdpConnect => self.connect_datagrams(batches),
            Call::UdpSend => self.send(batches),
            Call::UdpReceive => self.receive(batches),
            Call::TcpConnect => self.connect_streams(batches),
            Call::PeerName => self.ask_for_peer(batches),
        }?;
        Ok((batches * BATCH, time))
    }

    fn socket(&self, kind: Type) -> Result<Socket> {
        Ok(Socket::new(Domain::for_address(self.to), kind, None)?)
    }

    fn unconnected(&self) -> Result<UdpSocket> {
        let socket = self.socket(Type::DGRAM)?;
        socket.bind(&SocketAddr::new(Family::of(self.to.ip()).unspecified(), 0).into())?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket.into())
    }

    fn connect_again(&self, batches: usize) -> Result<Duration> {
        let (socket, to) = (self.socket(Type::DGRAM)?, SockAddr::from(self.to));
        socket.connect(&to)?;
        sum(batches, || timed(|| (0..BATCH).try_for_each(|_| socket.connect(&to))))
    }

    fn connect_datagrams(&self, batches: usize) -> Result<Duration> {
        let to = SockAddr::from(self.to);
        sum(batches, || {
            let sockets: Vec<_> = (0..BATCH).map(|_| self.socket(Type::DGRAM)).collect::<Result<_>>()?;
            timed(|| sockets.iter().try_for_each(|socket| socket.connect(&to)))
        })
    }

    fn send(&self, batches: usize) -> Result<Duration> {
        let socket = self.unconnected()?;
        let send = || socket.send_to(b"one of many", self.to).map(drop);
        send()?;
        self.ends.receive()?;
        sum(batches, || {
            let time = timed(|| (0..BATCH).try_for_each(|_| send()))?;
            (0..BATCH).try_for_each(|_| self.ends.receive().map(drop))?;
            Ok(time)
        })
    }

    fn receive(&self, batches: usize) -> Result<Duration> {
        let socket = self.unconnected()?;
        let mut buffer = [0; 64];
        sum(batches, || {
            for _ in 0..BATCH {
                socket.send_to(b"one of many", self.to)?;
                let client = self.ends.receive()?;
                self.ends.datagrams.send_to(b"and its answer", client)?;
            }
            let mut from = self.to;
            let time = timed(|| {
                (0..BATCH).try_for_each(|_| {
                    from = socket.recv_from(&mut buffer)?.1;
                    Ok(())
                })
            })?;
            ensure!(from == self.to, "{} was asked, {from} answered", self.to);
            Ok(time)
        })
    }

    fn connect_streams(&self, batches: usize) -> Result<Duration> {
        let to = SockAddr::from(self.to);
        sum(batches, || {
            let new = || -> Result<Socket> {
                let socket = self.socket(Type::STREAM.nonblocking())?;
                socket.set_linger(Some(Duration::ZERO))?;
                Ok(socket)
            };
            let sockets: Vec<_> = (0..BATCH).map(|_| new()).collect::<Result<_>>()?;
            let connect = |socket: &Socket| match socket.connect(&to) {
                Err(error) if error.raw_os_error() == Some(Errno::EINPROGRESS as i32) => Ok(()),
                result => result,
            };
            let time = timed(|| sockets.iter().try_for_each(connect))?;
            let accepted: Vec<_> = (0..BATCH).map(|_| self.ends.accept()).collect::<Result<_>>()?;
            // The client's resets reach connections that are there.
            drop(sockets);
            drop(accepted);
            Ok(time)
        })
    }

    fn ask_for_peer(&self, batches: usize) -> Result<Duration> {
        let stream = TcpStream::connect(self.to)?;
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        let _accepted = self.ends.accept()?;
        ensure!(stream.peer_addr()? == self.to, "the peer is {}", stream.peer_addr()?);
        sum(batches, || timed(|| (0..BATCH).try_for_each(|_| stream.peer_addr().map(drop))))
    }
}

fn sum(batches: usize, mut batch: impl FnMut() -> Result<Duration>) -> Result<Duration> {
    (0..batches).map(|_| batch()).sum()
}

/// CPU time of the calling thread.
fn timed(work: impl FnOnce() -> io::Result<()>) -> Result<Duration> {
    let before = time::of_thread()?;
    work()?;
    Ok(time::of_thread()? - before)
}
