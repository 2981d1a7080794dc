//! What people ask the kernel. Everything here is read from pins: it is true whether or not an agent runs.

mod services;
mod status;

use serde::Serialize;

use crate::{
    cli::OutputFormat,
    datapath::{AttachError, TableError},
};

pub use services::{BackendRow, FrontendKind, FrontendRow, Outside, ServiceRow, Services, services};
pub use status::{
    BareDevice, DeviceRow, MisfitRow, MissingHook, PodRow, PodStatus, SocketHookRow, SocketStatus, Status,
    TableRow, status,
};

/// Why something cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum ShowError {
    /// A table cannot be read.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The links cannot be read.
    #[error(transparent)]
    Links(#[from] AttachError),
    /// It cannot be written as JSON.
    #[error("cannot write JSON")]
    Json(#[from] serde_json::Error),
}

/// Something to show.
pub trait Show: Serialize {
    /// For people.
    fn table(&self) -> String;
}

/// The text in the format asked for.
pub fn render<T: Show>(value: &T, format: OutputFormat) -> Result<String, ShowError> {
    match format {
        OutputFormat::Table => Ok(value.table()),
        OutputFormat::Json => Ok(serde_json::to_string_pretty(value)?),
    }
}

/// A table without frames, columns apart by two spaces.
fn grid<const N: usize>(header: [&str; N]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
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
