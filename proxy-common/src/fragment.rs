//! Fragments: the ports of a datagram stand in its first one only.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    addr::Addr,
    endian::Be16,
    tuple::{Hook, Protocol},
};

/// What all fragments of a datagram have in common (RFC 791 3.2, RFC 8200 4.5), at one hook; key of the fragment
/// table. 40 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FragmentKey {
    /// Source address.
    pub source: Addr,
    /// Destination address.
    pub destination: Addr,
    /// Identification, as it stands in the header; IPv4's 16 bits in front.
    pub id: u32,
    /// IP protocol.
    pub protocol: Protocol,
    /// The hook that saw it.
    pub hook: Hook,
    /// Always zero.
    pub reserved: [u8; 2],
}

/// The ports of a datagram; value of the fragment table. 4 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Ports {
    /// Source port, network byte order.
    pub source: Be16,
    /// Destination port, network byte order.
    pub destination: Be16,
}
