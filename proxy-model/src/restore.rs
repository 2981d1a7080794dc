//! What an earlier run of the agent left in the pinned tables.

use std::{
    collections::{BTreeMap, HashMap, HashSet, btree_map::Entry},
    net::IpAddr,
    time::Duration,
};

use proxy_common::{
    addr::Addr,
    addresses::AddressFlags,
    backend::{Backend, BackendFlags, BackendId},
    filter::{AddressRoles, FilterLine},
    frontend::{Frontend, FrontendKey, ServiceId, SlotRun},
    pod::{CgroupId, PodEntry},
    ranges::SourceRange,
    tables::{AddressFilter, Backends, Frontends, ServiceNames, Slots, SourceRanges, Table},
    tuple::Endpoint,
};

use crate::{
    address::BackendAddress,
    addresses::AddressBook,
    delta::Delta,
    filter::Filter,
    ids::{Ids, Run, Space},
    io::TablesIo,
    name::ServicePortName,
    policy::BackendSelection,
    programmed::{Counters, Programmed},
    runs::Roster,
    tables::{Deletion, Failure, Tables, delete},
};

/// The contents of the pinned tables, as the agent read them. Empty on first start.
///
/// Nothing here is trusted: rows that contradict each other are replaced or deleted by the first commit.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// All frontends.
    pub frontends: Vec<(FrontendKey, Frontend)>,
    /// At least the slots that both runs of `frontends` refer to.
    pub slots: Vec<(u32, BackendId)>,
    /// All backends that are not entirely zero, live or not: the others tell which generations were used.
    pub backends: Vec<(BackendId, Backend)>,
    /// All service names.
    pub names: Vec<(ServiceId, <ServiceNames as Table>::Value)>,
    /// All addresses that something is known about.
    pub addresses: Vec<(Addr, AddressFlags)>,
    /// All source ranges.
    pub source_ranges: Vec<(SourceRange, <SourceRanges as Table>::Value)>,
    /// At least the filter lines that are not entirely zero.
    pub filter: Vec<(u32, FilterLine)>,
    /// All pods.
    pub pods: Vec<(CgroupId, PodEntry)>,
}

/// How many entries the tables have room for whose contents services choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacities {
    /// Of the table of service names.
    pub services: u32,
    /// Of the backend table.
    pub backends: u32,
    /// Of the slot table.
    pub slots: u32,
    /// Of the frontend table. That of addresses has room for as many, and for the node's own.
    pub frontends: u32,
    /// Of the table of source ranges.
    pub source_ranges: u32,
}

impl Default for Capacities {
    fn default() -> Self {
        Self {
            services: ServiceNames::CAPACITY,
            backends: Backends::CAPACITY,
            slots: Slots::CAPACITY,
            frontends: Frontends::CAPACITY,
            source_ranges: SourceRanges::CAPACITY,
        }
    }
}

/// What was restored, sorted into what makes sense and what does not.
#[derive(Debug)]
pub(crate) struct Adopted {
    pub(crate) tables: Tables,
    pub(crate) programmed: BTreeMap<ServicePortName, Programmed>,
    pub(crate) leftovers: Leftovers,
}

/// What belongs to no service port.
#[derive(Debug, Default)]
pub(crate) struct Leftovers {
    frontends: Vec<FrontendKey>,
    backends: BTreeMap<BackendId, Endpoint>,
    runs: Vec<Run>,
    ranges: Vec<SourceRange>,
    /// Ids that frontends or source ranges carry although they have no name.
    services: Vec<ServiceId>,
    names: Vec<ServiceId>,
}

