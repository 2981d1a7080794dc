//! Numbers to give away: service ids, backend ids, and runs of slots.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    marker::PhantomData,
    time::Duration,
};

use proxy_common::{backend::BackendId, frontend::ServiceId};

/// How long a number rests before it is given away again, so that a program which read it from a table just before
/// it was replaced there has long finished its packet.
pub(crate) const GRACE: Duration = Duration::from_secs(1);

/// Neighbouring numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Run {
    /// The first.
    pub(crate) base: u32,
    /// How many.
    pub(crate) len: u32,
}

impl Run {
    /// No numbers at all.
    pub(crate) const EMPTY: Self = Self { base: 0, len: 0 };

    /// The numbers.
    pub(crate) fn indices(self) -> impl Iterator<Item = u32> {
        self.base..self.base.saturating_add(self.len)
    }

    fn end(self) -> Option<u32> {
        self.base.checked_add(self.len)
    }
}

/// The numbers below a capacity, each given away, resting, or free.
///
/// The free ones are kept as runs that never touch each other. The shortest run that suffices is split, which keeps
/// long runs for those who need them; every operation takes logarithmic time.
#[derive(Debug)]
pub(crate) struct Space {
    /// Length of each free run by its base.
    by_base: BTreeMap<u32, u32>,
    /// The same runs as (length, base).
    by_len: BTreeSet<(u32, u32)>,
    /// Released runs, oldest first, and when they were released.
    resting: VecDeque<(Duration, Run)>,
    /// How many numbers are not free.
    used: u32,
}

impl Space {
    /// All numbers below `capacity` are free.
    pub(crate) fn new(capacity: u32) -> Self {
        let (by_base, by_len, resting) = (BTreeMap::new(), BTreeSet::new(), VecDeque::new());
        let mut space = Self { by_base, by_len, resting, used: capacity };
        space.insert(Run { base: 0, len: capacity });
        space
    }

    /// Gives away `len` neighbouring numbers.
    pub(crate) fn take(&mut self, len: u32) -> Option<Run> {
        if len == 0 {
            return Some(Run::EMPTY);
        }
        let &(_, base) = self.by_len.range((len, 0)..).next()?;
        self.claim(Run { base, len })
    }

    /// Gives away these very numbers, if all are free.
    pub(crate) fn claim(&mut self, run: Run) -> Option<Run> {
        if run.len == 0 {
            return Some(run);
        }
        let end = run.end()?;
        let (&base, &len) = self.by_base.range(..=run.base).next_back()?;
        let free_end = base.checked_add(len)?;
        if end > free_end {
            return None;
        }
        self.remove(Run { base, len });
        self.insert(Run { base, len: run.base - base });
        self.insert(Run { base: end, len: free_end - end });
        Some(run)
    }

    /// Takes back numbers that no program ever saw; they are free at once.
    pub(crate) fn put_back(&mut self, run: Run) {
        let mut merged = run;
        if let Some((&base, &len)) = self.by_base.range(..run.base).next_back()
            && base.checked_add(len) == Some(run.base)
        {
            self.remove(Run { base, len });
            merged = Run { base, len: len + run.len };
        }
        if let Some(end) = run.end()
            && let Some(&len) = self.by_base.get(&end)
            && run.len > 0
        {
            self.remove(Run { base: end, len });
            merged.len += len;
        }
        self.insert(merged);
    }

    /// Takes back numbers; they rest first.
    pub(crate) fn release(&mut self, run: Run, now: Duration) {
        if run.len > 0 {
            self.resting.push_back((now, run));
        }
    }

    /// Frees what has rested long enough. Returns whether there was anything.
    pub(crate) fn settle(&mut self, now: Duration) -> bool {
        let mut any = false;
        while let Some(&(since, run)) = self.resting.front()
            && now.saturating_sub(since) >= GRACE
        {
            self.resting.pop_front();
            self.put_back(run);
            any = true;
        }
        any
    }

    /// How many numbers are given away or rest.
    pub(crate) const fn used(&self) -> u32 {
        self.used
    }

    fn insert(&mut self, run: Run) {
        if run.len > 0 {
            self.by_base.insert(run.base, run.len);
            self.by_len.insert((run.len, run.base));
            self.used -= run.len;
        }
    }

    fn remove(&mut self, run: Run) {
        self.used += run.len;
        self.by_base.remove(&run.base);
        self.by_len.remove(&(run.len, run.base));
    }
}

/// An index into a table that has a type of its own.
pub(crate) trait Id: Copy {
    fn new(index: u32) -> Self;
    fn index(self) -> u32;
}

