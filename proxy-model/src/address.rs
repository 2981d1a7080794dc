//! Addresses as objects write them, and as the model compares them.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroU16,
};

use proxy_common::{endian::Be16, tuple::Endpoint};

/// Identity of a backend within a service port (EPS-10).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct BackendAddress {
    /// Address.
    pub(crate) ip: IpAddr,
    /// Port.
    pub(crate) port: NonZeroU16,
}

impl BackendAddress {
    /// As the kernel's tables store it.
    pub(crate) fn end(self) -> Endpoint {
        Endpoint { address: self.ip.into(), port: Be16::from_host(self.port.get()) }
    }

    /// From the kernel's tables; `None` without a port, which no backend has.
    pub(crate) fn from_end(end: Endpoint) -> Option<Self> {
        let port = NonZeroU16::new(end.port.to_host())?;
        Some(Self { ip: end.address.to_ip(), port })
    }
}

impl fmt::Display for BackendAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.ip, self.port.get()).fmt(f)
    }
}

/// Reads an address as kube-proxy does (SP-06, `ParseIPSloppy`): IPv4 octets may have leading zeros and are decimal
/// all the same, and IPv4-mapped IPv6 is IPv4.
#[must_use]
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    if let Some(ip) = parse_ipv4(text) {
        return Some(ip.into());
    }
    let strict = match text.rsplit_once(':') {
        Some((head, tail)) if tail.contains('.') => format!("{head}:{}", parse_ipv4(tail)?).parse(),
        _ => text.parse::<Ipv6Addr>(),
    };
    strict.ok().map(|ip| IpAddr::V6(ip).to_canonical())
}

fn parse_ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let digits = parts.next()?;
        // `u8::from_str` would take a plus sign.
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *octet = digits.parse().ok()?;
    }
    parts.next().is_none().then(|| octets.into())
}

/// Why traffic cannot be sent to an address from another host or pod, if so.
pub(crate) fn unusable(ip: IpAddr) -> Option<&'static str> {
    if ip.is_unspecified() {
        Some("is the unspecified address")
    } else if ip.is_loopback() {
        Some("is a loopback address")
    } else if ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) {
        Some("is not the address of one host")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leading_zeros_are_decimal_and_mapped_addresses_ipv4() {
        for (text, ip) in [
            ("10.96.0.1", "10.96.0.1"),
            ("172.30.0.041", "172.30.0.41"),
            ("10.180.00.001", "10.180.0.1"),
            ("0000010.0.0.08", "10.0.0.8"),
            ("::ffff:10.96.0.1", "10.96.0.1"),
            ("::ffff:10.096.0.01", "10.96.0.1"),
            ("::ffff:0a60:0001", "10.96.0.1"),
            ("fd00::0A", "fd00::a"),
            ("::", "::"),
            ("64:ff9b::192.0.2.033", "64:ff9b::c000:221"),
        ] {
            assert_eq!(parse_ip(text), Some(ip.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            " ",
            "None",
            "10.0.0",
            "10.0.0.0.1",
            "10.0.0.256",
            "+1.2.3.4",
            "10..0.1",
            "10.0.0.1/32",
            "0x0a.0.0.1",
        ] {
            assert_eq!(parse_ip(text), None, "{text:?}");
        }
        for text in [
            "fe80::1%eth0",
            "fd00::1::2",
            "[fd00::1]",
            ":",
            "1:2:3:4:5:6:7:8:9",
            "example.com",
            "::1.2.3.4.5",
        ] {
            assert_eq!(parse_ip(text), None, "{text:?}");
        }
    }
}
