//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    config::{BPFFS, RunArgs},
    show::ShowCommand,
};

/// Sluice: a kube-proxy replacement that balances in the kernel.
#[derive(Debug, Parser)]
#[command(name = "sluice", version, about, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve this node: follow Services and EndpointSlices, keep the kernel's tables right.
    // Of a flag that is there twice the last counts, as with kube-proxy.
    #[command(args_override_self = true, version, display_name = "sluice")]
    Run(Box<RunArgs>),
    /// What people ask.
    #[command(flatten)]
    Show(ShowCommand),
}

/// Arguments of the commands that show something.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Where things are pinned.
    #[command(flatten)]
    pub pins: PinArgs,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    pub output: OutputFormat,
}

/// Where things are pinned.
#[derive(Debug, Args)]
pub struct PinArgs {
    /// Directory on a BPF file system for maps and links; one per node, if several share a kernel
    #[arg(long, value_name = "DIR", env = "SLUICE_BPFFS", default_value = BPFFS, help_heading = "Node")]
    pub bpffs: PathBuf,
}

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
