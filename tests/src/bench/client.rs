//! Requests, one after the other on each of several connections, or sockets for datagrams.

use std::{
    io::{self, Read as _, Write as _},
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    errno::Errno,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};
use serde::Serialize;
use socket2::{Domain, Socket, Type};

use super::{
    message::{REQUEST, RESPONSE, ROOM},
    time::{self, SoftirqThread},
};
use crate::traffic::PATIENCE;

/// How long a connection lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Life {
    /// As long as the measurement.
    KeepAlive,
    /// For one request.
    OneRequest,
}

/// What requests go by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// TCP connections.
    Tcp,
    /// UDP sockets, each connected to the server.
    Udp,
}

/// What is to be measured.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Whom to ask.
    pub to: SocketAddr,
    /// By what.
    pub transport: Transport,
    /// How long connections live.
    pub life: Life,
    /// How many of them there are at a time.
    pub connections: usize,
    /// For how long requests count, after a tenth of that in which they do not.
    pub duration: Duration,
    /// What works for them beside this process.
    pub softirq: SoftirqThread,
}

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Requests that were answered.
    pub requests: f64,
    /// In which time.
    pub elapsed: Duration,
    /// CPU time of this process meanwhile, and of the kernel's thread that takes packets.
    pub cpu: Duration,
    /// What half of the requests did not exceed, in seconds; with their connections, if they had them to themselves.
    pub p50: f64,
    /// What 99 of 100 requests did not exceed.
    pub p99: f64,
    /// What 999 of 1000 requests did not exceed.
    pub p999: f64,
    /// Connections that were opened, also for requests that do not count.
    pub opened: u64,
}

impl Sample {
    /// Requests per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.requests / self.elapsed.as_secs_f64()
    }

    /// Seconds of CPU time per request.
    #[must_use]
    pub fn cpu_each(&self) -> f64 {
        self.cpu.as_secs_f64() / self.requests
    }
}

/// Measures from where the calling thread is.
///
/// # Errors
///
/// If the server does not answer, or says something else than it should.
pub fn run(load: Load) -> Result<Sample> {
    let mut client = Client::open(load)?;
    client.ask_for(load.duration / 10)?;
    client.latencies.clear();
    let (start, cpu) = (Instant::now(), time::of_work(load.softirq)?);
    client.ask_for(load.duration)?;
    let (elapsed, cpu) = (start.elapsed(), time::of_work(load.softirq)? - cpu);
    let Client { mut latencies, opened, .. } = client;
    latencies.sort_by(f64::total_cmp);
    let most =
        |thousandths: usize| latencies.get(latencies.len().saturating_sub(1) * thousandths / 1000).copied();
    let (Some(p50), Some(p99), Some(p999)) = (most(500), most(990), most(999)) else {
        bail!("{} answered nothing in {elapsed:?}", load.to);
    };
    Ok(Sample { requests: latencies.len() as f64, elapsed, cpu, p50, p99, p999, opened })
}

/// A connection and its request.
struct Connection {
    socket: Socket,
    began: Instant,
    is_asked: bool,
    received: usize,
}

struct Client {
    load: Load,
    epoll: Epoll,
    connections: Vec<Connection>,
    latencies: Vec<f64>,
    opened: u64,
    buffer: [u8; ROOM],
}

impl Client {
    fn open(load: Load) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut client = Self {
            load,
            epoll,
            connections: Vec::new(),
            latencies: Vec::new(),
            opened: 0,
            buffer: [0; ROOM],
        };
        for index in 0..load.connections {
            let connection = client.connect(index)?;
            client.connections.push(connection);
        }
        Ok(client)
    }

    fn connect(&mut self, index: usize) -> Result<Connection> {
        let began = Instant::now();
        let Load { to, transport, .. } = self.load;
        let kind = match transport {
            Transport::Tcp => Type::STREAM,
            Transport::Udp => Type::DGRAM,
        };
        let socket = Socket::new(Domain::for_address(to), kind.nonblocking(), None)?;
        if transport == Transport::Tcp {
            // Closed with a reset: neither end remembers the connection, and so no port of this end stays occupied.
            socket.set_linger(Some(Duration::ZERO))?;
        }
        match socket.connect(&to.into()) {
            Err(error) if error.raw_os_error() == Some(Errno::EINPROGRESS as i32) => {}
            result => result.with_context(|| format!("connect to {to}"))?,
        }
        // Told once when it is connected, and once of each answer: nothing has to be said to the kernel in between.
        let both = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        self.epoll.add(&socket, EpollEvent::new(both, u64::try_from(index)?))?;
        self.opened += 1;
        Ok(Connection { socket, began, is_asked: false, received: 0 })
    }

    /// Asks for as long as that.
    fn ask_for(&mut self, duration: Duration) -> Result<()> {
        let start = Instant::now();
        let patience = EpollTimeout::try_from(PATIENCE)?;
        let mut events = [EpollEvent::empty(); 64];
        while start.elapsed() < duration {
            let count = self.epoll.wait(&mut events, patience)?;
            ensure!(count > 0, "{} has answered nothing for {PATIENCE:?}", self.load.to);
            for event in events.iter().take(count) {
                let index = usize::try_from(event.data())?;
                self.go_on(index).with_context(|| format!("ask {}", self.load.to))?;
            }
        }
        Ok(())
    }

    /// Takes a connection as far as it gets.
    fn go_on(&mut self, index: usize) -> Result<()> {
        let Some(connection) = self.connections.get_mut(index) else {
            return Ok(());
        };
        if !connection.is_asked {
            return connection.ask();
        }
        if !connection.hear(&mut self.buffer)? {
            return Ok(());
        }
        self.latencies.push(connection.began.elapsed().as_secs_f64());
        match self.load.life {
            Life::KeepAlive => {
                connection.began = Instant::now();
                connection.ask()
            }
            Life::OneRequest => {
                let next = self.connect(index)?;
                if let Some(connection) = self.connections.get_mut(index) {
                    *connection = next;
                }
                Ok(())
            }
        }
    }
}

impl Connection {
    fn ask(&mut self) -> Result<()> {
        self.received = 0;
        self.socket.write_all(REQUEST)?;
        self.is_asked = true;
        Ok(())
    }

    /// Whether the answer is complete.
    fn hear(&mut self, buffer: &mut [u8; ROOM]) -> Result<bool> {
        let count = match self.socket.read(&mut buffer[self.received..]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            result => result?,
        };
        ensure!(count > 0, "the server closed the connection");
        self.received += count;
        ensure!(RESPONSE.starts_with(&buffer[..self.received]), "this is not the answer");
        Ok(self.received == RESPONSE.len())
    }
}
