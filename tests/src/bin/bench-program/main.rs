//! `cargo xtask bench program`: nanoseconds per packet of the kernel programs, beside the floor.
//!
//! Every figure is net: the same driver in front of an empty program is measured in turn with each target and
//! subtracted, run by run, so that a drift of the machine's speed hits both alike.

mod cases;
mod driver;
mod report;

use std::{io::Write as _, path::PathBuf};

use anyhow::Result;
use clap::Parser;
use sluice_tests::{bench::text, harness};

/// Nanoseconds per packet of the kernel programs, beside the floor.
#[derive(Parser)]
struct Args {
    /// One JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Write program.md, program.svg and program.png to this directory, too
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Measurements of each case; the median counts
    #[arg(long, default_value_t = 31, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Packets of each measurement
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(1..))]
    packets: u32,
    /// Few and short measurements: shows that it runs
    #[arg(long, conflicts_with_all = ["runs", "packets"])]
    quick: bool,
    /// Only cases whose names have this in them, the group's included
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// The object with driver and floor programs
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bpf/sluice-bench.o"))]
    object: PathBuf,
}

fn main() -> Result<()> {
    let mut args = Args::parse();
    if args.quick {
        (args.runs, args.packets) = (3, 2000);
    }
    // The sandbox has a working directory of its own.
    args.out = args.out.map(std::path::absolute).transpose()?;
    harness::requirements()?;
    let report = cases::measure(&args)?;
    if let Some(dir) = &args.out {
        let chart = report.chart();
        let files = [
            ("program.md", report.markdown().into_bytes()),
            ("program.svg", chart.svg()?.into_bytes()),
            ("program.png", chart.png()?),
        ];
        text::write_files(dir, files.map(|(name, content)| (name.to_owned(), content)))?;
    }
    let text = if args.json { serde_json::to_string_pretty(&report)? } else { report.text() };
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}
