//! Nanoseconds of the calls that the programs for sockets see.
//!
//! One thread has both ends, so nobody else has to be waited for: sixty-four calls are timed at once, and whatever they need
//! before and leave behind is done in between. The time is that thread's CPU time, with what the kernel does on it for the
//! packets that a call sends.

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    programs::loaded_programs,
    sys::{Stats, enable_stats},
};
use nix::errno::Errno;
use serde::Serialize;
use sluice_tests::{topology::Family, traffic::PATIENCE};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use crate::{
    Args, Progress,
    scene::{Client, Scene, Way},
    summary::{Summary, rotated},
    time,
};

/// Calls that are timed together.
const BATCH: usize = 64;

/// Connections that fill the socket table, with what is in it already: from then on every new entry takes the place of an
/// old one, as on a node that has run for a while.
const SOCKETS: usize = 70_000;

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
    const ALL: [Self; 6] = [
        Self::UdpConnectAgain,
        Self::UdpConnect,
        Self::UdpSend,
        Self::UdpReceive,
        Self::TcpConnect,
        Self::PeerName,
    ];

    /// The program that sees it.
    const fn hook(self, family: Family) -> &'static str {
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
    const fn chooses(self) -> bool {
        matches!(self, Self::UdpConnect | Self::TcpConnect)
    }
}

/// One row, in nanoseconds per call.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) client: Client,
    pub(crate) call: Call,
    /// To a pod, from a cgroup without programs.
    pub(crate) without_hooks: Summary,
    /// To a pod, from a cgroup with programs.
    pub(crate) no_service: Summary,
    /// To a service, by socket.
    pub(crate) service: Summary,
    /// To a service, by packet, if that is another way.
    pub(crate) by_packet: Option<Summary>,
    /// To a service, by socket, where there are many others.
    pub(crate) among_others: Summary,
    /// What the program itself takes, to a pod.
    pub(crate) hook_no_service: Summary,
    /// What the program itself takes, to a service.
    pub(crate) hook_service: Summary,
}

/// All calls of a process of the node, and that of a pod which the programs see to.
pub(crate) fn measure(scene: &Scene, args: &Args, progress: Progress) -> Result<Vec<Row>> {
    let ends = Ends::open(scene)?;
    let mut kinds: Vec<_> = Call::ALL.into_iter().map(|call| Kind::new(Client::Host, call)).collect();
    kinds.push(Kind::new(Client::Pod, Call::TcpConnect));
    progress.show("filling the socket table");
    let fill = if args.quick { BATCH } else { SOCKETS };
    time_calls(scene, &ends, Client::Host, Call::UdpConnect, Way::Socket, fill)?;
    let many = usize::try_from(args.calls)?;
    for round in 0..args.rounds {
        for kind in &mut kinds {
            progress.show(&format!("round {} of {}: {:?}", round + 1, args.rounds, kind.call));
            kind.measure(scene, &ends, round, many)?;
        }
    }
    progress.show(&format!("{} more services", args.others));
    scene.add_others(args.others)?;
    for round in 0..args.rounds {
        for kind in &mut kinds {
            progress.show(&format!("round {} of {}, among others: {:?}", round + 1, args.rounds, kind.call));
            let time = time_calls(scene, &ends, kind.client, kind.call, Way::Socket, many)?;
            kind.among_others.push(time);
        }
    }
    kinds.into_iter().map(|kind| kind.row().context("a call without figures")).collect()
}

/// A call of a client, and what each round has shown.
struct Kind {
    client: Client,
    call: Call,
    ways: Vec<(Way, Vec<f64>)>,
    among_others: Vec<f64>,
    hook_no_service: Vec<f64>,
    hook_service: Vec<f64>,
}

impl Kind {
    fn new(client: Client, call: Call) -> Self {
        let mut ways = vec![Way::Direct, Way::DirectWithHooks, Way::Socket];
        if client == Client::Pod {
            ways.push(Way::Packet);
        }
        let ways = ways.into_iter().map(|way| (way, Vec::new())).collect();
        Self {
            client,
            call,
            ways,
            among_others: Vec::new(),
            hook_no_service: Vec::new(),
            hook_service: Vec::new(),
        }
    }

