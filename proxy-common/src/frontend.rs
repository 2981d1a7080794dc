//! Frontends: the addresses that clients use.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    addr::Addr,
    bits::bit_set,
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

impl ServiceId {
    /// No service port has this id.
    pub const NONE: Self = Self(u32::MAX);
}

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

    /// The NodePort that a packet to `end` addresses, if that address accepts NodePorts: one row serves all addresses of
    /// a family, under its unspecified address.
    #[must_use]
    #[inline(always)]
    pub const fn node_port(end: Endpoint, protocol: Protocol) -> Self {
        Self { address: end.address.unspecified(), port: end.port, protocol, reserved: 0 }
    }

    /// Whether it is a NodePort's.
    #[must_use]
    pub fn is_node_port(&self) -> bool {
        self.address == self.address.unspecified()
    }
}

/// What a frontend does beyond choosing a backend, as bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct FrontendFlags(pub u32);

impl FrontendFlags {
    /// If [`Frontend::slots`] is empty, drop without a word: a policy keeps traffic on this node, and the backends are
    /// elsewhere (NOEP-04). Otherwise refuse.
    pub const DROP_WHEN_EMPTY: Self = Self(1);
    /// The same for [`Frontend::outside`].
    pub const DROP_OUTSIDE_WHEN_EMPTY: Self = Self(2);
    /// Clients outside the cluster get [`Frontend::outside`]: `externalTrafficPolicy: Local` (DEC-20 to DEC-25).
    pub const BY_ORIGIN: Self = Self(4);
    /// Only sources within the service's ranges are admitted (LBSR).
    pub const RESTRICTED: Self = Self(8);
    /// Every client's source is rewritten: `masqueradeAll` (MASQ-01).
    pub const MASQUERADE: Self = Self(16);
    /// [`Frontend::slots`] is the set that keeps traffic on this node.
    pub const LOCAL_SET: Self = Self(32);
    /// TCP connections are reset when their backend is gone.
    pub const RESET: Self = Self(64);
    /// Both runs are Maglev tables: the hash of a packet's tuple says which slot.
    pub const MAGLEV: Self = Self(128);
    /// What goes to a backend on another node keeps its source: it is sent there encapsulated, and that node answers (DSR).
    /// [`Frontend::outside`] is the set that serves on this node, for what arrives here so.
    pub const DSR: Self = Self(256);
}

bit_set!(
    FrontendFlags,
    [
        "drop-when-empty",
        "drop-outside-when-empty",
        "by-origin",
        "restricted",
        "masquerade",
        "local-set",
        "reset",
        "maglev",
        "dsr"
    ]
);

/// A run of slots: the backends of one set, each once, or as often as its Maglev table says. 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SlotRun {
    /// Its first slot.
    pub base: u32,
    /// How many slots it has; 0 without backends.
    pub count: u32,
}

impl SlotRun {
    /// The slot for a random number or a hash that is uniform over `u32`; `None` without backends.
    ///
    /// Multiplies instead of dividing (Lemire 2019): no modulo, and at most 2^-32 per backend of bias.
    #[must_use]
    #[inline(always)]
    pub const fn choose(self, number: u32) -> Option<u32> {
        if self.count == 0 {
            return None;
        }
        let offset = ((number as u64 * self.count as u64) >> 32) as u32;
        Some(self.base.wrapping_add(offset))
    }
}

/// How to serve a frontend; value of the frontend table. 28 bytes.
///
/// One value, so one map write switches a service to new sets of backends: a packet sees the old sets or the
/// new ones, never a mixture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Frontend {
    /// The service port, for counters, names, source ranges and session affinity.
    pub service: ServiceId,
    /// Everything that is yes or no.
    pub flags: FrontendFlags,
    /// How many seconds a client stays with its backend after its last new connection; 0 without session affinity.
    pub affinity: u32,
    /// The backends. Empty means that connections are refused, or dropped if the flags say so.
    pub slots: SlotRun,
    /// The backends for clients outside the cluster, if the flags set them apart.
    pub outside: SlotRun,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_is_chosen_and_none_outside_the_run() {
        let run = SlotRun { base: 100, count: 3 };
        let third = u32::MAX / 3;
        assert_eq!(run.choose(0), Some(100));
        assert_eq!(run.choose(third + 2), Some(101));
        assert_eq!(run.choose(u32::MAX), Some(102));
        assert_eq!(SlotRun::default().choose(7), None);
    }
}
