//! The command line.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use crate::{devices::NamePattern, ports::PortRange, show::ShowCommand};

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
    Run(Box<RunArgs>),
    /// What people ask.
    #[command(flatten)]
    Show(ShowCommand),
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
    #[arg(long, value_name = "NAME", help_heading = "Node")]
    pub hostname_override: Option<String>,
    /// Directory in a cgroup2 file system: processes below it are served at their sockets, see --socket-lb. Without it,
    /// the root of cgroup2, wherever that is mounted
    #[arg(long, value_name = "DIR", help_heading = "Node")]
    pub cgroup: Option<PathBuf>,
    /// How services are served.
    #[command(flatten)]
    pub services: ServiceArgs,
    /// Who is served at sockets.
    #[command(flatten)]
    pub sockets: SocketArgs,
    /// How local traffic is detected.
    #[command(flatten)]
    pub local: LocalArgs,
    /// What is known better than the agent can guess it.
    #[command(flatten)]
    pub devices: DeviceArgs,
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

/// How services are served.
#[derive(Debug, Args)]
#[command(next_help_heading = "Services")]
pub struct ServiceArgs {
    /// Addresses of the node that accept NodePorts: all in these networks, or `primary` for the first of each family that
    /// the Node object names. A family that no network is of accepts them on all its addresses, and so do both if
    /// nothing is given
    #[arg(long, value_name = "CIDR,...")]
    pub nodeport_addresses: Vec<String>,
    /// Ports that the API server takes NodePorts from (its --service-node-port-range). They are not used as source ports
    /// of rewritten packets
    #[arg(long, value_name = "FIRST-LAST", default_value_t = PortRange::NODE_PORTS)]
    pub node_port_range: PortRange,
    /// Serve the addresses in `spec.externalIPs`
    #[arg(
        long,
        value_name = "true|false",
        hide_possible_values = true,
        action = ArgAction::Set,
        default_value_t = true,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub serve_external_ips: bool,
    /// Rewrite the source of everything that is sent to a ClusterIP
    #[arg(
        long,
        value_name = "true|false",
        hide_possible_values = true,
        action = ArgAction::Set,
        default_value_t = false,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub masquerade_all: bool,
}

/// Who is served at sockets: when a process connects or sends, before there is a packet.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sockets")]
pub struct SocketArgs {
    /// Processes that get their backend when they connect or send, rather than when their packets pass. `host-only`: the
    /// node's own, which reach services in no other way. `on`: TCP connections of pods as well, whose packets then do
    /// not show the service's address, which meshes and VM runtimes may need. `auto`: as `host-only`, or nobody where
    /// there is no cgroup2. `off`: nobody
    #[arg(long, value_name = "MODE", value_enum, default_value_t)]
    pub socket_lb: SocketLb,
    /// Let the node's own processes reach NodePorts at 127.0.0.1 and ::1 too (kube-proxy's
    /// iptables.localhostNodePorts), unless --nodeport-addresses leaves loopback out. Needs --socket-lb
    #[arg(
        long,
        value_name = "true|false",
        hide_possible_values = true,
        action = ArgAction::Set,
        default_value_t = true,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub localhost_nodeports: bool,
}

/// Processes that are served at their sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SocketLb {
    /// The node's own, if there is a cgroup2.
    #[default]
    Auto,
    /// All.
    On,
    /// None.
    Off,
    /// The node's own.
    HostOnly,
}

/// How local traffic is detected: which clients are pods. It decides who may use the backends of other nodes behind an
/// external address with `externalTrafficPolicy: Local`.
#[derive(Debug, Args)]
#[command(next_help_heading = "Local traffic")]
pub struct LocalArgs {
    /// How packets from pods are recognised: by their source (ClusterCIDR: in --cluster-cidr; NodeCIDR: in the Node
    /// object's podCIDRs), or by the device that they enter through (BridgeInterface: --pod-bridge-interface;
    /// InterfaceNamePrefix: --pod-interface-name-prefix)
    #[arg(long, value_name = "MODE", value_enum, default_value_t, hide_possible_values = true)]
    pub detect_local_mode: DetectLocalMode,
    /// Network of the cluster's pods, or one of each family
    #[arg(long, value_name = "CIDR,...")]
    pub cluster_cidr: Vec<String>,
    /// Bridge that this node's pods are joined to
    #[arg(long, value_name = "NAME")]
    pub pod_bridge_interface: Option<String>,
    /// How the names of this node's pod devices begin
    #[arg(long, value_name = "PREFIX")]
    pub pod_interface_name_prefix: Option<String>,
}

/// How packets from pods are recognised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DetectLocalMode {
    /// By their source, in the network of the cluster's pods.
    #[default]
    #[value(name = "ClusterCIDR", alias = "")]
    ClusterCidr,
    /// By their source, in the Node's pod networks.
    #[value(name = "NodeCIDR")]
    NodeCidr,
    /// By the bridge that they enter through.
    #[value(name = "BridgeInterface")]
    BridgeInterface,
    /// By the device that they enter through.
    #[value(name = "InterfaceNamePrefix")]
    InterfaceNamePrefix,
}

/// What is known better than the agent can guess it.
#[derive(Debug, Args)]
#[command(next_help_heading = "Devices")]
pub struct DeviceArgs {
    /// Devices behind which are clients that everybody reaches through this node alone, such as pods and virtual
    /// machines: they keep their addresses towards backends on other nodes. A name may end in `*`. `sluice status`
    /// shows what the agent takes each device for
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub local_client_devices: Vec<NamePattern>,
    /// Devices behind which is everybody else, whatever they look like
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub uplink_devices: Vec<NamePattern>,
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
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/sluice", help_heading = "Node")]
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
