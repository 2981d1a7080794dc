//! What an agent has in the kernel's tables, in words that are the same whichever numbers it has chosen.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use proxy_agent::datapath::{ArrayTable, HashTable, KernelTables, Pins};
use proxy_common::{
    backend::BackendFlags,
    filter::FilterLine,
    frontend::{ServiceId, SlotRun},
    tables::{Devices, Settings},
};
use proxy_model::ServicePortName;

use crate::agent::Agent;

/// The contents of the tables that agents write.
#[derive(Clone, Debug)]
pub struct Contents {
    /// An entry each. Backends that are gone are not among them.
    pub entries: BTreeSet<String>,
    /// The address filter.
    filter: BTreeMap<u32, FilterLine>,
}

impl Contents {
    /// Whether the address filter says "maybe" of all that the other one says it of.
    #[must_use]
    pub fn may_be_all_of(&self, other: &Self) -> bool {
        other.filter.iter().all(|(line, bytes)| {
            let own = self.filter.get(line).copied().unwrap_or_default();
            bytes.roles.iter().zip(own.roles).all(|(theirs, own)| own.contains(*theirs))
        })
    }
}

impl Agent {
    /// What it has in the kernel's tables.
    ///
    /// # Errors
    ///
    /// If one cannot be read.
    pub fn contents(&self) -> Result<Contents> {
        self.namespace().run(|| contents(&Pins::new(self.bpffs())))
    }
}

fn contents(pins: &Pins) -> Result<Contents> {
    let restored = KernelTables::open(pins)?.restore()?;
    let names: BTreeMap<_, _> = restored.names.iter().map(|(id, row)| (*id, row)).collect();
    let name = |id: ServiceId| {
        let name = names.get(&id).and_then(|row| ServicePortName::from_row(row));
        name.map_or_else(|| "nobody".to_owned(), |name| name.to_string())
    };
    let backends: BTreeMap<_, _> = restored.backends.iter().copied().collect();
    let slots: BTreeMap<_, _> = restored.slots.iter().copied().collect();
    let run = |run: SlotRun| {
        let slots =
            (run.base..run.base + run.count).map(|slot| slots.get(&slot).and_then(|id| backends.get(id)));
        let mut ends: Vec<_> = slots
            .map(|backend| backend.map_or_else(|| "nobody".to_owned(), |b| format!("{:?}", b.end())))
            .collect();
        ends.sort();
        ends.dedup();
        ends
    };
    let mut entries: BTreeSet<_> =
        restored.names.iter().map(|(id, _)| format!("service {}", name(*id))).collect();
    entries.extend(restored.frontends.iter().map(|(key, frontend)| {
        let (inside, outside) = (run(frontend.slots), run(frontend.outside));
        let (flags, affinity) = (frontend.flags, frontend.affinity);
        format!("{key:?} of {}: {flags:?} {affinity} s {inside:?} {outside:?}", name(frontend.service))
    }));
    let live = restored.backends.iter().filter(|(_, backend)| backend.flags.contains(BackendFlags::LIVE));
    entries.extend(live.map(|(_, backend)| {
        format!("backend {:?} of {}: {:#x}", backend.end(), name(backend.service), backend.flags.0)
    }));
    entries
        .extend(restored.addresses.iter().map(|(address, flags)| format!("address {address:?}: {flags:?}")));
    entries.extend(restored.source_ranges.iter().map(|(range, _)| {
        let (length, data) = (range.prefix_length, range.data);
        format!("range {:?} {length} of {}", data.address, name(data.service))
    }));
    entries.extend(restored.pods.iter().map(|(cgroup, pod)| format!("{cgroup:?}: {pod:?}")));
    for entry in HashTable::<Devices>::open(pins)?.entries() {
        let (index, device) = entry?;
        entries.insert(format!("device {index}: {device:?}"));
    }
    entries.insert(format!("{:?}", ArrayTable::<Settings>::open(pins)?.get(0)?));
    Ok(Contents { entries, filter: restored.filter.into_iter().collect() })
}