/// Goes on from what was restored: the same names get the same ids, their live backends keep theirs, and frontends
/// that lead to a complete run of them keep the run.
pub(crate) fn adopt(restored: Restored, capacities: Capacities) -> Adopted {
    let Restored { mut frontends, slots, backends, names, addresses, source_ranges, filter, pods } = restored;
    // In an order of their own, so that of two rows that exclude each other the same one wins every time.
    frontends.sort_by_key(|(key, _)| order(key));
    let mut filter = Filter::restored(within(filter.into_iter(), AddressFilter::CAPACITY).collect());
    let tables = Tables {
        backends: Delta::restored(within(
            backends.into_iter().map(|(id, row)| (id.0, row)),
            capacities.backends,
        )),
        slots: Delta::restored(within(slots.into_iter(), capacities.slots)),
        frontends: Delta::restored(frontends.iter().copied()),
        names: Delta::restored(names.iter().copied()),
        ranges: Delta::restored(source_ranges),
        pods: Delta::restored(pods),
        addresses: AddressBook::restored(addresses, &mut filter),
        filter,
        service_ids: Ids::new(capacities.services),
        backend_ids: Ids::new(capacities.backends),
        slot_space: Space::new(capacities.slots),
        capacities,
        freed: false,
    };
    let mut adopted = Adopted { tables, programmed: BTreeMap::new(), leftovers: Leftovers::default() };
    let ports = adopted.adopt_names(names);
    adopted.adopt_backends(&ports);
    for (key, row) in frontends {
        adopted.adopt_frontend(key, row, &ports);
    }
    adopted.adopt_ranges(&ports);
    adopted
}

/// The rows whose index exists.
fn within<V>(rows: impl Iterator<Item = (u32, V)>, capacity: u32) -> impl Iterator<Item = (u32, V)> {
    rows.filter(move |(index, _)| *index < capacity)
}

/// An order for keys that have none by nature.
fn order(key: &FrontendKey) -> (IpAddr, u16, u8) {
    (key.address.to_ip(), key.port.to_host(), key.protocol.0)
}

type Ports = HashMap<ServiceId, ServicePortName>;

impl Adopted {
    fn adopt_names(&mut self, mut names: Vec<(ServiceId, <ServiceNames as Table>::Value)>) -> Ports {
        names.sort_unstable_by_key(|(id, _)| *id);
        let mut ports = Ports::new();
        for (id, row) in names {
            let Some(port) = ServicePortName::from_row(&row) else {
                continue;
            };
            if let Entry::Vacant(entry) = self.programmed.entry(port)
                && self.tables.service_ids.claim(id).is_some()
            {
                ports.insert(id, entry.key().clone());
                entry.insert(Programmed::new(id, Counters::Valid));
            }
        }
        ports
    }

    fn adopt_backends(&mut self, ports: &Ports) {
        let Self { tables, programmed, leftovers } = self;
        let live = tables.backends.entries().filter(|(_, row)| row.flags.contains(BackendFlags::LIVE));
        let mut live: Vec<(BackendId, Backend)> = live.map(|(&id, &row)| (BackendId(id), row)).collect();
        live.sort_unstable_by_key(|(id, _)| *id);
        for (id, row) in live {
            if tables.backend_ids.claim(id).is_none() {
                continue;
            }
            tables.filter.hold(row.address, AddressRoles::BACKEND);
            let owner = ports.get(&row.service).and_then(|port| programmed.get_mut(port));
            match (owner, BackendAddress::from_end(row.end())) {
                (Some(owner), Some(address)) if !owner.live.contains_key(&address) => {
                    owner.live.insert(address, id);
                }
                _ => {
                    leftovers.backends.insert(id, row.end());
                }
            }
        }
    }

    fn adopt_frontend(&mut self, key: FrontendKey, row: Frontend, ports: &Ports) {
        let Self { tables, programmed, leftovers } = self;
        tables.hold_frontend(key);
        let mut owner = ports.get(&row.service).and_then(|port| programmed.get_mut(port));
        match &mut owner {
            Some(owner) => {
                owner.keys.push(key);
                owner.note_terms(row.flags);
            }
            None => leftovers.services.extend(tables.service_ids.claim(row.service)),
        }
        let (inside, outside) = Roster::of_frontend(row.flags);
        let runs = [(inside, row.slots)].into_iter().chain(outside.map(|roster| (roster, row.outside)));
        for (roster, SlotRun { base, count }) in runs {
            let run = if count == 0 { Run::EMPTY } else { Run { base, len: count } };
            if owner.as_ref().is_some_and(|owner| owner.runs.is_present(roster, run)) {
                continue;
            }
            let Some(leads_to) = coherent(roster.selection, run, tables) else {
                continue;
            };
            if tables.slot_space.claim(run).is_none() {
                continue;
            }
            match &mut owner {
                Some(owner) => {
                    let serves = leads_to.iter().all(|&service| service == owner.id);
                    owner.runs.adopt(roster, run, serves);
                }
                None => leftovers.runs.push(run),
            }
        }
    }

