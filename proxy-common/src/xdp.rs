//! Uplinks whose packets are met before the stack, and what became of those packets.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::route::LinkAddress;

/// What became of a packet of two running flows: index into the table of such packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Passage {
    /// It was sent on.
    Forwarded = 0,
    /// The stack was to see it: its hops are used up, its checksum is to be computed, its link-layer address is another's.
    Form = 1,
    /// The stack was to see it: it leaves by a device without this program, has no neighbour yet, is too long.
    Route = 2,
}

impl Passage {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Forwarded, Self::Form, Self::Route];

    /// The name used in output and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Forwarded => "forwarded",
            Self::Form => "form",
            Self::Route => "route",
        }
    }
}

/// How an uplink stands; value of the table of such devices. 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct XdpDevice {
    /// Number of a [`XdpStand`].
    pub stand: u32,
    /// What the kernel said, if it refused: a number of `errno`.
    pub error: u32,
    /// Its link-layer address; zeros if that is not known. Frames to another one are not the node's.
    pub address: LinkAddress,
    /// Always zero.
    pub reserved: [u8; 2],
}

impl XdpDevice {
    /// A device that stands so.
    #[must_use]
    pub const fn new(stand: XdpStand) -> Self {
        Self { stand: stand as u32, error: 0, address: [0; 3], reserved: [0; 2] }
    }

    /// A device whose kernel refuses, and says this.
    #[must_use]
    pub const fn refused(error: u32) -> Self {
        Self { error, ..Self::new(XdpStand::Refused) }
    }

    /// The same device, with its link-layer address.
    #[must_use]
    pub const fn at(self, address: LinkAddress) -> Self {
        Self { address, ..self }
    }

    /// Whether packets that are met before the stack may come by it and leave by it.
    #[must_use]
    #[inline(always)]
    pub const fn is_native(&self) -> bool {
        self.stand == XdpStand::Native as u32
    }

    /// How it stands; `None` if a newer agent wrote it.
    #[must_use]
    pub fn stand(self) -> Option<XdpStand> {
        XdpStand::ALL.into_iter().find(|stand| *stand as u32 == self.stand)
    }
}

/// Whether an uplink's packets are met before the stack, or why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum XdpStand {
    /// They are, by its driver.
    Native = 0,
    /// It is switched off.
    Off = 1,
    /// Its packets have no Ethernet header.
    NoHeader = 2,
    /// There are VLANs on top of it, whose tags its driver may hide.
    Vlans = 3,
    /// It is one end of a pair, or belongs to a virtual machine: it would cost offloads, and is only used if asked for.
    Virtual = 4,
    /// Connection tracking would take for invalid what it has not seen grow.
    Conntrack = 5,
    /// Somebody else's program is there.
    Occupied = 6,
    /// The kernel or the driver refuses.
    Refused = 7,
}

impl XdpStand {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::Native,
        Self::Off,
        Self::NoHeader,
        Self::Vlans,
        Self::Virtual,
        Self::Conntrack,
        Self::Occupied,
        Self::Refused,
    ];

    /// The name used in output.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Off => "off",
            Self::NoHeader => "not without Ethernet header",
            Self::Vlans => "not below VLANs",
            Self::Virtual => "not on virtual devices (--xdp=native does)",
            Self::Conntrack => "not with nf_conntrack_tcp_be_liberal=0 (--xdp=native does)",
            Self::Occupied => "another program is there",
            Self::Refused => "refused",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_positions_in_the_lists() {
        for (at, passage) in Passage::ALL.into_iter().enumerate() {
            assert_eq!(passage as usize, at);
        }
        for (at, stand) in XdpStand::ALL.into_iter().enumerate() {
            assert_eq!(stand as usize, at);
            assert_eq!(XdpDevice::new(stand).stand(), Some(stand));
        }
        assert_eq!(XdpDevice { stand: 99, ..XdpDevice::default() }.stand(), None);
    }
}
