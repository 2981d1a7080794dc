//! Network devices, as far as the decision depends on them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{addr::Addr, bits::bit_set};

/// Facts about a device, as bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct DeviceFlags(pub u32);

impl DeviceFlags {
    /// Whoever sends through it is reached by everybody else through this node alone: a pod of this node. Answers come
    /// back here by themselves, so such a client keeps its address.
    pub const LOCAL_CLIENTS: Self = Self(1);
    /// What comes through it is pod traffic: local detection by interface (DLOC-03, DLOC-04).
    pub const POD_TRAFFIC: Self = Self(2);
}

bit_set!(DeviceFlags, ["local-clients", "pod-traffic"]);

/// A device that carries the programs; value of the device table. 36 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Device {
    /// Facts.
    pub flags: DeviceFlags,
    /// The node's IPv4 address for what leaves through this device (MASQ-09); all zero bytes if it has none.
    pub source_v4: Addr,
    /// The same for IPv6.
    pub source_v6: Addr,
}

impl Device {
    /// The node's own address of the family of `peer` for what leaves through this device.
    #[must_use]
    #[inline(always)]
    pub fn source_for(&self, peer: Addr) -> Option<Addr> {
        let source = if peer.is_v4() { self.source_v4 } else { self.source_v6 };
        if source == Addr::default() { None } else { Some(source) }
    }
}
