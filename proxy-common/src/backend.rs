//! Backends: the addresses that service traffic ends at.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{addr::Addr, bits::bit_set, endian::Be16, frontend::ServiceId, tuple::Endpoint};

/// Index of a backend in the backend table.
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
pub struct BackendId(pub u32);

/// Counts how often a backend id was given to a new backend. A flow remembers the generation it was made
/// with, so it can tell that its id now means somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Generation(pub u32);

impl Generation {
    /// The generation of the next backend that gets the same id.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

/// Facts about a backend, as bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct BackendFlags(pub u16);

impl BackendFlags {
    /// In use by its service. Cleared, with the address left in place, when the backend goes away: a program
    /// that had already picked it can still finish its packet, and UDP flows see at once that they must move.
    pub const LIVE: Self = Self(1);
    /// Runs on this node.
    pub const LOCAL: Self = Self(2);
    /// In the set of its service port that serves the whole cluster (SEL-02, SEL-03).
    pub const CLUSTER_SET: Self = Self(4);
    /// In the set of its service port that keeps traffic on this node (SEL-04). A backend in neither set keeps the flows
    /// that it has and gets no new ones (CT-11).
    pub const LOCAL_SET: Self = Self(8);
}

bit_set!(BackendFlags);

impl core::fmt::Debug for BackendFlags {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match (self.contains(Self::LIVE), self.contains(Self::LOCAL)) {
            (false, _) => f.write_str("gone"),
            (true, false) => f.write_str("live"),
            (true, true) => f.write_str("live local"),
        }
    }
}

/// A backend of one service port; value of the backend table. 32 bytes.
///
/// A backend belongs to exactly one service port. When a pod leaves one service but stays in another, only
/// the first service's flows have to move; a record shared by address could not tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Backend {
    /// Address.
    pub address: Addr,
    /// Port, network byte order.
    pub port: Be16,
    /// Facts.
    pub flags: BackendFlags,
    /// How many backends this id has named before.
    pub generation: Generation,
    /// The service port it belongs to.
    pub service: ServiceId,
    /// Always zero.
    pub reserved: u32,
}

impl Backend {
    /// Address and port.
    #[must_use]
    #[inline(always)]
    pub const fn end(&self) -> Endpoint {
        Endpoint { address: self.address, port: self.port }
    }

    /// Whether a flow made with `generation` may go on using this backend.
    #[must_use]
    #[inline(always)]
    pub const fn serves(&self, generation: Generation) -> bool {
        self.flags.contains(BackendFlags::LIVE) && self.generation.0 == generation.0
    }
}
