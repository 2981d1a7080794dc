//! Internet checksum arithmetic (RFC 1071, RFC 1624): how a sum changes when a header does.
//!
//! Ones' complement sums do not care about byte order as long as it is the same throughout, so everything
//! here works on words as they stand in memory.

use crate::{addr::Addr, endian::Be16, tuple::Protocol};

/// How a rewrite changes the sum that a checksum covers, in two parts.
///
/// Ports are payload, addresses are pseudo header. The difference matters for a packet whose checksum the
/// device will finish (`CHECKSUM_PARTIAL`): its field holds the sum of the pseudo header alone, so only that part
/// may be applied (the kernel's `inet_proto_csum_replace_by_diff`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[must_use]
pub struct ChecksumDiff {
    /// Change of the pseudo header: the address.
    pub pseudo: u32,
    /// Change of the payload: the port.
    pub payload: u32,
}

impl ChecksumDiff {
    /// The change when `old` becomes `new`.
    #[inline(always)]
    pub fn between(old: (Addr, Be16), new: (Addr, Be16)) -> Self {
        let mut sum = 0u64;
        let (from, to) = (old.0.words(), new.0.words());
        // The two common leading words of a mapped IPv4 address cancel out; adding them costs less than a branch.
        sum += u64::from(!from[0]) + u64::from(to[0]);
        sum += u64::from(!from[1]) + u64::from(to[1]);
        sum += u64::from(!from[2]) + u64::from(to[2]);
        sum += u64::from(!from[3]) + u64::from(to[3]);
        let ports = u64::from(!old.1.raw()) + u64::from(new.1.raw());
        Self { pseudo: fold32(sum), payload: fold32(ports) }
    }
}

impl ChecksumDiff {
    /// The change when a port changes too.
    #[inline(always)]
    pub const fn with_port(self, old: Be16, new: Be16) -> Self {
        let ports = !old.raw() as u64 + new.raw() as u64;
        Self { pseudo: self.pseudo, payload: fold32(self.payload as u64 + ports) }
    }

    /// The change when both happen.
    #[inline(always)]
    pub const fn plus(self, other: Self) -> Self {
        let pseudo = fold32(self.pseudo as u64 + other.pseudo as u64);
        Self { pseudo, payload: fold32(self.payload as u64 + other.payload as u64) }
    }

    /// Both parts together: the change of a sum that covers address and port alike, such as ICMP's over a quoted packet.
    #[must_use]
    #[inline(always)]
    pub const fn total(self) -> u32 {
        fold32(self.pseudo as u64 + self.payload as u64)
    }
}

/// Applies a change to a checksum field, both in memory order (RFC 1624, equation 3).
#[must_use]
#[inline(always)]
pub const fn apply(field: u16, diff: u32) -> u16 {
    !fold16(!field as u64 + diff as u64)
}

/// How far a packet's transport checksum has come (`ip_summed` of the kernel's `sk_buff`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Summed(pub u8);

impl Summed {
    /// Nobody has looked at it: `CHECKSUM_NONE`.
    pub const NONE: Self = Self(0);
    /// It is known to be right: `CHECKSUM_UNNECESSARY`.
    pub const UNNECESSARY: Self = Self(1);
    /// The device has computed the sum of the whole packet, which has to follow what is written to it: `CHECKSUM_COMPLETE`.
    pub const COMPLETE: Self = Self(2);
    /// The field holds the sum of the pseudo header alone, not complemented, and the device will do the rest:
    /// `CHECKSUM_PARTIAL`.
    pub const PARTIAL: Self = Self(3);

    /// What a field becomes when addresses and ports change, whatever its rules about zero. Nobody else has to be told
    /// unless the packet is `COMPLETE`.
    #[must_use]
    #[inline(always)]
    pub const fn apply(self, field: u16, diff: ChecksumDiff) -> u16 {
        // Complemented before and after, or not at all: no branch, as the verifier would walk on from both.
        let (mask, change) =
            if self.0 == Self::PARTIAL.0 { (0, diff.pseudo) } else { (u16::MAX, diff.total()) };
        fold16((field ^ mask) as u64 + change as u64) ^ mask
    }
}

/// The checksum of what adds up to `sum`, which is made of words of any width in memory order.
#[must_use]
#[inline(always)]
pub const fn of(sum: u64) -> u16 {
    !fold16(sum)
}

/// Whether a transport's checksum field holds the sum of the pseudo header alone, so that whoever sends the packet on has
/// still to compute the rest (`CHECKSUM_PARTIAL`). One whole checksum in 65,535 looks the same. `length` is that of the
/// transport's header and payload. It holds for both families: what makes an IPv4 address a mapped one adds up to nothing.
#[must_use]
#[inline(always)]
pub const fn is_unfinished(
    field: u16,
    source: Addr,
    destination: Addr,
    protocol: Protocol,
    length: u16,
) -> bool {
    let ([a, b, c, d], [e, f, g, h]) = (source.words(), destination.words());
    let addresses = a as u64 + b as u64 + c as u64 + d as u64 + e as u64 + f as u64 + g as u64 + h as u64;
    let pseudo = addresses + u16::from_ne_bytes([0, protocol.0]) as u64 + length.to_be() as u64;
    // Zero has two forms: compared are sums, not bits.
    fold16(pseudo + (!field) as u64) == u16::MAX
}

