//! One service port in the tables: what it has, what it is about to have, and what it leaves behind.
//!
//! Every backend id and every slot belongs to one service port, so a service port changes without asking others:
//!
//! ```text
//! aim:      new ids, new run                             in memory; all of it or nothing
//! install:  filter, backends, name -> slots -> frontends   stops at the first failed write
//! retire:   old backends, old runs, name                   once no frontend leads to them
//! ```
//!
//! **Invariant:** between any two writes, a frontend in the kernel leads to a complete run of live backends.

use std::{collections::BTreeMap, mem, time::Duration};

use proxy_common::{
    backend::{Backend, BackendFlags, BackendId},
    filter::AddressRoles,
    frontend::{Frontend, FrontendKey, ServiceId, SlotRun},
    tables::{ServiceTraffic, Table},
};

use crate::{
    address::BackendAddress,
    endpoint::Location,
    error::Misfit,
    ids::Run,
    io::TablesIo,
    select::{Chosen, Target},
    tables::{Failure, Tables, delete, write},
};

/// Backends and their ids.
type Backends = BTreeMap<BackendAddress, BackendId>;

/// A service port that has an id.
#[derive(Debug)]
pub(crate) struct Programmed {
    pub(crate) id: ServiceId,
    pub(crate) counters: Counters,
    /// The backends that it should have.
    pub(crate) live: Backends,
    /// Backends that it had, alive until no frontend leads to them.
    pub(crate) leaving: Backends,
    /// The slots that its frontends should lead to; `None` if those of an earlier run of the agent made no sense.
    pub(crate) run: Option<Run>,
    /// The slots that its frontends led to, or still do.
    pub(crate) old_runs: Vec<Run>,
    /// The frontends that it should have.
    pub(crate) keys: Vec<FrontendKey>,
    /// Frontends that it had, and may still have in the kernel.
    pub(crate) dropped: Vec<FrontendKey>,
}

/// Whether the traffic counters of a service id count for the service port that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counters {
    /// They may still show an earlier service port's traffic.
    Stale,
    /// They do.
    Valid,
}

/// How far a service port got in leaving things behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The tables contain what they should.
    Settled,
    /// A frontend in the kernel still leads to what should go.
    Waiting,
}

impl Programmed {
    /// A service port that has an id and nothing else yet.
    pub(crate) const fn new(id: ServiceId, counters: Counters) -> Self {
        Self {
            id,
            counters,
            live: BTreeMap::new(),
            leaving: BTreeMap::new(),
            run: None,
            old_runs: Vec::new(),
            keys: Vec::new(),
            dropped: Vec::new(),
        }
    }

    /// Whether it should not be in the tables at all.
    pub(crate) fn is_unwanted(&self) -> bool {
        self.keys.is_empty()
    }

    /// Sets what it should have: these frontends, all with this target. If that does not fit, nothing changes.
    /// The caller decides what becomes of frontends that are no longer among `keys`.
    pub(crate) fn aim(
        &mut self,
        keys: &[FrontendKey],
        target: &Target,
        tables: &mut Tables,
    ) -> Result<(), Misfit> {
        let known =
            |address: &BackendAddress| self.live.get(address).or_else(|| self.leaving.get(address)).copied();
        let missing: Vec<BackendAddress> =
            target.backends.keys().filter(|address| known(address).is_none()).copied().collect();
        let new =
            tables.backend_ids.take(missing.len()).ok_or(Misfit::NoBackendId { wanted: missing.len() })?;
        let new: Backends = missing.into_iter().zip(new).collect();
        let mut live = new.clone();
        live.extend(target.backends.keys().filter_map(|address| Some((*address, known(address)?))));
        let run = match self.run_for(&live, tables) {
            Some(run) => run,
            None => {
                let wanted = u32::try_from(live.len()).unwrap_or(u32::MAX);
                let Some(run) = tables.slot_space.take(wanted) else {
                    new.into_values().for_each(|id| tables.backend_ids.put_back(id));
                    return Err(Misfit::NoSlots { wanted });
                };
                run
            }
        };
        self.change_backends(live, &new, &target.backends, tables);
        self.change_run(run, tables);
        let value = Frontend {
            service: self.id,
            slots: SlotRun { base: run.base, count: run.len },
            outside: SlotRun::default(),
            affinity: target.affinity.seconds(),
            flags: target.flags,
        };
        self.change_frontends(keys, value, tables);
        Ok(())
    }

    /// The present run, if it holds exactly these backends.
    fn run_for(&self, live: &Backends, tables: &Tables) -> Option<Run> {
        let run = self.run?;
        tables.contents(run).eq(sorted(live).into_iter().map(Some)).then_some(run)
    }

