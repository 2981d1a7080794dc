//! What only Sluice can be told: by flags, or by a file of its own.
//!
//! Not by kube-proxy's file: kubeadm writes that anew with every upgrade, and drops what it does not know.

use std::{num::NonZeroU16, path::PathBuf};

use clap::{Args, ValueEnum};
use proxy_model::{BackendSelection, ExternalForwarding};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{GoDuration, capacity::CapacityOptions, flags::go_bool, kube_proxy::typed};
use crate::{
    devices::{LocalDelivery, NamePattern, XdpRules},
    ports::PortRange,
};

/// What the file says that it is.
pub(super) const API_VERSION: &str = "sluice/v1alpha1";
/// The same.
pub(super) const KIND: &str = "SluiceConfiguration";

/// Where things are pinned, unless somebody says otherwise.
pub const BPFFS: &str = "/sys/fs/bpf/sluice";

/// What only Sluice can be told. The same from flags and from a file; a flag overrules the file.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SluiceOptions {
    /// Run although a kube-proxy runs on this node, too. Otherwise Sluice waits for it to end, 30 seconds at most, and fails
    #[arg(
        long,
        value_name = "true|false",
        value_parser = go_bool,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        help_heading = "Node and clients"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_kube_proxy: Option<bool>,
    /// Addresses of API servers, instead of the one that kubeconfig or the service account names: in this order, the
    /// next is asked when one does not answer. Let them be those of the servers themselves: a ClusterIP is served by
    /// what is to be learnt there
    #[arg(long, value_name = "URL,...", value_delimiter = ',', help_heading = "Kubernetes")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_servers: Option<Vec<String>>,
    /// Serve the Services, EndpointSlices and Node from YAML or JSON files in this directory, and follow its changes
    #[arg(long, value_name = "DIR", help_heading = "Kubernetes")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifests: Option<PathBuf>,
    /// Directory on a BPF file system for maps and links; one per node, if several share a kernel [default:
    /// /sys/fs/bpf/sluice]
    #[arg(long, value_name = "DIR", env = "SLUICE_BPFFS", help_heading = "Node and clients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bpffs: Option<PathBuf>,
    /// Devices behind which are clients that everybody reaches through this node alone, such as pods and virtual
    /// machines: they keep their addresses towards backends on other nodes. A name may end in `*`. `sluice status`
    /// shows what the agent takes each device for
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', help_heading = "Node and clients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_client_devices: Option<Vec<NamePattern>>,
    /// Devices behind which is everybody else, whatever they look like
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', help_heading = "Node and clients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uplink_devices: Option<Vec<NamePattern>>,
    /// Ports that the API server takes NodePorts from (its --service-node-port-range). They are not used as source ports
    /// of rewritten packets [default: 30000-32767]
    #[arg(long, value_name = "FIRST-LAST", help_heading = "Services")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_port_range: Option<PortRange>,
    /// Serve the addresses in `spec.externalIPs` [default: as the feature gate AllowServiceExternalIPs says: true]
    #[arg(
        long,
        value_name = "true|false",
        value_parser = go_bool,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        help_heading = "Services"
    )]
    #[serde(rename = "serveExternalIPs", skip_serializing_if = "Option::is_none")]
    pub serve_external_ips: Option<bool>,
    /// How clients of NodePorts, external IPs and load balancers' addresses get a backend, where a Service does not say by the
    /// annotation `sluice.io/backend-selection`. `random`: any, each as likely as the others. `maglev`: the one that a hash of
    /// its address and port has in a table, the same through every node [default: random]
    #[arg(long, value_name = "random|maglev", value_enum, help_heading = "Services")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_selection: Option<Selection>,
    /// How packets of clients of NodePorts, external IPs and load balancers' addresses get to backends on other nodes, where a
    /// Service does not say by the annotation `sluice.io/external-forwarding`. `snat`: with the node's address as their source, so
    /// that the answer comes back by it. `dsr`: with the client's, encapsulated in UDP; the backend's node answers the client
    /// itself. All nodes have to be told the same [default: snat]
    #[arg(long, value_name = "snat|dsr", value_enum, help_heading = "Services")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_forwarding: Option<Forwarding>,
    /// UDP port that packets are sent to in that encapsulation, at the pods' addresses; the same on all nodes [default: 6090]
    #[arg(long, value_name = "PORT", help_heading = "Services")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dsr_port: Option<NonZeroU16>,
    /// How long after an audit of the kernel's tables the next one begins, which restores what somebody else has changed; 0:
    /// there is none [default: 5m]
    #[arg(long, value_name = "DURATION", help_heading = "Services")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit_interval: Option<GoDuration>,
    /// Flows that may begin through services in each second on each CPU; a tenth of them at once. Packets that would begin more
    /// are dropped, so that a flood leaves time for what runs. 0: any number may [default: 100000]
    #[arg(long, value_name = "N", help_heading = "Services")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new_flow_limit: Option<u32>,
    /// Processes that get their backend when they connect or send, rather than when their packets pass. `host-only`: the
    /// node's own, which reach services in no other way. `auto`: as well the TCP connections of pods that are known not to
    /// need the service's address on their packets, as service meshes and virtual machines do; or nobody where there is
    /// no cgroup2. `on`: the TCP connections of all pods. `off`: nobody. A pod chooses for itself by the label
    /// `sluice.io/socket-lb`: `off` under `auto` and `on`, `on` under `auto` [default: auto]
    #[arg(long, value_name = "MODE", value_enum, help_heading = "Sockets")]
    #[serde(rename = "socketLB", skip_serializing_if = "Option::is_none")]
    pub socket_lb: Option<SocketLb>,
    /// Directory in a cgroup2 file system: processes below it are served at their sockets, see --socket-lb. Without it,
    /// the root of cgroup2, wherever that is mounted
    #[arg(long, value_name = "DIR", help_heading = "Sockets")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<PathBuf>,
    /// Let the node's own processes reach NodePorts at 127.0.0.1 and ::1 too, unless --nodeport-addresses leaves loopback
    /// out. Needs --socket-lb [default: as kube-proxy's iptables.localhostNodePorts: true, and false with the mode
    /// nftables]
    #[arg(
        long,
        value_name = "true|false",
        value_parser = go_bool,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        help_heading = "Sockets"
    )]
    #[serde(rename = "localhostNodePorts", skip_serializing_if = "Option::is_none")]
    pub localhost_nodeports: Option<bool>,
    /// Send packets between clients outside and backends on other nodes on before the stack sees them, once their flow runs
    /// (XDP). `native`: on uplinks whose drivers can. `auto`: the same, but not on virtual devices, nor where connection
    /// tracking is strict (net.netfilter.nf_conntrack_tcp_be_liberal). `generic`: on all uplinks, by the kernel instead of the
    /// driver. Devices may be named, as in `auto,eth1=generic,tap*=off`. `sluice status` shows what became of it [default: off]
    #[arg(long, value_name = "MODE,NAME=MODE,...", help_heading = "Node and clients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xdp: Option<XdpRules>,
    /// How packets between clients of this node, or outside, and backends on this node get from one device to the other. `stack`:
    /// through the node's IP stack. `direct`: past it, which costs less; rules of netfilter no longer see them, network policy by
    /// iptables and nftables included [default: stack]
    #[arg(long, value_name = "stack|direct", value_enum, help_heading = "Node and clients")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_delivery: Option<LocalDelivery>,
    /// How much the tables are to have room for.
    #[command(flatten)]
    #[serde(skip_serializing_if = "CapacityOptions::is_empty")]
    pub capacities: CapacityOptions,
    /// What is logged: a level, or tracing's filter syntax such as `info,proxy_agent::watch=debug`. Overrules -v
    #[arg(long, value_name = "FILTER", env = "SLUICE_LOG", help_heading = "Logging")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
}

