//! Ways that packets take past the stack, as the kernel's routing has them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A link-layer address, as it lies in memory.
pub type LinkAddress = [u16; 3];

/// Where a packet leaves: the kernel's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Way {
    /// Number of the device; 0 if the stack has to see the packet.
    pub device: u32,
    /// The longest packet that fits, network header included.
    pub mtu: u16,
    /// Link-layer address of the device.
    pub own: LinkAddress,
    /// That of the neighbour.
    pub next: LinkAddress,
    /// That of the device that the packet comes by: frames to another one are not the node's.
    pub entrance: LinkAddress,
}
