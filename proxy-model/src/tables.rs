//! The picture of all tables, and the numbers that index them.

use std::{mem, time::Duration};

use proxy_common::{
    addr::Addr,
    backend::{Backend, BackendFlags, BackendId, Generation},
    filter::AddressRoles,
    frontend::{Frontend, FrontendKey, ServiceId},
    tables::{AddressFilter, Addresses, Backends, Frontends, Pods, ServiceNames, Slots, SourceRanges, Table},
    tuple::Endpoint,
};

use crate::{
    addresses::AddressBook,
    delta::{Delta, Pending},
    error::{CommitError, Misfit},
    filter::Filter,
    ids::{Ids, Run, Space},
    io::{HashTableIo, TableIo},
    name::ServicePortName,
    restore::Capacities,
    target::Target,
};

/// What the kernel has, what it should have, and which numbers are taken.
///
/// The filter counts what is here: one holder of the frontend role per frontend row that has an address, wanted or
/// actual; one of the backend role per backend id that is not free; and those of the address table.
#[derive(Debug)]
pub(crate) struct Tables {
    pub(crate) backends: Delta<Backends>,
    pub(crate) slots: Delta<Slots>,
    pub(crate) frontends: Delta<Frontends>,
    pub(crate) names: Delta<ServiceNames>,
    pub(crate) ranges: Delta<SourceRanges>,
    pub(crate) pods: Delta<Pods>,
    pub(crate) addresses: AddressBook,
    pub(crate) filter: Filter,
    pub(crate) service_ids: Ids<ServiceId>,
    pub(crate) backend_ids: Ids<BackendId>,
    pub(crate) slot_space: Space,
    pub(crate) capacities: Capacities,
    /// Whether an entry of a hash table has gone since the last [`Tables::settle`].
    pub(crate) freed: bool,
}

/// A write that failed, before it is known for whom it was.
#[derive(Debug)]
pub(crate) struct Failure<E> {
    table: &'static str,
    source: E,
}

impl<E: std::error::Error + 'static> Failure<E> {
    pub(crate) const fn new(table: &'static str, source: E) -> Self {
        Self { table, source }
    }

    pub(crate) fn of(self, port: Option<&ServicePortName>) -> CommitError<E> {
        let Self { table, source } = self;
        CommitError { table, port: port.cloned(), source }
    }
}

impl Tables {
    /// Frees the numbers that have rested long enough. Returns whether there is more room than the last time.
    pub(crate) fn settle(&mut self, now: Duration) -> bool {
        let freed = [self.service_ids.settle(now), self.backend_ids.settle(now), self.slot_space.settle(now)];
        mem::take(&mut self.freed) | freed.contains(&true)
    }

    /// Whether the rows of a service port that have no number fit. What it has already counts, too: the new ones come first.
    pub(crate) fn expect_room(&self, service: ServiceId, target: &Target) -> Result<(), Misfit> {
        let frontends = target.frontends.iter().filter(|(key, _)| !self.frontends.holds(key)).count();
        fits(&self.frontends, frontends, self.capacities.frontends)?;
        let ranges = target.sources.iter().map(|source| source.admitted_to(service));
        let ranges = ranges.filter(|range| !self.ranges.holds(range)).count();
        fits(&self.ranges, ranges, self.capacities.source_ranges)
    }

    /// The generation of the backend that gets a free id next.
    pub(crate) fn next_generation(&self, id: BackendId) -> Generation {
        self.backends.actual(&id.0).map(|before| before.generation.next()).unwrap_or_default()
    }

    /// The frontend should be this.
    pub(crate) fn want_frontend(&mut self, key: FrontendKey, value: Frontend) {
        if self.frontends.actual(&key).is_none() && self.frontends.pending(&key).is_none() {
            self.hold_frontend(key);
        }
        self.frontends.want(key, value);
    }

    /// The frontend should not be there.
    pub(crate) fn unwant_frontend(&mut self, key: FrontendKey, now: Duration) {
        if self.frontends.actual(&key).is_none() && self.frontends.pending(&key).is_some() {
            self.release_frontend(key, now);
        }
        self.frontends.unwant(key);
    }

    /// There is one more frontend. Node ports have no address of their own to be met by: the node's have a role.
    pub(crate) fn hold_frontend(&mut self, key: FrontendKey) {
        if !key.is_node_port() {
            self.filter.hold(key.address, AddressRoles::FRONTEND);
        }
    }

    fn release_frontend(&mut self, key: FrontendKey, now: Duration) {
        if !key.is_node_port() {
            self.filter.release(key.address, AddressRoles::FRONTEND, now);
        }
    }

    /// Whether the kernel takes the backend with this id for alive.
    pub(crate) fn is_live(&self, id: BackendId) -> bool {
        self.backends.actual(&id.0).is_some_and(|row| row.flags.contains(BackendFlags::LIVE))
    }

