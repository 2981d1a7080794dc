//! What the datapath is told beside the tables: composed here, rewritten when it changes.

use std::{fs, num::NonZeroU16, path::Path};

use proxy_common::{
    config::{Network, NodeFlags, NodeSettings, SocketSettings, SourcePorts, TimeoutSettings, Timeouts},
    endian::Be16,
    tables::Settings as Table,
};
use proxy_model::DetectLocal;
use tracing::{debug, warn};

use crate::{
    datapath::{ArrayTable, Pins, TableError},
    ports::PortRange,
};

/// How long flows may be silent, in seconds. Where nothing is said, as long as conntrack would let them: kube-proxy leaves
/// its settings alone then (CT-32 to CT-35), and somebody else may have changed them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConntrackTimeouts {
    /// An established TCP connection.
    pub tcp_established: Option<u32>,
    /// A TCP connection that one side has closed.
    pub tcp_close_wait: Option<u32>,
    /// A UDP flow without answers.
    pub udp: Option<u32>,
    /// A UDP flow with answers.
    pub udp_stream: Option<u32>,
}

impl ConntrackTimeouts {
    /// With conntrack's settings below this directory; it has none while nobody uses it.
    fn complete(self, sysctls: &Path) -> TimeoutSettings {
        let sysctl = |name: &str, default: u32| {
            let text = fs::read_to_string(sysctls.join(format!("nf_conntrack_{name}")));
            text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(default)
        };
        let defaults = TimeoutSettings::CONNTRACK;
        let or = |timeout: Option<u32>, name, default| timeout.unwrap_or_else(|| sysctl(name, default));
        TimeoutSettings {
            tcp_established: or(self.tcp_established, "tcp_timeout_established", defaults.tcp_established),
            tcp_close_wait: or(self.tcp_close_wait, "tcp_timeout_close_wait", defaults.tcp_close_wait),
            udp: or(self.udp, "udp_timeout", defaults.udp),
            udp_stream: or(self.udp_stream, "udp_timeout_stream", defaults.udp_stream),
        }
    }
}

/// Where conntrack's settings are.
const CONNTRACK: &str = "/proc/sys/net/netfilter";

/// The settings, as the datapath has them.
pub(super) struct Settings {
    table: ArrayTable<Table>,
    current: NodeSettings,
}

impl Settings {
    /// Brings this build's settings into force, except for the pod networks of an earlier run: those of the Node object
    /// come later. Sockets are served on as they were, too.
    pub(super) fn start(
        pins: &Pins,
        node_ports: PortRange,
        timeouts: ConntrackTimeouts,
        new_flows: u32,
        dsr_port: NonZeroU16,
    ) -> Result<Self, TableError> {
        let mut table = ArrayTable::<Table>::open(pins)?;
        // Loading the datapath has left some.
        let found = table.get(0)?.unwrap_or(NodeSettings::new(0));
        let timeouts = timeouts.complete(Path::new(CONNTRACK));
        debug!(?timeouts, "silence that flows survive, in seconds");
        let current = NodeSettings {
            timeouts: Timeouts::new(found.ticks_per_second, &timeouts),
            source_ports: source_ports(node_ports),
            pod_networks: found.pod_networks,
            sockets: found.sockets,
            flags: found.flags,
            new_flows,
            dsr_port: Be16::from_host(dsr_port.get()),
            ..NodeSettings::new(found.ticks_per_second)
        };
        table.put(0, &current)?;
        Ok(Self { table, current })
    }

    /// Brings these pod networks into force.
    pub(super) fn set_pod_networks(
        &mut self,
        pod_networks: [Network; 2],
        detect_local: &DetectLocal,
    ) -> Result<(), TableError> {
        // Nobody has said which yet: those of the earlier run stay.
        let unknown = *detect_local == DetectLocal::NodeCidr && pod_networks == [Network::NONE; 2];
        if unknown || pod_networks == self.current.pod_networks {
            return Ok(());
        }
        self.put(NodeSettings { pod_networks, ..self.current })
    }

    /// Who is served at sockets at present.
    pub(super) const fn sockets(&self) -> SocketSettings {
        self.current.sockets
    }

    /// Brings into force who is served at sockets.
    pub(super) fn set_sockets(&mut self, sockets: SocketSettings) -> Result<(), TableError> {
        if sockets == self.current.sockets {
            return Ok(());
        }
        self.put(NodeSettings { sockets, ..self.current })
    }

    /// Whether connections that are not known go on where their hash leads.
    pub(super) const fn take_up(&self) -> bool {
        self.current.flags.contains(NodeFlags::TAKE_UP)
    }

    /// Lets them.
    pub(super) fn set_take_up(&mut self) -> Result<(), TableError> {
        self.put(NodeSettings { flags: self.current.flags.with(NodeFlags::TAKE_UP), ..self.current })
    }

    /// Looks whether the datapath still has them, and puts them right if not (SYNC-06). Returns whether it had them.
    pub(super) fn audit(&mut self) -> Result<bool, TableError> {
        let is_right = self.table.get(0)? == Some(self.current);
        if !is_right {
            self.table.put(0, &self.current)?;
        }
        Ok(is_right)
    }

    fn put(&mut self, settings: NodeSettings) -> Result<(), TableError> {
        self.table.put(0, &settings)?;
        self.current = settings;
        Ok(())
    }
}

/// The ports that neither sockets nor NodePorts use.
fn source_ports(node_ports: PortRange) -> SourcePorts {
    let sockets = PortRange::of_sockets().unwrap_or_else(|error| {
        warn!(%error, assumed = %PortRange::SOCKETS, "cannot read ip_local_port_range");
        PortRange::SOCKETS
    });
    let ports = SourcePorts::outside([sockets.ends(), node_ports.ends()]);
    if ports.is_empty() {
        warn!(
            "no port is left for rewritten sources: sockets use {sockets} (net.ipv4.ip_local_port_range), NodePorts \
             {node_ports} (--node-port-range); clients outside this node cannot reach backends on other nodes"
        );
    }
    debug!(%sockets, %node_ports, left = ports.len(), "source ports");
    ports
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CT-32 to CT-36.
    #[test]
    fn timeouts_that_nobody_sets_are_conntracks() {
        let sysctls = tempfile::tempdir().unwrap();
        let unset = ConntrackTimeouts::default();
        assert_eq!(unset.complete(sysctls.path()), TimeoutSettings::CONNTRACK);
        for (name, value) in
            [("tcp_timeout_established", "7200\n"), ("udp_timeout_stream", "180\n"), ("udp_timeout", "")]
        {
            fs::write(sysctls.path().join(format!("nf_conntrack_{name}")), value).unwrap();
        }
        let expected =
            TimeoutSettings { tcp_established: 7_200, udp_stream: 180, ..TimeoutSettings::CONNTRACK };
        assert_eq!(unset.complete(sysctls.path()), expected);
        let set = ConntrackTimeouts { tcp_established: Some(60), udp: Some(5), ..unset };
        assert_eq!(set.complete(sysctls.path()), TimeoutSettings { tcp_established: 60, udp: 5, ..expected });
    }

    #[test]
    fn source_ports_leave_out_sockets_and_node_ports() {
        let (first, last) = PortRange::of_sockets().unwrap().ends();
        let ports = source_ports("2000-2010".parse().unwrap());
        assert!(!ports.contains(first) && !ports.contains(last));
        assert!(!ports.contains(2000) && !ports.contains(2010) && !ports.contains(1023));
        assert_eq!(ports.contains(2011), !(first..=last).contains(&2011));
    }
}
