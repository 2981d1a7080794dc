//! The address filter: most packets are not ours, and this says so for the price of one array read.
//!
//! A byte per hash of an address tells which roles the address may have. A wrong "maybe" costs one lookup in
//! a real table; a wrong "no" would lose traffic, so the agent sets bits before it programs the addresses, and
//! clears them only when neither a table nor a flow needs them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{addr::Addr, bits::bit_set};

/// Roles that an address may have, as bits.
#[derive(Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct AddressRoles(pub u8);

impl AddressRoles {
    /// No role.
    pub const NONE: Self = Self(0);
    /// Clients address a service with it: checked for destinations at ingress.
    pub const FRONTEND: Self = Self(1);
    /// A service's traffic ends there: checked for sources at egress.
    pub const BACKEND: Self = Self(2);
    /// It is this node's own: NodePorts are reached by it, and answers to rewritten sources come back to it. Checked for
    /// destinations at ingress.
    pub const NODE: Self = Self(4);
}

bit_set!(AddressRoles);

impl core::fmt::Debug for AddressRoles {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:#05b}", self.0)
    }
}

/// Entries in a line: one cache line, so that the array's 8-byte rounding of values wastes nothing.
pub const LINE: usize = 64;
/// Lines of the filter; 64 Ki entries of one byte.
pub const LINES: u32 = 1024;

/// One cache line of the filter; value of the filter table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct FilterLine {
    /// Roles by position in the line.
    pub roles: [AddressRoles; LINE],
}

impl Default for FilterLine {
    fn default() -> Self {
        Self { roles: [AddressRoles::NONE; LINE] }
    }
}

/// Where the filter keeps the roles of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FilterPosition {
    /// Index of the line, less than [`LINES`].
    pub line: u32,
    /// Position within it, less than [`LINE`].
    pub at: usize,
}

impl FilterPosition {
    /// The position of an address.
    #[must_use]
    #[inline(always)]
    pub const fn of(addr: Addr) -> Self {
        let [a, b, c, d] = addr.words();
        // Fold, then MurmurHash3's finaliser without its last step: pod addresses differ in few bits, which one
        // multiplication does not spread.
        let high = (a as u64) << 32 | b as u64;
        let low = (c as u64) << 32 | d as u64;
        let folded = low ^ high.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (folded ^ folded >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
        let top = (mixed ^ mixed >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53) >> 48;
        Self { line: (top >> 6) as u32 & (LINES - 1), at: top as usize & (LINE - 1) }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, net::Ipv4Addr};

    use super::*;

    #[test]
    fn neighbouring_addresses_spread_over_the_filter() {
        let first = u32::from(Ipv4Addr::new(10, 244, 0, 0));
        let positions: HashSet<_> =
            (0..4096).map(|n| FilterPosition::of(Addr::from_v4_wire((first + n).to_be_bytes()))).collect();
        // 4,096 balls in 65,536 bins leave about 3,970 bins hit.
        assert!(positions.len() > 3_900, "only {} positions", positions.len());
        assert!(positions.iter().all(|p| p.line < LINES && p.at < LINE));
    }
}
