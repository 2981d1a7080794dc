//! The tables that the model writes, over the kernel's maps.

use proxy_common::{
    backend::Backend,
    filter::FilterLine,
    frontend::{FrontendKey, ServiceId},
    tables::{AddressFilter, Backends, Frontends, ServiceNames, ServiceTraffic, Slots, Table},
};
use proxy_model::{HashTableIo, Io, Restored, TableIo};

use super::{
    map::{ArrayTable, HashTable, PerCpuTable, TableError},
    pins::Pins,
};

/// Every table that the agent writes, opened.
pub struct KernelTables {
    frontends: HashTable<Frontends>,
    slots: ArrayTable<Slots>,
    backends: ArrayTable<Backends>,
    names: HashTable<ServiceNames>,
    filter: ArrayTable<AddressFilter>,
    traffic: PerCpuTable<ServiceTraffic>,
}

impl KernelTables {
    /// Opens the pinned tables.
    pub fn open(pins: &Pins) -> Result<Self, TableError> {
        Ok(Self {
            frontends: HashTable::open(pins)?,
            slots: ArrayTable::open(pins)?,
            backends: ArrayTable::open(pins)?,
            names: HashTable::open(pins)?,
            filter: ArrayTable::open(pins)?,
            traffic: PerCpuTable::open(pins)?,
        })
    }

    /// What an earlier run of the agent left.
    pub fn restore(&self) -> Result<Restored, TableError> {
        let frontends: Vec<_> = self.frontends.entries().collect::<Result<_, _>>()?;
        let mut slots = Vec::new();
        for (_, frontend) in &frontends {
            for index in frontend.slot_base..frontend.slot_base.saturating_add(frontend.slot_count) {
                // A count from a damaged entry must not be believed: nothing lies beyond the table.
                let Some(backend) = self.slots.get(index)? else {
                    break;
                };
                slots.push((index, backend));
            }
        }
        let used = |backend: &Backend| *backend != Backend::default();
        Ok(Restored {
            frontends,
            slots,
            backends: self
                .backends
                .entries()
                .filter(|entry| entry.as_ref().map_or(true, |(_, backend)| used(backend)))
                .map(|entry| entry.map(|(index, backend)| (proxy_common::backend::BackendId(index), backend)))
                .collect::<Result<_, _>>()?,
            names: self.names.entries().collect::<Result<_, _>>()?,
            filter: self.filter.entries().collect::<Result<_, _>>()?,
        })
    }
}

impl Io for KernelTables {
    type Error = TableError;

    fn reset_traffic(&mut self, service: ServiceId) -> Result<(), TableError> {
        self.traffic.clear(service.0)
    }
}

impl TableIo<Frontends> for KernelTables {
    fn put(&mut self, key: &FrontendKey, value: &<Frontends as Table>::Value) -> Result<(), TableError> {
        self.frontends.put(key, value)
    }
}

impl HashTableIo<Frontends> for KernelTables {
    fn delete(&mut self, key: &FrontendKey) -> Result<(), TableError> {
        self.frontends.delete(key)
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
