//! What is known for certain about addresses, where the address filter only says "maybe".

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Facts about an address, as bits; value of the address table.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct AddressFlags(pub u32);

impl AddressFlags {
    /// A Service's ClusterIP: what is sent to a port that it does not have is refused (CIP-03).
    pub const CLUSTER_IP: Self = Self(1);
    /// Assigned to this node: packets from it are the node's own.
    pub const NODE: Self = Self(2);
    /// An address of this node that accepts NodePorts (NP-05 to NP-09).
    pub const NODE_PORTS: Self = Self(4);

    /// Whether all bits of `other` are set.
    #[must_use]
    #[inline(always)]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets of bits.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl core::fmt::Debug for AddressFlags {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let names =
            [(Self::CLUSTER_IP, "cluster-ip"), (Self::NODE, "node"), (Self::NODE_PORTS, "node-ports")];
        f.debug_set()
            .entries(names.iter().filter(|(flag, _)| self.contains(*flag)).map(|(_, name)| name))
            .finish()
    }
}
