//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

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
    Run(RunArgs),
    /// Show what is in the kernel: programs, devices, how full the tables are, what was dropped.
    Status(ShowArgs),
    /// Show the services in the kernel: frontends, backends, traffic.
    Services(ShowArgs),
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Where to find the API server; without it and without --manifests, the pod's service account is used
    #[arg(long, value_name = "FILE", conflicts_with = "manifests", help_heading = "Source")]
    pub kubeconfig: Option<PathBuf>,
    /// Serve the Services, EndpointSlices and Node from YAML or JSON files in this directory, and follow its changes
    #[arg(long, value_name = "DIR", help_heading = "Source")]
    pub manifests: Option<PathBuf>,
    /// Name of this node, instead of the host's name
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
    /// Directory below a mounted cgroup2 whose processes this node serves. Only looked at: this version
    /// translates packets, not sockets
    #[arg(long, value_name = "DIR")]
    pub cgroup: Option<PathBuf>,
    /// Where things are pinned.
    #[command(flatten)]
    pub pins: PinArgs,
    /// How log lines look
    #[arg(long, value_enum, default_value_t, help_heading = "Logging")]
    pub log_format: LogFormat,
    /// What is logged: a level, or tracing's filter syntax such as `info,proxy_agent::watch=debug`
    #[arg(
        long,
        value_name = "FILTER",
        env = "SLUICE_LOG",
        default_value = "info,kube_client=error",
        help_heading = "Logging"
    )]
    pub log: String,
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
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/sluice")]
    pub bpffs: PathBuf,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
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

/// The node's name: the override, else the host's name, trimmed and in lower case (NODE-01).
#[must_use]
pub fn node_name(hostname_override: Option<&str>, hostname: &str) -> Option<String> {
    let name = hostname_override.unwrap_or(hostname).trim().to_lowercase();
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn node_names_are_trimmed_and_lower_case() {
        assert_eq!(node_name(None, "Node-A\n").as_deref(), Some("node-a"));
        assert_eq!(node_name(Some(" B "), "a").as_deref(), Some("b"));
        assert_eq!(node_name(Some("  "), "a"), None);
    }
}
