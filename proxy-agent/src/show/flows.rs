//! `sluice flows`: connections through services, both directions of each joined.

mod filter;
mod follow;
mod print;
mod read;

use std::{
    io::{self, BufWriter, Write},
    net::SocketAddr,
    time::Duration,
};

use clap::{Args, builder::RangedU64ValueParser};
use serde::Serialize;

pub use filter::{FlowFilter, FlowFilterArgs, StateName};
pub(super) use print::table;
pub(super) use read::Reader;

use super::{BackendState, Paint, ShowError};
use crate::cli::{OutputFormat, ShowArgs};

/// A connection (TCP, SCTP) or the datagrams between two ends (UDP), through a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct FlowRow {
    /// `namespace/name:port/protocol/family` of the service port.
    pub service: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: &'static str,
    /// The client, as the node sees it.
    pub client: SocketAddr,
    /// What the client talks to.
    pub frontend: SocketAddr,
    /// Who answers.
    pub backend: SocketAddr,
    /// The id of that backend in the tables.
    pub backend_id: u32,
    /// How that backend is.
    pub backend_state: BackendState,
    /// As whom the backend sees the client; `null` while that is not decided: with the first packet that leaves the
    /// node.
    pub seen_as: Option<SocketAddr>,
    /// Whether that is the node.
    pub masqueraded: bool,
    /// Whether the backend's node answers past this one.
    pub dsr: bool,
    /// How far it has come.
    pub state: &'static str,
    /// Seconds since the last packet of either direction.
    pub idle_seconds: u32,
    /// Seconds of silence until it is forgotten; `null` if it is over already, and only its memory is still to be freed.
    pub expires_in_seconds: Option<u32>,
}

/// Arguments of `flows`.
#[derive(Debug, Args)]
pub struct FlowsArgs {
    /// Which ones.
    #[command(flatten)]
    pub filter: FlowFilterArgs,
    /// Go on showing which begin, change their state, and end
    #[arg(short = 'w', long, visible_alias = "watch")]
    pub follow: bool,
    /// Seconds between two looks at the table with --follow: what begins and ends in between is not seen
    /// (`sluice monitor` sees everything that begins)
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = RangedU64ValueParser::<u64>::new().range(1..=3600))]
    pub interval: u64,
    /// What all commands have.
    #[command(flatten)]
    pub show: ShowArgs,
}

/// Prints them.
pub(super) fn run(args: &FlowsArgs) -> Result<(), ShowError> {
    let pins = args.show.pins();
    let reader = Reader::open(&pins)?;
    let filter = args.filter.resolve(reader.names())?;
    if args.follow {
        let interval = Duration::from_secs(args.interval);
        return follow::follow(&pins, &args.filter, interval, args.show.output, &mut io::stdout().lock());
    }
    let mut out = BufWriter::new(io::stdout().lock());
    let rows = reader.rows(&filter);
    match args.show.output {
        OutputFormat::Table => table(rows, Paint::detect(), &mut out)?,
        OutputFormat::Json => print::json(rows, &mut out)?,
    }
    Ok(out.flush()?)
}
