//! Tuples: who talks to whom, as one hook sees it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{addr::Addr, endian::Be16};

/// An IP protocol number. Not an enum: every byte that a packet can hold must be a valid value.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Protocol(pub u8);

impl Protocol {
    /// Transmission Control Protocol.
    pub const TCP: Self = Self(6);
    /// User Datagram Protocol.
    pub const UDP: Self = Self(17);
    /// Stream Control Transmission Protocol.
    pub const SCTP: Self = Self(132);

    /// The name that Kubernetes uses, or `None` for a protocol that Sluice does not balance.
    #[must_use]
    pub const fn name(self) -> Option<&'static str> {
        match self {
            Self::TCP => Some("TCP"),
            Self::UDP => Some("UDP"),
            Self::SCTP => Some("SCTP"),
            _ => None,
        }
    }
}

impl core::fmt::Debug for Protocol {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "protocol {}", self.0),
        }
    }
}

/// Where in the packet's way through the node a tuple was seen.
///
/// The NAT rule makes this part of a flow's identity: the ingress hook rewrites destinations, the egress hook
/// rewrites sources, so an entry made for one hook must not be found at the other.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Hook(u8);

impl Hook {
    /// Before routing, as the packet enters the node.
    pub const INGRESS: Self = Self(0);
    /// After routing, as the packet leaves the node.
    pub const EGRESS: Self = Self(1);

    /// 0 for ingress, 1 for egress.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }
}

impl core::fmt::Debug for Hook {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match *self {
            Self::INGRESS => "ingress",
            Self::EGRESS => "egress",
            _ => "unknown hook",
        })
    }
}

/// One end of a flow: address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Endpoint {
    /// Address.
    pub address: Addr,
    /// Port, network byte order.
    pub port: Be16,
}

/// The tuple of a packet as it stands when a hook sees it; key of the flow table. 40 bytes, no padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FlowKey {
    /// Source address.
    pub source: Addr,
    /// Destination address.
    pub destination: Addr,
    /// Source port, network byte order.
    pub source_port: Be16,
    /// Destination port, network byte order.
    pub destination_port: Be16,
    /// IP protocol.
    pub protocol: Protocol,
    /// The hook that saw it.
    pub hook: Hook,
    /// Always zero.
    pub reserved: [u8; 2],
}

impl FlowKey {
    /// The key of a packet going from `source` to `destination`.
    #[must_use]
    #[inline(always)]
    pub const fn new(source: Endpoint, destination: Endpoint, protocol: Protocol, hook: Hook) -> Self {
        Self {
            source: source.address,
            destination: destination.address,
            source_port: source.port,
            destination_port: destination.port,
            protocol,
            hook,
            reserved: [0; 2],
        }
    }

    /// The key of a packet that goes the other way, at the same hook.
    #[must_use]
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self::new(self.destination_end(), self.source_end(), self.protocol, self.hook)
    }

    /// Where the packet comes from.
    #[must_use]
    #[inline(always)]
    pub const fn source_end(&self) -> Endpoint {
        Endpoint { address: self.source, port: self.source_port }
    }

    /// Where the packet goes to.
    #[must_use]
    #[inline(always)]
    pub const fn destination_end(&self) -> Endpoint {
        Endpoint { address: self.destination, port: self.destination_port }
    }
}
