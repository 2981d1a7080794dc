//! Internet checksum arithmetic (RFC 1071, RFC 1624): how a sum changes when a header does.
//!
//! Ones' complement sums do not care about byte order as long as it is the same throughout, so everything
//! here works on words as they stand in memory.

use crate::{addr::Addr, endian::Be16};

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

/// The checksum of what adds up to `sum`, which is made of words of any width in memory order.
#[must_use]
#[inline(always)]
pub const fn of(sum: u64) -> u16 {
    !fold16(sum)
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
}
