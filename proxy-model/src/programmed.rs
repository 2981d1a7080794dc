//! One service port in the tables: what it has, what it is about to have, and what it leaves behind.
//!
//! Every backend id and every slot belongs to one service port, so a service port changes without asking others:
//!
//! ```text
//! aim:      new ids, new runs                                     in memory; all of it or nothing
//! install:  filter, backends, name -> slots, sources -> frontends   stops at the first failed write
//! retire:   old backends, old runs, old sources, name             once no frontend leads to them
//! ```
//!
//! **Invariant:** between any two writes, a frontend in the kernel leads to complete runs of live backends, and its
//! sources are admitted if it asks for them.

use std::{collections::BTreeMap, mem, time::Duration};

use proxy_common::{
    addr::Addr,
    backend::{Backend, BackendFlags, BackendId},
    filter::AddressRoles,
    frontend::{Frontend, FrontendFlags, FrontendKey, ServiceId, SlotRun},
    tables::{Backends as BackendTable, ServiceTraffic, Table},
};

use crate::{
    address::BackendAddress,
    error::Misfit,
    io::TablesIo,
    maglev::{self, Candidate},
    policy::{BackendSelection, SessionAffinity},
    ranges::Admissions,
    runs::{Roster, Runs, Set},
    sets::Chosen,
    tables::{Failure, Tables, delete, write},
    target::Target,
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
    leaving: Backends,
    pub(crate) runs: Runs,
    pub(crate) admissions: Admissions,
    /// The frontends that it should have.
    pub(crate) keys: Vec<FrontendKey>,
    /// Frontends that it had, and may still have in the kernel.
    pub(crate) dropped: Vec<FrontendKey>,
    /// The ClusterIP that it is counted for.
    cluster_ip: Option<Addr>,
    /// Whether connections are reset when their backend is gone, or were when they began.
    resets: bool,
    /// Whether a frontend leads by hash, or has led so.
    leads_by_hash: bool,
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
    pub(crate) fn new(id: ServiceId, counters: Counters) -> Self {
        Self {
            id,
            counters,
            live: BTreeMap::new(),
            leaving: BTreeMap::new(),
            runs: Runs::default(),
            admissions: Admissions::default(),
            keys: Vec::new(),
            dropped: Vec::new(),
            cluster_ip: None,
            resets: false,
            leads_by_hash: false,
        }
    }

    /// Whether it should not be in the tables at all.
    pub(crate) fn is_unwanted(&self) -> bool {
        self.keys.is_empty()
    }

    /// A frontend that it has, or is about to have, does this.
    pub(crate) fn note_terms(&mut self, flags: FrontendFlags) {
        self.resets |= flags.contains(FrontendFlags::RESET);
        self.leads_by_hash |= flags.contains(FrontendFlags::MAGLEV);
    }

    /// Whether connections are reset when their backend is gone, or were when they began.
    pub(crate) const fn resets(&self) -> bool {
        self.resets
    }

    /// Whether a frontend leads by hash, or has led so.
    pub(crate) const fn leads_by_hash(&self) -> bool {
        self.leads_by_hash
    }

    /// How many backends wait until no frontend leads to them.
    pub(crate) fn leaving(&self) -> usize {
        self.leaving.len()
    }

    /// Sets what it should have. If that does not fit, nothing changes. The caller decides what becomes of frontends
    /// that it should have no longer.
    pub(crate) fn aim(&mut self, target: &Target, now: Duration, tables: &mut Tables) -> Result<(), Misfit> {
        tables.expect_room(self.id, target)?;
        let (mut live, missing) = self.known(&target.backends, tables);
        let wanted = missing.len();
        let new =
            tables.backend_ids.take(wanted).ok_or(Misfit::NoRoom { table: BackendTable::NAME, wanted })?;
        let new: Backends = missing.into_iter().zip(new).collect();
        live.extend(&new);
        let rosters = Roster::ALL.map(|roster| roll(roster, &live, target));
        let runs = match self.runs.prepare(&rosters, tables) {
            Ok(runs) => runs,
            Err(misfit) => {
                new.into_values().for_each(|id| tables.backend_ids.put_back(id));
                return Err(misfit);
            }
        };
        self.change_backends(live, &new, &target.backends, tables);
        self.runs.aim(runs, &rosters, tables);
        self.admissions.aim(self.id, &target.sources, tables);
        self.change_frontends(&target.frontends, target.affinity, tables);
        self.change_cluster_ip(target.cluster_ip, now, tables);
        Ok(())
    }

    /// The backends that have an id already, and those that need one. One that is in no set needs none, but keeps the
    /// one that flows know it by (CT-11).
    fn known(&self, chosen: &Chosen, tables: &Tables) -> (Backends, Vec<BackendAddress>) {
        let (mut known, mut missing) = (Backends::new(), Vec::new());
        for (&address, &flags) in chosen {
            let member = Set::ALL.into_iter().any(|set| flags.contains(set.flag()));
            match self.live.get(&address).or_else(|| self.leaving.get(&address)) {
                Some(&id) if member || tables.is_live(id) => {
                    known.insert(address, id);
                }
                None if member => missing.push(address),
                _ => {}
            }
        }
        (known, missing)
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
            let end = address.end();
            let row = Backend {
                address: end.address,
                port: end.port,
                flags: chosen.get(address).copied().unwrap_or(BackendFlags::LIVE),
                generation,
                service: self.id,
                reserved: 0,
            };
            tables.backends.want(id.0, row);
        }
    }

    fn change_frontends(
        &mut self,
        frontends: &[(FrontendKey, FrontendFlags)],
        affinity: SessionAffinity,
        tables: &mut Tables,
    ) {
        let keys = frontends.iter().map(|(key, _)| *key).collect();
        let before = mem::replace(&mut self.keys, keys);
        self.dropped.extend(before);
        self.dropped.retain(|key| !self.keys.contains(key));
        for &(key, flags) in frontends {
            self.note_terms(flags);
            let (inside, outside) = Roster::of_frontend(flags);
            let value = Frontend {
                service: self.id,
                flags,
                affinity: affinity.seconds(),
                slots: self.runs.slots(inside),
                outside: outside.map_or(SlotRun::default(), |roster| self.runs.slots(roster)),
            };
            tables.want_frontend(key, value);
        }
    }

    fn change_cluster_ip(&mut self, cluster_ip: Option<Addr>, now: Duration, tables: &mut Tables) {
        let before = mem::replace(&mut self.cluster_ip, cluster_ip);
        if before == cluster_ip {
            return;
        }
        let Tables { addresses, filter, .. } = tables;
        if let Some(address) = cluster_ip {
            addresses.hold_cluster_ip(address, filter, now);
        }
        if let Some(address) = before {
            addresses.release_cluster_ip(address, filter, now);
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
            self.runs.install(tables, io)?;
            self.admissions.install(tables, io)?;
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
        let leads_here =
            |key: &&FrontendKey| tables.frontends.actual(key).is_some_and(|row| row.service == self.id);
        let is_stale = |key: &FrontendKey| tables.frontends.pending(key).is_some();
        if self.dropped.iter().any(|key| leads_here(&key))
            || self.keys.iter().filter(leads_here).any(is_stale)
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
        for run in self.runs.take_old() {
            tables.slot_space.release(run, now);
        }
        self.admissions.retire(tables, io)?;
        if self.is_unwanted() {
            tables.names.unwant(self.id);
            delete(&mut tables.names, self.id, io)?;
            tables.service_ids.release(self.id, now);
        }
        Ok(Progress::Settled)
    }
}

/// The backends of a roster, slot by slot, in the one order that there is for them; none if no frontend leads there.
fn roll(roster: Roster, live: &Backends, target: &Target) -> Vec<BackendId> {
    let leads_there = target.frontends.iter().any(|&(_, flags)| {
        let (inside, outside) = Roster::of_frontend(flags);
        inside == roster || outside == Some(roster)
    });
    if !leads_there {
        return Vec::new();
    }
    let is_member = |address: &BackendAddress| {
        target.backends.get(address).is_some_and(|flags| flags.contains(roster.set.flag()))
    };
    let members = live.iter().filter(|(address, _)| is_member(address));
    match roster.selection {
        BackendSelection::Random => {
            let mut ids: Vec<BackendId> = members.map(|(_, &id)| id).collect();
            ids.sort_unstable();
            ids
        }
        BackendSelection::Maglev => {
            let slots = maglev::table(members.map(|(&address, _)| Candidate::equal(address)).collect());
            slots.iter().filter_map(|address| live.get(address).copied()).collect()
        }
    }
}
