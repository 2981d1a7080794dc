//! Who has which address.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// The virtual addresses of services, IPv4.
pub const SERVICES_V4: &str = "10.96.0.0/16";
/// The virtual addresses of services, IPv6.
pub const SERVICES_V6: &str = "fd00:10:96::/112";

/// An IP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// Every address, for sockets.
    #[must_use]
    pub const fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Self::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// An address of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Addresses {
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6.
    pub v6: Ipv6Addr,
}

impl Addresses {
    /// The address of a family.
    #[must_use]
    pub fn of(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    /// A port of both.
    #[must_use]
    pub const fn at(self, port: u16) -> Ends {
        Ends { addresses: self, port }
    }

    /// The virtual addresses number `n` of the service ranges.
    #[must_use]
    pub fn vip(n: u8) -> Self {
        Self { v4: Ipv4Addr::new(10, 96, 0, n), v6: Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, n.into()) }
    }

    /// Addresses that belong to no machine and no range of services: external IPs, addresses of load balancers.
    #[must_use]
    pub fn elsewhere(n: u8) -> Self {
        Self {
            v4: Ipv4Addr::new(203, 0, 113, n),
            v6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0x113, 0, 0, 0, n.into()),
        }
    }

    /// Addresses number `n` between the nodes: nodes have theirs from 1, the client from 100, and those from 50 to 99
    /// are free.
    #[must_use]
    pub fn on_fabric(n: u8) -> Self {
        Self {
            v4: Ipv4Addr::new(192, 168, 100, n),
            v6: Ipv6Addr::new(0xfd00, 0x100, 0, 0, 0, 0, 0, n.into()),
        }
    }

    /// Addresses in the range of a node's pods. Number 1 is the node's own.
    #[must_use]
    pub fn of_pod(node: u8, n: u8) -> Self {
        Self {
            v4: Ipv4Addr::new(10, 244, node, n),
            v6: Ipv6Addr::new(0xfd00, 0x10, 0x244, node.into(), 0, 0, 0, n.into()),
        }
    }

    /// A node's own addresses on its tunnel device: in the range of its pods, as flannel does it.
    #[must_use]
    pub fn on_tunnel(node: u8) -> Self {
        Self { v4: Ipv4Addr::new(10, 244, node, 0), v6: Self::of_pod(node, 250).v6 }
    }
}

/// A port of an address of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The addresses.
    pub addresses: Addresses,
    /// The port.
    pub port: u16,
}

impl Ends {
    /// The end of a family.
    #[must_use]
    pub fn of(&self, family: Family) -> SocketAddr {
        SocketAddr::new(self.addresses.of(family), self.port)
    }
}
