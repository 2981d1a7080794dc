//! The programs of the object, by name.

use proxy_common::xdp::XdpMode;

/// A program of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Program {
    /// tc ingress.
    Ingress,
    /// tc egress.
    Egress,
    /// tc ingress of devices whose packets have no link header.
    IngressL3,
    /// tc egress of such devices.
    EgressL3,
    /// tc ingress behind all others: delivers past the stack.
    Delivery,
    /// Tells the time; attached nowhere.
    Clock,
}

impl Program {
    /// Those that every node runs. The others are loaded when a device wants them: the verifier takes its time.
    pub(super) const EVERYWHERE: [Self; 3] = [Self::Ingress, Self::Egress, Self::Clock];

    /// Every program.
    pub const ALL: [Self; 6] =
        [Self::Ingress, Self::Egress, Self::IngressL3, Self::EgressL3, Self::Delivery, Self::Clock];

    /// Its name in the object.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "sluice_ingress",
            Self::Egress => "sluice_egress",
            Self::IngressL3 => "sluice_ingress_l3",
            Self::EgressL3 => "sluice_egress_l3",
            Self::Delivery => "sluice_delivery",
            Self::Clock => "sluice_clock",
        }
    }
}

/// A program of the object that is attached to a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SocketProgram {
    /// A socket connects, IPv4.
    Connect4,
    /// A socket connects, IPv6.
    Connect6,
    /// A socket sends a datagram to an address, IPv4.
    Sendmsg4,
    /// A socket sends a datagram to an address, IPv6.
    Sendmsg6,
    /// A socket receives a datagram, IPv4.
    Recvmsg4,
    /// A socket receives a datagram, IPv6.
    Recvmsg6,
    /// A process asks whom its socket is connected to, IPv4.
    Getpeername4,
    /// A process asks whom its socket is connected to, IPv6.
    Getpeername6,
}

impl SocketProgram {
    /// All of them. What shows a process the service comes before what gives it a backend, so that no process sees a
    /// backend's address while they are attached one after the other.
    pub const ALL: [Self; 8] = [
        Self::Getpeername4,
        Self::Getpeername6,
        Self::Recvmsg4,
        Self::Recvmsg6,
        Self::Connect4,
        Self::Connect6,
        Self::Sendmsg4,
        Self::Sendmsg6,
    ];

    /// Its name in the object.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect4 => "sluice_connect4",
            Self::Connect6 => "sluice_connect6",
            Self::Sendmsg4 => "sluice_sendmsg4",
            Self::Sendmsg6 => "sluice_sendmsg6",
            Self::Recvmsg4 => "sluice_recvmsg4",
            Self::Recvmsg6 => "sluice_recvmsg6",
            Self::Getpeername4 => "sluice_getpeername4",
            Self::Getpeername6 => "sluice_getpeername6",
        }
    }
}

/// The program that meets packets before the stack in this mode, by its name in the object.
#[must_use]
pub const fn xdp_program_name(mode: XdpMode) -> &'static str {
    match mode {
        XdpMode::Native => "sluice_xdp",
        XdpMode::Generic => "sluice_xdp_generic",
    }
}
