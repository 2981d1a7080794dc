//! Numbers in network byte order, kept apart from host numbers by type.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A 16-bit number in network byte order: a port or an EtherType as it stands in the packet.
///
/// Deliberately without `Ord` and arithmetic: those only make sense after [`Be16::to_host`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Be16(u16);

impl Be16 {
    /// From a number in host order.
    #[must_use]
    pub const fn from_host(value: u16) -> Self {
        Self(value.to_be())
    }

    /// From two bytes as they stand in the packet.
    #[must_use]
    pub const fn from_wire(bytes: [u8; 2]) -> Self {
        Self(u16::from_ne_bytes(bytes))
    }

    /// The number in host order.
    #[must_use]
    pub const fn to_host(self) -> u16 {
        u16::from_be(self.0)
    }

    /// The two bytes in memory order, as a native number: what a checksum adds up.
    #[must_use]
    pub const fn raw(self) -> u16 {
        self.0
    }
}

impl core::fmt::Debug for Be16 {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}", self.to_host())
    }
}

impl core::fmt::Display for Be16 {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}", self.to_host())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wire_bytes_and_host_number_name_the_same_port() {
        assert_eq!(Be16::from_wire([0x1f, 0x90]), Be16::from_host(8080));
        assert_eq!(Be16::from_wire([0x1f, 0x90]).to_host(), 8080);
    }
}
