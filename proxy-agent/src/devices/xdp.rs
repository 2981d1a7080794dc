//! Which uplinks' packets are met before the stack.

use std::{fmt, fs, str::FromStr};

use clap::ValueEnum;
use proxy_common::xdp::XdpStand;
use serde::{Deserialize, Serialize};

use super::{
    class::{NamePattern, ParsePatternError},
    inventory::{Device, DeviceKind, Inventory, LinkHeader},
};

/// How packets of an uplink are met before the stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum XdpPolicy {
    /// Not at all. The default: many drivers set a device up anew for a program, and its link is down for as long.
    #[default]
    Off,
    /// By drivers that can, where it costs nobody anything.
    Auto,
    /// By drivers that can.
    Native,
    /// By the kernel on their behalf. Never unasked: it costs what else comes by the device more than it did.
    Generic,
}

/// What is to be done with each uplink: `MODE,NAME=MODE,...`, where the first of the latter that names a device overrules the
/// former. Without that, others are left alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct XdpRules {
    /// All that no other rule names.
    others: Option<XdpPolicy>,
    named: Vec<(NamePattern, XdpPolicy)>,
}

/// The text says nothing about uplinks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseXdpError {
    /// There is no such mode.
    #[error("`{0}` is none of {names}", names = names())]
    Mode(String),
    /// No device has such a name.
    #[error("`{name}`: {error}")]
    Name {
        /// What stands in its place.
        name: String,
        /// Why not.
        error: ParsePatternError,
    },
    /// Two modes are for all that no rule names.
    #[error("both `{}` and `{}` are for all uplinks", .0[0], .0[1])]
    Twice([XdpPolicy; 2]),
}

fn names() -> String {
    XdpPolicy::value_variants().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl XdpRules {
    /// What is to be done with a device.
    #[must_use]
    pub fn of(&self, device: &Device) -> XdpPolicy {
        let rule = self.named.iter().find(|(pattern, _)| pattern.matches(&device.name));
        rule.map(|(_, policy)| *policy).or(self.others).unwrap_or_default()
    }
}

impl From<XdpPolicy> for XdpRules {
    fn from(policy: XdpPolicy) -> Self {
        Self { others: Some(policy), named: Vec::new() }
    }
}

impl FromStr for XdpRules {
    type Err = ParseXdpError;

    fn from_str(text: &str) -> Result<Self, ParseXdpError> {
        let policy =
            |text: &str| XdpPolicy::from_str(text, false).map_err(|_| ParseXdpError::Mode(text.to_owned()));
        let mut rules = Self::default();
        for rule in text.split(',').map(str::trim) {
            if let Some((name, mode)) = rule.split_once('=') {
                let pattern =
                    name.parse().map_err(|error| ParseXdpError::Name { name: name.to_owned(), error })?;
                rules.named.push((pattern, policy(mode)?));
            } else if let Some(former) = rules.others.replace(policy(rule)?) {
                return Err(ParseXdpError::Twice([former, policy(rule)?]));
            }
        }
        Ok(rules)
    }
}

impl fmt::Display for XdpRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let others = self.others.map(|policy| policy.to_string());
        let named = self.named.iter().map(|(pattern, policy)| format!("{pattern}={policy}"));
        f.write_str(&others.into_iter().chain(named).collect::<Vec<_>>().join(","))
    }
}

impl TryFrom<String> for XdpRules {
    type Error = ParseXdpError;

    fn try_from(text: String) -> Result<Self, ParseXdpError> {
        text.parse()
    }
}

impl From<XdpRules> for String {
    fn from(rules: XdpRules) -> Self {
        rules.to_string()
    }
}

impl fmt::Display for XdpPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

/// What connection tracking makes of a TCP connection of which it does not see every packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conntrack {
    /// It takes the rest for invalid.
    Strict,
    /// It does not mind, or there is none.
    Liberal,
}

impl XdpPolicy {
    /// Whether an uplink's packets are to be met; or why not.
    #[must_use]
    pub fn stand(self, device: &Device, all: &Inventory, conntrack: Conntrack) -> XdpStand {
        // Who takes tags off frames does not show them to programs: many a driver, and the kernel on behalf of any.
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
            Self::Generic => XdpStand::Generic,
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
        use XdpStand::{Conntrack as Tracked, Generic, Native, NoHeader, Off, Virtual, Vlans};
        for (mode, conntrack, expected) in [
            (XdpPolicy::Off, Conntrack::Liberal, [Off; 7]),
            (XdpPolicy::Auto, Conntrack::Liberal, [Native, Vlans, Native, Virtual, Native, NoHeader, Native]),
            (
                XdpPolicy::Auto,
                Conntrack::Strict,
                [Tracked, Vlans, Tracked, Virtual, Tracked, NoHeader, Tracked],
            ),
            (XdpPolicy::Native, Conntrack::Strict, [Native, Vlans, Native, Native, Native, NoHeader, Native]),
            (
                XdpPolicy::Generic,
                Conntrack::Strict,
                [Generic, Vlans, Generic, Generic, Generic, NoHeader, Generic],
            ),
        ] {
            let stands = devices.each_ref().map(|device| mode.stand(device, &all, conntrack));
            assert_eq!(stands, expected, "{mode:?}, {conntrack:?}");
        }
    }
    #[test]
    fn devices_may_be_named() {
        let rules: XdpRules = "eth1=generic,eth*=off, auto,ens3=native".parse().unwrap();
        for (name, expected) in [
            ("eth1", XdpPolicy::Generic),
            ("eth0", XdpPolicy::Off),
            ("ens3", XdpPolicy::Native),
            ("ens4", XdpPolicy::Auto),
        ] {
            assert_eq!(rules.of(&device(2, name, DeviceKind::Other)), expected, "{name}");
        }
        assert_eq!(rules.to_string(), "auto,eth1=generic,eth*=off,ens3=native");
        assert_eq!(rules.to_string().parse(), Ok(rules));
        let rules: XdpRules = "eth1=native".parse().unwrap();
        assert_eq!(rules.of(&device(2, "eth0", DeviceKind::Other)), XdpPolicy::Off, "nobody asked for it");
        for policy in XdpPolicy::value_variants() {
            assert_eq!(policy.to_string().parse(), Ok(XdpRules::from(*policy)));
        }
        for (text, part) in [
            ("", "`` is none of off, auto, native, generic"),
            ("eth0=fast", "`fast` is none of"),
            ("=native", "no name"),
            ("e*h=native", "`e*h`"),
            ("auto,native", "both `auto` and `native`"),
        ] {
            let error = text.parse::<XdpRules>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