/// A sum with end-around carries, to 32 bits.
#[must_use]
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "folding is what makes it fit")]
pub const fn fold32(sum: u64) -> u32 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    ((sum & 0xffff_ffff) + (sum >> 32)) as u32
}

/// A sum with end-around carries, to 16 bits.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "folding is what makes it fit")]
const fn fold16(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    /// The checksum of `bytes` by definition.
    fn naive(bytes: &[u8]) -> u16 {
        let sum = bytes.chunks(2).map(|pair| u64::from(u16::from_ne_bytes([pair[0], pair[1]]))).sum();
        !fold16(sum)
    }

    fn addr_bytes(addr: Addr) -> Vec<u8> {
        addr.words().iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    proptest! {
        #[test]
        fn incremental_change_equals_summing_anew(old: [u32; 4], new: [u32; 4], from: u16, to: u16, rest: [u8; 32]) {
            let (old, new) = (Addr::from_v6_words(old), Addr::from_v6_words(new));
            let (from, to) = (Be16::from_host(from), Be16::from_host(to));
            let packet = |addr: Addr, port: Be16| {
                let mut bytes = addr_bytes(addr);
                bytes.extend(port.raw().to_ne_bytes());
                bytes.extend(rest);
                bytes
            };
            let diff = ChecksumDiff::between((old, from), (new, to));
            let changed = apply(apply(naive(&packet(old, from)), diff.pseudo), diff.payload);
            let anew = naive(&packet(new, to));
            // Zero has two representations in ones' complement.
            prop_assert!(changed == anew || (changed ^ anew) == 0xffff && (changed == 0 || anew == 0));
        }
    }

    /// A TCP packet whose checksum has come so far, by definition: what its field holds.
    fn field(summed: Summed, source: Addr, to: (Addr, Be16), rest: &[u8; 32]) -> u16 {
        let payload = [&to.1.raw().to_ne_bytes()[..], rest].concat();
        let (partial, whole, _) = fields(source, to.0, Protocol::TCP, &payload);
        if summed == Summed::PARTIAL { partial } else { whole }
    }

    proptest! {
        #[test]
        fn a_field_stays_as_far_as_it_has_come(
            source: [u32; 4], old: [u32; 4], new: [u32; 4], from: u16, to: u16, rest: [u8; 32]
        ) {
            let [source, old, new] = [source, old, new].map(Addr::from_v6_words);
            let (old, new) = ((old, Be16::from_host(from)), (new, Be16::from_host(to)));
            let diff = ChecksumDiff::between(old, new);
            for summed in [Summed::NONE, Summed::UNNECESSARY, Summed::PARTIAL] {
                let changed = summed.apply(field(summed, source, old, &rest), diff);
                let anew = field(summed, source, new, &rest);
                // Zero has two representations in ones' complement.
                prop_assert!(
                    changed == anew || changed ^ anew == 0xffff && (changed == 0 || anew == 0),
                    "{:?}: {:#x} is not {:#x}", summed, changed, anew
                );
            }
        }
    }

    /// The field of a checksum over a pseudo header and `rest`, whole or still to be computed.
    fn fields(source: Addr, destination: Addr, protocol: Protocol, rest: &[u8]) -> (u16, u16, u16) {
        let length = u16::try_from(rest.len()).unwrap();
        let bare = |addr: Addr| {
            let bytes = addr_bytes(addr);
            if addr.is_v4() { bytes[12..].to_vec() } else { bytes }
        };
        let mut bytes = [bare(source), bare(destination)].concat();
        bytes.extend([0, protocol.0]);
        bytes.extend(length.to_be_bytes());
        let partial = !naive(&bytes);
        bytes.extend(rest);
        (partial, naive(&bytes), length)
    }

    proptest! {
        #[test]
        fn what_is_still_to_be_computed_is_told_from_what_is_not(
            source: [u8; 4], destination: [u8; 4], long: [[u32; 4]; 2], rest: [u8; 32]
        ) {
            let short = [source, destination].map(Addr::from_v4_wire);
            for [source, destination] in [short, long.map(Addr::from_v6_words)] {
                let (partial, whole, length) = fields(source, destination, Protocol::TCP, &rest);
                let unfinished = |field| is_unfinished(field, source, destination, Protocol::TCP, length);
                prop_assert!(unfinished(partial));
                // The rest adds up to nothing once in a while; then nobody could tell.
                prop_assert!(unfinished(whole) == (fold16(u64::from(partial) + u64::from(!whole)) == 0xffff));
            }
        }
    }
}
