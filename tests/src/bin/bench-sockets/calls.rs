//! Nanoseconds of the calls that the programs for sockets see, and of these programs themselves.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::{
    programs::loaded_programs,
    sys::{Stats, enable_stats},
};
use serde::Serialize;

use sluice_tests::bench::{
    progress::Progress,
    summary::{Summary, rotated},
};

use crate::{
    Args,
    caller::{Call, Caller, Ends},
    scene::{Client, Scene, Way},
};

/// Connections that fill the socket table, with what is in it already: from then on every new entry takes the place of an
/// old one, as on a node that has run for a while.
const SOCKETS: usize = 70_000;

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
    progress.show(&format!("{} more services on the other node", args.others));
    scene.add_others(args.others)?;
    let bed = Bed {
        scene,
        ends: Ends::open(scene, Way::Socket)?,
        ends_among_others: Ends::open(scene, Way::SocketAmongOthers)?,
    };
    progress.show("filling the socket tables");
    let fill = if args.quick { 1 } else { SOCKETS };
    for way in [Way::Socket, Way::SocketAmongOthers] {
        bed.time_calls(Client::Host, Call::UdpConnect, way, fill)?;
    }
    let mut kinds: Vec<_> = Call::ALL.into_iter().map(|call| Kind::new(Client::Host, call)).collect();
    kinds.push(Kind::new(Client::Pod, Call::TcpConnect));
    for round in 0..args.rounds {
        for kind in &mut kinds {
            progress.show(&format!("round {} of {}: {}", round + 1, args.rounds, kind.call.as_str()));
            kind.measure(&bed, round, usize::try_from(args.calls)?)?;
        }
    }
    kinds.into_iter().map(|kind| kind.row().context("a call without figures")).collect()
}

/// A call of a client, and what each round has shown.
struct Kind {
    client: Client,
    call: Call,
    ways: Vec<(Way, Vec<f64>)>,
    hook_no_service: Vec<f64>,
    hook_service: Vec<f64>,
}

impl Kind {
    fn new(client: Client, call: Call) -> Self {
        let mut ways = vec![Way::Direct, Way::DirectWithHooks, Way::Socket, Way::SocketAmongOthers];
        if client == Client::Pod {
            ways.push(Way::Packet);
        }
        let ways = ways.into_iter().map(|way| (way, Vec::new())).collect();
        Self { client, call, ways, hook_no_service: Vec::new(), hook_service: Vec::new() }
    }

    fn measure(&mut self, bed: &Bed<'_>, round: u32, count: usize) -> Result<()> {
        let Self { client, call, .. } = *self;
        for at in rotated(self.ways.len(), round) {
            let (way, figures) = &mut self.ways[at];
            figures.push(bed.time_calls(client, call, *way, count)?);
        }
        // Apart from the others: the kernel's own measurement takes time.
        self.hook_no_service.push(bed.time_hook(client, call, Way::DirectWithHooks, count)?);
        self.hook_service.push(bed.time_hook(client, call, Way::Socket, count)?);
        Ok(())
    }

    fn row(self) -> Option<Row> {
        let of = |wanted: Way| {
            let (_, figures) = self.ways.iter().find(|(way, _)| *way == wanted)?;
            Summary::of(figures.clone())
        };
        Some(Row {
            client: self.client,
            call: self.call,
            without_hooks: of(Way::Direct)?,
            no_service: of(Way::DirectWithHooks)?,
            service: of(Way::Socket)?,
            among_others: of(Way::SocketAmongOthers)?,
            by_packet: of(Way::Packet),
            hook_no_service: Summary::of(self.hook_no_service)?,
            hook_service: Summary::of(self.hook_service)?,
        })
    }
}

/// Where calls are made.
struct Bed<'a> {
    scene: &'a Scene,
    ends: Ends,
    ends_among_others: Ends,
}

impl Bed<'_> {
    /// Nanoseconds per call, and proof that the calls went that way.
    fn time_calls(&self, client: Client, call: Call, way: Way, count: usize) -> Result<f64> {
        let ends = if way == Way::SocketAmongOthers { &self.ends_among_others } else { &self.ends };
        let name = || format!("{} from {}, {}", call.as_str(), client.as_str(), way.as_str());
        let before = self.scene.traffic(way)?;
        let stand = self.scene.quiet_stand(client, way);
        let (calls, time) = stand.run(|to| Caller { call, to, ends }.run(count)).with_context(name)?;
        let chosen = self.scene.traffic(way)?.connections - before.connections;
        let expected = match way {
            Way::Direct | Way::DirectWithHooks => 0,
            Way::Socket | Way::SocketAmongOthers | Way::Packet if call.chooses() => u64::try_from(calls)?,
            // A socket remembers what was chosen for it.
            Way::Socket | Way::SocketAmongOthers | Way::Packet => 1,
        };
        ensure!(chosen == expected, "{}: {calls} calls, {chosen} times a backend was chosen", name());
        Ok(time.as_nanos() as f64 / calls as f64)
    }

    /// Nanoseconds that the program which sees a call takes, as the kernel measures it.
    fn time_hook(&self, client: Client, call: Call, way: Way, count: usize) -> Result<f64> {
        let _measuring = enable_stats(Stats::RunTime)?;
        let name = call.hook(self.scene.family);
        let attached = self.scene.hooks(way)?.into_iter().find(|(hook, _)| *hook == name);
        let (_, id) = attached.with_context(|| format!("{name} is not attached"))?;
        let before = run_time(id)?;
        self.time_calls(client, call, way, count)?;
        let after = run_time(id)?;
        let (time, runs) = (after.0 - before.0, after.1 - before.1);
        ensure!(runs >= u64::try_from(count)?, "{name} ran {runs} times for {count} calls");
        Ok(time.as_nanos() as f64 / runs as f64)
    }
}

/// How long a program has run, and how often.
fn run_time(id: u32) -> Result<(Duration, u64)> {
    // Other programs come and go meanwhile.
    let mut programs = loaded_programs().filter_map(Result::ok);
    let program = programs.find(|program| program.id() == id);
    let program = program.with_context(|| format!("program {id} is not loaded"))?;
    Ok((program.run_time(), program.run_count()))
}
