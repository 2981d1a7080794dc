//! Maglev tables: which slot leads to which backend, so that every node comes to the same without asking others, and few
//! clients are led elsewhere when a backend comes or goes (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load
//! Balancer", NSDI 2016, section 3.4).
//!
//! A table is a function of the addresses and ports of its backends: of no id, no order, no history. So is its size, which has
//! to be the same on every node, too.

use std::num::NonZeroU32;

use proxy_common::{hash::murmur3, tuple::Endpoint};

use crate::address::BackendAddress;

/// Sizes of tables, all primes, so that any skip leads through all slots. Few, as another size means another table: clients
/// are led elsewhere as if every backend were new. A hundred slots for each backend keep shares within about a percent of each
/// other (section 5.3); that is what the sizes are enough for up to 10, 163 and 655 backends.
const SIZES: [u32; 3] = [1_021, 16_381, 65_521];

/// Slots for each backend, as long as a size suffices.
const SLOTS_PER_BACKEND: usize = 100;

/// Of where a backend's way through the slots begins.
const OFFSETS: u32 = 0x51c0_7002;

/// Of how far its steps are.
const SKIPS: u32 = 0x51c0_7003;

/// A backend, and how large its share is to be, compared with others'.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) address: BackendAddress,
    pub(crate) weight: NonZeroU32,
}

impl Candidate {
    /// One with the same share as all others.
    pub(crate) const fn equal(address: BackendAddress) -> Self {
        Self { address, weight: NonZeroU32::MIN }
    }
}

/// How many slots a table of so many backends has. One backend needs no more than one.
fn size(backends: usize) -> u32 {
    let suffices = |size: &&u32| **size as usize >= SLOTS_PER_BACKEND * backends;
    match backends {
        0 | 1 => u32::from(backends == 1),
        _ => SIZES.iter().find(suffices).or(SIZES.last()).copied().unwrap_or_default(),
    }
}

/// A way through all slots.
struct Permutation {
    next: u32,
    skip: u32,
}

impl Permutation {
    fn of(address: BackendAddress, size: u32) -> Self {
        let Endpoint { address, port } = address.end();
        let [a, b, c, d] = address.words();
        let hash = |seed| murmur3([a, b, c, d, u32::from(port.to_host()).to_le()], seed);
        Self { next: hash(OFFSETS) % size, skip: hash(SKIPS) % (size - 1) + 1 }
    }

    /// The slot that is reached, from where it goes on.
    fn step(&mut self, size: u32) -> usize {
        let slot = self.next;
        // Twice the largest size is far below 2^32.
        self.next = (slot + self.skip) % size;
        slot as usize
    }
}