impl Id for ServiceId {
    fn new(index: u32) -> Self {
        Self(index)
    }

    fn index(self) -> u32 {
        self.0
    }
}

impl Id for BackendId {
    fn new(index: u32) -> Self {
        Self(index)
    }

    fn index(self) -> u32 {
        self.0
    }
}

/// A [`Space`] of ids.
#[derive(Debug)]
pub(crate) struct Ids<I> {
    space: Space,
    id: PhantomData<I>,
}

impl<I: Id> Ids<I> {
    pub(crate) fn new(capacity: u32) -> Self {
        Self { space: Space::new(capacity), id: PhantomData }
    }

    /// Gives away `count` ids, or none.
    pub(crate) fn take(&mut self, count: usize) -> Option<Vec<I>> {
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            match self.space.take(1) {
                Some(run) => taken.push(I::new(run.base)),
                None => {
                    taken.into_iter().for_each(|id| self.put_back(id));
                    return None;
                }
            }
        }
        Some(taken)
    }

    /// Gives away this very id, if it is free.
    pub(crate) fn claim(&mut self, id: I) -> Option<I> {
        self.space.claim(one(id)).map(|_| id)
    }

    /// Takes back an id that no program ever saw.
    pub(crate) fn put_back(&mut self, id: I) {
        self.space.put_back(one(id));
    }

    /// Takes back an id; it rests first.
    pub(crate) fn release(&mut self, id: I, now: Duration) {
        self.space.release(one(id), now);
    }

    /// Frees what has rested long enough. Returns whether there was anything.
    pub(crate) fn settle(&mut self, now: Duration) -> bool {
        self.space.settle(now)
    }

    /// How many ids are given away or rest.
    pub(crate) const fn used(&self) -> u32 {
        self.space.used()
    }
}

fn one<I: Id>(id: I) -> Run {
    Run { base: id.index(), len: 1 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn released_numbers_rest_before_they_come_back() {
        let mut space = Space::new(4);
        let run = space.take(4).unwrap();
        space.release(run, Duration::from_secs(10));
        assert!(!space.settle(Duration::from_millis(10_999)));
        assert_eq!(space.take(1), None);
        assert!(space.settle(Duration::from_secs(11)));
        assert_eq!(space.take(4), Some(Run { base: 0, len: 4 }));
    }

    #[test]
    fn neighbouring_runs_grow_together() {
        let mut space = Space::new(6);
        let runs: Vec<Run> = (0..3).map(|_| space.take(2).unwrap()).collect();
        for at in [0, 2, 1] {
            space.put_back(runs[at]);
        }
        assert_eq!(space.take(6), Some(Run { base: 0, len: 6 }));
    }

    #[test]
    fn only_free_numbers_can_be_claimed() {
        let mut space = Space::new(10);
        assert!(space.claim(Run { base: 4, len: 2 }).is_some());
        for (base, len) in [(5, 1), (3, 2), (0, 10), (9, 2), (10, 1), (u32::MAX, 2), (0, u32::MAX)] {
            assert_eq!(space.claim(Run { base, len }), None, "{base}+{len}");
        }
        assert!(space.claim(Run { base: 6, len: 4 }).is_some());
        assert_eq!(space.take(5), None);
        assert!(space.take(4).is_some());
    }

    #[test]
    fn ids_are_taken_together_or_not_at_all() {
        let mut ids = Ids::<BackendId>::new(3);
        assert_eq!(ids.take(4), None);
        assert_eq!(ids.take(3), Some(vec![BackendId(0), BackendId(1), BackendId(2)]));
    }

    proptest! {
        #[test]
        fn no_number_is_ever_given_away_twice(steps in prop::collection::vec((0u32..12, any::<prop::sample::Index>()), 1..200)) {
            let mut space = Space::new(64);
            let mut owned: Vec<Run> = Vec::new();
            for (len, pick) in steps {
                if len < 4 && !owned.is_empty() {
                    space.put_back(owned.swap_remove(pick.index(owned.len())));
                } else if let Some(run) = space.take(len) {
                    owned.push(run);
                }
                let mut used = [0; 64];
                owned.iter().flat_map(|run| run.indices()).for_each(|at| used[at as usize] += 1);
                prop_assert!(used.iter().all(|&times| times <= 1));
                let free: u32 = space.by_base.values().sum();
                prop_assert_eq!(free as usize, used.iter().filter(|&&times| times == 0).count());
                prop_assert_eq!(space.used(), 64 - free);
                prop_assert!(space.by_base.iter().all(|(base, len)| !space.by_base.contains_key(&(base + len))));
            }
        }
    }
}
