//! What there is: devices, addresses, and through which devices the rest of the world is reached.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use proxy_model::Family;

/// A device's number in its network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ifindex(pub u32);

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Number.
    pub index: Ifindex,
    /// Name.
    pub name: String,
    /// What it is, as far as that decides anything.
    pub kind: DeviceKind,
    /// What its packets begin with.
    pub header: LinkHeader,
    /// Its link-layer address; zeros if it has none of six bytes.
    pub address: [u8; 6],
    /// Whether it is one end of a pair whose other end is in another network namespace, and nothing queues what it sends there.
    pub leads_into: bool,
    /// The bridge, bond or VRF that it is a port of.
    pub controller: Option<Ifindex>,
    /// The device of this namespace that its packets leave by: that of a VLAN, that of a tunnel.
    pub lower: Option<Ifindex>,
}

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// The loopback device.
    Loopback,
    /// A bridge.
    Bridge,
    /// A bond or team.
    Bond,
    /// A VLAN.
    Vlan,
    /// What pods and virtual machines are joined to their node by: veth, netkit, tap, ipvlan, macvtap.
    Joint,
    /// Any other.
    Other,
}

/// What a device's packets begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkHeader {
    /// An Ethernet header.
    Ethernet,
    /// The IP header.
    None,
}

/// An address of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The device that has it.
    pub device: Ifindex,
    /// The address.
    pub ip: IpAddr,
    /// Bits that it shares with its neighbours on the device; all of them if it has none.
    pub prefix_length: u8,
    /// What it is good for as a source of packets.
    pub standing: Standing,
}

impl Address {
    /// Whether there is a network of hosts behind the device, beyond the link itself.
    #[must_use]
    pub const fn has_neighbours(&self) -> bool {
        let bits = if self.ip.is_ipv4() { 32 } else { 128 };
        self.prefix_length < bits && matches!(self.standing, Standing::Preferred | Standing::Deprecated)
    }
}

/// What an address is good for as a source of packets, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Reaches everybody.
    Preferred,
    /// Is to be phased out.
    Deprecated,
    /// Means nothing beyond its link.
    LinkLocal,
    /// Nothing: loopback, temporary, beside another one of its network, or not known to be unique.
    Unfit,
}

/// Everything there is at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// By number.
    pub devices: Vec<Device>,
    /// In the kernel's order, which is its order of preference.
    pub addresses: Vec<Address>,
    /// The devices of routes that lead on: to a gateway, or to everything.
    pub gateways: BTreeSet<Ifindex>,
    /// The device of the best default route, by family.
    pub defaults: BTreeMap<Family, Ifindex>,
}

impl Inventory {
    /// A device by its number.
    #[must_use]
    pub fn device(&self, index: Ifindex) -> Option<&Device> {
        let at = self.devices.binary_search_by_key(&index, |device| device.index).ok()?;
        self.devices.get(at)
    }

    /// The bridge that a device is a port of.
    #[must_use]
    pub fn bridge_of(&self, device: &Device) -> Option<&Device> {
        let controller = device.controller.and_then(|index| self.device(index));
        controller.filter(|controller| controller.kind == DeviceKind::Bridge)
    }

    /// The addresses of the node.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().map(|address| address.ip)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A device that is no port of anything.
    pub(in super::super) fn device(index: u32, name: &str, kind: DeviceKind) -> Device {
        Device {
            index: Ifindex(index),
            name: name.to_owned(),
            kind,
            header: LinkHeader::Ethernet,
            address: [0; 6],
            leads_into: false,
            controller: None,
            lower: None,
        }
    }

    /// The same, as a port.
    pub(in super::super) fn port(index: u32, name: &str, kind: DeviceKind, of: u32) -> Device {
        Device { controller: Some(Ifindex(of)), ..device(index, name, kind) }
    }
}
