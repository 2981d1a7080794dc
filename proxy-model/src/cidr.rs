//! Networks as flags and objects write them.

use std::{fmt, net::IpAddr, str::FromStr};

use proxy_common::{addr::Addr, config::Network, frontend::ServiceId, ranges::SourceRange};

use crate::{address::parse_ip, name::Family};

/// The bits in front of an IPv4 address that is written as IPv6.
const MAPPED_BITS: u8 = 96;

/// A network: its first address, and how many bits all its addresses share with that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    address: IpAddr,
    length: u8,
}

/// The text is not a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", NOT_A_NETWORK)]
pub struct ParseCidrError;

impl Cidr {
    /// The addresses that share the first `length` bits of `ip`; `None` if `ip` has fewer.
    fn new(ip: IpAddr, length: u8) -> Option<Self> {
        (length <= bits(ip)).then(|| Self { address: truncated(ip, length), length })
    }

    /// The network of one address.
    #[must_use]
    pub const fn host(ip: IpAddr) -> Self {
        Self { address: ip, length: bits(ip) }
    }

    /// The first of its addresses.
    #[must_use]
    pub const fn first(&self) -> IpAddr {
        self.address
    }

    /// The family of its addresses.
    #[must_use]
    pub const fn family(&self) -> Family {
        Family::of(self.address)
    }

    /// Whether an address is in it.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.family() == Family::of(ip) && truncated(ip, self.length) == self.address
    }

    /// Whether every address of its family is in it.
    #[must_use]
    pub const fn is_everything(&self) -> bool {
        self.length == 0
    }

    /// As the datapath's settings store it.
    #[must_use]
    pub fn network(&self) -> Network {
        Network::new(self.address.into(), self.length.into())
    }

    /// The row that admits its addresses to a service port.
    pub(crate) fn admitted_to(&self, service: ServiceId) -> SourceRange {
        SourceRange::new(service, Addr::from(self.address), self.length.into())
    }
}

const fn bits(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// The address without the bits behind the first `length`.
fn truncated(ip: IpAddr, length: u8) -> IpAddr {
    let dropped = u32::from(bits(ip).saturating_sub(length));
    match ip {
        IpAddr::V4(ip) => {
            IpAddr::from((ip.to_bits() & u32::MAX.checked_shl(dropped).unwrap_or(0)).to_be_bytes())
        }
        IpAddr::V6(ip) => {
            IpAddr::from((ip.to_bits() & u128::MAX.checked_shl(dropped).unwrap_or(0)).to_be_bytes())
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl FromStr for Cidr {
    type Err = ParseCidrError;

    /// Reads a network as kube-proxy does (SP-06, `ParseCIDRSloppy`): leading zeros are decimal, and bits behind the
    /// prefix are forgotten. An IPv4 network that is written as IPv6 is IPv4.
    fn from_str(text: &str) -> Result<Self, ParseCidrError> {
        let (address, length) = text.split_once('/').ok_or(ParseCidrError)?;
        let ip = parse_ip(address).ok_or(ParseCidrError)?;
        // `u8::from_str` would take a plus sign.
        if !length.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(ParseCidrError);
        }
        let length: u8 = length.parse().map_err(|_| ParseCidrError)?;
        let mapped = ip.is_ipv4() && address.contains(':');
        let length = if mapped { length.checked_sub(MAPPED_BITS) } else { Some(length) };
        length.and_then(|length| Self::new(ip, length)).ok_or(ParseCidrError)
    }
}

/// Completes the sentence about a text that should be a network.
pub(crate) const NOT_A_NETWORK: &str = "is not a network, such as 10.0.0.0/8 or fd00::/8";

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap_or_else(|_| panic!("{text}?"))
    }

    /// SP-06, VER-29.
    #[test]
    fn what_is_sloppy_has_one_proper_form() {
        for (text, proper) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("203.0.113.000/025", "203.0.113.0/25"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("1.2.3.4/00", "0.0.0.0/0"),
            ("10.0.0.1/32", "10.0.0.1/32"),
            ("fd00:1:2::3/33", "fd00:1::/33"),
            ("FD00::/8", "fd00::/8"),
            ("::/0", "::/0"),
            ("::1/128", "::1/128"),
            ("::ffff:10.1.2.3/104", "10.0.0.0/8"),
            ("::ffff:10.1.2.3/96", "0.0.0.0/0"),
        ] {
            assert_eq!(cidr(text).to_string(), proper, "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "/",
            "10.0.0.0",
            "10.0.0.0/",
            "/8",
            "10.0.0.0/33",
            "fd00::/129",
            "10.0.0.0/+8",
            "10.0.0.0/-1",
            " 10.0.0.0/8",
            "10.0.0.0/8 ",
            "10.0.0/8",
            "10.0.0.256/8",
            "10.0.0.0/8/8",
            "10.0.0.0/255.0.0.0",
            "::ffff:10.0.0.0/95",
            "primary",
        ] {
            assert_eq!(text.parse::<Cidr>(), Err(ParseCidrError), "{text:?}");
        }
    }

    #[test]
    fn a_network_contains_its_addresses_and_no_other_family() {
        for (text, inside, outside) in [
            ("10.244.0.0/16", &["10.244.0.0", "10.244.255.255"][..], &["10.245.0.0", "::a:f4:0:0"][..]),
            ("0.0.0.0/0", &["255.255.255.255"], &["::"]),
            ("::/0", &["fd00::1"], &["10.0.0.1"]),
            ("10.0.0.1/32", &["10.0.0.1"], &["10.0.0.0", "10.0.0.2"]),
            ("fd00:10::/33", &["fd00:10:7fff::1"], &["fd00:10:8000::"]),
        ] {
            let cidr = cidr(text);
            assert!(inside.iter().all(|ip| cidr.contains(ip.parse().unwrap())), "{text}");
            assert!(!outside.iter().any(|ip| cidr.contains(ip.parse().unwrap())), "{text}");
            let network = cidr.network();
            assert!(inside.iter().all(|ip| network.contains(ip.parse::<IpAddr>().unwrap().into())), "{text}");
        }
    }
}
