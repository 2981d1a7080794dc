//! The slots of one service port: a run for each of its sets of backends.

use proxy_common::{
    backend::{BackendFlags, BackendId},
    frontend::{FrontendFlags, SlotRun},
    tables::{Slots, Table as _},
};

use crate::{
    error::Misfit,
    ids::Run,
    io::TablesIo,
    tables::{Failure, Tables, write},
};

/// A set of backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Set {
    /// On any node (SEL-02, SEL-03).
    Cluster = 0,
    /// On this node (SEL-04).
    Local = 1,
}

impl Set {
    pub(crate) const ALL: [Self; 2] = [Self::Cluster, Self::Local];

    /// The sets that a frontend with these flags leads to: for its clients, and for those outside the cluster if they
    /// are set apart.
    pub(crate) const fn of_frontend(flags: FrontendFlags) -> (Self, Option<Self>) {
        let inside = if flags.contains(FrontendFlags::LOCAL_SET) { Self::Local } else { Self::Cluster };
        (inside, if flags.contains(FrontendFlags::BY_ORIGIN) { Some(Self::Local) } else { None })
    }

    /// The flag of the backends in it.
    pub(crate) const fn flag(self) -> BackendFlags {
        match self {
            Self::Cluster => BackendFlags::CLUSTER_SET,
            Self::Local => BackendFlags::LOCAL_SET,
        }
    }
}

/// For each set, its own. Indexed by `Set as usize`.
pub(crate) type BySet<T> = [T; Set::ALL.len()];

/// The runs of one service port.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    /// Those that its frontends should lead to; `None` if those of an earlier run of the agent made no sense.
    present: BySet<Option<Run>>,
    /// Those that its frontends led to, or still do.
    old: Vec<Run>,
}

impl Runs {
    /// Goes on with a run that an earlier run of the agent wrote for the set, or lets go of it once no frontend leads
    /// there: nothing may overwrite it before.
    pub(crate) fn adopt(&mut self, set: Set, run: Run, serves: bool) {
        let present = &mut self.present[set as usize];
        if serves && present.is_none() {
            *present = Some(run);
        } else {
            self.old.push(run);
        }
    }

    /// Whether the set has this very run.
    pub(crate) fn is_present(&self, set: Set, run: Run) -> bool {
        self.present[set as usize] == Some(run)
    }

    /// The slots of a set, as a frontend names them.
    pub(crate) fn slots(&self, set: Set) -> SlotRun {
        let run = self.present[set as usize].unwrap_or(Run::EMPTY);
        SlotRun { base: run.base, count: run.len }
    }

    /// Finds room for these sets: the present runs where they hold just that, new ones elsewhere. All or nothing.
    pub(crate) fn prepare(
        &self,
        sets: &BySet<Vec<BackendId>>,
        tables: &mut Tables,
    ) -> Result<BySet<Run>, Misfit> {
        let mut runs = [Run::EMPTY; Set::ALL.len()];
        for set in Set::ALL {
            let ids = &sets[set as usize];
            let same = |run: &Run| tables.contents(*run).eq(ids.iter().copied().map(Some));
            runs[set as usize] = match self.present[set as usize].filter(same) {
                Some(run) => run,
                None => {
                    let wanted = ids.len();
                    let Some(run) = tables.slot_space.take(u32::try_from(wanted).unwrap_or(u32::MAX)) else {
                        self.put_back(runs, tables);
                        return Err(Misfit::NoRoom { table: Slots::NAME, wanted });
                    };
                    run
                }
            };
        }
        Ok(runs)
    }

    fn put_back(&self, runs: BySet<Run>, tables: &mut Tables) {
        for set in Set::ALL {
            let run = runs[set as usize];
            if !self.is_present(set, run) {
                tables.slot_space.put_back(run);
            }
        }
    }

    /// Sets what was prepared.
    pub(crate) fn aim(&mut self, runs: BySet<Run>, sets: &BySet<Vec<BackendId>>, tables: &mut Tables) {
        for set in Set::ALL {
            let run = runs[set as usize];
            if self.is_present(set, run) {
                continue;
            }
            if let Some(old) = self.present[set as usize].replace(run) {
                tables.abandon_slots(old);
                self.old.push(old);
            }
            for (slot, &id) in run.indices().zip(&sets[set as usize]) {
                tables.slots.want(slot, id);
            }
        }
    }

    /// Writes the slots.
    pub(crate) fn install<I: TablesIo>(
        &self,
        tables: &mut Tables,
        io: &mut I,
    ) -> Result<(), Failure<I::Error>> {
        let mut slots = self.present.iter().flatten().flat_map(|run| run.indices());
        slots.try_for_each(|slot| write(&mut tables.slots, slot, io))
    }

    /// The runs that no frontend leads to any more.
    pub(crate) fn take_old(&mut self) -> impl Iterator<Item = Run> {
        self.old.drain(..)
    }
}
