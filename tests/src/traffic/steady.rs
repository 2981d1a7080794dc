//! Traffic of every kind that must not notice whatever is done meanwhile.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use super::{Connection, PATIENCE, Source, UdpClient};
use crate::{counters, netns::Namespace, service::Service, topology::Family, wait::wait_until};

/// Pause between the datagrams of a stream, and between groups of messages: the machine has more to do than this.
const PACE: Duration = Duration::from_millis(2);
/// Messages between two pauses.
const GROUP: usize = 25;
/// Datagrams, or new connections, that are a turn.
const TURN: usize = 50;

/// Many open connections that are all in use, a stream of datagrams for each family, and new connections all the time.
#[derive(Debug)]
pub struct Steady {
    connections: usize,
    stop: Arc<AtomicBool>,
    open: Worker,
    streams: Vec<Worker>,
    new: Vec<Worker>,
    moves: Arc<AtomicU64>,
    clients: Vec<Namespace>,
    servers: Vec<Namespace>,
}

/// Connections of this namespace repeat a segment only if it is lost, from now on; not if an answer takes long on a busy
/// machine. A server's listen as it was when they began to.
///
/// # Errors
///
/// If the kernel does not have the parameters: `tcp_rto_min_us` came with Linux 6.11.
pub fn repeat_only_what_is_lost(namespace: &Namespace) -> Result<()> {
    namespace.sysctl(&[("ipv4/tcp_early_retrans", "0"), ("ipv4/tcp_rto_min_us", "5000000")])
}

/// What passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed {
    /// Connections that were open all the time.
    pub connections: usize,
    /// Messages that came back on them.
    pub messages: u64,
    /// Datagrams that were answered.
    pub datagrams: u64,
    /// How often a stream was answered by another backend than before.
    pub moves: u64,
    /// Connections that were made meanwhile; half as many sockets asked by UDP.
    pub new: u64,
}

impl Steady {
    /// Opens `connections` connections from the first client, half of them over each family, and starts to use them; so do
    /// the streams. All clients make new connections. `servers` are the namespaces of all backends, whose sockets began to
    /// listen after [`repeat_only_what_is_lost`].
    ///
    /// # Errors
    ///
    /// If a connection cannot be opened.
    pub fn start(
        clients: &[&Namespace],
        service: &Service,
        servers: &[&Namespace],
        connections: usize,
    ) -> Result<Self> {
        clients.iter().try_for_each(|client| repeat_only_what_is_lost(client))?;
        let from = *clients.first().context("a client")?;
        let tos = Family::ALL.map(|family| service.frontend(family));
        let mut open = Vec::new();
        for to in tos {
            open.extend(Connection::open_many(from, to, connections / 2)?);
        }
        open.iter_mut().try_for_each(Connection::start_echo)?;
        let connections = open.len();
        let own = |all: &[&Namespace]| all.iter().copied().cloned().collect::<Vec<_>>();
        let (clients, servers) = (own(clients), own(servers));
        let (stop, moves) = (Arc::default(), Arc::<AtomicU64>::default());
        let streams = tos.into_iter().map(|to| {
            let socket = from.run(|| Ok(UdpSocket::bind((Family::of(to.ip()).unspecified(), 0))?))?;
            socket.connect(to)?;
            socket.set_nonblocking(true)?;
            let moves = Arc::clone(&moves);
            Ok(Worker::start("the stream of datagrams", &stop, move |turns| stream(&socket, turns, &moves)))
        });
        let streams = streams.collect::<Result<_>>()?;
        let new = clients.iter().map(|from| {
            let from = from.clone();
            Worker::start("the client of new connections", &stop, move |turns| renew(&from, tos, turns))
        });
        let new = new.collect();
        let open = Worker::start("the open connections", &stop, move |turns| talk(&mut open, turns));
        Ok(Self { connections, stop, open, streams, new, moves, clients, servers })
    }

    /// Waits until everything has been in use from now on: each connection, each stream, and new connections.
    ///
    /// # Errors
    ///
    /// If something is not.
    pub fn expect_use(&self) -> Result<()> {
        // The turn that is under way may have begun before.
        let goals: Vec<_> = self.workers().map(|worker| (worker, worker.turns() + 2)).collect();
        goals.into_iter().try_for_each(|(worker, goal)| worker.wait_for(goal))
    }

    /// Ends it all. Returns what passed, which is everything that was sent.
    ///
    /// # Errors
    ///
    /// If a connection broke, a datagram was not answered, or a client's segment was lost.
    pub fn stop(mut self) -> Result<Passed> {
        self.stop.store(true, Ordering::Relaxed);
        let messages = self.open.finish()?;
        let streams = finish(&mut self.streams);
        // What the network has brought and nobody took in time is lost too, but by this machine.
        for namespace in self.clients.iter().chain(&self.servers) {
            let overflowing = counters::overflowing_datagrams(namespace)?;
            ensure!(overflowing == 0, "{overflowing} datagrams had no room in {}", namespace.name());
        }
        let datagrams = streams?;
        let new = finish(&mut self.new)?;
        let moves = self.moves.load(Ordering::Relaxed);
        let passed = Passed { connections: self.connections, messages, datagrams, moves, new };
        for namespace in &self.clients {
            // Those of handshakes are among them. Servers' are not looked at: a client that resets a connection may leave its
            // server with a segment that nobody acknowledges. What servers send is counted as datagrams.
            let repeated = counters::repeated_segments(namespace)?;
            let (name, counted) = (namespace.name(), counters::tcp(namespace)?);
            ensure!(repeated == 0, "{repeated} segments from {name} were lost: {counted}");
        }
        Ok(passed)
    }

