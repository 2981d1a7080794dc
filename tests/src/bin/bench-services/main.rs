//! `cargo xtask bench services`: requests through Services, by Sluice and by kube-proxy's rules, beside pods dialled directly.
//!
//! For each number of services, and for each system that makes them, two nodes made of network namespaces, a client outside,
//! the same clients and the same servers. All ways are measured in turn within one run, in an order that changes with each
//! round, so that a drift of the machine's speed hits all of them alike; shares of the direct way are taken round by round.
//! Clients, servers and nodes share one CPU, and wait for an answer before they ask again: see [`sluice_tests::bench`].

mod bed;
mod bulk;
mod catalogue;
mod changes;
mod charts;
mod empty;
mod kernel_memory;
mod kube_proxy;
mod measure;
mod packets;
mod page;
mod path;
mod peer;
mod probe;
mod report;
mod rules;
mod run;
mod sink;

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use sluice_tests::{
    bench::{progress::Progress, text},
    harness,
    topology::PodNetwork,
};

use crate::{peer::Peer, report::Report};

/// Requests through Services, by Sluice and by kube-proxy's rules, beside pods dialled directly
///
/// If the environment variable KUBE_PROXY names a kube-proxy, that one makes its rules; if not, rules of the same structure are
/// written by the same programs.
#[derive(Clone, Debug, Parser)]
#[command(name = "bench-services", max_term_width = 100)]
struct Args {
    /// Who is compared; those whose programs are not installed are left out, unless they are named
    #[arg(long, value_enum, value_delimiter = ',')]
    peers: Vec<Peer>,
    /// Numbers of services; most is measured at the first
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "10,1000,10000",
          value_parser = clap::value_parser!(u32).range(2..=20_000))]
    services: Vec<u32>,
    /// How pods are joined to their nodes
    #[arg(long, value_enum, default_value = "bridge")]
    pods: PodNetwork,
    /// Bridged packets do not visit netfilter (net.bridge.bridge-nf-call-iptables=0)
    #[arg(long)]
    no_bridge_netfilter: bool,
    /// A run that shows that everything works, and nothing else
    #[arg(long)]
    quick: bool,
    /// How often everything is measured; medians count
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Milliseconds of requests for each figure of a round
    #[arg(long, value_name = "MS", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    duration: u32,
    /// Connections at a time
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1024))]
    connections: u32,
    /// Changes that are timed at most, of each system at each number of services
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    changes: u32,
    /// Write services.md, .json and .html to this directory, and a picture of each comparison as SVG and PNG
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Tables as docs/performance.md has them
    #[arg(long)]
    markdown: bool,
    /// One JSON object: in this file, or instead of the tables
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    json: Option<PathBuf>,
}

impl Args {
    /// As somebody asks who only wants to see that it works.
    fn quickened(self) -> Self {
        if !self.quick {
            return self;
        }
        Self { services: vec![10, 20], rounds: 1, duration: 20, changes: 1, ..self }
    }

    /// Who is compared, and who is not because something is not installed.
    fn peers(&self) -> Result<(Vec<Peer>, Vec<Peer>)> {
        let named = if self.peers.is_empty() { &Peer::USUAL[..] } else { &self.peers };
        let (found, missing): (Vec<_>, Vec<_>) =
            named.iter().copied().partition(|peer| peer.system().is_installed());
        if let [peer, ..] = missing.as_slice()
            && !self.peers.is_empty()
        {
            let program = peer.system().program().unwrap_or_default();
            anyhow::bail!("{}: {program} is not installed", peer.as_str());
        }
        Ok((found, missing))
    }
}

fn main() -> Result<()> {
    let args = Args::parse().quickened();
    harness::requirements()?;
    let (peers, missing) = args.peers()?;
    ensure!(!peers.is_empty(), "nobody to compare");
    let report = run::run(&args, &peers, missing, Progress::new())?;
    if let Some(dir) = &args.out {
        write_all(dir, &report)?;
    }
    let json = || serde_json::to_string_pretty(&report).context("the report as JSON");
    let mut out = io::stdout();
    match &args.json {
        Some(file) if file.as_os_str() == "-" => return Ok(writeln!(out, "{}", json()?)?),
        Some(file) => {
            fs::write(file, json()? + "\n").with_context(|| format!("write {}", file.display()))?;
        }
        None => {}
    }
    let text = if args.markdown { report.markdown() } else { report.text() };
    writeln!(out, "{text}")?;
    Ok(())
}

/// Writes everything that there is of a report.
fn write_all(dir: &Path, report: &Report) -> Result<()> {
    let pictures = charts::all(report);
    let mut files = vec![
        ("services.md".to_owned(), (report.markdown() + "\n").into_bytes()),
        ("services.json".to_owned(), (serde_json::to_string_pretty(report)? + "\n").into_bytes()),
        ("services.html".to_owned(), page::html(report, &pictures)?.into_bytes()),
    ];
    for picture in &pictures {
        files.push((format!("{}.svg", picture.name), picture.chart.svg()?.into_bytes()));
        files.push((format!("{}.png", picture.name), picture.chart.png()?));
    }
    text::write_files(dir, files)
}