/// The backend of each slot. Of more backends than there are slots, some have none.
pub(crate) fn table(mut candidates: Vec<Candidate>) -> Vec<BackendAddress> {
    candidates.sort_unstable_by_key(|candidate| candidate.address);
    candidates.dedup_by_key(|candidate| candidate.address);
    let size = size(candidates.len());
    let (heaviest, first) = match (candidates.iter().map(|c| c.weight.get()).max(), candidates.first()) {
        (Some(heaviest), Some(first)) if size > 1 => (u64::from(heaviest), first.address),
        (_, Some(only)) => return vec![only.address],
        _ => return Vec::new(),
    };
    let mut ways: Vec<_> = candidates.iter().map(|c| (Permutation::of(c.address, size), 0, c)).collect();
    let mut slots = vec![None; size as usize];
    let mut free = slots.len();
    // All take turns, the heaviest every time. Each takes the next slot of its way that nobody has.
    while free > 0 {
        for (way, credit, candidate) in &mut ways {
            *credit += u64::from(candidate.weight.get());
            if *credit < heaviest || free == 0 {
                continue;
            }
            *credit -= heaviest;
            let mut slot = way.step(size);
            while slots[slot].is_some() {
                slot = way.step(size);
            }
            slots[slot] = Some(candidate.address);
            free -= 1;
        }
    }
    slots.into_iter().map(|slot| slot.unwrap_or(first)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn backend(number: u32) -> BackendAddress {
        let [_, b, c, d] = number.to_be_bytes();
        let ip: std::net::IpAddr = if number.is_multiple_of(2) {
            [10, b, c, d].into()
        } else {
            [0xfd00, 0, 0, 0, 0, u16::from(b), u16::from_be_bytes([c, d]), 7].into()
        };
        BackendAddress { ip, port: 8080.try_into().unwrap() }
    }

    fn equal(numbers: impl IntoIterator<Item = u32>) -> Vec<BackendAddress> {
        table(numbers.into_iter().map(|number| Candidate::equal(backend(number))).collect())
    }

    fn shares(slots: &[BackendAddress]) -> BTreeMap<BackendAddress, usize> {
        let mut shares = BTreeMap::new();
        slots.iter().for_each(|address| *shares.entry(*address).or_default() += 1);
        shares
    }

    #[test]
    fn sizes_are_primes_and_leave_a_hundred_slots_to_each_backend() {
        for size in SIZES {
            assert!((2..size).take_while(|n| n * n <= size).all(|n| !size.is_multiple_of(n)), "{size}");
        }
        let sizes = [0, 1, 2, 10, 11, 163, 164, 655, 656, 100_000].map(size);
        assert_eq!(sizes, [0, 1, 1_021, 1_021, 16_381, 16_381, 65_521, 65_521, 65_521, 65_521]);
    }

    /// Nodes of different versions choose alike: this never changes. Computed apart, from the paper's pseudocode.
    #[test]
    fn a_table_is_the_same_for_ever() {
        let slots = equal(0..3);
        let first: Vec<_> = slots
            .iter()
            .take(16)
            .map(|address| (0..3).position(|n| backend(n) == *address).unwrap())
            .collect();
        assert_eq!(first, [0, 1, 1, 0, 2, 1, 2, 0, 1, 1, 2, 0, 1, 1, 2, 1]);
    }

    /// Table 3 of the paper has it at 1 % and less for these numbers.
    #[test]
    fn shares_are_even() {
        for backends in [2, 3, 10, 50, 100, 300] {
            let shares = shares(&equal(0..backends));
            let (least, most) = (shares.values().min().unwrap(), shares.values().max().unwrap());
            assert!(shares.len() == backends as usize && most - least <= 1, "{backends}: {least} to {most}");
        }
    }

    /// Section 5.3: with a hundred slots for each backend, few slots change hands beside those of the one that goes. Seen are
    /// at most 2.5 %.
    #[test]
    fn one_of_many_goes_and_few_others_move() {
        for (backends, allowed) in [(3, 0.01), (10, 0.03), (100, 0.02), (163, 0.02), (600, 0.02)] {
            let whole = equal(0..backends);
            for gone in [0, backends / 2, backends - 1] {
                let rest = equal((0..backends).filter(|number| *number != gone));
                assert_eq!(whole.len(), rest.len());
                let moved =
                    whole.iter().zip(&rest).filter(|(old, new)| old != new && **old != backend(gone)).count();
                let share = moved as f64 / whole.len() as f64;
                assert!(share < allowed, "{gone} of {backends}: {:.2} % moved without need", 100.0 * share);
            }
        }
    }

    #[test]
    fn who_weighs_more_has_more_slots() {
        let weights = [1, 2, 4, 1, 8];
        let weigh = |(number, weight)| Candidate {
            address: backend(number),
            weight: NonZeroU32::new(weight).unwrap(),
        };
        let shares = shares(&table((0..).zip(weights).map(weigh).collect()));
        for (number, weight) in (0..).zip(weights) {
            let (share, due) = (shares[&backend(number)] as f64, 1_021.0 * f64::from(weight) / 16.0);
            assert!((share - due).abs() <= 8.0, "{number}: {share} slots, not {due}");
        }
    }

    #[test]
    fn equal_weights_are_all_the_same() {
        let weigh = |weight: u32| {
            (0..9).map(|n| Candidate { address: backend(n), weight: weight.try_into().unwrap() }).collect()
        };
        assert_eq!(table(weigh(1)), table(weigh(u32::MAX)));
    }

    #[test]
    fn more_backends_than_slots_fill_the_table() {
        assert_eq!(equal(0..70_000).len(), 65_521);
    }

    proptest! {
        #[test]
        fn order_and_repetition_mean_nothing(numbers in prop::collection::vec(0u32..40, 0..30)) {
            let mut sorted = numbers.clone();
            sorted.sort_unstable();
            sorted.dedup();
            let (slots, expected) = (equal(numbers), equal(sorted.iter().copied()));
            prop_assert_eq!(&slots, &expected);
            prop_assert_eq!(shares(&slots).len(), sorted.len());
        }
    }
}
