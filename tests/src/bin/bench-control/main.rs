//! `cargo xtask bench control`: what a cluster of some size costs the agent, from the API server to the kernel's tables.
//!
//! For each size a node made of a network namespace, with a real agent that follows the test bed's API server inside it.
//! What is measured is seen from outside: a change is over when its entry in the pinned tables has changed. The server
//! shares the machine's processors with the agent, so times that begin at the server are upper limits.

mod agent;
mod cluster;
mod measure;
mod report;

use std::io::{self, IsTerminal as _, Write as _};

use anyhow::Result;
use clap::Parser;
use sluice_tests::{harness, machine};

use crate::{cluster::Size, report::Report};

/// What a cluster of some size costs the agent, from the API server to the kernel's tables
#[derive(Clone, Debug, Parser)]
#[command(name = "bench-control", max_term_width = 100)]
struct Args {
    /// One JSON object instead of a table
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// The table as docs/performance.md has it
    #[arg(long)]
    markdown: bool,
    /// A run that shows that everything works, and nothing else
    #[arg(long)]
    quick: bool,
    /// Clusters to measure: Services, and endpoints of each
    #[arg(
        long,
        value_name = "SERVICESxENDPOINTS",
        value_delimiter = ',',
        default_value = "100x10,1000x10,10000x10,10000x25"
    )]
    sizes: Vec<Size>,
    /// Changes of one endpoint each, one after the other
    #[arg(long, value_name = "N", default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..))]
    changes: u32,
    /// Seconds in which nothing happens
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    idle: u32,
}

impl Args {
    /// As somebody asks who only wants to see that it works.
    fn quickened(self) -> Self {
        if self.quick { Self { sizes: vec![Size::new(20, 3)], changes: 20, idle: 1, ..self } } else { self }
    }
}

fn main() -> Result<()> {
    let args = Args::parse().quickened();
    harness::requirements()?;
    let mut rows = Vec::new();
    for size in &args.sizes {
        if io::stderr().is_terminal() {
            writeln!(io::stderr(), "{size} ...")?;
        }
        rows.push(measure::measure(*size, args.changes, args.idle)?);
    }
    let report = Report {
        kernel: machine::kernel()?,
        cpu: machine::cpu(),
        changes: args.changes,
        idle: args.idle,
        rows,
    };
    let text = match (args.json, args.markdown) {
        (true, _) => serde_json::to_string_pretty(&report)?,
        (_, true) => report.markdown(),
        _ => report.text(),
    };
    writeln!(io::stdout(), "{text}")?;
    Ok(())
}
