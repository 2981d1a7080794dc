//! The slots of one service port: a run for each of its sets of backends, and for each way to choose of them.

use proxy_common::{
    backend::{BackendFlags, BackendId},
    frontend::{FrontendFlags, SlotRun},
    tables::{Slots, Table as _},
};

use crate::{
    error::Misfit,
    ids::Run,
    io::TablesIo,
    policy::BackendSelection,
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

    /// The flag of the backends in it.
    pub(crate) const fn flag(self) -> BackendFlags {
        match self {
            Self::Cluster => BackendFlags::CLUSTER_SET,
            Self::Local => BackendFlags::LOCAL_SET,
        }
    }
}

/// How the backends of a set stand in slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Roster {
    pub(crate) set: Set,
    pub(crate) selection: BackendSelection,
}

impl Roster {
    /// For each set, each way.
    pub(crate) const ALL: [Self; 2 * Set::ALL.len()] = [
        Self { set: Set::Cluster, selection: BackendSelection::Random },
        Self { set: Set::Local, selection: BackendSelection::Random },
        Self { set: Set::Cluster, selection: BackendSelection::Maglev },
        Self { set: Set::Local, selection: BackendSelection::Maglev },
    ];

    /// Where a frontend with these flags leads its clients, and those outside the cluster if they are set apart; or those whom
    /// other nodes have led to a backend on this one.
    pub(crate) const fn of_frontend(flags: FrontendFlags) -> (Self, Option<Self>) {
        let selection = if flags.contains(FrontendFlags::MAGLEV) {
            BackendSelection::Maglev
        } else {
            BackendSelection::Random
        };
        let set = if flags.contains(FrontendFlags::LOCAL_SET) { Set::Local } else { Set::Cluster };
        let outside = if flags.contains(FrontendFlags::BY_ORIGIN) {
            Some(Self { set: Set::Local, selection })
        } else if flags.contains(FrontendFlags::DSR) {
            Some(Self { set: Set::Local, selection: BackendSelection::Random })
        } else {
            None
        };
        (Self { set, selection }, outside)
    }

    const fn index(self) -> usize {
        self.set as usize + Set::ALL.len() * self.selection as usize
    }
}

/// For each of [`Roster::ALL`], its own.
pub(crate) type ByRoster<T> = [T; Roster::ALL.len()];

/// The runs of one service port.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    /// Those that its frontends should lead to; `None` if those of an earlier run of the agent made no sense.
    present: ByRoster<Option<Run>>,
    /// Those that its frontends led to, or still do.
    old: Vec<Run>,
}

impl Runs {
    /// Goes on with a run that an earlier run of the agent wrote for the roster, or lets go of it once no frontend leads
    /// there: nothing may overwrite it before.
    pub(crate) fn adopt(&mut self, roster: Roster, run: Run, serves: bool) {
        let present = &mut self.present[roster.index()];
        if serves && present.is_none() {
            *present = Some(run);
        } else {
            self.old.push(run);
        }
    }

    /// Whether the roster has this very run.
    pub(crate) fn is_present(&self, roster: Roster, run: Run) -> bool {
        self.present[roster.index()] == Some(run)
    }

    /// The slots of a roster, as a frontend names them.
    pub(crate) fn slots(&self, roster: Roster) -> SlotRun {
        let run = self.present[roster.index()].unwrap_or(Run::EMPTY);
        SlotRun { base: run.base, count: run.len }
    }

    /// Finds room for these rosters: the present runs where they hold just that, new ones elsewhere. All or nothing.
    pub(crate) fn prepare(
        &self,
        rosters: &ByRoster<Vec<BackendId>>,
        tables: &mut Tables,
    ) -> Result<ByRoster<Run>, Misfit> {
        let mut runs = [Run::EMPTY; Roster::ALL.len()];
        for roster in Roster::ALL {
            let ids = &rosters[roster.index()];
            let same = |run: &Run| tables.contents(*run).eq(ids.iter().copied().map(Some));
            runs[roster.index()] = match self.present[roster.index()].filter(same) {
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

    fn put_back(&self, runs: ByRoster<Run>, tables: &mut Tables) {
        for roster in Roster::ALL {
            let run = runs[roster.index()];
            if !self.is_present(roster, run) {
                tables.slot_space.put_back(run);
            }
        }
    }

    /// Sets what was prepared.
    pub(crate) fn aim(
        &mut self,
        runs: ByRoster<Run>,
        rosters: &ByRoster<Vec<BackendId>>,
        tables: &mut Tables,
    ) {
        for roster in Roster::ALL {
            let run = runs[roster.index()];
            if self.is_present(roster, run) {
                continue;
            }
            if let Some(old) = self.present[roster.index()].replace(run) {
                tables.abandon_slots(old);
                self.old.push(old);
            }
            for (slot, &id) in run.indices().zip(&rosters[roster.index()]) {
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
