//! Which devices packets are delivered from and to past the stack.

use std::fs;

use clap::ValueEnum;
use proxy_common::delivery::{DeliveryDevice as Row, DeliveryFlags};
use serde::{Deserialize, Serialize};

use super::{
    inventory::{Device, DeviceKind, Inventory, LinkHeader},
    placement::{Skip, placement},
};

/// How packets between clients and backends on this node get from one device to the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LocalDelivery {
    /// Through the stack, and what policy is there. The default.
    #[default]
    Stack,
    /// Past it.
    Direct,
}

/// Whether netfilter sees what bridges hand on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BridgeNetfilter {
    /// It does. So it would see answers that are bridged, and not what they answer.
    On,
    /// It does not.
    Off,
}

impl BridgeNetfilter {
    /// As it is in this network namespace now. (A bridge may be told otherwise by itself, which nobody does.)
    #[must_use]
    pub fn now() -> Self {
        let is_on = |name| {
            let value = fs::read_to_string(format!("/proc/sys/net/bridge/bridge-nf-call-{name}"));
            value.is_ok_and(|value| value.trim() != "0")
        };
        if is_on("iptables") || is_on("ip6tables") { Self::On } else { Self::Off }
    }
}

impl LocalDelivery {
    /// The row of a device in the table of such devices; `None` if the stack delivers there.
    #[must_use]
    pub fn row(self, device: &Device, all: &Inventory, netfilter: BridgeNetfilter) -> Option<Row> {
        let is_met = matches!(placement(device, all), Ok(()) | Err(Skip::BridgeWithPorts));
        if self == Self::Stack || !is_met || device.header == LinkHeader::None {
            return None;
        }
        let bridge = all.bridge_of(device);
        // Ports of anything else have another stack before this one.
        if device.controller.is_some() && bridge.is_none() {
            return None;
        }
        let routed = bridge.unwrap_or(device);
        if routed.kind == DeviceKind::Bridge && netfilter == BridgeNetfilter::On || routed.address == [0; 6] {
            return None;
        }
        let [a, b, c, d, e, f] = routed.address;
        Some(Row {
            routed: routed.index.0,
            address: [[a, b], [c, d], [e, f]].map(u16::from_ne_bytes),
            flags: if device.leads_into { DeliveryFlags::PAIR } else { DeliveryFlags::default() },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::inventory::tests::{device, port};

    #[test]
    fn packets_are_delivered_between_devices_that_the_stack_routes_by() {
        let at = |last, device: Device| Device { address: [2, 0, 0, 0, 0, last], ..device };
        let devices = [
            at(1, device(1, "lo", DeviceKind::Loopback)),
            at(2, device(2, "eth0", DeviceKind::Other)),
            at(3, device(3, "cni0", DeviceKind::Bridge)),
            at(4, port(4, "veth4", DeviceKind::Joint, 3)),
            at(5, Device { leads_into: true, ..device(5, "cali5", DeviceKind::Joint) }),
            at(6, Device { header: LinkHeader::None, ..device(6, "wg0", DeviceKind::Other) }),
            at(7, device(7, "bond0", DeviceKind::Bond)),
            at(8, port(8, "eth1", DeviceKind::Other, 7)),
            at(9, port(9, "eth2", DeviceKind::Other, 99)),
            device(10, "ib0", DeviceKind::Other),
        ];
        let all = Inventory { devices: devices.to_vec(), ..Inventory::default() };
        let rows = |mode: LocalDelivery, netfilter| -> Vec<_> {
            let row = |device: &Device| Some((device.index.0, mode.row(device, &all, netfilter)?));
            devices.iter().filter_map(row).collect()
        };
        let row = |routed: u32| {
            let address = [2, 0, u16::from_ne_bytes([0, u8::try_from(routed).unwrap()])];
            Row { routed, address, flags: DeliveryFlags::default() }
        };
        let pair = Row { flags: DeliveryFlags::PAIR, ..row(5) };
        let all_but_bridges = vec![(2, row(2)), (5, pair), (7, row(7))];
        let whole = vec![(2, row(2)), (3, row(3)), (4, row(3)), (5, pair), (7, row(7))];
        assert_eq!(rows(LocalDelivery::Direct, BridgeNetfilter::Off), whole);
        assert_eq!(rows(LocalDelivery::Direct, BridgeNetfilter::On), all_but_bridges);
        assert_eq!(rows(LocalDelivery::Stack, BridgeNetfilter::Off), []);
    }
}
