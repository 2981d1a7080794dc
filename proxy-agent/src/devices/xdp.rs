//! Which uplinks' packets are met before the stack.

use std::fs;

use clap::ValueEnum;
use proxy_common::xdp::XdpStand;
use serde::{Deserialize, Serialize};

use super::inventory::{Device, DeviceKind, Inventory, LinkHeader};

/// How packets of uplinks are met before the stack. Not by the kernel on behalf of drivers that cannot (generic XDP): what it
/// passes, the tc programs do not translate on Linux 6.18.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum XdpMode {
    /// Not at all. The default: many drivers set a device up anew for a program, and its link is down for as long.
    #[default]
    Off,
    /// By drivers that can, where it costs nobody anything.
    Auto,
    /// By drivers that can.
    Native,
}

/// What connection tracking makes of a TCP connection of which it does not see every packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conntrack {
    /// It takes the rest for invalid.
    Strict,
    /// It does not mind, or there is none.
    Liberal,
}

impl XdpMode {
    /// Whether an uplink's packets are to be met; or why not.
    #[must_use]
    pub fn stand(self, device: &Device, all: &Inventory, conntrack: Conntrack) -> XdpStand {
        // A driver that takes tags off frames does not show them to programs.
        let is_below_vlan = || {
            all.devices
                .iter()
                .any(|other| other.kind == DeviceKind::Vlan && other.lower == Some(device.index))
        };
        match self {
            Self::Off => XdpStand::Off,
            _ if device.header == LinkHeader::None => XdpStand::NoHeader,
            _ if is_below_vlan() => XdpStand::Vlans,
            // The other end of a pair is no longer given segments to cut.
            Self::Auto if device.kind == DeviceKind::Joint => XdpStand::Virtual,
            Self::Auto if conntrack == Conntrack::Strict => XdpStand::Conntrack,
            Self::Auto | Self::Native => XdpStand::Native,
        }
    }
}

impl Conntrack {
    /// As it is in this network namespace now.
    #[must_use]
    pub fn now() -> Self {
        match fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal") {
            Ok(value) if value.trim() == "0" => Self::Strict,
            _ => Self::Liberal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::inventory::{Ifindex, tests::device};

    #[test]
    fn uplinks_are_met_where_it_is_safe_and_where_it_is_asked_for() {
        let vlan = Device { lower: Some(Ifindex(3)), ..device(4, "eth1.100", DeviceKind::Vlan) };
        let tunnel = Device { lower: Some(Ifindex(2)), ..device(6, "vxlan0", DeviceKind::Other) };
        let devices = [
            device(2, "eth0", DeviceKind::Other),
            device(3, "eth1", DeviceKind::Other),
            vlan,
            device(5, "veth5", DeviceKind::Joint),
            tunnel,
            Device { header: LinkHeader::None, ..device(7, "wg0", DeviceKind::Other) },
            device(8, "bond0", DeviceKind::Bond),
        ];
        let all = Inventory { devices: devices.to_vec(), ..Inventory::default() };
        use XdpStand::{Conntrack as Tracked, Native, NoHeader, Off, Virtual, Vlans};
        for (mode, conntrack, expected) in [
            (XdpMode::Off, Conntrack::Liberal, [Off; 7]),
            (XdpMode::Auto, Conntrack::Liberal, [Native, Vlans, Native, Virtual, Native, NoHeader, Native]),
            (
                XdpMode::Auto,
                Conntrack::Strict,
                [Tracked, Vlans, Tracked, Virtual, Tracked, NoHeader, Tracked],
            ),
            (XdpMode::Native, Conntrack::Strict, [Native, Vlans, Native, Native, Native, NoHeader, Native]),
        ] {
            let stands = devices.each_ref().map(|device| mode.stand(device, &all, conntrack));
            assert_eq!(stands, expected, "{mode:?}, {conntrack:?}");
        }
    }
}
