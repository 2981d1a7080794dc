//! `cargo xtask demo`: Sluice on two nodes made of network namespaces, with real traffic.
//!
//! Needs root and changes nothing outside: namespaces, agents and files belong to this process and end with it.

mod change;
mod scene;
mod screen;

use std::{process::ExitCode, thread, time::Instant};

use anyhow::{Context as _, Result};
use clap::Parser;
use sluice_tests::{harness::requirements, topology::Family, traffic::Protocol};
use tokio::signal::unix::{SignalKind, signal};

use crate::{scene::Scene, screen::Screen};

/// Two nodes, a client outside, an agent on each node: watch connections find their backends.
#[derive(Debug, Parser)]
#[command(name = "demo", max_term_width = 100)]
struct Args {
    /// Connections of each measurement
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(100..=20_000))]
    connections: u32,
    /// Keep everything up at the end, until Ctrl-C, and say how to look around
    #[arg(long)]
    hold: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let screen = Screen::new();
    if let Err(error) = watch_signals(screen) {
        screen.failure(&format!("{error:#}"));
        return ExitCode::FAILURE;
    }
    let start = Instant::now();
    match show(&args, screen) {
        Ok(failures) if failures.is_empty() => {
            let took = start.elapsed().as_secs_f64();
            screen.success(&format!("every connection arrived where it should; {took:.1} s in all"));
            ExitCode::SUCCESS
        }
        Ok(failures) => {
            failures.iter().for_each(|failure| screen.failure(failure));
            ExitCode::FAILURE
        }
        Err(error) => {
            screen.failure(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Everything there is to see. Returns what went wrong on the way.
fn show(args: &Args, screen: Screen) -> Result<Vec<String>> {
    requirements().context("the demo cannot run here")?;
    screen.title("Sluice: services without kube-proxy, on two nodes made of network namespaces");
    let count = usize::try_from(args.connections)?;
    let scene = Scene::build(screen)?;
    let mut failures = Vec::new();
    for family in Family::ALL {
        for protocol in Protocol::ALL {
            failures.extend(scene.spread_from_pod(screen, protocol, family, count).err());
        }
    }
    failures.extend(scene.spread_from_outside(screen, count).err());
    failures.extend(change::show(&scene, screen, count).err());
    if !failures.is_empty() {
        screen.logs(&scene.agents.agents);
    }
    screen.heading("What the kernel of node-1 holds");
    for command in ["status", "services"] {
        screen.command(&scene.agents.agents[0], command)?;
    }
    if args.hold {
        screen.hold(&scene);
        loop {
            thread::park();
        }
    }
    Ok(failures.iter().map(|error| format!("{error:#}")).collect())
}

/// Ends the process on Ctrl-C and SIGTERM. That is all the cleaning up there is to do: the kernel kills the agents
/// and takes down the namespaces, with everything in them, when this process ends.
fn watch_signals(screen: Screen) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    thread::spawn(move || {
        let code = runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => 130,
                _ = terminate.recv() => 143,
            }
        });
        screen.interrupted();
        std::process::exit(code);
    });
    Ok(())
}
