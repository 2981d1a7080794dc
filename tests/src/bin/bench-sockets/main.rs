//! `cargo xtask bench sockets`: what a service costs at the socket, by packet, and not at all.
//!
//! Two nodes made of network namespaces with real agents. All ways to a pod are measured in turn within one run, in an
//! order that changes with each round, so that a drift of the machine's speed hits all of them alike; what is compared is
//! compared round by round. Client, server and both nodes share one CPU, which is never idle: a rate is the inverse of all
//! that a request costs, wherever it is spent.

mod caller;
mod calls;
mod report;
mod requests;
mod scene;

use std::io::{self, Write as _};

use anyhow::{Result, ensure};
use clap::Parser;
use sluice_tests::{bench::progress::Progress, harness, machine, topology::Family};

use crate::{report::Report, scene::Scene};

/// What a service costs at the socket, by packet, and not at all.
#[derive(Clone, Debug, Parser)]
#[command(name = "bench-sockets", max_term_width = 100)]
struct Args {
    /// One JSON object instead of tables
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// The tables as docs/performance.md has them
    #[arg(long)]
    markdown: bool,
    /// A run that shows that everything works, and nothing else
    #[arg(long)]
    quick: bool,
    /// Over IPv6
    #[arg(long)]
    ipv6: bool,
    /// How often everything is measured; medians count
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Milliseconds of requests for each figure of a round
    #[arg(long, value_name = "MS", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    duration: u32,
    /// Connections at a time
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1024))]
    connections: u32,
    /// Calls of each kind for each figure of a round
    #[arg(long, value_name = "N", default_value_t = 6_400, value_parser = clap::value_parser!(u32).range(64..))]
    calls: u32,
    /// Other services among which calls to a service are made again
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=15_000))]
    others: u32,
}

impl Args {
    /// As somebody asks who only wants to see that it works.
    fn quickened(self) -> Self {
        if !self.quick {
            return self;
        }
        Self { rounds: 2, duration: 30, calls: 128, others: 100, ..self }
    }

    fn family(&self) -> Family {
        if self.ipv6 { Family::V6 } else { Family::V4 }
    }
}

fn main() -> Result<()> {
    let args = Args::parse().quickened();
    harness::requirements()?;
    let progress = Progress::new();
    progress.show("two nodes with agents");
    let scene = Scene::build(args.family())?;
    let requests = requests::measure(&scene, &args, progress)?;
    let calls = calls::measure(&scene, &args, progress)?;
    progress.erase();
    ensure!(!requests.is_empty() && !calls.is_empty(), "nothing was measured");
    let report = Report {
        kernel: machine::kernel()?,
        cpu: machine::cpu(),
        family: args.family().to_string(),
        rounds: args.rounds,
        milliseconds: args.duration,
        connections: args.connections,
        calls_each: args.calls,
        others: args.others,
        requests,
        calls,
    };
    let text = match (args.json, args.markdown) {
        (true, _) => serde_json::to_string_pretty(&report)?,
        (_, true) => report.markdown(),
        _ => report.text(),
    };
    writeln!(io::stdout(), "{text}")?;
    Ok(())
}