    fn adopt_ranges(&mut self, ports: &Ports) {
        let Self { tables, programmed, leftovers } = self;
        for (&range, _) in tables.ranges.entries() {
            match ports.get(&range.data.service).and_then(|port| programmed.get_mut(port)) {
                Some(owner) => owner.admissions.adopt(range),
                None => {
                    leftovers.ranges.push(range);
                    leftovers.services.extend(tables.service_ids.claim(range.data.service));
                }
            }
        }
    }
}

/// The services of the backends in a run; `None` unless they are all alive, and different backends where each stands once.
fn coherent(selection: BackendSelection, run: Run, tables: &Tables) -> Option<HashSet<ServiceId>> {
    let mut seen = HashSet::new();
    let mut services = HashSet::new();
    for id in tables.contents(run) {
        let id = id?;
        let row = tables.backends.actual(&id.0)?;
        let is_repeated = !seen.insert(id) && selection == BackendSelection::Random;
        if !row.flags.contains(BackendFlags::LIVE) || is_repeated {
            return None;
        }
        services.insert(row.service);
    }
    Some(services)
}

impl Leftovers {
    /// Finds the rows that no service port wants, now that all have been planned.
    pub(crate) fn collect(
        &mut self,
        tables: &mut Tables,
        programmed: &BTreeMap<ServicePortName, Programmed>,
        now: Duration,
    ) {
        let known: HashSet<&FrontendKey> =
            programmed.values().flat_map(|entry| entry.keys.iter().chain(&entry.dropped)).collect();
        self.frontends =
            tables.frontends.entries().map(|(key, _)| *key).filter(|key| !known.contains(key)).collect();
        self.frontends.sort_by_key(order);
        for &key in &self.frontends {
            tables.unwant_frontend(key, now);
        }
        let known: HashSet<ServiceId> = programmed.values().map(|entry| entry.id).collect();
        self.names = tables.names.entries().map(|(id, _)| *id).filter(|id| !known.contains(id)).collect();
        self.names.sort_unstable();
        for &id in &self.names {
            tables.names.unwant(id);
        }
        for &range in &self.ranges {
            tables.ranges.unwant(range);
        }
        tables.addresses.collect(&mut tables.filter, now);
    }

    /// Whether nothing is left.
    pub(crate) fn is_empty(&self) -> bool {
        let Self { frontends, backends, runs, ranges, services, names } = self;
        frontends.is_empty()
            && backends.is_empty()
            && runs.is_empty()
            && ranges.is_empty()
            && services.is_empty()
            && names.is_empty()
    }

    /// Deletes the frontends.
    pub(crate) fn delete_frontends<I: TablesIo>(
        &mut self,
        now: Duration,
        tables: &mut Tables,
        io: &mut I,
    ) -> Result<(), Failure<I::Error>> {
        while let Some(&key) = self.frontends.last() {
            tables.delete_frontend(key, now, io)?;
            self.frontends.pop();
        }
        Ok(())
    }

    /// Lets go of the rest, once no frontend can lead to it.
    pub(crate) fn retire<I: TablesIo>(
        &mut self,
        now: Duration,
        tables: &mut Tables,
        io: &mut I,
    ) -> Result<(), Failure<I::Error>> {
        while let Some((&id, &end)) = self.backends.first_key_value() {
            tables.retire_backend(id, end, now, io)?;
            self.backends.remove(&id);
        }
        for run in self.runs.drain(..) {
            tables.slot_space.release(run, now);
        }
        while let Some(&range) = self.ranges.last() {
            tables.freed |= delete(&mut tables.ranges, range, io)? == Deletion::Done;
            self.ranges.pop();
        }
        for id in self.services.drain(..) {
            tables.service_ids.release(id, now);
        }
        while let Some(&id) = self.names.last() {
            delete(&mut tables.names, id, io)?;
            self.names.pop();
        }
        Ok(())
    }
}
