//! One address type for both families.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An IP address in 16 bytes, network byte order; IPv4 is stored mapped (`::ffff:a.b.c.d`, RFC 4291 2.5.5.2).
///
/// The family is erased on purpose: one set of tables serves both, so nothing between parsing and rewriting
/// exists twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Addr {
    words: [u32; 4],
}

/// The third word of a mapped IPv4 address, `00 00 ff ff` in memory order.
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

impl Addr {
    /// From the four bytes of an IPv4 header field.
    #[must_use]
    pub const fn from_v4_wire(bytes: [u8; 4]) -> Self {
        Self { words: [0, 0, MAPPED, u32::from_ne_bytes(bytes)] }
    }

    /// From the sixteen bytes of an IPv6 header field, as four words in memory order.
    #[must_use]
    pub const fn from_v6_words(words: [u32; 4]) -> Self {
        Self { words }
    }

    /// The sixteen bytes as four words in memory order.
    #[must_use]
    pub const fn words(self) -> [u32; 4] {
        self.words
    }

    /// The sixteen bytes.
    #[must_use]
    pub fn octets(self) -> [u8; 16] {
        zerocopy::transmute!(self.words)
    }

    /// The last four bytes in memory order: the whole address if it is IPv4.
    #[must_use]
    pub const fn v4_wire(self) -> [u8; 4] {
        self.words[3].to_ne_bytes()
    }

    /// Whether this is an IPv4 address.
    #[must_use]
    pub const fn is_v4(self) -> bool {
        // One comparison for the verifier, which would walk each way out of three.
        self.words[0] | self.words[1] | self.words[2] ^ MAPPED == 0
    }

    /// The unspecified address of the same family: `0.0.0.0` or `::`.
    #[must_use]
    #[inline(always)]
    pub const fn unspecified(self) -> Self {
        Self { words: [0, 0, if self.is_v4() { MAPPED } else { 0 }, 0] }
    }

    /// Whether it is an address of the loopback device: 127.0.0.0/8 or `::1`.
    #[must_use]
    #[inline(always)]
    pub const fn is_loopback(self) -> bool {
        if self.is_v4() {
            return self.v4_wire()[0] == 127;
        }
        let [a, b, c, d] = self.words;
        a == 0 && b == 0 && c == 0 && d == 1u32.to_be()
    }

    /// Whether one host can be meant by it, so that it may be answered: neither unspecified nor multicast, nor IPv4's
    /// broadcast and reserved space (RFC 1122 3.2.2, RFC 4443 2.4).
    #[must_use]
    #[inline(always)]
    pub const fn is_unicast(self) -> bool {
        if self.is_v4() {
            let first = self.v4_wire()[0];
            return first != 0 && first < 224;
        }
        let [a, b, c, d] = self.words;
        a.to_ne_bytes()[0] != 0xff && (a | b | c | d) != 0
    }

    /// As the standard library's type; a mapped address comes back as IPv4.
    #[must_use]
    pub const fn to_ip(self) -> IpAddr {
        if self.is_v4() {
            let [a, b, c, d] = self.v4_wire();
            return IpAddr::V4(Ipv4Addr::new(a, b, c, d));
        }
        let [a, b, c, d] = self.words;
        let mut bits = 0u128;
        let mut at = 0;
        let words = [a, b, c, d];
        while at < 4 {
            bits = bits << 32 | u32::from_be(words[at]) as u128;
            at += 1;
        }
        IpAddr::V6(Ipv6Addr::from_bits(bits))
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self::from_v4_wire(ip.octets()),
            IpAddr::V6(ip) => zerocopy::transmute!(ip.octets()),
        }
    }
}

impl From<Addr> for IpAddr {
    fn from(addr: Addr) -> Self {
        addr.to_ip()
    }
}

impl core::fmt::Debug for Addr {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(&self.to_ip(), f)
    }
}

impl core::fmt::Display for Addr {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(&self.to_ip(), f)
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString as _;

    use super::*;

    #[test]
    fn both_families_survive_the_round_trip() {
        for text in ["10.96.0.1", "0.0.0.0", "255.255.255.255", "fd00:10::1", "::1", "::", "2001:db8::ff:0:1"]
        {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(Addr::from(ip).to_ip(), ip);
            assert_eq!(Addr::from(ip).to_string(), text);
        }
    }

    #[test]
    fn only_single_hosts_are_answered() {
        for (text, expected) in [
            ("10.0.0.1", true),
            ("223.255.255.255", true),
            ("0.0.0.0", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
            ("fd00::1", true),
            ("::1", true),
            ("::", false),
            ("ff02::1", false),
        ] {
            assert_eq!(Addr::from(text.parse::<IpAddr>().unwrap()).is_unicast(), expected, "{text}");
        }
    }

    #[test]
    fn mapped_ipv6_text_is_the_ipv4_address() {
        let mapped: IpAddr = "::ffff:10.96.0.1".parse().unwrap();
        assert_eq!(Addr::from(mapped), Addr::from_v4_wire([10, 96, 0, 1]));
    }
}
