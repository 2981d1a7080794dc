//! What is printed.

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::measure::{Row, Start};

/// What was measured, and on what.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    /// Of one endpoint each.
    pub(crate) changes: u32,
    /// Seconds in which nothing happened.
    pub(crate) idle: u32,
    pub(crate) rows: Vec<Row>,
}

impl Report {
    /// For people.
    pub(crate) fn text(&self) -> String {
        self.write(presets::NOTHING)
    }

    /// For docs/performance.md.
    pub(crate) fn markdown(&self) -> String {
        self.write(presets::ASCII_MARKDOWN)
    }

    fn write(&self, preset: &str) -> String {
        let Self { kernel, cpu, changes, idle, rows } = self;
        let mut table = Table::new();
        table.load_preset(preset).set_header([
            "Services x endpoints",
            "cold start, s",
            "after lists, s",
            "CPU, s",
            "restart, s",
            "one change, ms: median",
            "p99",
            "max",
            "all change, s",
            "RSS, MiB",
            "peak",
            "tables, MiB",
            "idle CPU, %",
        ]);
        for row in rows {
            let Start { from_start, from_lists, cpu } = row.cold;
            let milliseconds = |seconds: f64| format!("{:.2}", seconds * 1e3);
            table.add_row([
                row.size.to_string(),
                format!("{from_start:.2}"),
                format!("{from_lists:.2}"),
                format!("{cpu:.2}"),
                format!("{:.2}", row.again.from_start),
                milliseconds(row.one_change.median),
                milliseconds(row.one_change.p99),
                milliseconds(row.one_change.max),
                format!("{:.2}", row.all_changes),
                mebibytes(row.resident),
                mebibytes(row.resident_peak),
                mebibytes(row.tables),
                format!("{:.1}", row.idle_cpu * 100.0),
            ]);
        }
        table.column_iter_mut().for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        let lines: Vec<_> = table.lines().map(|line| line.trim_end().to_owned()).collect();
        format!(
            "Linux {kernel}, {cpu}. {changes} changes of one endpoint each, {idle} s of nothing.\n\n{}",
            lines.join("\n")
        )
    }
}

#[expect(clippy::cast_precision_loss, reason = "a table of mebibytes has no use for the 53rd bit")]
fn mebibytes(bytes: u64) -> String {
    format!("{:.0}", bytes as f64 / f64::from(1 << 20))
}
