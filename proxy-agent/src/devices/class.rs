//! Who is behind a device: clients of this node alone, or everybody else.
//!
//! A client's address may stay in a packet to a backend on another node if the answer comes back through this node, where
//! it is translated. So the question about a device is whether **whoever sends through it is reached by everybody else
//! through this node alone**. Nothing in the kernel says so; this is a guess from what there is:
//!
//! - A device that joins pods and virtual machines to their node (veth, netkit, tap, ipvlan, macvtap) has local
//!   clients behind it.
//! - Unless the way on goes through it: a route with a gateway, or a default route, in any table. Then it is an uplink: a
//!   node that is itself a container has a veth to the world. What counts is the whole way out, so the bridge that the
//!   device is a port of counts for it, and so do VLANs and tunnels on top of it.
//! - Nor if the device itself has an address in a network of several hosts: that network is a LAN. What leads to one pod has
//!   no address, or one of its own (`ptp` gives it a /32); the network of a bridge's pods is the bridge's.
//! - Anything else is an uplink: physical devices, VLANs, bonds, bridges, tunnels. Also those made by tun: a VPN leads to
//!   peers that other nodes may reach as well, as they do with Tailscale.
//!
//! The guess errs towards uplinks. A client that is falsely taken for a local one does not get its answers; one that is
//! falsely taken for a remote one loses its address on the way to the backend, as it does behind kube-proxy.
//!
//! Of the ports of one bridge, some may lead to pods and one to the world. A physical port is an uplink by its kind. If
//! the bridge carries the node's own gateway, its veths are called uplinks too: the gateway may be behind one of them.
//! Whoever knows better says so with `--local-client-devices`.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::inventory::{Device, DeviceKind, Ifindex, Inventory};

/// Who is behind a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Those who are reached through this node alone.
    LocalClients,
    /// Everybody else.
    Uplink,
}

impl Class {
    /// The name used in output.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LocalClients => "local-clients",
            Self::Uplink => "uplink",
        }
    }

    /// The class of a device.
    #[must_use]
    pub fn of(device: &Device, all: &Inventory, rules: &ClassRules) -> Self {
        let named = |patterns: &[NamePattern]| patterns.iter().any(|pattern| pattern.matches(&device.name));
        let local = !named(&rules.uplinks)
            && (named(&rules.local_clients)
                || device.kind == DeviceKind::Joint
                    && !leads_on(device.index, all)
                    && !has_neighbours(device.index, all));
        if local { Self::LocalClients } else { Self::Uplink }
    }
}

/// Whether the way on goes through a device: through itself, through what it is a port of, or through what is on top.
fn leads_on(index: Ifindex, all: &Inventory) -> bool {
    let mut seen = BTreeSet::new();
    let mut next = vec![index];
    while let Some(index) = next.pop() {
        if all.gateways.contains(&index) {
            return true;
        }
        if seen.insert(index) {
            next.extend(all.device(index).and_then(|device| device.controller));
            next.extend(
                all.devices.iter().filter(|other| other.lower == Some(index)).map(|other| other.index),
            );
        }
    }
    false
}

/// Whether a device has a network of its own.
fn has_neighbours(index: Ifindex, all: &Inventory) -> bool {
    all.addresses.iter().any(|address| address.device == index && address.has_neighbours())
}

/// What somebody who knows better says about devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClassRules {
    /// Devices with local clients.
    pub local_clients: Vec<NamePattern>,
    /// Uplinks, whatever else is said of them.
    pub uplinks: Vec<NamePattern>,
}

/// The name of a device, or how the names of several begin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum NamePattern {
    /// This name.
    Exact(String),
    /// Names that begin like this.
    Prefix(String),
}

/// The text is no pattern of names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParsePatternError {
    /// Nothing is there.
    #[error("no name of a device")]
    Empty,
    /// A star is somewhere else.
    #[error("a `*` may only be at the end")]
    Star,
    /// No device can be called that.
    #[error("names of devices have {LONGEST} characters at most, and no blanks or slashes")]
    Impossible,
}

/// The longest name of a device (`IFNAMSIZ`, without its end).
const LONGEST: usize = 15;

impl NamePattern {
    /// Whether a name is meant.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => name == exact,
            Self::Prefix(prefix) => name.starts_with(prefix.as_str()),
        }
    }
}

impl FromStr for NamePattern {
    type Err = ParsePatternError;

    fn from_str(text: &str) -> Result<Self, ParsePatternError> {
        let (name, prefix) = match text.strip_suffix('*') {
            Some(prefix) => (prefix, true),
            None => (text, false),
        };
        if text.is_empty() {
            Err(ParsePatternError::Empty)
        } else if name.contains('*') {
            Err(ParsePatternError::Star)
        } else if name.len() > LONGEST || name.contains(|c: char| c.is_whitespace() || c == '/') {
            Err(ParsePatternError::Impossible)
        } else if prefix {
            Ok(Self::Prefix(name.to_owned()))
        } else {
            Ok(Self::Exact(name.to_owned()))
        }
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
        }
    }
}

impl TryFrom<String> for NamePattern {
    type Error = ParsePatternError;

    fn try_from(text: String) -> Result<Self, ParsePatternError> {
        text.parse()
    }
}

