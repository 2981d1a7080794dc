//! Tables in memory, and what must hold in them at every moment.

mod consistency;
pub(crate) mod node;
pub(crate) mod objects;
mod render;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use proxy_common::{
    addr::Addr,
    addresses::AddressFlags,
    backend::{Backend, BackendFlags, BackendId},
    filter::FilterLine,
    frontend::{Frontend, FrontendKey, ServiceId, SlotRun},
    pod::{CgroupId, PodEntry},
    ranges::SourceRange,
    tables::{
        AddressFilter, Addresses, Backends, Frontends, NAME_BYTES, Pods, ServiceNames, ServiceTraffic, Slots,
        SourceRanges, Table,
    },
};
use proxy_model::{HashTableIo, Io, Model, Options, Restored, TableIo};

/// The kernel's tables as ordinary maps. Every write is checked as it happens.
#[derive(Clone, Default)]
pub(crate) struct Memory {
    pub(crate) frontends: HashMap<FrontendKey, Frontend>,
    pub(crate) slots: BTreeMap<u32, BackendId>,
    pub(crate) backends: BTreeMap<u32, Backend>,
    pub(crate) names: BTreeMap<ServiceId, [u8; NAME_BYTES]>,
    pub(crate) addresses: HashMap<Addr, AddressFlags>,
    pub(crate) ranges: HashMap<SourceRange, u32>,
    pub(crate) filter: BTreeMap<u32, FilterLine>,
    pub(crate) pods: BTreeMap<CgroupId, PodEntry>,
    /// Service ids whose counters were zeroed.
    pub(crate) resets: Vec<ServiceId>,
    /// The table of each successful write and deletion, in order.
    pub(crate) log: Vec<&'static str>,
    /// Which writes, counted from now, fail.
    pub(crate) failures: HashSet<usize>,
    /// Writes that were tried.
    pub(crate) attempts: usize,
    /// When to look whether the tables are in order.
    pub(crate) checks: Checks,
}

/// When to look whether the tables are in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Checks {
    /// After every write.
    #[default]
    EveryWrite,
    /// Never: they begin as garbage.
    Off,
}

#[derive(Debug, thiserror::Error)]
#[error("write refused")]
pub(crate) struct Refused;

impl Memory {
    fn attempt(&mut self, table: &'static str) -> Result<(), Refused> {
        let number = self.attempts;
        self.attempts += 1;
        if self.failures.contains(&number) {
            return Err(Refused);
        }
        self.log.push(table);
        Ok(())
    }

    /// What a restarted agent would find.
    pub(crate) fn restored(&self) -> Restored {
        Restored {
            frontends: self.frontends.iter().map(|(&key, &row)| (key, row)).collect(),
            slots: self.slots.iter().map(|(&slot, &id)| (slot, id)).collect(),
            backends: self.backends.iter().map(|(&id, &row)| (BackendId(id), row)).collect(),
            names: self.names.iter().map(|(&id, &row)| (id, row)).collect(),
            addresses: self.addresses.iter().map(|(&address, &flags)| (address, flags)).collect(),
            source_ranges: self.ranges.iter().map(|(&range, &value)| (range, value)).collect(),
            filter: self.filter.iter().map(|(&number, &line)| (number, line)).collect(),
            pods: self.pods.iter().map(|(&id, &row)| (id, row)).collect(),
        }
    }

    /// Live backends, whether a frontend leads to them or not.
    pub(crate) fn live(&self) -> usize {
        self.backends.values().filter(|backend| backend.flags.contains(BackendFlags::LIVE)).count()
    }
}

impl Io for Memory {
    type Error = Refused;

    fn reset_traffic(&mut self, service: ServiceId) -> Result<(), Refused> {
        self.attempt(ServiceTraffic::NAME)?;
        if self.checks == Checks::EveryWrite {
            assert!(self.frontends.values().all(|row| row.service != service), "{service:?} is counting");
        }
        self.resets.push(service);
        Ok(())
    }
}

macro_rules! memory_table {
    ($table:ty, $field:ident) => {
        impl TableIo<$table> for Memory {
            fn get(&self, key: &<$table as Table>::Key) -> Result<Option<<$table as Table>::Value>, Refused> {
                Ok(self.$field.get(key).copied())
            }

            fn put(
                &mut self,
                key: &<$table as Table>::Key,
                value: &<$table as Table>::Value,
            ) -> Result<(), Refused> {
                self.attempt(<$table>::NAME)?;
                self.$field.insert(*key, *value);
                self.check();
                Ok(())
            }
        }
    };
}

/// As the others, but a slot that no frontend leads to yet says nothing, and a table has thousands of them.
impl TableIo<Slots> for Memory {
    fn get(&self, key: &u32) -> Result<Option<BackendId>, Refused> {
        Ok(self.slots.get(key).copied())
    }

    fn put(&mut self, key: &u32, value: &BackendId) -> Result<(), Refused> {
        self.attempt(Slots::NAME)?;
        self.slots.insert(*key, *value);
        let leads_there = |run: SlotRun| (run.base..run.base + run.count).contains(key);
        if self.frontends.values().any(|row| leads_there(row.slots) || leads_there(row.outside)) {
            self.check();
        }
        Ok(())
    }
}

memory_table!(AddressFilter, filter);
memory_table!(Backends, backends);
memory_table!(Frontends, frontends);
memory_table!(ServiceNames, names);

memory_table!(Addresses, addresses);
memory_table!(SourceRanges, ranges);
memory_table!(Pods, pods);

macro_rules! memory_hash_table {
    ($table:ty, $field:ident) => {
        impl HashTableIo<$table> for Memory {
            fn keys(&self) -> Result<Vec<<$table as Table>::Key>, Refused> {
                Ok(self.$field.keys().copied().collect())
            }

            fn delete(&mut self, key: &<$table as Table>::Key) -> Result<(), Refused> {
                self.attempt(<$table>::NAME)?;
                self.$field.remove(key);
                self.check();
                Ok(())
            }
        }
    };
}

memory_hash_table!(Frontends, frontends);
memory_hash_table!(ServiceNames, names);
memory_hash_table!(Addresses, addresses);
memory_hash_table!(SourceRanges, ranges);
memory_hash_table!(Pods, pods);

/// A model of `node-a` with default options.
pub(crate) fn model_on(restored: Restored) -> Model {
    Model::new(Options::on_node("node-a"), restored)
}

/// Plans and commits, and insists that nothing fails. Returns what did not fit.
pub(crate) fn settle(model: &mut Model, now: Duration, memory: &mut Memory) -> Vec<String> {
    let problems = model.plan(now).iter().map(ToString::to_string).collect();
    let errors = model.commit(now, memory);
    assert!(errors.is_empty(), "{errors:?}");
    problems
}
