//! What the datapath is told beside the tables: composed here, rewritten when it changes.

use proxy_common::{
    config::{Network, NodeSettings, SocketSettings, SourcePorts},
    tables::Settings as Table,
};
use proxy_model::DetectLocal;
use tracing::{debug, warn};

use crate::{
    datapath::{ArrayTable, Pins, TableError},
    ports::PortRange,
};

/// The settings, as the datapath has them.
pub(super) struct Settings {
    table: ArrayTable<Table>,
    current: NodeSettings,
}

impl Settings {
    /// Brings this build's settings into force, except for the pod networks of an earlier run: those of the Node object
    /// come later. Sockets are served on as they were, too.
    pub(super) fn start(pins: &Pins, node_ports: PortRange) -> Result<Self, TableError> {
        let mut table = ArrayTable::<Table>::open(pins)?;
        // Loading the datapath has left some.
        let found = table.get(0)?.unwrap_or(NodeSettings::new(0));
        let current = NodeSettings {
            source_ports: source_ports(node_ports),
            pod_networks: found.pod_networks,
            sockets: found.sockets,
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

    #[test]
    fn source_ports_leave_out_sockets_and_node_ports() {
        let (first, last) = PortRange::of_sockets().unwrap().ends();
        let ports = source_ports("2000-2010".parse().unwrap());
        assert!(!ports.contains(first) && !ports.contains(last));
        assert!(!ports.contains(2000) && !ports.contains(2010) && !ports.contains(1023));
        assert_eq!(ports.contains(2011), !(first..=last).contains(&2011));
    }
}
