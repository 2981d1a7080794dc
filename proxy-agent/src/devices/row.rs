//! What the datapath is told about a device.

use std::net::IpAddr;

use proxy_common::{
    addr::Addr,
    device::{Device as Row, DeviceFlags},
};
use proxy_model::Family;

use super::{
    class::{Class, ClassRules},
    delivery::LocalDelivery,
    inventory::{Device, Inventory},
    source::source,
    xdp::XdpRules,
};

/// What the administrator says about devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceRules {
    /// Who is behind them.
    pub classes: ClassRules,
    /// Which of them pods send through.
    pub pods: PodDevices,
    /// Which uplinks' packets are met before the stack.
    pub xdp: XdpRules,
    /// How packets get from one of them to another.
    pub delivery: LocalDelivery,
}

/// The devices that pods send through, if local traffic is detected by device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PodDevices {
    /// It is not.
    #[default]
    Undetected,
    /// This one (DLOC-03).
    Bridge(String),
    /// Those whose names begin like this (DLOC-04).
    Prefix(String),
}

impl PodDevices {
    /// Whether what enters through `device` is pod traffic. netfilter sees the bridge where the programs see its port.
    fn include(&self, device: &Device, all: &Inventory) -> bool {
        let input = all.bridge_of(device).unwrap_or(device);
        match self {
            Self::Undetected => false,
            Self::Bridge(name) => input.name == *name,
            Self::Prefix(prefix) => input.name.starts_with(prefix.as_str()),
        }
    }
}

/// The row of a device in the device table.
#[must_use]
pub fn row(device: &Device, all: &Inventory, rules: &DeviceRules) -> Row {
    let facts = [
        (Class::of(device, all, &rules.classes) == Class::LocalClients, DeviceFlags::LOCAL_CLIENTS),
        (rules.pods.include(device, all), DeviceFlags::POD_TRAFFIC),
    ];
    let flags = facts.into_iter().filter(|(is_true, _)| *is_true).map(|(_, flag)| flag);
    let source = |family| source(device, family, all).map_or_else(Addr::default, |ip: IpAddr| ip.into());
    Row {
        flags: flags.fold(DeviceFlags::default(), DeviceFlags::with),
        source_v4: source(Family::Ipv4),
        source_v6: source(Family::Ipv6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::{
        Address, DeviceKind, Ifindex, Standing,
        inventory::tests::{device, port},
    };

    fn inventory() -> Inventory {
        let devices = vec![
            device(2, "eth0", DeviceKind::Other),
            device(3, "cni0", DeviceKind::Bridge),
            port(4, "veth4", DeviceKind::Joint, 3),
            device(5, "cali5", DeviceKind::Joint),
            device(6, "cni0x", DeviceKind::Joint),
        ];
        let address = |device, ip: &str| Address {
            device: Ifindex(device),
            ip: ip.parse().unwrap(),
            prefix_length: 24,
            standing: Standing::Preferred,
        };
        let addresses = vec![address(2, "192.0.2.2"), address(3, "10.244.1.1")];
        Inventory { devices, addresses, ..Inventory::default() }
    }

    /// DLOC-03, DLOC-04.
    #[test]
    fn pods_are_recognised_by_their_bridge_or_by_their_device() {
        let all = inventory();
        for (pods, expected) in [
            (PodDevices::Undetected, &[][..]),
            (PodDevices::Bridge("cni0".to_owned()), &["cni0", "veth4"]),
            (PodDevices::Bridge("veth4".to_owned()), &[]),
            (PodDevices::Prefix("cali".to_owned()), &["cali5"]),
            (PodDevices::Prefix("veth".to_owned()), &[]),
            (PodDevices::Prefix("cni".to_owned()), &["cni0", "veth4", "cni0x"]),
        ] {
            let rules = DeviceRules { pods, ..DeviceRules::default() };
            let has = |device: &&Device| row(device, &all, &rules).flags.contains(DeviceFlags::POD_TRAFFIC);
            let found: Vec<_> = all.devices.iter().filter(has).map(|device| device.name.as_str()).collect();
            assert_eq!(found, expected, "{:?}", rules.pods);
        }
    }

    #[test]
    fn the_row_has_the_class_and_the_sources() {
        let all = inventory();
        let row = |index| row(all.device(Ifindex(index)).unwrap(), &all, &DeviceRules::default());
        let ip = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
        let uplink = Row { source_v4: ip("192.0.2.2"), ..Row::default() };
        assert_eq!(row(2), uplink);
        let pod = Row { flags: DeviceFlags::LOCAL_CLIENTS, source_v4: ip("10.244.1.1"), ..Row::default() };
        assert_eq!(row(4), pod);
    }
}
