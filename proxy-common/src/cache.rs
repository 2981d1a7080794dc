//! The cache of flows: what each CPU has lately decided for packets of a tuple, in front of the flow table.
//!
//! A lookup in a hash table is most of what a packet of a running flow costs; one here is an index. Only what a running flow
//! makes of its packets is remembered, and only for a moment, so that the flow table goes on hearing of the flow. It holds
//! as long as nobody changes the flow: each tuple has a word, its epoch, which becomes another number after every change of a tuple
//! that shares it. An answer is remembered with the epoch that was read *before* the flow was looked up, so a change in
//! between makes it void.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    addr::Addr,
    backend::{BackendId, Generation},
    config::NodeSettings,
    endian::Be16,
    flow::{Direction, FlowFlags, FlowHead, FlowState},
    frontend::ServiceId,
    lb::Translation,
    time::Ticks,
    tuple::{Endpoint, FlowKey},
};

/// Entries in a page: value of a table. Pages are few, so that the kernel's pointers to them stay near.
pub const PAGE: usize = 128;

/// Pages. With 96 bytes an entry, each CPU has 768 KiB of them.
pub const PAGES: u32 = 64;

/// Epochs, which all CPUs share.
pub const EPOCHS: u32 = 4096;

/// Hash of a tuple, for this node alone. It keeps nobody from choosing tuples that meet in one place: they would cost each
/// other the time that a lookup in the flow table takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct TupleHash(u64);

impl TupleHash {
    /// Of a tuple at a hook.
    #[must_use]
    #[inline(always)]
    pub const fn of(key: &FlowKey) -> Self {
        const fn fold(address: Addr) -> u64 {
            let [a, b, c, d] = address.words();
            ((a ^ c) as u64) << 32 | (b ^ d) as u64
        }
        let ports = (key.source_port.raw() as u64) << 16 | key.destination_port.raw() as u64;
        let kind = (key.protocol.0 as u64) << 8 | key.hook.number() as u64;
        // What changes in addresses of IPv4 lies in other bits than ports do.
        let mixed = (fold(key.source) ^ ports << 32 ^ kind << 16).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self((mixed ^ mixed >> 32 ^ fold(key.destination)).wrapping_mul(0xff51_afd7_ed55_8ccd))
    }

    /// Where a cache of so many pages, a power of two, has the tuple.
    #[must_use]
    #[inline(always)]
    pub const fn place(self, pages: u32) -> Place {
        let top = self.0 >> 44;
        Place { page: (top >> 7) as u32 & (pages - 1), at: top as usize & (PAGE - 1) }
    }

    /// Index of the tuple's epoch, less than [`EPOCHS`].
    #[must_use]
    #[inline(always)]
    pub const fn epoch(self) -> u32 {
        (self.0 >> 32) as u32 & (EPOCHS - 1)
    }
}

/// Where the cache has a tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Index of the page.
    pub page: u32,
    /// Position within it, less than [`PAGE`].
    pub at: usize,
}

/// How long an answer holds; nothing if the clock is too slow to tell.
#[must_use]
#[inline(always)]
pub const fn lifetime(settings: &NodeSettings) -> Ticks {
    const PER_SECOND: u32 = 10;
    Ticks(settings.ticks_per_second / PER_SECOND)
}

/// Whether a flow whose last packet was so long ago is busy enough to be remembered: nine of ten of its packets will be answered
/// from memory then. Slow ones would take places from others and find themselves forgotten.
#[must_use]
#[inline(always)]
pub const fn is_busy(silent: Ticks, settings: &NodeSettings) -> bool {
    silent.0 <= lifetime(settings).0 / 8
}

/// What holds an answer up, and what else its packets leave behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Ground {
    /// The tuple's epoch before the flow was looked up.
    pub epoch: u32,
    /// When that was.
    pub learned: Ticks,
    /// How long the answer holds.
    pub lifetime: Ticks,
    /// Whose packets are counted.
    pub service: ServiceId,
    /// The flow's backend.
    pub backend: BackendId,
    /// Generation of that backend.
    pub generation: Generation,
    /// The flow's state.
    pub state: FlowState,
    /// The direction that the tuple is of.
    pub direction: Direction,
    /// Facts about it.
    pub flags: FlowFlags,
    /// Always zero.
    pub reserved: u8,
}

impl Ground {
    /// Of a flow that is looked up now.
    #[must_use]
    #[inline(always)]
    pub const fn new(head: &FlowHead, epoch: u32, now: Ticks, lifetime: Ticks) -> Self {
        let FlowHead { backend, generation, service, state, direction, flags, .. } = *head;
        Self {
            epoch,
            learned: now,
            lifetime,
            service,
            backend,
            generation,
            state,
            direction,
            flags,
            reserved: 0,
        }
    }

    /// Whether the answer is recent enough. Another CPU never writes it, so it is never ahead of `now`; one that is left lying
    /// for 2^32 ticks looks recent for as long as it once was.
    #[must_use]
    #[inline(always)]
    pub const fn is_fresh(&self, now: Ticks) -> bool {
        now.0.wrapping_sub(self.learned.0) < self.lifetime.0
    }
}

/// What packets of a tuple become, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What they become.
    pub translation: Translation,
    /// Why.
    pub ground: Ground,
}

impl Answer {
    /// To packets that get this end and this port at their other one.
    #[must_use]
    #[inline(always)]
    pub const fn new(end: Endpoint, other_port: Be16, ground: Ground) -> Self {
        Self { translation: Translation::with(end, other_port, ground.flags), ground }
    }
}

