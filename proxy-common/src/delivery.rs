//! Packets of services that go from one device of the node to another past the stack: what the kernel's routing said, kept for
//! a moment, and what the agent says about devices.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    bits::bit_set,
    cache::{TupleHash, lifetime},
    config::NodeSettings,
    route::LinkAddress,
    time::Ticks,
    tuple::FlowKey,
};

/// Entries of the cache of deliveries, on each CPU.
pub const DELIVERIES: u32 = 2048;

/// Where the cache keeps the delivery of a tuple: an index less than [`DELIVERIES`].
#[must_use]
#[inline(always)]
pub const fn index(tuple: &FlowKey) -> u32 {
    TupleHash::of(tuple).epoch() & (DELIVERIES - 1)
}

/// Facts about a device, as bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct DeliveryFlags(pub u16);

impl DeliveryFlags {
    /// It is one end of a pair whose other end is in another network namespace, a pod's, and nothing queues what it sends.
    pub const PAIR: Self = Self(1);
}

bit_set!(DeliveryFlags, ["pair"]);

/// A device that packets are delivered from and to; value of the table of such devices. 12 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DeliveryDevice {
    /// Number of the device that the stack takes its packets from: itself, or the bridge that it is a port of.
    pub routed: u32,
    /// Link-layer address of that device. Frames to another one are not the stack's.
    pub address: LinkAddress,
    /// Facts.
    pub flags: DeliveryFlags,
}

/// How a packet gets to its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Manner(pub u8);

impl Manner {
    /// Not past the stack.
    pub const STACK: Self = Self(0);
    /// It leaves by the device, to a neighbour that the kernel finds: the programs at its egress see the packet.
    pub const NEIGHBOUR: Self = Self(1);
    /// It enters by the other end of the pair, at once.
    pub const PEER: Self = Self(2);

    /// Those past the stack.
    pub const ALL: [Self; 2] = [Self::NEIGHBOUR, Self::PEER];

    /// The name used in output and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::STACK => "stack",
            Self::NEIGHBOUR => "neighbour",
            Self::PEER => "peer",
            _ => "unknown",
        }
    }
}

/// Where a packet goes past the stack. 44 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Passing {
    /// Number of the device.
    pub device: u32,
    /// The longest packet that fits, network header included.
    pub mtu: u16,
    /// How.
    pub manner: Manner,
    /// Family of the next hop's address (`AF_INET`, `AF_INET6`).
    pub family: u8,
    /// Address of the next hop, as the kernel has it.
    pub next: [u32; 4],
    /// Link-layer address that packets are to have come to.
    pub came_to: LinkAddress,
    /// Link-layer address of the next hop, if packets enter by the other end of a pair.
    pub neighbour: LinkAddress,
    /// That of the device.
    pub own: LinkAddress,
    /// Always zero.
    pub reserved: [u8; 2],
}

/// A delivery as it is kept; value of the table of deliveries, of one CPU. It depends on the tuple, the device that the packet
/// came by, and how the packet wants to be treated. 96 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Delivery {
    /// The tuple, as it is routed.
    pub tuple: FlowKey,
    /// Number of the device that the packet came by.
    pub device: u32,
    /// Type of service, or traffic class and flow label, as the packet has them.
    pub class: u32,
    /// The answer.
    pub passing: Passing,
    /// When it was given.
    pub learned: Ticks,
}

impl Delivery {
    /// Whether it is for such packets, and the answer is still good: for as long as what else a CPU remembers, packets may go on
    /// where they should no more. Another CPU never writes it, so it is never ahead of `now`.
    #[must_use]
    #[inline(always)]
    pub fn holds(
        &self,
        tuple: &FlowKey,
        device: u32,
        class: u32,
        now: Ticks,
        settings: &NodeSettings,
    ) -> bool {
        now.0.wrapping_sub(self.learned.0) < lifetime(settings).0
            && self.device == device
            && self.class == class
            && self.tuple == *tuple
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tuple::Hook;

    #[test]
    fn an_answer_holds_for_its_question_and_for_a_tenth_of_a_second() {
        let settings = NodeSettings::new(250);
        let tuple = FlowKey { hook: Hook::EGRESS, ..FlowKey::default() };
        let learned = Ticks(u32::MAX - 9);
        let delivery = Delivery { tuple, device: 2, class: 3, learned, ..Delivery::default() };
        for (ticks, expected) in [(0, true), (24, true), (25, false), (u32::MAX, false)] {
            let now = Ticks(learned.0.wrapping_add(ticks));
            assert_eq!(delivery.holds(&tuple, 2, 3, now, &settings), expected, "{ticks}");
        }
        assert!(!delivery.holds(&FlowKey::default(), 2, 3, learned, &settings));
        assert!(!delivery.holds(&tuple, 9, 3, learned, &settings));
        assert!(!delivery.holds(&tuple, 2, 9, learned, &settings));
    }
}
