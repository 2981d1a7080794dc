//! Names are asked for while those who know them come and go: a service of resolvers, and clients that behave as glibc does.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use proxy_model::Transport;
use sluice_tests::{
    agent::Agent,
    deployment::Deployment,
    harness::with_agents,
    netns::Namespace,
    service::{Port, Service},
    topology::{Family, Node, Pod},
    traffic::Protocol,
    wait::wait_until,
};

use crate::sockets::{all_ways, can_abort};

const DNS: u16 = 53;
/// The port of the resolvers.
const RESOLVER: u16 = 5353;
/// Lookups of all clients together, at least.
const LOOKUPS: u64 = 10_000;
/// Resolvers that go and come back, at least.
const ROUNDS: usize = 8;
/// Sockets that are kept, for each way to name the service and each place.
const KEPT: usize = 4;
/// How long after its removal was programmed a resolver still answers. What is sent to it later is lost.
const GRACE: Duration = Duration::from_millis(100);
/// A lookup that takes longer is lost: glibc would ask again after five seconds.
const PATIENCE: Duration = Duration::from_secs(2);
/// So many lookups are made at least while a resolver is dead.
const WHILE_DEAD: u64 = 200;

/// A clock that clients and resolvers share.
#[derive(Clone, Copy)]
struct Clock(Instant);