/// Processes that are served at their sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
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

/// How clients outside get a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selection {
    /// Any.
    #[default]
    Random,
    /// The one that a Maglev table has for it.
    Maglev,
}

impl From<Selection> for BackendSelection {
    fn from(selection: Selection) -> Self {
        match selection {
            Selection::Random => Self::Random,
            Selection::Maglev => Self::Maglev,
        }
    }
}

/// How packets from outside get to backends on other nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Forwarding {
    /// As if they were this node's own.
    #[default]
    Snat,
    /// With their source, encapsulated.
    Dsr,
}

impl From<Forwarding> for ExternalForwarding {
    fn from(forwarding: Forwarding) -> Self {
        match forwarding {
            Forwarding::Snat => Self::Snat,
            Forwarding::Dsr => Self::Dsr,
        }
    }
}

impl SluiceOptions {
    /// These, and where they say nothing, those.
    #[must_use]
    pub(super) fn or(self, file: Self) -> Self {
        Self {
            allow_kube_proxy: self.allow_kube_proxy.or(file.allow_kube_proxy),
            api_servers: self.api_servers.or(file.api_servers),
            manifests: self.manifests.or(file.manifests),
            bpffs: self.bpffs.or(file.bpffs),
            local_client_devices: self.local_client_devices.or(file.local_client_devices),
            uplink_devices: self.uplink_devices.or(file.uplink_devices),
            node_port_range: self.node_port_range.or(file.node_port_range),
            serve_external_ips: self.serve_external_ips.or(file.serve_external_ips),
            backend_selection: self.backend_selection.or(file.backend_selection),
            external_forwarding: self.external_forwarding.or(file.external_forwarding),
            dsr_port: self.dsr_port.or(file.dsr_port),
            audit_interval: self.audit_interval.or(file.audit_interval),
            new_flow_limit: self.new_flow_limit.or(file.new_flow_limit),
            socket_lb: self.socket_lb.or(file.socket_lb),
            cgroup: self.cgroup.or(file.cgroup),
            localhost_nodeports: self.localhost_nodeports.or(file.localhost_nodeports),
            xdp: self.xdp.or(file.xdp),
            local_delivery: self.local_delivery.or(file.local_delivery),
            capacities: self.capacities.or(file.capacities),
            log: self.log.or(file.log),
        }
    }

    /// Where things are pinned.
    #[must_use]
    pub fn bpffs(&self) -> PathBuf {
        self.bpffs.clone().unwrap_or_else(|| BPFFS.into())
    }

    /// As a file would say it.
    ///
    /// # Errors
    ///
    /// None that options could cause.
    pub fn to_value(&self) -> serde_json::Result<Value> {
        typed(self, API_VERSION, KIND)
    }
}
