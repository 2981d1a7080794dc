//! What the datapath counts, per CPU.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{drop::DropReason, frontend::ServiceId};

/// Traffic of one service port on one CPU. Bytes are frame bytes as the hook sees them; a segmentation-offload
/// packet counts once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ServiceCounters {
    /// Connections (TCP) and flows (UDP) that were given a backend.
    pub connections: u64,
    /// Packets from clients.
    pub packets: u64,
    /// Bytes from clients.
    pub bytes: u64,
    /// Packets to clients.
    pub reply_packets: u64,
    /// Bytes to clients.
    pub reply_bytes: u64,
    /// Packets dropped, for any reason.
    pub drops: u64,
}

impl ServiceCounters {
    /// The sum of two CPUs' counts.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        let Self { connections, packets, bytes, reply_packets, reply_bytes, drops } = other;
        Self {
            connections: self.connections.wrapping_add(connections),
            packets: self.packets.wrapping_add(packets),
            bytes: self.bytes.wrapping_add(bytes),
            reply_packets: self.reply_packets.wrapping_add(reply_packets),
            reply_bytes: self.reply_bytes.wrapping_add(reply_bytes),
            drops: self.drops.wrapping_add(drops),
        }
    }
}

/// Packets of one service port, dropped for one reason; key of the table of such drops. 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ServiceDrop {
    /// The service port.
    pub service: ServiceId,
    /// Number of the reason.
    pub reason: u32,
}

impl ServiceDrop {
    /// Drops of `service` for `reason`.
    #[must_use]
    #[inline(always)]
    pub const fn new(service: ServiceId, reason: DropReason) -> Self {
        Self { service, reason: reason as u32 }
    }
}