/// An answer with its question. 96 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CachedFlow {
    /// Odd while the entry is being written. Who reads an entry looks before and after: one that has changed is none.
    pub version: u64,
    /// The tuple.
    pub key: FlowKey,
    /// Address that packets get.
    pub address: Addr,
    /// Port that they get with it, network byte order.
    pub port: Be16,
    /// Port that they get at their other end, network byte order.
    pub other_port: Be16,
    /// Why the answer is right.
    pub ground: Ground,
}

impl CachedFlow {
    /// Whether an answer for another tuple may take its place. One that holds stays for its time: many flows in turn would
    /// else have each other's places without ever being found there.
    #[must_use]
    #[inline(always)]
    pub fn gives_way(&self, key: &FlowKey, now: Ticks) -> bool {
        !self.ground.is_fresh(now) || self.key == *key
    }

    /// What it says.
    #[must_use]
    #[inline(always)]
    pub const fn answer(&self) -> Answer {
        let end = Endpoint { address: self.address, port: self.port };
        Answer::new(end, self.other_port, self.ground)
    }

    /// An entry that says this.
    #[must_use]
    #[inline(always)]
    pub const fn new(version: u64, key: FlowKey, answer: &Answer) -> Self {
        let Answer { translation: Translation { end, other_port, .. }, ground } = *answer;
        Self { version, key, address: end.address, port: end.port, other_port, ground }
    }
}

/// Some of what a CPU remembers; value of the cache of flows. 12 KiB, of the 32 that a value per CPU may have at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CachePage {
    /// Entries by position.
    pub entries: [CachedFlow; PAGE],
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, vec::Vec};

    use super::*;
    use crate::tuple::{Hook, Protocol};

    fn end(last: u8, port: u16) -> Endpoint {
        Endpoint { address: Addr::from_v4_wire([10, 244, 0, last]), port: Be16::from_host(port) }
    }

    fn key(port: u16) -> FlowKey {
        FlowKey::new(end(1, port), end(2, 80), Protocol::TCP, Hook::EGRESS)
    }

    #[test]
    fn an_answer_holds_for_a_tenth_of_a_second() {
        let learned = Ticks(u32::MAX - 9);
        let lifetime = lifetime(&NodeSettings::new(250));
        let ground = Ground::new(&FlowHead::default(), 7, learned, lifetime);
        for (ticks, expected) in [(0, true), (24, true), (25, false), (u32::MAX, false)] {
            assert_eq!(ground.is_fresh(Ticks(learned.0.wrapping_add(ticks))), expected, "{ticks}");
        }
    }

    #[test]
    fn an_answer_that_holds_keeps_its_place_against_other_tuples() {
        let ground = Ground::new(&FlowHead::default(), 7, Ticks(100), Ticks(10));
        let translation =
            Translation { end: end(3, 8080), other_port: Be16::from_host(9), masquerade: false, dsr: false };
        let answer = Answer { translation, ground };
        let entry = CachedFlow::new(2, key(1), &answer);
        assert_eq!(entry.answer(), answer);
        for (port, now, expected) in [(1, 100, true), (2, 109, false), (2, 110, true)] {
            assert_eq!(entry.gives_way(&key(port), Ticks(now)), expected, "{port} {now}");
        }
        assert!(CachedFlow::default().gives_way(&key(1), Ticks(0)), "what was never written is no answer");
    }

    /// 8,192 balls in 8,192 bins leave about 5,178 bins hit, and in 4,096 bins about 3,542; deviations are 35 and 20.
    #[test]
    fn what_clients_do_spreads_over_places_and_epochs() {
        let v6 = |n: u32| {
            let address = Addr::from_v6_words([0xb80d_0120, 0, 0, n.to_be()]);
            FlowKey { source: address, destination: Addr::from_v6_words([0xfd, 0, 0, 10]), ..key(40_000) }
        };
        let at = |n: u32, port| {
            let [_, b, c, d] = n.to_be_bytes();
            FlowKey { source: Addr::from_v4_wire([10, b, c, d]), ..key(port) }
        };
        let all = || 0..8192u32;
        let port = |n: u32| u16::try_from(20_000 + n).unwrap();
        let clients: [(&str, Vec<FlowKey>); 5] = [
            ("ports", all().map(|n| key(port(n))).collect()),
            ("hosts", all().map(|n| at(n, 40_000)).collect()),
            ("both", all().map(|n| at(n / 7, port(n % 7))).collect()),
            ("IPv6 hosts", all().map(v6).collect()),
            ("answers", all().map(|n| FlowKey { hook: Hook::INGRESS, ..key(port(n)).reversed() }).collect()),
        ];
        for (name, keys) in clients {
            let hashes: Vec<_> = keys.iter().map(TupleHash::of).collect();
            let places: HashSet<_> = hashes.iter().map(|hash| hash.place(PAGES)).collect();
            let epochs: HashSet<_> = hashes.iter().map(|hash| hash.epoch()).collect();
            assert!(
                places.len() > 5_000 && epochs.len() > 3_440,
                "{name}: {} {}",
                places.len(),
                epochs.len()
            );
            assert!(
                places.iter().all(|place| place.page < PAGES && place.at < PAGE)
                    && epochs.iter().all(|&epoch| epoch < EPOCHS)
            );
        }
    }

    #[test]
    fn protocols_and_hooks_do_not_meet() {
        let hashes: HashSet<_> = [Protocol::TCP, Protocol::UDP, Protocol::SCTP]
            .into_iter()
            .flat_map(|protocol| {
                [Hook::INGRESS, Hook::EGRESS].map(|hook| FlowKey { protocol, hook, ..key(1) })
            })
            .map(|key| TupleHash::of(&key).place(PAGES))
            .collect();
        assert_eq!(hashes.len(), 6);
    }
}
