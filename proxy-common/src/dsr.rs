//! Direct server return (DSR): how a node hands a client's packet to the backend's node, which answers.
//!
//! The packet travels as it left the ingress hook, from the client to the pod, in Geneve (RFC 8926) over UDP. The outer packet
//! goes to the pod's address, too: whatever routes to pods routes it. One option says what the packet was before the ingress hook
//! changed it, so that the answer can be changed back.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{addr::Addr, endian::Be16, tuple::Endpoint};

/// The UDP port that nodes send to, unless an administrator chooses another: in a range that IANA has not assigned. Not Geneve's
/// own, which overlays use.
pub const PORT: u16 = 6_090;

/// The option's class, of those for experiments (RFC 8926 7, 0xFF00 to 0xFFFF).
pub const OPTION_CLASS: u16 = 0xff51;

/// The option's type. Its highest bit, the critical one, has whoever does not know the option drop the packet (RFC 8926 3.5).
pub const OPTION_TYPE: u8 = 0x81;

/// Where outer source ports begin; they go on to 65535, as RFC 6335 has it for ports that nobody listens at.
const FIRST_SOURCE_PORT: u16 = 49_152;

/// The source port of outer packets for a hash of the inner tuple, so that paths and receive queues are chosen as for the inner
/// packets (RFC 8926 3.3).
#[must_use]
#[inline(always)]
pub const fn source_port(hash: u32) -> Be16 {
    Be16::from_host(FIRST_SOURCE_PORT | (hash >> 18) as u16)
}

/// What a packet was before the first node's ingress hook changed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Origin {
    /// The frontend that the client sent to.
    pub frontend: Endpoint,
    /// The port that the client sent from. The packet's own differs where two flows would have looked the same (NAT-05).
    pub client_port: Be16,
}

/// The ports in the option. 4 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct OriginPorts {
    /// The frontend's.
    pub frontend: Be16,
    /// The client's.
    pub client: Be16,
}

impl Origin {
    /// From the parts of the option.
    #[must_use]
    #[inline(always)]
    pub const fn new(address: Addr, ports: OriginPorts) -> Self {
        Self { frontend: Endpoint { address, port: ports.frontend }, client_port: ports.client }
    }

    /// The ports, as the option has them.
    #[must_use]
    #[inline(always)]
    pub const fn ports(&self) -> OriginPorts {
        OriginPorts { frontend: self.frontend.port, client: self.client_port }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_ports_use_all_that_nobody_listens_at() {
        assert_eq!(source_port(0), Be16::from_host(49_152));
        assert_eq!(source_port(u32::MAX), Be16::from_host(65_535));
        assert_eq!(source_port(1 << 18), Be16::from_host(49_153));
    }
}
