//! UDP, Geneve (RFC 8926) and the head of the one option, as packets for backends on other nodes carry them.
#![expect(
    clippy::cast_possible_truncation,
    reason = "lengths of packets, of which the field has the lower half"
)]

use network_types::eth::EtherType;
use proxy_common::{
    dsr::{self, Origin, OriginPorts},
    endian::Be16,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// From the UDP header to the option's ports; the frontend's address follows.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C, packed(2))]
pub(crate) struct Geneve {
    source: Be16,
    destination: Be16,
    length: Be16,
    /// None: IPv4 does without, and so does IPv6 where tunnels end in whoever knows that (RFC 6935 5, RFC 6936 4). The packet
    /// inside has its own.
    check: u16,
    /// Version 0; words of all options.
    options: u8,
    /// There are critical options.
    flags: u8,
    protocol: Be16,
    /// Network 0, and a byte that is always zero.
    network: [u16; 2],
    class: Be16,
    kind: u8,
    /// Words of the option behind its head.
    words: u8,
    ports: OriginPorts,
}

impl Geneve {
    const CRITICAL: u8 = 0x40;
    /// Bytes of an option's head.
    const HEAD: usize = 4;

    /// Words of the option for addresses of so many bytes.
    const fn words(address: usize) -> u8 {
        ((size_of::<OriginPorts>() + address) / 4) as u8
    }

    /// In front of a packet of `length` bytes, with addresses of `address` bytes: from `source` to `destination`.
    #[inline(always)]
    pub(crate) const fn new(
        origin: &Origin,
        family: EtherType,
        address: usize,
        length: u32,
        (source, destination): (Be16, Be16),
    ) -> Self {
        let words = Self::words(address);
        Self {
            source,
            destination,
            // Whoever takes a longer packet apart writes the lengths of the parts.
            length: Be16::from_host(((size_of::<Self>() + address) as u32).wrapping_add(length) as u16),
            check: 0,
            options: words + (Self::HEAD / 4) as u8,
            flags: Self::CRITICAL,
            protocol: Be16::from_wire((family as u16).to_ne_bytes()),
            network: [0; 2],
            class: Be16::from_host(dsr::OPTION_CLASS),
            kind: dsr::OPTION_TYPE,
            words,
            ports: origin.ports(),
        }
    }

    /// Whether this is what a node puts in front of a packet of this family.
    #[inline(always)]
    pub(crate) const fn is_ours(&self, family: EtherType, address: usize) -> bool {
        let words = Self::words(address);
        self.options == words + (Self::HEAD / 4) as u8
            && self.flags == Self::CRITICAL
            && self.protocol.raw() == family as u16
            && self.class.raw() == Be16::from_host(dsr::OPTION_CLASS).raw()
            && self.kind == dsr::OPTION_TYPE
            && self.words == words
    }

    /// Bytes from the UDP header to the packet's end.
    #[inline(always)]
    pub(crate) const fn length(&self) -> u16 {
        self.length.to_host()
    }

    /// The ports in the option.
    #[inline(always)]
    pub(crate) const fn ports(&self) -> OriginPorts {
        self.ports
    }
}
