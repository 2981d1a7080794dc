//! The source address of what leaves through a device (MASQ-09).
//!
//! As the kernel chooses for its own MASQUERADE (`inet_select_addr`, `ipv6_dev_get_saddr`), as far as that does not depend
//! on the single packet: an address that means something everywhere before one that does not, the outgoing device's own
//! before another one's, and of equals the first.

use std::net::IpAddr;

use proxy_model::Family;

use super::inventory::{Address, Device, Ifindex, Inventory, Standing};

/// How close an address is to the outgoing device, closest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// It belongs to the device that the stack routes through.
    Outgoing,
    /// To the port of it that the packet leaves by.
    Port,
    /// To the device that the node reaches the world by.
    Default,
    /// To another one.
    Elsewhere,
}

/// The node's address of a family for what leaves through a device, if it has any.
#[must_use]
pub(super) fn source(device: &Device, family: Family, all: &Inventory) -> Option<IpAddr> {
    // The stack knows the bridge, not its ports: what it sends through the bridge has the bridge's address.
    let outgoing = all.bridge_of(device).unwrap_or(device).index;
    let default = all.defaults.get(&family).copied();
    let place = |of: Ifindex| match of {
        of if of == outgoing => Place::Outgoing,
        of if of == device.index => Place::Port,
        of if Some(of) == default => Place::Default,
        _ => Place::Elsewhere,
    };
    let fits = |address: &&Address| {
        let foreign = place(address.device) > Place::Port;
        Family::of(address.ip) == family
            && match address.standing {
                Standing::Preferred | Standing::Deprecated => true,
                // Means nothing on another device's link.
                Standing::LinkLocal => !foreign,
                Standing::Unfit => false,
            }
    };
    // The first of the best: `min_by_key` keeps the first of equals.
    let best =
        all.addresses.iter().filter(fits).min_by_key(|address| (address.standing, place(address.device)));
    best.map(|address| address.ip)
}

/// The node's address of a family for what leaves through its default route, or through whichever device has one.
#[must_use]
pub fn node_address(family: Family, all: &Inventory) -> Option<IpAddr> {
    let default = all.defaults.get(&family).and_then(|index| all.device(*index));
    default.into_iter().chain(&all.devices).find_map(|device| source(device, family, all))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::devices::{
        DeviceKind,
        inventory::tests::{device, port},
    };

    fn address(device: u32, ip: &str, standing: Standing) -> Address {
        Address { device: Ifindex(device), ip: ip.parse().unwrap(), prefix_length: 24, standing }
    }

    #[test]
    fn the_closest_address_that_means_something_is_taken() {
        use Standing::{Deprecated, LinkLocal, Preferred, Unfit};
        const V4: Family = Family::Ipv4;
        const V6: Family = Family::Ipv6;
        let devices = vec![
            device(1, "lo", DeviceKind::Loopback),
            device(2, "eth0", DeviceKind::Other),
            device(3, "eth1", DeviceKind::Other),
            device(4, "cni0", DeviceKind::Bridge),
            port(5, "veth5", DeviceKind::Joint, 4),
            device(6, "cali6", DeviceKind::Joint),
            device(7, "vxlan0", DeviceKind::Other),
        ];
        let ordinary = [
            address(1, "127.0.0.1", Unfit),
            address(3, "198.51.100.3", Preferred),
            address(2, "192.0.2.2", Preferred),
            address(2, "192.0.2.3", Preferred),
            address(4, "10.244.1.1", Preferred),
            address(7, "10.244.1.0", Preferred),
            address(1, "::1", Unfit),
            address(2, "fe80::2", LinkLocal),
            address(2, "2001:db8::2", Preferred),
            address(4, "fe80::4", LinkLocal),
            address(5, "fe80::5", LinkLocal),
            address(6, "fe80::6", LinkLocal),
        ];
        let bare = [
            address(5, "fe80::5", LinkLocal),
            address(4, "fe80::4", LinkLocal),
            address(5, "10.9.9.9", Preferred),
            address(4, "10.244.1.1", Unfit),
        ];
        let odd = [
            address(3, "10.0.0.3", Deprecated),
            address(7, "10.0.0.7", Preferred),
            address(3, "fd00::3", Deprecated),
            address(3, "fe80::3", LinkLocal),
        ];
        for (what, addresses, index, family, expected) in [
            ("its own, the first", &ordinary[..], 2, V4, Some("192.0.2.2")),
            ("its own, of a tunnel", &ordinary, 7, V4, Some("10.244.1.0")),
            ("its bridge's", &ordinary, 5, V4, Some("10.244.1.1")),
            ("that of the default route", &ordinary, 6, V4, Some("192.0.2.2")),
            ("a global one before its own", &ordinary, 6, V6, Some("2001:db8::2")),
            ("the same for a bridge", &ordinary, 5, V6, Some("2001:db8::2")),
            ("nothing else", &bare, 6, V4, Some("10.9.9.9")),
            ("the bridge's before its own", &bare, 5, V6, Some("fe80::4")),
            ("only its own link", &bare, 6, V6, None),
            ("a lasting one elsewhere", &odd, 3, V4, Some("10.0.0.7")),
            ("a deprecated one before a link's", &odd, 3, V6, Some("fd00::3")),
            ("nothing", &[], 2, V4, None),
        ] {
            let all = Inventory {
                devices: devices.clone(),
                addresses: addresses.to_vec(),
                defaults: BTreeMap::from([(V4, Ifindex(2))]),
                ..Inventory::default()
            };
            let device = all.device(Ifindex(index)).unwrap();
            let expected = expected.map(|ip: &str| ip.parse().unwrap());
            assert_eq!(source(device, family, &all), expected, "{what}");
        }
    }
}