impl Clock {
    fn now(self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// A pod that answers everything that is sent to it in its lifetime.
struct Resolver {
    pod: Pod,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    /// By the senders' clock; 0 while it lives.
    died: AtomicU64,
    /// Questions that were sent to it after that.
    stale: AtomicU64,
    stop: AtomicBool,
}

impl Resolver {
    fn start(node: &Node, name: &str) -> Result<Self> {
        let pod = node.add_pod(name)?;
        let socket = pod.machine.namespace.run(|| Ok(UdpSocket::bind((Ipv6Addr::UNSPECIFIED, RESOLVER))?))?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let name = name.to_owned();
        let thread = thread::spawn(move || {
            let mut question = [0; 64];
            while !theirs.stop.load(Ordering::Relaxed) {
                // Nothing came, or a client has gone.
                let Ok((length, client)) = socket.recv_from(&mut question) else { continue };
                let question = &question[..length];
                let sent =
                    std::str::from_utf8(question).ok().and_then(|text| text.split(' ').nth(2)?.parse().ok());
                let died = theirs.died.load(Ordering::SeqCst);
                if died != 0 && sent.is_none_or(|sent: u64| sent > died) {
                    theirs.stale.fetch_add(1, Ordering::SeqCst);
                } else {
                    // A client that has given up is the one to say so.
                    drop(socket.send_to(&[question, b" ", name.as_bytes()].concat(), client));
                }
            }
        });
        Ok(Self { pod, shared, thread: Some(thread) })
    }

    fn dies_at(&self, time: u64) {
        self.shared.died.store(time, Ordering::SeqCst);
    }

    fn stale(&self) -> u64 {
        self.shared.stale.load(Ordering::SeqCst)
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in there has been printed; the clients have noticed.
            drop(thread.join());
        }
    }
}

/// What all clients do and have done.
struct Clients {
    clock: Clock,
    lookups: AtomicU64,
    /// How often a socket was found to be aborted.
    aborted: AtomicU64,
    stop: AtomicBool,
}

impl Clients {
    /// Asks again and again until told to stop; with a new socket each time, or with sockets that are kept as long as they
    /// work. Returns how often it has.
    fn ask(&self, ways: &[SocketAddr], kept: bool) -> Result<u64> {
        let mut sockets: Vec<Option<UdpSocket>> = Vec::new();
        sockets.resize_with(ways.len() * if kept { KEPT } else { 1 }, || None);
        let mut done = 0;
        while !self.stop.load(Ordering::Relaxed) {
            for (number, socket) in sockets.iter_mut().enumerate() {
                let to = ways[number % ways.len()];
                self.look_up(to, socket, done).with_context(|| format!("lookup {done} at {to}"))?;
                if !kept {
                    *socket = None;
                }
                done += 1;
                self.lookups.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(done)
    }

    /// One lookup: both questions at once on one socket, then both answers. After an error, another socket.
    fn look_up(&self, to: SocketAddr, socket: &mut Option<UdpSocket>, number: u64) -> Result<()> {
        let start = Instant::now();
        loop {
            let left = PATIENCE.checked_sub(start.elapsed()).filter(|left| !left.is_zero());
            let left = left.with_context(|| format!("no answer within {PATIENCE:?}"))?;
            let connected = match socket.take() {
                Some(connected) => connected,
                None => connect(to)?,
            };
            connected.set_read_timeout(Some(left))?;
            match self.exchange(&connected, number) {
                Ok(()) => {
                    *socket = Some(connected);
                    return Ok(());
                }
                Err(error) if is_abort(&error) => {
                    self.aborted.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => bail!("{error} after {:?}", start.elapsed()),
            }
        }
    }

    fn exchange(&self, socket: &UdpSocket, number: u64) -> io::Result<()> {
        let mut missing = BTreeSet::new();
        for kind in ["A", "AAAA"] {
            let question = format!("{kind} {number} {}", self.clock.now());
            socket.send(question.as_bytes())?;
            missing.insert(question);
        }
        let mut answer = [0; 128];
        while !missing.is_empty() {
            let length = socket.recv(&mut answer)?;
            let answer = String::from_utf8_lossy(&answer[..length]);
            // Answers to questions that were asked again are late, not wrong.
            missing.retain(|question| !answer.starts_with(&format!("{question} ")));
        }
        Ok(())
    }
}

/// What a process hears of a socket that was aborted: one that waits or receives the former, one that sends the latter.
pub(crate) fn is_abort(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(nix::libc::ECONNABORTED | nix::libc::EDESTADDRREQ))
}

fn connect(to: SocketAddr) -> Result<UdpSocket> {
    let any: IpAddr = Family::of(to.ip()).unspecified();
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to).with_context(|| format!("connect to {to}"))?;
    Ok(socket)
}

/// Waits until no node leads anybody to a resolver any more, and returns when that was, by the clock.
fn wait_until_removed(agents: &Deployment, rows: &[Vec<u32>], clock: Clock) -> Result<u64> {
    let any = |(agent, rows): (&Agent, &Vec<u32>)| agent.has_live_backend(rows);
    let start = Instant::now();
    // By the table itself, as fast as it can be asked: what counts are milliseconds.
    while agents.agents.iter().zip(rows).map(any).collect::<Result<Vec<_>>>()?.contains(&true) {
        ensure!(start.elapsed() < sluice_tests::traffic::PATIENCE, "the resolver is never removed");
        thread::sleep(Duration::from_millis(1));
    }
    Ok(clock.now())
}

/// One resolver goes and comes back.
fn replace(agents: &Deployment, resolvers: &[Resolver], at: usize, clients: &Clients) -> Result<()> {
    let with =
        |pods: &mut dyn Iterator<Item = &Resolver>| pods.fold(service(), |all, one| all.with(&one.pod));
    let (all, gone) = (with(&mut resolvers.iter()), &resolvers[at]);
    let others = all.clone().without(gone.pod.name());
    let ends = Family::ALL.map(|family| gone.pod.machine.addresses.at(RESOLVER).of(family));
    let rows = agents.agents.iter().map(|agent| agent.live_backends(&ends)).collect::<Result<Vec<_>>>()?;
    ensure!(rows.iter().all(|rows| rows.len() == ends.len()), "{} is not served: {rows:?}", gone.pod.name());

    agents.publish(&others)?;
    let removed = wait_until_removed(agents, &rows, clients.clock)?;
    gone.dies_at(removed + u64::try_from(GRACE.as_nanos())?);
    let before = clients.lookups.load(Ordering::Relaxed);
    wait_until("clients ask while a resolver is dead", || {
        let is_dead = clients.clock.now() > gone.shared.died.load(Ordering::SeqCst);
        let asked = clients.lookups.load(Ordering::Relaxed) - before;
        ensure!(!clients.stop.load(Ordering::Relaxed), "a client has failed");
        Ok((is_dead && asked >= WHILE_DEAD).then_some(()))
    })?;
    ensure!(gone.stale() == 0, "{} was asked {} times after its death", gone.pod.name(), gone.stale());
    gone.dies_at(0);
    agents.serve(&all)
}

fn service() -> Service {
    Service::new("dns", 1).with_ports([Port::new("dns", Protocol::Udp, DNS, RESOLVER)])
}

/// Demand A.1, CT-08, E2E-070 to E2E-073: from the host, from a pod beside the resolvers, and from one on another node.
#[test]
fn no_lookup_is_lost_while_resolvers_come_and_go() {
    if !can_abort(Transport::Udp) {
        return;
    }
    with_agents(2, |cluster, agents| {
        let [here, there] = [&cluster.nodes[0], &cluster.nodes[1]];
        let resolvers = [(here, "dns-1"), (there, "dns-2"), (here, "dns-3"), (there, "dns-4")]
            .into_iter()
            .map(|(node, name)| Resolver::start(node, name))
            .collect::<Result<Vec<_>>>()?;
        let pods = [here.add_pod("pod-1")?, there.add_pod("pod-2")?];
        let all = resolvers.iter().fold(service(), |all, resolver| all.with(&resolver.pod));
        agents.serve(&all)?;
        let places = [&here.namespace, &pods[0].machine.namespace, &pods[1].machine.namespace];
        let clients = Clients {
            clock: Clock(Instant::now()),
            lookups: AtomicU64::new(0),
            aborted: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        };
        let ways = all_ways(all.vip());
        let asked = thread::scope(|scope| -> Result<Vec<u64>> {
            let (clients, ways) = (&clients, &ways);
            let ask = |(place, kept): (&Namespace, bool)| {
                let place = place.clone();
                scope.spawn(move || {
                    let asked = place.run(|| clients.ask(ways, kept));
                    // Whatever else is going on is of no use any more.
                    clients.stop.store(true, Ordering::Relaxed);
                    asked.with_context(|| format!("a client in {}, sockets kept: {kept}", place.name()))
                })
            };
            let asking: Vec<_> =
                places.into_iter().flat_map(|place| [(place, false), (place, true)]).map(ask).collect();
            let replaced = (0..).try_for_each(|round| {
                if round >= ROUNDS && clients.lookups.load(Ordering::Relaxed) >= LOOKUPS {
                    return Err(None);
                }
                replace(agents, &resolvers, round % resolvers.len(), clients).map_err(Some)
            });
            clients.stop.store(true, Ordering::Relaxed);
            let asked = asking
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panicked| std::panic::resume_unwind(panicked)))
                .collect::<Result<Vec<_>>>()?;
            match replaced {
                Err(Some(error)) => Err(error),
                _ => Ok(asked),
            }
        })?;
        let aborted = clients.aborted.load(Ordering::Relaxed);
        let stale: u64 = resolvers.iter().map(Resolver::stale).sum();
        ensure!(asked.iter().all(|&asked| asked > 0) && asked.iter().sum::<u64>() >= LOOKUPS, "{asked:?}");
        ensure!(stale == 0, "{stale} questions to the dead");
        ensure!(aborted > 0, "no socket of the host had a resolver that went");
        Ok(())
    });
}
