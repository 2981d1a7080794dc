//! Sluice's project commands: `cargo xtask <command>`.
//!
//! Everything that is more than one cargo invocation lives here, so that a fresh clone needs no knowledge beyond the
//! command's name. This crate stays small and knows nothing of the agent, which cannot be compiled before the kernel
//! programs that `cargo xtask build` makes.

mod bpf;
mod budget;
mod bytecode;
mod check;
mod hash;
mod image;
mod install;
mod manifest;
mod object_check;
mod object_file;
mod process;
mod run;
mod setup;
mod steps;
mod test;
mod toolchain;
mod tools;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use bpf::{Features, Profile};
use image::{Arch, ImageOptions};
use process::report;
use test::Level;

fn main() -> ExitCode {
    run(Cli::parse().command).unwrap_or_else(|error| {
        report(format_args!("error: {error:#}"));
        ExitCode::FAILURE
    })
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Setup => {
            println!("{}", setup::ensure()?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Build(options) => {
            match options.is_static {
                true => drop(image::build(Arch::HOST)?),
                false => bpf::build(options.profile(), options.features())?,
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Image(options) => {
            image::image(&options)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Manifest => {
            manifest::render()?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Demo { arguments } => match run::demo(&arguments)? {},
        Command::Test { level, arguments } => test::test(level, &arguments),
        Command::Check => check::check(),
        Command::Bench { what: Bench::Program { arguments } } => {
            match run::bench("bench-program", &arguments)? {}
        }
        Command::Bench { what: Bench::Sockets { arguments } } => {
            match run::bench("bench-sockets", &arguments)? {}
        }
        Command::Bench { what: Bench::Services { arguments } } => {
            match run::bench("bench-services", &arguments)? {}
        }
        Command::Bench { what: Bench::Control { arguments } } => {
            match run::bench("bench-control", &arguments)? {}
        }
        Command::Bench { what: Bench::Model } => match run::bench_model()? {},
    }
}

/// Sluice's project commands.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find or install what builds the kernel programs, and the tools that tests and demo run
    ///
    /// Does nothing when everything is there. SLUICE_BPF_TOOLCHAIN=debian|nightly overrides the choice.
    Setup,
    /// Build the kernel programs (target/bpf/*.o) and the agent that embeds them
    Build(BuildOptions),
    /// Put the agent, as one static file, into a container image: without a daemon, and alone
    Image(ImageOptions),
    /// Render deploy/sluice.yaml from the chart (needs helm)
    Manifest,
    /// Show service traffic being translated, on this machine (as root)
    #[command(disable_help_flag = true)]
    Demo {
        /// Passed to the demo: --help, ...
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Run the tests of one level, or of all
    Test {
        level: Option<Level>,
        /// Passed to the test harness: a filter, --nocapture, ...
        #[arg(last = true)]
        arguments: Vec<OsString>,
    },
    /// Format, lints, documentation, and the rules and budget of the kernel programs
    Check,
    /// Measure
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
}

#[derive(Subcommand)]
enum Bench {
    /// What a packet costs in the kernel programs
    #[command(disable_help_flag = true)]
    Program {
        /// Passed to the benchmark: --json, --help, ...
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// What a service costs at the socket, by packet, and not at all: requests per second, and single calls (as root)
    #[command(disable_help_flag = true)]
    Sockets {
        /// Passed to the benchmark: --markdown, --json, --quick, --help, ...
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Requests through Services, by Sluice and by kube-proxy's rules in iptables and nftables, beside pods dialled directly (as
    /// root)
    #[command(disable_help_flag = true)]
    Services {
        /// Passed to the benchmark: --peers, --services, --out, --json, --quick, --help, ...
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// What a cluster costs the agent: start, changes, memory, from the API server to the kernel (as root)
    #[command(disable_help_flag = true)]
    Control {
        /// Passed to the benchmark: --sizes, --markdown, --json, --quick, --help, ...
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// What a change costs the agent before it writes: 10,000 Services of 2 endpoints, 1,000 of 250
    Model,
}

#[derive(Args)]
struct BuildOptions {
    /// Build the agent optimized (the kernel programs always are)
    #[arg(long)]
    release: bool,
    /// Build the agent as it is in an image: optimized, and one static file
    #[arg(long = "static", conflicts_with_all = ["release", "datapath_log"])]
    is_static: bool,
    /// Let the kernel programs log each translated packet
    #[arg(long)]
    datapath_log: bool,
}

impl BuildOptions {
    fn profile(&self) -> Profile {
        if self.release { Profile::Release } else { Profile::Dev }
    }

    fn features(&self) -> Features {
        if self.datapath_log { Features::Log } else { Features::Plain }
    }
}
