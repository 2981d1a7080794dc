//! Ways that packets take past the stack: what the kernel's routing said, kept for a moment.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{addr::Addr, config::NodeSettings, time::Ticks, tuple::FlowKey};

/// Entries of the cache of routes, on each CPU.
pub const ROUTES: u32 = 2048;

/// Where the cache keeps the route of a tuple: an index less than [`ROUTES`].
#[must_use]
#[inline(always)]
pub const fn index(tuple: &FlowKey) -> u32 {
    const fn fold(address: Addr) -> u64 {
        let [a, b, c, d] = address.words();
        ((a ^ c) as u64) << 32 | (b ^ d) as u64
    }
    let ports = (tuple.source_port.raw() as u64) << 16 | tuple.destination_port.raw() as u64;
    let mixed = fold(tuple.source).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ fold(tuple.destination);
    let mixed = (mixed ^ mixed >> 33 ^ ports << 20).wrapping_mul(0xff51_afd7_ed55_8ccd);
    ((mixed ^ mixed >> 31).wrapping_mul(0xc4ce_b9fe_1a85_ec53) >> 32) as u32 & (ROUTES - 1)
}

/// A link-layer address, as it lies in memory.
pub type LinkAddress = [u16; 3];

/// Where a packet leaves: the kernel's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Way {
    /// Number of the device; 0 if the kernel did not give one, so that the stack has to see the packet.
    pub device: u32,
    /// The longest packet that fits, network header included.
    pub mtu: u16,
    /// Link-layer address of the device.
    pub own: LinkAddress,
    /// That of the neighbour.
    pub next: LinkAddress,
    /// Always zero.
    pub reserved: [u8; 2],
}

/// A route as it is kept; value of the table of routes, of one CPU. It depends on the tuple, the device that the packet came
/// by, and how the packet wants to be treated. 76 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Route {
    /// The tuple, as it is routed.
    pub tuple: FlowKey,
    /// Number of the device that the packet came by.
    pub device: u32,
    /// Type of service, or traffic class and flow label, as the packet has them.
    pub class: u32,
    /// The answer.
    pub way: Way,
    /// When it was given.
    pub learned: Ticks,
    /// How often it was given in a row.
    pub lookups: u32,
}

impl Route {
    /// Ten times a second a route is asked for again: so long packets may go on where they should no more.
    const PER_SECOND: u32 = 10;
    /// Every so many answers, a packet goes through the stack: it alone looks whether neighbours are still who they were.
    const UNTIL_STACK: u32 = 128;

    /// Whether it is for such packets.
    #[must_use]
    #[inline(always)]
    pub fn is_for(&self, tuple: &FlowKey, device: u32, class: u32) -> bool {
        self.device == device && self.class == class && self.tuple == *tuple
    }

    /// Whether the answer is still good. Another CPU never writes it, so it is never ahead of `now`.
    #[must_use]
    #[inline(always)]
    pub const fn is_fresh(&self, now: Ticks, settings: &NodeSettings) -> bool {
        now.0.wrapping_sub(self.learned.0) < settings.ticks_per_second / Self::PER_SECOND
    }

    /// Makes it one for such packets, whose answer is to be asked for.
    #[inline(always)]
    pub fn renew(&mut self, tuple: &FlowKey, device: u32, class: u32, now: Ticks) {
        self.lookups = if self.is_for(tuple, device, class) { self.lookups.wrapping_add(1) } else { 0 };
        self.tuple = *tuple;
        self.device = device;
        self.class = class;
        self.learned = now;
    }

    /// Whether the packet that the answer was asked for goes through the stack.
    #[must_use]
    #[inline(always)]
    pub const fn is_for_stack(&self) -> bool {
        self.lookups % Self::UNTIL_STACK == Self::UNTIL_STACK - 1
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::{
        endian::Be16,
        tuple::{Endpoint, Hook, Protocol},
    };

    fn tuple(port: u16) -> FlowKey {
        let end = |last, port| Endpoint {
            address: Addr::from_v4_wire([10, 244, 0, last]),
            port: Be16::from_host(port),
        };
        FlowKey::new(end(1, port), end(2, 80), Protocol::TCP, Hook::EGRESS)
    }

    #[test]
    fn an_answer_holds_for_its_question_and_for_a_tenth_of_a_second() {
        let settings = NodeSettings::new(250);
        let learned = Ticks(u32::MAX - 9);
        let mut route = Route::default();
        route.renew(&tuple(1), 2, 3, learned);
        for (ticks, expected) in [(0, true), (24, true), (25, false), (u32::MAX, false)] {
            let now = Ticks(learned.0.wrapping_add(ticks));
            assert_eq!(route.is_fresh(now, &settings), expected, "{ticks}");
        }
        assert!(route.is_for(&tuple(1), 2, 3));
        assert!(
            !route.is_for(&tuple(9), 2, 3)
                && !route.is_for(&tuple(1), 9, 3)
                && !route.is_for(&tuple(1), 2, 9)
        );
    }

    #[test]
    fn the_stack_sees_a_packet_now_and_then_but_never_the_first() {
        let mut route = Route::default();
        let mut seen = 0;
        for _ in 0..1280 {
            route.renew(&tuple(1), 2, 3, Ticks(0));
            seen += u32::from(route.is_for_stack());
        }
        assert_eq!(seen, 10);
        route.renew(&tuple(2), 2, 3, Ticks(0));
        assert!(!route.is_for_stack());
    }

    #[test]
    fn clients_ports_spread_over_the_cache() {
        let indices: HashSet<_> =
            (0..ROUTES).map(|n| index(&tuple(u16::try_from(n).unwrap() + 20_000))).collect();
        // 2,048 balls in 2,048 bins leave about 1,295 bins hit.
        assert!(indices.len() > 1_200, "only {} indices", indices.len());
        assert!(indices.iter().all(|&index| index < ROUTES));
    }
}