    fn workers(&self) -> impl Iterator<Item = &Worker> {
        [&self.open].into_iter().chain(&self.streams).chain(&self.new)
    }
}

/// What they have done together.
fn finish(workers: &mut [Worker]) -> Result<u64> {
    workers.iter_mut().map(Worker::finish).sum()
}

impl Drop for Steady {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// One message on every connection, again and again. Returns how many came back.
fn talk(connections: &mut [Connection], turns: &Turns) -> Result<u64> {
    let mut number = 0;
    while turns.next() {
        for group in connections.chunks_mut(GROUP) {
            for connection in group {
                connection
                    .echo(number)
                    .with_context(|| format!("message {number} to {}", connection.backend))?;
                number += 1;
            }
            thread::sleep(PACE);
        }
    }
    Ok(number)
}

/// A datagram every now and then, answered or not. In the end, waits until every one is answered, once. Counts how often
/// another backend does. Returns how many were sent.
fn stream(socket: &UdpSocket, turns: &Turns, moves: &AtomicU64) -> Result<u64> {
    let mut answers = Answers::default();
    let mut sent = 0_u64;
    while turns.next() {
        for _ in 0..TURN {
            socket.send(sent.to_string().as_bytes()).with_context(|| format!("send datagram {sent}"))?;
            sent += 1;
            answers.take(socket)?;
            thread::sleep(PACE);
        }
    }
    let until = Instant::now() + PATIENCE;
    while (answers.backends.len() as u64) < sent && Instant::now() < until {
        answers.take(socket)?;
        thread::sleep(PACE);
    }
    let missing: Vec<_> = (0..sent).filter(|number| !answers.backends.contains_key(number)).collect();
    ensure!(missing.is_empty(), "{} of {sent} datagrams were lost: {missing:?}", missing.len());
    moves.fetch_add(answers.moves(), Ordering::Relaxed);
    Ok(sent)
}

/// What came back on a stream.
#[derive(Debug, Default)]
struct Answers {
    /// Who answered, by the datagram's number.
    backends: BTreeMap<u64, String>,
}

impl Answers {
    /// Takes those that are there.
    fn take(&mut self, socket: &UdpSocket) -> Result<()> {
        let mut buffer = [0; 512];
        loop {
            let length = match socket.recv(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => bail!("after {} answers: {error}", self.backends.len()),
            };
            let mut words = std::str::from_utf8(&buffer[..length])?.split(' ');
            let backend = words.next().context("a name")?;
            let number = words.nth(1).context("a number")?.parse()?;
            let before = self.backends.insert(number, backend.to_owned());
            ensure!(before.is_none(), "datagram {number} was answered twice");
        }
    }

    /// How often another backend answered than had answered the datagram before. Answers of two may overtake each other.
    fn moves(&self) -> u64 {
        let moved =
            self.backends.values().zip(self.backends.values().skip(1)).filter(|(one, next)| one != next);
        moved.count() as u64
    }
}

/// New connections, and questions by new sockets. Returns how many connections.
fn renew(from: &Namespace, tos: [SocketAddr; 2], turns: &Turns) -> Result<u64> {
    let mut made = 0_u64;
    while turns.next() {
        for number in 0..TURN {
            let to = tos[number % 2];
            Connection::open(from, to, Source::AnyPort)
                .and_then(Connection::abort)
                .with_context(|| format!("new connection {made} from {}", from.name()))?;
            made += 1;
            if made.is_multiple_of(2) {
                UdpClient::bind(from, Family::of(to.ip()))?.ask(to, made)?;
            }
            thread::sleep(PACE);
        }
    }
    Ok(made)
}

/// How often somebody has begun.
#[derive(Debug)]
struct Turns {
    begun: AtomicU64,
    stop: Arc<AtomicBool>,
}

impl Turns {
    /// Begins another, unless it is to stop.
    fn next(&self) -> bool {
        self.begun.fetch_add(1, Ordering::Relaxed);
        !self.stop.load(Ordering::Relaxed)
    }
}

/// A thread that does something in turns.
#[derive(Debug)]
struct Worker {
    what: &'static str,
    turns: Arc<Turns>,
    thread: Option<JoinHandle<Result<u64>>>,
}

impl Worker {
    fn start(
        what: &'static str,
        stop: &Arc<AtomicBool>,
        work: impl FnOnce(&Turns) -> Result<u64> + Send + 'static,
    ) -> Self {
        let turns = Arc::new(Turns { begun: AtomicU64::new(0), stop: Arc::clone(stop) });
        let theirs = Arc::clone(&turns);
        Self { what, turns, thread: Some(thread::spawn(move || work(&theirs))) }
    }

    fn turns(&self) -> u64 {
        self.turns.begun.load(Ordering::Relaxed)
    }

    fn wait_for(&self, goal: u64) -> Result<()> {
        wait_until(&format!("{}: another turn", self.what), || {
            let ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            // What went wrong is told when it is stopped.
            Ok((ended || self.turns() >= goal).then_some(()))
        })
    }

    fn finish(&mut self) -> Result<u64> {
        let thread = self.thread.take().context("it runs")?;
        thread.join().map_err(|_| anyhow!("{} panicked", self.what))?.context(self.what)
    }
}
