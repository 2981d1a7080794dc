//! What people ask the kernel. Everything here is read from pins: it is true whether or not an agent runs.

mod backends;
mod columns;
mod command;
mod ends;
mod explain;
mod flows;
mod monitor;
mod names;
mod paint;
mod preflight;
mod services;
mod status;
mod time;
mod top;

use std::net::SocketAddr;

use k8s_openapi::jiff::Timestamp;
use proxy_common::tuple::Endpoint;
use serde::Serialize;

use crate::{
    cli::OutputFormat,
    datapath::{AttachError, ClockError, ListenError, TableError},
    devices::DeviceError,
};
use paint::Tone;

pub use backends::{BackendRecord, BackendState, Backends, BackendsArgs};
pub use command::{ServicesArgs, ShowCommand};
pub use ends::{EndFilter, EndFilterArgs, ParseEndError, ProtocolName};
pub use explain::{
    AffinityMapping, AttachedHook, Candidate, ChosenSet, Client, ExplainArgs, Explanation, MatchedFrontend,
    ObjectArgs, ObjectVerdict, ObjectsError, Origin, Outcome, ParseSourceError, ParseTargetError, Path,
    Source, SourceError, SourceRanges, Target, Verdict,
};
pub use flows::{FlowFilter, FlowFilterArgs, FlowRow, FlowsArgs, StateName};
pub use monitor::{EventRow, Happening, MonitorArgs};
pub use names::{ParseServiceError, ServiceFilter};
pub use paint::Paint;
pub use preflight::{Check, Preflight, PreflightArgs};
pub use services::{BackendRow, FrontendKind, FrontendRow, Outside, ServiceRow, Services};
pub use status::{
    BareDevice, DeviceRow, MisfitRow, MissingHook, PodRow, PodStatus, SocketHookRow, SocketStatus, Status,
    TableRow,
};
pub use top::{Column, Rates, ServiceRates, TopArgs};

/// Why something cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum ShowError {
    /// A table cannot be read.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The links cannot be read.
    #[error(transparent)]
    Links(#[from] AttachError),
    /// Devices and routes cannot be read.
    #[error(transparent)]
    Devices(#[from] DeviceError),
    /// The client's place is not known.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The objects cannot be read.
    #[error(transparent)]
    Objects(#[from] ObjectsError),
    /// Nobody can listen.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// There is no time.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// Nothing that was asked about is there.
    #[error("no service port of {0} is in the kernel; `sluice services` lists them")]
    NoService(String),
    /// It cannot be written as JSON.
    #[error("cannot write JSON")]
    Json(#[from] serde_json::Error),
    /// It cannot be written at all.
    #[error("cannot write")]
    Output(#[from] std::io::Error),
}

/// Something to show.
pub trait Show: Serialize {
    /// For people.
    fn table(&self, paint: Paint) -> String;
}

/// The text in the format asked for.
fn render(value: &impl Show, format: OutputFormat, paint: Paint) -> Result<String, ShowError> {
    match format {
        OutputFormat::Table => Ok(value.table(paint)),
        OutputFormat::Json => Ok(serde_json::to_string_pretty(value)?),
    }
}

/// A table without frames, columns apart by two spaces.
fn grid<const N: usize>(header: [&str; N], paint: Paint) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    // Left to itself, it looks at standard output, which need not be where its lines go.
    match paint {
        Paint::Plain => table.force_no_tty(),
        Paint::Colours => table.enforce_styling(),
    };
    let header = header.map(|heading| Paint::cell(heading, Tone::Heading));
    table.load_preset(comfy_table::presets::NOTHING).set_header(header);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// The lines of a table without trailing spaces.
fn lines(table: &comfy_table::Table) -> String {
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// Aligns the numbers of a column to the right.
fn right<const N: usize>(table: &mut comfy_table::Table, columns: [usize; N]) {
    for at in columns {
        if let Some(column) = table.column_mut(at) {
            column.set_cell_alignment(comfy_table::CellAlignment::Right);
        }
    }
}

/// An end as people write it.
fn socket(end: Endpoint) -> SocketAddr {
    SocketAddr::new(end.address.to_ip(), end.port.to_host())
}

/// A time of the day, in UTC as in the agent's log.
fn moment(time: Timestamp) -> String {
    time.strftime("%H:%M:%S").to_string()
}
