//! Shortcuts past the stack: what packets of a tuple become between the device that they come by and the one that they leave by,
//! as each CPU remembers it for a moment.
//!
//! One entry holds what two lookups in the flow table and a question to the kernel's routing have said. It stands on the same
//! ground as an entry of [`cache`](crate::cache), once for each of the two hooks that it stands for.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    addr::Addr,
    bits::bit_set,
    cache::{Ground, PAGE, TupleHash},
    endian::Be16,
    route::Way,
    tuple::{Endpoint, FlowKey},
};

/// Pages of [`PAGE`] entries. With 176 bytes each, each CPU has 352 KiB of them.
pub const PAGES: u32 = 16;

/// Facts about a shortcut, as bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct ShortcutFlags(pub u16);

impl ShortcutFlags {
    /// Both hooks rewrite such packets. Without it the entry says that the stack is to see them.
    pub const THROUGH: Self = Self(1);
}

bit_set!(ShortcutFlags, ["through"]);

/// What becomes of packets with a tuple, that come by a device, and want to be treated in one way. 176 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Shortcut {
    /// Their tuple as they come.
    pub key: FlowKey,
    /// Number of the device that they come by.
    pub device: u32,
    /// Type of service, or traffic class and flow label, as the packets have them.
    pub class: u32,
    /// Hash of their tuple in between, as it is routed.
    pub routed: TupleHash,
    /// Address that they come from when they leave.
    pub source: Addr,
    /// Address that they go to then.
    pub destination: Addr,
    /// Port that they come from then, network byte order.
    pub source_port: Be16,
    /// Port that they go to then, network byte order.
    pub destination_port: Be16,
    /// Facts about it.
    pub flags: ShortcutFlags,
    /// How often it was looked up in a row.
    pub lookups: u16,
    /// What the answers of the ingress hook and of the egress hook stand on.
    pub grounds: [Ground; 2],
    /// Where they leave.
    pub way: Way,
}

impl Shortcut {
    /// Every so many lookups, a packet goes through the stack: it alone looks whether neighbours are still who they were.
    const UNTIL_STACK: u16 = 128;

    /// Whether it is for such packets.
    #[must_use]
    #[inline(always)]
    pub fn is_for(&self, key: &FlowKey, device: u32, class: u32) -> bool {
        self.device == device && self.class == class && self.key == *key
    }

    /// Makes it one for such packets, of which nothing is known yet.
    #[inline(always)]
    pub fn renew(&mut self, key: &FlowKey, device: u32, class: u32) {
        self.lookups = if self.is_for(key, device, class) { self.lookups.wrapping_add(1) } else { 0 };
        self.key = *key;
        self.device = device;
        self.class = class;
        self.grounds = [Ground::default(); 2];
        self.flags = ShortcutFlags::default();
        self.way = Way::default();
    }

    /// Whether the packet that it was looked up for goes through the stack.
    #[must_use]
    #[inline(always)]
    pub const fn is_for_stack(&self) -> bool {
        self.lookups % Self::UNTIL_STACK == Self::UNTIL_STACK - 1
    }

    /// The source that packets get.
    #[must_use]
    #[inline(always)]
    pub const fn source_end(&self) -> Endpoint {
        Endpoint { address: self.source, port: self.source_port }
    }

    /// The destination that they get.
    #[must_use]
    #[inline(always)]
    pub const fn destination_end(&self) -> Endpoint {
        Endpoint { address: self.destination, port: self.destination_port }
    }
}

/// Shortcuts that lie together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ShortcutPage {
    /// By position.
    pub entries: [Shortcut; PAGE],
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tuple::{Hook, Protocol};

    fn key(port: u16) -> FlowKey {
        let end = |last, port| Endpoint {
            address: Addr::from_v4_wire([10, 244, 0, last]),
            port: Be16::from_host(port),
        };
        FlowKey::new(end(1, port), end(2, 80), Protocol::TCP, Hook::INGRESS)
    }

    #[test]
    fn one_is_for_its_question_and_nothing_is_known_at_first() {
        let mut shortcut = Shortcut {
            flags: ShortcutFlags::THROUGH,
            way: Way { device: 9, ..Way::default() },
            grounds: [Ground { lifetime: crate::time::Ticks(9), ..Ground::default() }; 2],
            ..Shortcut::default()
        };
        shortcut.renew(&key(1), 2, 3);
        assert!(shortcut.is_for(&key(1), 2, 3));
        for (key, device, class) in [(key(9), 2, 3), (key(1), 9, 3), (key(1), 2, 9)] {
            assert!(!shortcut.is_for(&key, device, class), "{key:?} {device} {class}");
        }
        assert_eq!((shortcut.flags, shortcut.grounds, shortcut.way), Default::default());
    }

    #[test]
    fn the_stack_sees_a_packet_now_and_then_but_never_the_first() {
        let mut shortcut = Shortcut::default();
        let mut seen = 0;
        for _ in 0..1280 {
            shortcut.renew(&key(1), 2, 3);
            seen += u32::from(shortcut.is_for_stack());
        }
        assert_eq!(seen, 10);
        shortcut.renew(&key(2), 2, 3);
        assert!(!shortcut.is_for_stack());
    }
}