    fn measure(&mut self, scene: &Scene, ends: &Ends, round: u32, count: usize) -> Result<()> {
        let Self { client, call, .. } = *self;
        for at in rotated(self.ways.len(), round) {
            let (way, figures) = &mut self.ways[at];
            figures.push(time_calls(scene, ends, client, call, *way, count)?);
        }
        // Apart from the others: the kernel's own measurement takes time.
        self.hook_no_service.push(time_hook(scene, ends, client, call, Way::DirectWithHooks, count)?);
        self.hook_service.push(time_hook(scene, ends, client, call, Way::Socket, count)?);
        Ok(())
    }

    fn row(self) -> Option<Row> {
        let of = |wanted: Way| {
            self.ways
                .iter()
                .find(|(way, _)| *way == wanted)
                .and_then(|(_, figures)| Summary::of(figures.clone()))
        };
        Some(Row {
            client: self.client,
            call: self.call,
            without_hooks: of(Way::Direct)?,
            no_service: of(Way::DirectWithHooks)?,
            service: of(Way::Socket)?,
            by_packet: of(Way::Packet),
            among_others: Summary::of(self.among_others)?,
            hook_no_service: Summary::of(self.hook_no_service)?,
            hook_service: Summary::of(self.hook_service)?,
        })
    }
}

/// Nanoseconds per call, and proof that the calls went that way.
fn time_calls(scene: &Scene, ends: &Ends, client: Client, call: Call, way: Way, count: usize) -> Result<f64> {
    let before = scene.traffic()?;
    let (calls, time) = scene
        .quiet_stand(client, way)
        .run(|to| Caller { call, to, ends }.run(count))
        .with_context(|| format!("{call:?}, {client:?}, {way:?}"))?;
    let chosen = scene.traffic()?.connections - before.connections;
    let is_right = match way {
        Way::Direct | Way::DirectWithHooks => chosen == 0,
        Way::Socket | Way::Packet if call.chooses() => chosen == u64::try_from(calls)?,
        // A socket remembers what was chosen for it.
        Way::Socket | Way::Packet => chosen == 1,
    };
    ensure!(
        is_right,
        "{call:?}, {client:?}, {way:?}: {calls} calls, and {chosen} times a backend was chosen"
    );
    Ok(time.as_nanos() as f64 / calls as f64)
}

/// Nanoseconds that the program which sees a call takes, as the kernel measures it.
fn time_hook(scene: &Scene, ends: &Ends, client: Client, call: Call, way: Way, count: usize) -> Result<f64> {
    let _measuring = enable_stats(Stats::RunTime)?;
    let name = call.hook(scene.family);
    let before = run_time(scene, name)?;
    time_calls(scene, ends, client, call, way, count)?;
    let after = run_time(scene, name)?;
    let (time, runs) = (after.0 - before.0, after.1 - before.1);
    ensure!(runs >= u64::try_from(count)?, "{name} ran {runs} times for {count} calls");
    Ok(time.as_nanos() as f64 / runs as f64)
}

/// How long a program has run, and how often.
fn run_time(scene: &Scene, name: &str) -> Result<(Duration, u64)> {
    let id = scene.hooks()?.into_iter().find_map(|(hook, id)| (hook == name).then_some(id));
    let id = id.with_context(|| format!("{name} is not attached"))?;
    for program in loaded_programs() {
        // Others come and go meanwhile.
        if let Ok(program) = program
            && program.id() == id
        {
            return Ok((program.run_time(), program.run_count()));
        }
    }
    anyhow::bail!("{name} is not loaded")
}

/// The backend's sockets.
struct Ends {
    datagrams: UdpSocket,
    listener: TcpListener,
}

impl Ends {
    fn open(scene: &Scene) -> Result<Self> {
        let (namespace, at) = scene.quiet_backend();
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
struct Caller<'a> {
    call: Call,
    to: SocketAddr,
    ends: &'a Ends,
}

impl Caller<'_> {
    /// Makes at least `count` calls. Returns how many, and the time that they took.
    fn run(&self, count: usize) -> Result<(usize, Duration)> {
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
