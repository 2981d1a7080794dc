//! What is known for certain about addresses, where the address filter only says "maybe".

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::bits::bit_set;

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
}

bit_set!(AddressFlags, ["cluster-ip", "node", "node-ports"]);