impl From<NamePattern> for String {
    fn from(pattern: NamePattern) -> Self {
        pattern.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::inventory::{
        Address, Standing,
        tests::{device, port},
    };

    /// The names of the devices with local clients.
    fn local(devices: &[Device], gateways: &[u32], rules: &ClassRules) -> Vec<String> {
        let all = Inventory {
            devices: devices.to_vec(),
            gateways: gateways.iter().copied().map(Ifindex).collect(),
            ..Inventory::default()
        };
        let is_local = |device: &&Device| Class::of(device, &all, rules) == Class::LocalClients;
        devices.iter().filter(is_local).map(|device| device.name.clone()).collect()
    }

    #[test]
    fn pods_are_behind_what_joins_them_and_the_world_behind_gateways() {
        let on = |lower, device| Device { lower: Some(Ifindex(lower)), ..device };
        let machine = [
            device(1, "lo", DeviceKind::Loopback),
            device(2, "eth0", DeviceKind::Other),
            device(3, "cni0", DeviceKind::Bridge),
            port(4, "veth4", DeviceKind::Joint, 3),
            device(5, "cali5", DeviceKind::Joint),
            on(2, device(6, "vxlan0", DeviceKind::Other)),
        ];
        let container = [
            device(2, "eth0", DeviceKind::Joint),
            device(3, "cni0", DeviceKind::Bridge),
            port(4, "veth4", DeviceKind::Joint, 3),
        ];
        let shared_bridge = [
            device(2, "br0", DeviceKind::Bridge),
            port(3, "eth0", DeviceKind::Other, 2),
            port(4, "veth4", DeviceKind::Joint, 2),
            device(5, "veth5", DeviceKind::Joint),
        ];
        let stacked = [
            device(2, "eth0", DeviceKind::Joint),
            on(2, device(3, "eth0.100", DeviceKind::Other)),
            device(4, "eth1", DeviceKind::Joint),
            on(4, device(5, "vxlan0", DeviceKind::Other)),
            device(6, "veth6", DeviceKind::Joint),
            port(7, "tap7", DeviceKind::Joint, 8),
            device(8, "br0", DeviceKind::Bridge),
            on(8, device(9, "br0.5", DeviceKind::Other)),
        ];
        for (what, devices, gateways, expected) in [
            ("an ordinary node", &machine[..], &[2, 6][..], &["veth4", "cali5"][..]),
            ("a pod that is a router", &machine, &[2, 5], &["veth4"]),
            ("a node in a container", &container, &[2], &["veth4"]),
            ("a bridge with the node's gateway", &shared_bridge, &[2], &["veth5"]),
            ("a bridge beside it", &shared_bridge, &[], &["veth4", "veth5"]),
            ("VLANs and tunnels", &stacked, &[3, 5, 9], &["veth6"]),
        ] {
            assert_eq!(local(devices, gateways, &ClassRules::default()), expected, "{what}");
        }
    }

    #[test]
    fn a_device_with_a_network_of_its_own_leads_to_a_lan() {
        let devices = [
            device(2, "eth0", DeviceKind::Joint),
            device(3, "ptp3", DeviceKind::Joint),
            device(4, "cali4", DeviceKind::Joint),
            device(5, "cni0", DeviceKind::Bridge),
            port(6, "veth6", DeviceKind::Joint, 5),
        ];
        let address = |device, ip: &str, prefix_length, standing| Address {
            device: Ifindex(device),
            ip: ip.parse().unwrap(),
            prefix_length,
            standing,
        };
        let all = Inventory {
            devices: devices.to_vec(),
            addresses: vec![
                address(2, "192.0.2.1", 24, Standing::Preferred),
                address(3, "10.244.1.1", 32, Standing::Preferred),
                address(4, "fe80::1", 64, Standing::LinkLocal),
                address(5, "10.244.1.1", 24, Standing::Preferred),
            ],
            ..Inventory::default()
        };
        let class = |device: &Device| Class::of(device, &all, &ClassRules::default());
        let local: Vec<_> = devices
            .iter()
            .filter(|device| class(device) == Class::LocalClients)
            .map(|device| &device.name[..])
            .collect();
        assert_eq!(local, ["ptp3", "cali4", "veth6"]);
    }

    #[test]
    fn devices_that_contain_each_other_end_the_search() {
        let mut loops = port(2, "a", DeviceKind::Joint, 3);
        loops.lower = Some(Ifindex(3));
        let devices = [loops, port(3, "b", DeviceKind::Joint, 2)];
        assert_eq!(local(&devices, &[], &ClassRules::default()), ["a", "b"]);
    }

    #[test]
    fn who_knows_better_is_believed_and_uplinks_first() {
        let devices = [
            device(2, "eth0", DeviceKind::Other),
            device(3, "tun0", DeviceKind::Other),
            device(4, "veth4", DeviceKind::Joint),
            device(5, "veth5", DeviceKind::Joint),
            device(6, "vpn6", DeviceKind::Joint),
        ];
        let patterns = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let rules = ClassRules {
            local_clients: patterns(&["eth0", "tun*", "vpn6"]),
            uplinks: patterns(&["veth5", "vpn*"]),
        };
        assert_eq!(local(&devices, &[2, 3], &rules), ["eth0", "tun0", "veth4"]);
    }

    #[test]
    fn patterns_are_names_or_beginnings_of_names() {
        for (text, matching, other) in [
            ("eth0", &["eth0"][..], &["eth01", "eth", "ETH0"][..]),
            ("cali*", &["cali", "cali12ab"], &["cal", "xcali"]),
            ("*", &["lo", "anything"], &[]),
        ] {
            let pattern: NamePattern = text.parse().unwrap();
            assert_eq!(pattern.to_string(), text);
            assert!(matching.iter().all(|name| pattern.matches(name)), "{text}");
            assert!(!other.iter().any(|name| pattern.matches(name)), "{text}");
        }
        for (text, error) in [
            ("", ParsePatternError::Empty),
            ("a*b", ParsePatternError::Star),
            ("**", ParsePatternError::Star),
            ("sixteen-letters-", ParsePatternError::Impossible),
            ("eth 0", ParsePatternError::Impossible),
        ] {
            assert_eq!(text.parse::<NamePattern>(), Err(error), "{text:?}");
        }
    }
}
