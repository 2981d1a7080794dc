//! Events: what the datapath tells those who listen, as it happens.
//!
//! Nobody listens most of the time, so whoever does holds a lease that the programs compare with the clock: an end of
//! which nobody is told costs a lookup for each new flow and each drop, and nothing for any other packet.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    addr::Addr,
    bits::bit_set,
    drop::DropReason,
    endian::Be16,
    flow::FlowFlags,
    frontend::ServiceId,
    tuple::{Endpoint, FlowKey},
};

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct EventKind(pub u8);

impl EventKind {
    /// A packet has begun a flow through a service.
    pub const FLOW: Self = Self(0);
    /// A packet was dropped, or refused.
    pub const DROP: Self = Self(1);
    /// A process was given a backend.
    pub const CHOICE: Self = Self(2);
    /// A process was told that it cannot have what it asked for.
    pub const REFUSAL: Self = Self(3);

    /// Who wants to hear of it.
    #[must_use]
    #[inline(always)]
    pub const fn wanted_as(self) -> EventKinds {
        if self.0 == Self::FLOW.0 || self.0 == Self::CHOICE.0 { EventKinds::FLOWS } else { EventKinds::DROPS }
    }
}

/// What somebody wants to hear of, as bits.
#[derive(Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct EventKinds(pub u32);

impl EventKinds {
    /// What begins, by packet or at a socket.
    pub const FLOWS: Self = Self(1);
    /// What is dropped, refused or forbidden.
    pub const DROPS: Self = Self(2);
}

bit_set!(EventKinds, ["flows", "drops"]);

/// Who listens, and for how long; value of the table of that. 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Lease {
    /// Until when: nanoseconds of `CLOCK_MONOTONIC`; 0 if nobody does. Whoever listens puts it off.
    pub until: u64,
    /// For what.
    pub wants: EventKinds,
    /// Always zero.
    pub reserved: u32,
}

/// Something that has happened; a record of the ring of events. 80 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Event {
    /// When: nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// The packet, as the hook saw it, with ports of 0 if it has none; of a process, whom it names, with a source of zero
    /// bytes.
    pub key: FlowKey,
    /// Address of the backend that was chosen, if any.
    pub backend: Addr,
    /// Its port, network byte order.
    pub backend_port: Be16,
    /// What has happened.
    pub kind: EventKind,
    /// Number of the reason of a drop or refusal.
    pub reason: u8,
    /// The service port of what has begun; [`ServiceId::NONE`] otherwise.
    pub service: ServiceId,
    /// Number of the device; of a process, its id (`tgid`).
    pub origin: u32,
    /// What is special about the flow.
    pub flags: FlowFlags,
    /// Always zero.
    pub reserved: [u8; 3],
}

impl Event {
    /// The backend that was chosen.
    #[must_use]
    pub const fn backend_end(&self) -> Endpoint {
        Endpoint { address: self.backend, port: self.backend_port }
    }

    /// Why something was dropped; `None` for what was not, or for a number that means nothing.
    #[must_use]
    pub fn drop_reason(&self) -> Option<DropReason> {
        let is_drop = self.kind.wanted_as() == EventKinds::DROPS;
        DropReason::ALL.get(usize::from(self.reason)).copied().filter(|_| is_drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_drops_have_reasons() {
        let event = |kind, reason| Event { kind, reason, ..Event::default() };
        assert_eq!(event(EventKind::FLOW, 0).drop_reason(), None);
        assert_eq!(event(EventKind::DROP, 0).drop_reason(), Some(DropReason::NoBackend));
        assert_eq!(event(EventKind::REFUSAL, 7).drop_reason(), Some(DropReason::UnknownPort));
        assert_eq!(event(EventKind::DROP, 200).drop_reason(), None);
        assert_eq!(size_of::<Event>(), 80);
    }
}
