//! The tables that the model writes, over the kernel's maps.

use std::collections::BTreeMap;

use proxy_common::{
    backend::{Backend, BackendId},
    counters::ServiceDrop,
    drop::DropReason,
    frontend::{Frontend, ServiceId, SlotRun},
    ranges::SourceRange,
    tables::{
        AddressFilter, Addresses, Backends, Frontends, Pods, ServiceDrops, ServiceNames, ServiceTraffic,
        Slots, SourceRanges, Table,
    },
};
use proxy_model::{HashTableIo, Io, Restored, TableIo};

use super::{
    capacity::Capacities,
    map::{self, ArrayTable, HashTable, PerCpuHashTable, PerCpuTable, TableError, TrieTable},
    pins::Pins,
};

type Key<T> = <T as Table>::Key;
type Value<T> = <T as Table>::Value;

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

    /// How many entries the tables have room for whose contents the model chooses.
    pub fn capacities(pins: &Pins) -> Result<proxy_model::Capacities, TableError> {
        let Capacities { services, frontends, backends, source_ranges, .. } = Capacities::pinned(pins)?;
        let slots = map::capacity::<Slots>(pins)?;
        Ok(proxy_model::Capacities { services, frontends, backends, slots, source_ranges })
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

macro_rules! hash_table {
    ($table:ty, $field:ident) => {
        impl TableIo<$table> for KernelTables {
            fn get(&self, key: &Key<$table>) -> Result<Option<Value<$table>>, TableError> {
                self.$field.get(key)
            }

            fn put(&mut self, key: &Key<$table>, value: &Value<$table>) -> Result<(), TableError> {
                self.$field.put(key, value)
            }
        }

        impl HashTableIo<$table> for KernelTables {
            fn keys(&self) -> Result<Vec<Key<$table>>, TableError> {
                self.$field.keys()
            }

            fn delete(&mut self, key: &Key<$table>) -> Result<(), TableError> {
                self.$field.delete(key)
            }
        }
    };
}

hash_table!(Frontends, frontends);
hash_table!(Addresses, addresses);
hash_table!(ServiceNames, names);
hash_table!(Pods, pods);

macro_rules! array_table {
    ($table:ty, $field:ident) => {
        impl TableIo<$table> for KernelTables {
            fn get(&self, key: &u32) -> Result<Option<Value<$table>>, TableError> {
                self.$field.get(*key)
            }

            fn put(&mut self, key: &u32, value: &Value<$table>) -> Result<(), TableError> {
                self.$field.put(*key, value)
            }
        }
    };
}

array_table!(Slots, slots);
array_table!(Backends, backends);
array_table!(AddressFilter, filter);

impl TableIo<SourceRanges> for KernelTables {
    fn get(&self, key: &SourceRange) -> Result<Option<Value<SourceRanges>>, TableError> {
        let longest = self.source_ranges.longest(key)?;
        Ok(longest.filter(|length| *length == key.prefix_length))
    }

    fn put(&mut self, key: &SourceRange, value: &Value<SourceRanges>) -> Result<(), TableError> {
        self.source_ranges.put(key, value)
    }
}

impl HashTableIo<SourceRanges> for KernelTables {
    fn keys(&self) -> Result<Vec<SourceRange>, TableError> {
        self.source_ranges.keys()
    }

    fn delete(&mut self, key: &SourceRange) -> Result<(), TableError> {
        self.source_ranges.delete(key)
    }
}
