//! The tables that the model writes, over the kernel's maps.

use std::collections::BTreeMap;

use proxy_common::{
    addr::Addr,
    addresses::AddressFlags,
    backend::{Backend, BackendId},
    counters::ServiceDrop,
    drop::DropReason,
    filter::FilterLine,
    frontend::{Frontend, FrontendKey, ServiceId, SlotRun},
    pod::{CgroupId, PodEntry},
    ranges::SourceRange,
    tables::{
        AddressFilter, Addresses, Backends, Frontends, Pods, ServiceDrops, ServiceNames, ServiceTraffic,
        Slots, SourceRanges, Table,
    },
};
use proxy_model::{HashTableIo, Io, Restored, TableIo};

use super::{
    map::{ArrayTable, HashTable, PerCpuHashTable, PerCpuTable, TableError, TrieTable},
    pins::Pins,
};

/// Every table that the model writes, opened.
pub struct KernelTables {
    frontends: HashTable<Frontends>,
    addresses: HashTable<Addresses>,
    source_ranges: TrieTable<SourceRanges>,
    slots: ArrayTable<Slots>,
    backends: ArrayTable<Backends>,
    names: HashTable<ServiceNames>,
    filter: ArrayTable<AddressFilter>,
    traffic: PerCpuTable<ServiceTraffic>,
    drops: PerCpuHashTable<ServiceDrops>,
    pods: HashTable<Pods>,
}

impl KernelTables {
    /// Opens the pinned tables.
    pub fn open(pins: &Pins) -> Result<Self, TableError> {
        Ok(Self {
            frontends: HashTable::open(pins)?,
            addresses: HashTable::open(pins)?,
            source_ranges: TrieTable::open(pins)?,
            slots: ArrayTable::open(pins)?,
            backends: ArrayTable::open(pins)?,
            names: HashTable::open(pins)?,
            filter: ArrayTable::open(pins)?,
            traffic: PerCpuTable::open(pins)?,
            drops: PerCpuHashTable::open(pins)?,
            pods: HashTable::open(pins)?,
        })
    }

    /// What an earlier run of the agent left.
    pub fn restore(&self) -> Result<Restored, TableError> {
        let frontends: Vec<_> = self.frontends.entries().collect::<Result<_, _>>()?;
        let mut slots = BTreeMap::new();
        for (_, Frontend { slots: run, outside, .. }) in &frontends {
            self.read_run(*run, &mut slots)?;
            self.read_run(*outside, &mut slots)?;
        }
        let used = |backend: &Backend| *backend != Backend::default();
        Ok(Restored {
            frontends,
            slots: slots.into_iter().collect(),
            backends: self
                .backends
                .entries()
                .filter(|entry| entry.as_ref().map_or(true, |(_, backend)| used(backend)))
                .map(|entry| entry.map(|(index, backend)| (BackendId(index), backend)))
                .collect::<Result<_, _>>()?,
            names: self.names.entries().collect::<Result<_, _>>()?,
            addresses: self.addresses.entries().collect::<Result<_, _>>()?,
            source_ranges: self.source_ranges.entries().collect::<Result<_, _>>()?,
            filter: self.filter.entries().collect::<Result<_, _>>()?,
            pods: self.pods.entries().collect::<Result<_, _>>()?,
        })
    }

    /// Reads the slots of a run, unless another frontend has the same.
    fn read_run(&self, run: SlotRun, slots: &mut BTreeMap<u32, BackendId>) -> Result<(), TableError> {
        for index in run.base..run.base.saturating_add(run.count) {
            // A count from a damaged entry must not be believed: nothing lies beyond the table.
            let Some(backend) = self.slots.get(index)? else {
                break;
            };
            slots.insert(index, backend);
        }
        Ok(())
    }
}

impl Io for KernelTables {
    type Error = TableError;

    fn reset_traffic(&mut self, service: ServiceId) -> Result<(), TableError> {
        for reason in DropReason::ALL {
            self.drops.delete(&ServiceDrop::new(service, reason))?;
        }
        self.traffic.clear(service.0)
    }
}

impl TableIo<Frontends> for KernelTables {
    fn put(&mut self, key: &FrontendKey, value: &Frontend) -> Result<(), TableError> {
        self.frontends.put(key, value)
    }
}

impl HashTableIo<Frontends> for KernelTables {
    fn delete(&mut self, key: &FrontendKey) -> Result<(), TableError> {
        self.frontends.delete(key)
    }
}

impl TableIo<Addresses> for KernelTables {
    fn put(&mut self, key: &Addr, value: &AddressFlags) -> Result<(), TableError> {
        self.addresses.put(key, value)
    }
}

impl HashTableIo<Addresses> for KernelTables {
    fn delete(&mut self, key: &Addr) -> Result<(), TableError> {
        self.addresses.delete(key)
    }
}

impl TableIo<SourceRanges> for KernelTables {
    fn put(&mut self, key: &SourceRange, value: &<SourceRanges as Table>::Value) -> Result<(), TableError> {
        self.source_ranges.put(key, value)
    }
}

impl HashTableIo<SourceRanges> for KernelTables {
    fn delete(&mut self, key: &SourceRange) -> Result<(), TableError> {
        self.source_ranges.delete(key)
    }
}

impl TableIo<ServiceNames> for KernelTables {
    fn put(&mut self, key: &ServiceId, value: &<ServiceNames as Table>::Value) -> Result<(), TableError> {
        self.names.put(key, value)
    }
}

impl HashTableIo<ServiceNames> for KernelTables {
    fn delete(&mut self, key: &ServiceId) -> Result<(), TableError> {
        self.names.delete(key)
    }
}

impl TableIo<Slots> for KernelTables {
    fn put(&mut self, key: &u32, value: &<Slots as Table>::Value) -> Result<(), TableError> {
        self.slots.put(*key, value)
    }
}

impl TableIo<Backends> for KernelTables {
    fn put(&mut self, key: &u32, value: &Backend) -> Result<(), TableError> {
        self.backends.put(*key, value)
    }
}

impl TableIo<AddressFilter> for KernelTables {
    fn put(&mut self, key: &u32, value: &FilterLine) -> Result<(), TableError> {
        self.filter.put(*key, value)
    }
}

impl TableIo<Pods> for KernelTables {
    fn put(&mut self, key: &CgroupId, value: &PodEntry) -> Result<(), TableError> {
        self.pods.put(key, value)
    }
}

impl HashTableIo<Pods> for KernelTables {
    fn delete(&mut self, key: &CgroupId) -> Result<(), TableError> {
        self.pods.delete(key)
    }
}
