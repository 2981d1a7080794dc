//! Frontends: the addresses that clients use.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    addr::Addr,
    endian::Be16,
    tuple::{Endpoint, Protocol},
};

/// Index of a service port (one `spec.ports` entry of one Service, in one family).
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(transparent)]
pub struct ServiceId(pub u32);

/// What clients address; key of the frontend table. 20 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FrontendKey {
    /// Virtual address.
    pub address: Addr,
    /// Service port, network byte order.
    pub port: Be16,
    /// IP protocol.
    pub protocol: Protocol,
    /// Always zero.
    pub reserved: u8,
}

impl FrontendKey {
    /// The frontend that a packet to `end` addresses.
    #[must_use]
    #[inline(always)]
    pub const fn new(end: Endpoint, protocol: Protocol) -> Self {
        Self { address: end.address, port: end.port, protocol, reserved: 0 }
    }
}

/// What a frontend does beyond choosing a backend, as bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct FrontendFlags(pub u32);

impl FrontendFlags {
    /// Without backends in this frontend's set, drop without a word: a policy keeps traffic on this node, and the
    /// backends are elsewhere (NOEP-04). Otherwise refuse.
    pub const DROP_WHEN_EMPTY: Self = Self(1);

    /// Whether all bits of `other` are set.
    #[must_use]
    #[inline(always)]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl core::fmt::Debug for FrontendFlags {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(if self.contains(Self::DROP_WHEN_EMPTY) { "drop-when-empty" } else { "none" })
    }
}

/// How to serve a frontend; value of the frontend table. 20 bytes.
///
/// One value, so one map write switches a service to a new set of backends: a packet sees the old set or the
/// new one, never a mixture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Frontend {
    /// The service port, for counters, names and session affinity.
    pub service: ServiceId,
    /// First entry of this set in the slot table.
    pub slot_base: u32,
    /// Number of entries; 0 means that connections are refused, or dropped if the flags say so.
    pub slot_count: u32,
    /// How many seconds a client stays with its backend after its last new connection; 0 without session affinity.
    pub affinity: u32,
    /// The rest.
    pub flags: FrontendFlags,
}

impl Frontend {
    /// The slot for a random number that is uniform over `u32`; `None` without backends.
    ///
    /// Multiplies instead of dividing (Lemire 2019): no modulo, and at most 2^-32 per backend of bias.
    #[must_use]
    #[inline(always)]
    pub const fn choose(&self, random: u32) -> Option<u32> {
        if self.slot_count == 0 {
            return None;
        }
        let offset = ((random as u64 * self.slot_count as u64) >> 32) as u32;
        Some(self.slot_base.wrapping_add(offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_is_chosen_and_none_outside_the_run() {
        let frontend = Frontend { slot_base: 100, slot_count: 3, ..Frontend::default() };
        let third = u32::MAX / 3;
        assert_eq!(frontend.choose(0), Some(100));
        assert_eq!(frontend.choose(third + 2), Some(101));
        assert_eq!(frontend.choose(u32::MAX), Some(102));
        assert_eq!(Frontend::default().choose(7), None);
    }
}
