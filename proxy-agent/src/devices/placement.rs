//! Where the programs belong.

use super::inventory::{Device, DeviceKind, Inventory};

/// Why the datapath stays off a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// Only this node talks to itself there.
    Loopback,
    /// Its packets are seen at its ports.
    BridgeWithPorts,
    /// Its packets are seen at the bond.
    PortOfBond,
}

impl Skip {
    /// The reason in words.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::BridgeWithPorts => "bridge, its ports are covered",
            Self::PortOfBond => "port of a bond, the bond is covered",
        }
    }
}

/// Whether the datapath belongs on `device`: on every one where traffic enters or leaves the node, and only once on
/// its way. A VLAN is a device of its own, and the programs on the one below it leave tagged packets alone.
pub fn placement(device: &Device, all: &Inventory) -> Result<(), Skip> {
    let has_port = || all.devices.iter().any(|other| other.controller == Some(device.index));
    let controller = device.controller.and_then(|index| all.device(index));
    match device.kind {
        DeviceKind::Loopback => Err(Skip::Loopback),
        DeviceKind::Bridge if has_port() => Err(Skip::BridgeWithPorts),
        _ if controller.is_some_and(|controller| controller.kind == DeviceKind::Bond) => {
            Err(Skip::PortOfBond)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::{
        LinkHeader,
        inventory::tests::{device, port},
    };

    #[test]
    fn each_packet_is_met_once() {
        let devices = vec![
            (device(1, "lo", DeviceKind::Loopback), Some(Skip::Loopback)),
            (device(2, "bond0", DeviceKind::Bond), None),
            (port(3, "eth0", DeviceKind::Other, 2), Some(Skip::PortOfBond)),
            (device(4, "cni0", DeviceKind::Bridge), Some(Skip::BridgeWithPorts)),
            (port(5, "veth0", DeviceKind::Joint, 4), None),
            (device(6, "docker0", DeviceKind::Bridge), None),
            (Device { header: LinkHeader::None, ..device(7, "wg0", DeviceKind::Other) }, None),
            (device(8, "eth1", DeviceKind::Other), None),
            (port(9, "eth2", DeviceKind::Other, 99), None),
        ];
        let all = devices.iter().map(|(device, _)| device.clone()).collect();
        let all = Inventory { devices: all, ..Inventory::default() };
        for (device, expected) in devices {
            assert_eq!(placement(&device, &all).err(), expected, "{}", device.name);
        }
    }
}
