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

/// Who runs the program that meets a device's packets before the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum XdpMode {
    /// Its driver, before there is an `sk_buff`.
    Native,
    /// The kernel on its behalf, on an `sk_buff`.
    Generic,
}

impl XdpMode {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Native, Self::Generic];
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

    /// Whether packets may leave by it that are met in this mode at another device. Drivers take each other's frames only where
    /// they are set up for XDP, and lose them without a word elsewhere (`ndo_xdp_xmit`). What the kernel has met on a driver's
    /// behalf leaves like any packet that is sent.
    #[must_use]
    #[inline(always)]
    pub const fn takes_from(&self, mode: XdpMode) -> bool {
        self.stand == XdpStand::Native as u32
            || matches!(mode, XdpMode::Generic) && self.stand == XdpStand::Generic as u32
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
    /// They are, by the kernel on its driver's behalf.
    Generic = 8,
}

impl XdpStand {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Native,
        Self::Off,
        Self::NoHeader,
        Self::Vlans,
        Self::Virtual,
        Self::Conntrack,
        Self::Occupied,
        Self::Refused,
        Self::Generic,
    ];

    /// By whom they are met, if they are.
    #[must_use]
    pub const fn mode(self) -> Option<XdpMode> {
        match self {
            Self::Native => Some(XdpMode::Native),
            Self::Generic => Some(XdpMode::Generic),
            _ => None,
        }
    }

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
            Self::Occupied => "another program is there, or on a device on top of it",
            Self::Refused => "refused",
            Self::Generic => "generic",
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

    #[test]
    fn packets_leave_where_they_are_taken() {
        for stand in XdpStand::ALL {
            let takes = XdpMode::ALL.map(|mode| XdpDevice::new(stand).takes_from(mode));
            let expected = match stand {
                XdpStand::Native => [true, true],
                XdpStand::Generic => [false, true],
                _ => [false, false],
            };
            assert_eq!(takes, expected, "{stand:?}");
        }
    }
}
