//! TCP clients.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::atomic::AtomicU64,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::{
    Direction, GREETING, PATIENCE, Request,
    bulk::{BLOCK, DIGEST, Digest, Stream},
    open_at_port,
};
use crate::{netns::Namespace, topology::Family};

/// Which port a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// One that the kernel chooses.
    AnyPort,
    /// This one, even if a connection from it has only just ended.
    Port(u16),
    /// As that, and of this address.
    At(SocketAddr),
}

/// A connection that has been greeted.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    /// Name of the machine that took it.
    pub backend: String,
    /// Where that machine sees it come from.
    pub seen_as: SocketAddr,
}

impl Connection {
    /// Connects from a namespace and reads the greeting.
    ///
    /// # Errors
    ///
    /// If the connection is refused, or is not up and greeted in time.
    pub fn open(from: &Namespace, to: SocketAddr, source: Source) -> Result<Self> {
        let stream = connect_raw(from, to, source, PATIENCE)?;
        Self::greeted(stream).with_context(|| format!("connected to {to}"))
    }

    /// As [`Connection::open`], by a socket of Multipath TCP (RFC 8684), which is more than one connection if both ends
    /// can do that.
    ///
    /// # Errors
    ///
    /// As for [`Connection::open`].
    pub fn open_multipath(from: &Namespace, to: SocketAddr) -> Result<Self> {
        let stream = from.run(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::MPTCP))?;
            socket.connect_timeout(&to.into(), PATIENCE).with_context(|| format!("connect to {to}"))?;
            Ok(socket.into())
        })?;
        Self::greeted(stream).with_context(|| format!("connected to {to} by several paths"))
    }

    /// Opens `count` connections, all open at the same time.
    ///
    /// # Errors
    ///
    /// If one cannot be opened; it says how many could.
    pub fn open_many(from: &Namespace, to: SocketAddr, count: usize) -> Result<Vec<Self>> {
        // One thread inside the namespace for all of them, and all handshakes before the first greeting is read.
        let streams = from.run(|| {
            let open =
                |n| connect(to, Source::AnyPort, PATIENCE).with_context(|| format!("after {n} connections"));
            (0..count).map(open).collect::<Result<Vec<_>>>()
        })?;
        streams.into_iter().map(Self::greeted).collect()
    }

    fn greeted(mut stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut greeting = [0; GREETING];
        stream.read_exact(&mut greeting).context("read the greeting")?;
        let text = std::str::from_utf8(&greeting)?.trim_end();
        let (backend, seen_as) = text.split_once(' ').context("a greeting of two words")?;
        Ok(Self { stream, backend: backend.to_owned(), seen_as: seen_as.parse()? })
    }

    /// The other end, as this end's kernel knows it.
    ///
    /// # Errors
    ///
    /// If the connection is gone.
    pub fn peer(&self) -> Result<SocketAddr> {
        self.stream.peer_addr().context("getpeername")
    }

    /// This end.
    ///
    /// # Errors
    ///
    /// If the connection is gone.
    pub fn local(&self) -> Result<SocketAddr> {
        self.stream.local_addr().context("getsockname")
    }

    /// Turns the connection into one whose bytes come back.
    ///
    /// # Errors
    ///
    /// If it is broken.
    pub fn start_echo(&mut self) -> Result<()> {
        self.request(Request::Echo)
    }

    /// Sends a number and waits for it to come back.
    ///
    /// # Errors
    ///
    /// If it does not, or another does.
    pub fn echo(&mut self, number: u64) -> Result<()> {
        self.stream.write_all(&number.to_be_bytes()).context("send")?;
        let mut answer = [0; 8];
        self.stream.read_exact(&mut answer).context("receive")?;
        let answer = u64::from_be_bytes(answer);
        ensure!(answer == number, "sent {number}, {answer} came back");
        Ok(())
    }

    /// Moves `length` bytes and compares what both ends say about them. Counts them in `progress` as they go.
    ///
    /// # Errors
    ///
    /// If the transfer stalls or breaks, or the digests differ.
    pub fn transfer(&mut self, direction: Direction, length: u64, progress: &AtomicU64) -> Result<()> {
        let kind = match direction {
            Direction::Upload => Request::Upload,
            Direction::Download => Request::Download,
        };
        self.request(kind)?;
        self.stream.write_all(&length.to_be_bytes())?;
        let here = match direction {
            Direction::Upload => self.send(length, progress),
            Direction::Download => self.receive(length, progress),
        };
        let here = here.with_context(|| format!("{direction:?} of {length} bytes at {progress:?}"))?;
        let mut there = [0; DIGEST];
        self.stream.read_exact(&mut there).context("read the digest")?;
        ensure!(here == there, "{direction:?} of {length} bytes: the digests differ");
        Ok(())
    }

    fn send(&mut self, length: u64, progress: &AtomicU64) -> Result<[u8; DIGEST]> {
        let mut source = Stream::new(length);
        let mut digest = Digest::new();
        loop {
            let block = source.next_block();
            if block.is_empty() {
                return Ok(digest.finish());
            }
            self.stream.write_all(block)?;
            digest.add(block, progress);
        }
    }

    fn receive(&mut self, mut left: u64, progress: &AtomicU64) -> Result<[u8; DIGEST]> {
        let mut digest = Digest::new();
        let mut buffer = vec![0; BLOCK];
        while left > 0 {
            let most = usize::try_from(left).map_or(BLOCK, |left| left.min(BLOCK));
            let count = self.stream.read(&mut buffer[..most])?;
            ensure!(count > 0, "closed with {left} bytes to come");
            digest.add(&buffer[..count], progress);
            left -= count as u64;
        }
        Ok(digest.finish())
    }

    /// Waits for the other end to say something, which it never does, or for the error that ends the connection.
    #[must_use]
    pub fn wait_for_end(&self) -> io::Error {
        match (&self.stream).read(&mut [0]) {
            Ok(length) => io::Error::other(format!("{length} bytes came")),
            Err(error) => error,
        }
    }

    /// Ends the connection with a reset, so that neither end remembers it.
    ///
    /// # Errors
    ///
    /// If the socket refuses.
    pub fn abort(self) -> Result<()> {
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).context("set SO_LINGER")
    }

    /// Has the server close first, so that this end's port is free again as soon as the last FIN is acknowledged.
    ///
    /// # Errors
    ///
    /// If the server does not close.
    pub fn close_there_first(mut self) -> Result<()> {
        self.request(Request::Close)?;
        let rest = self.stream.read(&mut [0; 1]).context("wait for the server to close")?;
        ensure!(rest == 0, "the server sent more instead of closing");
        Ok(())
    }

    fn request(&mut self, kind: Request) -> Result<()> {
        self.stream.write_all(&[kind as u8]).with_context(|| format!("request {kind:?}"))
    }
}

/// Connects from a namespace without waiting for a greeting.
///
/// # Errors
///
/// If the connection is refused or is not up in time.
pub fn connect_raw(
    from: &Namespace,
    to: SocketAddr,
    source: Source,
    patience: Duration,
) -> Result<TcpStream> {
    from.run(|| connect(to, source, patience))
}

fn connect(to: SocketAddr, source: Source, patience: Duration) -> Result<TcpStream> {
    let local = match source {
        Source::AnyPort => {
            return connect_from(None, to, patience).with_context(|| format!("connect to {to}"));
        }
        Source::Port(port) => SocketAddr::new(Family::of(to.ip()).unspecified(), port),
        Source::At(local) => local,
    };
    let connected = open_at_port(|| connect_from(Some(local), to, patience));
    connected.with_context(|| format!("connect from {local} to {to}"))
}

fn connect_from(local: Option<SocketAddr>, to: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    if let Some(local) = local {
        socket.set_reuse_address(true)?;
        socket.bind(&local.into())?;
    }
    socket.connect_timeout(&to.into(), patience)?;
    Ok(socket.into())
}