    /// The ids in a run of slots, as they should be.
    pub(crate) fn contents(&self, run: Run) -> impl Iterator<Item = Option<BackendId>> {
        run.indices().map(|slot| self.slots.wanted(&slot).copied())
    }

    /// Nothing will ever lead to these slots again: what they still wait for need not be written.
    pub(crate) fn abandon_slots(&mut self, run: Run) {
        run.indices().for_each(|slot| self.slots.revert(&slot));
    }

    /// Writes the filter line of an address.
    pub(crate) fn write_filter<I: TableIo<AddressFilter>>(
        &mut self,
        address: Addr,
        io: &mut I,
    ) -> Result<(), Failure<I::Error>> {
        let Some((number, line)) = self.filter.pending(address) else {
            return Ok(());
        };
        io.put(&number, &line).map_err(|source| Failure::new(AddressFilter::NAME, source))?;
        self.filter.confirm(number);
        Ok(())
    }

    /// Writes or deletes the row of an address, if it needs that.
    pub(crate) fn write_address<I: TableIo<AddressFilter> + HashTableIo<Addresses>>(
        &mut self,
        address: Addr,
        now: Duration,
        io: &mut I,
    ) -> Result<(), Failure<I::Error>> {
        self.write_filter(address, io)?;
        self.addresses.write(address, &mut self.filter, now, io)
    }

    /// Writes and deletes the rows of pods that need it. Those that go make room for those that come.
    pub(crate) fn write_pods<I: HashTableIo<Pods>>(&mut self, io: &mut I) -> Vec<Failure<I::Error>> {
        let mut pending: Vec<_> = self.pods.pending_keys().copied().collect();
        pending.sort_unstable_by_key(|id| (self.pods.wanted(id).is_some(), *id));
        let mut change = |id| match delete(&mut self.pods, id, io)? {
            Deletion::Done => Ok(()),
            Deletion::NotNeeded => write(&mut self.pods, id, io),
        };
        pending.into_iter().filter_map(|id| change(id).err()).collect()
    }

    /// Deletes a frontend if it should go; one that somebody else wants by now is theirs to write.
    pub(crate) fn delete_frontend<I: HashTableIo<Frontends>>(
        &mut self,
        key: FrontendKey,
        now: Duration,
        io: &mut I,
    ) -> Result<(), Failure<I::Error>> {
        if delete(&mut self.frontends, key, io)? == Deletion::Done {
            self.freed = true;
            self.release_frontend(key, now);
        }
        Ok(())
    }

    /// Marks a backend as gone, if the kernel takes it for alive, and lets its id rest.
    pub(crate) fn retire_backend<I: TableIo<Backends>>(
        &mut self,
        id: BackendId,
        end: Endpoint,
        now: Duration,
        io: &mut I,
    ) -> Result<(), Failure<I::Error>> {
        match self.backends.actual(&id.0) {
            Some(&backend) if backend.flags.contains(BackendFlags::LIVE) => {
                // Address, generation and service stay: programs that hold the id finish with what they need.
                let gone = Backend { flags: BackendFlags::default(), ..backend };
                self.backends.want(id.0, gone);
                write(&mut self.backends, id.0, io)?;
            }
            _ => self.backends.revert(&id.0),
        }
        self.backend_ids.release(id, now);
        self.filter.release(end.address, AddressRoles::BACKEND, now);
        Ok(())
    }
}

/// Whether a table has room for so many more entries than it has or is about to have.
fn fits<T: Table>(delta: &Delta<T>, wanted: usize, capacity: u32) -> Result<(), Misfit> {
    if wanted == 0 || delta.held() + wanted <= capacity as usize {
        return Ok(());
    }
    Err(Misfit::NoRoom { table: T::NAME, wanted })
}

/// Writes an entry if it should be another.
pub(crate) fn write<T: Table, I: TableIo<T>>(
    delta: &mut Delta<T>,
    key: T::Key,
    io: &mut I,
) -> Result<(), Failure<I::Error>> {
    if let Some(Pending::Put(value)) = delta.pending(&key) {
        io.put(&key, &value).map_err(|source| Failure::new(T::NAME, source))?;
        delta.confirm(&key);
    }
    Ok(())
}

/// Whether [`delete`] had anything to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deletion {
    /// The entry is gone.
    Done,
    /// The entry is wanted, or was not there.
    NotNeeded,
}

/// Deletes an entry if it should not be there.
pub(crate) fn delete<T: Table, I: HashTableIo<T>>(
    delta: &mut Delta<T>,
    key: T::Key,
    io: &mut I,
) -> Result<Deletion, Failure<I::Error>> {
    if delta.pending(&key) != Some(Pending::Delete) {
        return Ok(Deletion::NotNeeded);
    }
    io.delete(&key).map_err(|source| Failure::new(T::NAME, source))?;
    delta.confirm(&key);
    Ok(Deletion::Done)
}
