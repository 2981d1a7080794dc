//! `sluice monitor`: new flows and drops as they happen.

mod print;
mod resolve;

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    time::Duration,
};

use clap::Args;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use nix::time::{ClockId, clock_gettime};
use proxy_common::event::{Event, EventKinds};
use serde::Serialize;

use self::{print::Printer, resolve::Resolver};
use super::{
    Paint, Path, ShowError,
    ends::{EndFilterArgs, Ends},
};
use crate::{cli::ShowArgs, datapath::EventStream};

/// Arguments of `monitor`.
#[derive(Debug, Args)]
pub struct MonitorArgs {
    /// Only what is dropped, refused or forbidden
    #[arg(long, conflicts_with = "flows")]
    pub drops: bool,
    /// Only what begins
    #[arg(long)]
    pub flows: bool,
    /// Between whom.
    #[command(flatten, next_help_heading = "Which events")]
    pub ends: EndFilterArgs,
    /// What all commands have.
    #[command(flatten)]
    pub show: ShowArgs,
}

/// Something that has happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EventRow {
    /// When.
    pub time: String,
    /// What.
    pub event: Happening,
    /// Where that was decided.
    pub path: Path,
    /// `namespace/name:port/protocol/family` of the service port; `null` if it is nobody's, or nobody knows whose.
    pub service: Option<String>,
    /// `TCP`, `UDP`, `SCTP`, or the number of another protocol.
    pub protocol: String,
    /// The client, as the node sees it; `null` for a process.
    pub client: Option<SocketAddr>,
    /// The process, if it is one; `null` for a packet.
    pub process: Option<u32>,
    /// Its name, if it still runs and can be seen from here.
    pub process_name: Option<String>,
    /// What the client talks to.
    pub frontend: Option<SocketAddr>,
    /// Who answers.
    pub backend: Option<SocketAddr>,
    /// Whether the client's source is rewritten.
    pub masqueraded: bool,
    /// Why it was dropped: the name of the drop counter.
    pub reason: Option<&'static str>,
    /// The number of the device that the packet came by, or was to leave by.
    pub device: Option<u32>,
    /// Its name.
    pub device_name: Option<String>,
}

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Happening {
    /// A flow has begun.
    Begun,
    /// A packet was dropped without a word.
    Dropped,
    /// The client was told that nobody listens.
    Refused,
    /// A process was told that there is no way.
    Forbidden,
    /// A connection is over, and the client was told.
    Reset,
}

/// Events that nobody has heard.
#[derive(Debug, Serialize)]
struct Lost {
    time: String,
    event: &'static str,
    count: u64,
}

/// Prints them, for ever.
pub(super) fn run(args: &MonitorArgs) -> Result<(), ShowError> {
    let pins = args.show.pins();
    let wants = match (args.drops, args.flows) {
        (true, _) => EventKinds::DROPS,
        (_, true) => EventKinds::FLOWS,
        _ => EventKinds::FLOWS.with(EventKinds::DROPS),
    };
    let mut resolver = Resolver::open(&pins)?;
    let mut ends = args.ends.resolve(resolver.names())?;
    let mut stream = EventStream::open(&pins, wants)?;
    let mut printer = Printer::new(args.show.output, Paint::detect());
    let mut out = io::stdout().lock();
    printer.begin(&mut out)?;
    out.flush()?;
    let mut events = Vec::<Event>::new();
    loop {
        let lost = stream.hear(|event| events.push(*event))?;
        let clock = WallClock::read()?;
        if resolver.learn(&events, &pins)? {
            // A service that is gone has taken its name with it.
            ends = args.ends.resolve(resolver.names()).unwrap_or(ends);
        }
        for event in events.drain(..) {
            if let Some(row) = row(&resolver, &ends, &event, clock)? {
                printer.print(&row, &mut out)?;
            }
        }
        if lost > 0 {
            printer.tell_lost(lost, &mut out)?;
        }
        out.flush()?;
    }
}

/// The event for people, if it is meant.
fn row(
    resolver: &Resolver,
    ends: &Ends,
    event: &Event,
    clock: WallClock,
) -> Result<Option<EventRow>, ShowError> {
    let found = resolver.resolve(event)?;
    let is_meant = ends.admit(found.service, found.client, found.frontend, found.backend, event.key.protocol);
    Ok(is_meant.then(|| found.row(event, clock.at(event.time), resolver)))
}

/// The time of the day beside the kernel's.
#[derive(Clone, Copy, Debug)]
struct WallClock {
    wall: Timestamp,
    monotonic: Duration,
}

impl WallClock {
    fn read() -> Result<Self, ShowError> {
        let monotonic = clock_gettime(ClockId::CLOCK_MONOTONIC).map_err(io::Error::from)?;
        Ok(Self { wall: Timestamp::now(), monotonic: monotonic.into() })
    }

    /// When an event was, that the kernel has stamped with so many nanoseconds.
    fn at(self, nanoseconds: u64) -> Timestamp {
        let ago = self.monotonic.saturating_sub(Duration::from_nanos(nanoseconds));
        let ago = SignedDuration::try_from(ago).unwrap_or_default();
        self.wall.checked_sub(ago).unwrap_or(self.wall)
    }
}