    fn change_backends(&mut self, live: Backends, new: &Backends, chosen: &Chosen, tables: &mut Tables) {
        let before = mem::replace(&mut self.live, live);
        self.leaving.extend(before);
        for (address, &id) in &self.live {
            self.leaving.remove(address);
            let generation = if new.contains_key(address) {
                tables.filter.hold(address.end().address, AddressRoles::BACKEND);
                tables.next_generation(id)
            } else {
                tables.backends.wanted(&id.0).map(|row| row.generation).unwrap_or_default()
            };
            let flags = match chosen.get(address) {
                Some(Location::Local) => BackendFlags::LIVE.with(BackendFlags::LOCAL),
                Some(Location::Remote) | None => BackendFlags::LIVE,
            };
            let end = address.end();
            let row = Backend {
                address: end.address,
                port: end.port,
                flags,
                generation,
                service: self.id,
                reserved: 0,
            };
            tables.backends.want(id.0, row);
        }
    }

    fn change_run(&mut self, run: Run, tables: &mut Tables) {
        if self.run == Some(run) {
            return;
        }
        if let Some(old) = self.run.replace(run) {
            tables.abandon_slots(old);
            self.old_runs.push(old);
        }
        for (slot, id) in run.indices().zip(sorted(&self.live)) {
            tables.slots.want(slot, id);
        }
    }

    fn change_frontends(&mut self, keys: &[FrontendKey], value: Frontend, tables: &mut Tables) {
        let before = mem::replace(&mut self.keys, keys.to_vec());
        self.dropped.extend(before);
        self.dropped.retain(|key| !keys.contains(key));
        for &key in keys {
            tables.want_frontend(key, value);
        }
    }

    /// Writes what it should have, referents before referrers, and deletes the frontends that it dropped.
    pub(crate) fn install<I: TablesIo>(
        &mut self,
        now: Duration,
        tables: &mut Tables,
        io: &mut I,
    ) -> Result<(), Failure<I::Error>> {
        if !self.is_unwanted() {
            if self.counters == Counters::Stale {
                io.reset_traffic(self.id).map_err(|source| Failure::new(ServiceTraffic::NAME, source))?;
                self.counters = Counters::Valid;
            }
            for (address, id) in &self.live {
                tables.write_filter(address.end().address, io)?;
                write(&mut tables.backends, id.0, io)?;
            }
            write(&mut tables.names, self.id, io)?;
            for slot in self.run.into_iter().flat_map(Run::indices) {
                write(&mut tables.slots, slot, io)?;
            }
        }
        for &key in &self.keys {
            // If another service port took it over since, the row is theirs to write.
            if tables.frontends.wanted(&key).is_some_and(|frontend| frontend.service == self.id) {
                tables.write_filter(key.address, io)?;
                write(&mut tables.frontends, key, io)?;
            }
        }
        self.dropped.iter().try_for_each(|&key| tables.delete_frontend(key, now, io))
    }

    /// Lets go of what no frontend leads to any more.
    pub(crate) fn retire<I: TablesIo>(
        &mut self,
        now: Duration,
        tables: &mut Tables,
        io: &mut I,
    ) -> Result<Progress, Failure<I::Error>> {
        let led_by = |key: &FrontendKey| tables.frontends.actual(key).filter(|row| row.service == self.id);
        let present = |row: &Frontend| {
            Run { base: row.slots.base, len: row.slots.count } == self.run.unwrap_or(Run::EMPTY)
        };
        if self.dropped.iter().any(|key| led_by(key).is_some())
            || self.keys.iter().filter_map(led_by).any(|row| !present(row))
        {
            return Ok(Progress::Waiting);
        }
        self.dropped.clear();
        while let Some((address, id)) = self.leaving.pop_first() {
            if let Err(failure) = tables.retire_backend(id, address.end(), now, io) {
                self.leaving.insert(address, id);
                return Err(failure);
            }
        }
        for run in self.old_runs.drain(..) {
            tables.slot_space.release(run, now);
        }
        if self.is_unwanted() {
            tables.names.unwant(self.id);
            delete(&mut tables.names, self.id, io)?;
            tables.service_ids.release(self.id, now);
        }
        Ok(Progress::Settled)
    }
}

/// The backends of a run, in the one order that there is for them.
fn sorted(live: &Backends) -> Vec<BackendId> {
    let mut ids: Vec<BackendId> = live.values().copied().collect();
    ids.sort_unstable();
    ids
}
