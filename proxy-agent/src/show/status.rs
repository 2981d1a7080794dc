//! `sluice status`: programs, devices, tables, drops.

use std::collections::BTreeMap;

use proxy_common::{
    backend::BackendFlags,
    drop::DropReason,
    flow::Direction,
    tables::{Affinities, Backends, Drops, Flows, Frontends, ServiceNames, Table},
};
use serde::Serialize;

use super::{Show, ShowError, grid, lines, right};
use crate::{
    datapath::{ArrayTable, HashTable, PerCpuTable, Pins, Program, TableError, pinned_hooks},
    devices::{self, Device, Skip, placement},
};

/// What the kernel holds.
#[derive(Debug, Serialize)]
pub struct Status {
    /// Where it is pinned.
    pub pins: String,
    /// Where other layouts are pinned: those of agents from before or after this one.
    pub other_layouts: Vec<String>,
    /// Devices with a pinned link.
    pub devices: Vec<DeviceRow>,
    /// Devices of this network namespace that lack a program. Empty as well if they cannot be listed.
    pub not_attached: Vec<BareDevice>,
    /// Tables and how full they are.
    pub tables: Vec<TableRow>,
    /// Flows by state, client's direction only.
    pub flows: BTreeMap<&'static str, u64>,
    /// Dropped packets by reason.
    pub drops: BTreeMap<&'static str, u64>,
}

/// A device.
#[derive(Debug, Serialize)]
pub struct DeviceRow {
    /// Its number.
    pub index: u32,
    /// Its name; `None` if no such device is in this network namespace.
    pub name: Option<String>,
    /// Kernel id of the program at ingress.
    pub ingress: Option<u32>,
    /// Kernel id of the program at egress.
    pub egress: Option<u32>,
}

/// A device without both programs.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct BareDevice {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Why that is so; `missing` if it should not be.
    pub reason: &'static str,
}

/// A table.
#[derive(Debug, Serialize)]
pub struct TableRow {
    /// Its name.
    pub name: &'static str,
    /// Entries in use.
    pub used: u64,
    /// Entries there can be.
    pub capacity: u32,
}

/// Reads it from the kernel.
pub fn status(pins: &Pins) -> Result<Status, ShowError> {
    let frontends = count(HashTable::<Frontends>::open(pins)?.entries())?;
    let mut flows = BTreeMap::new();
    let mut entries = 0;
    for entry in HashTable::<Flows>::open(pins)?.entries() {
        let (_, flow) = entry?;
        entries += 1;
        if flow.direction == Direction::ORIGINAL {
            *flows.entry(flow.state.as_str()).or_default() += 1;
        }
    }
    let mut backends = 0;
    for entry in ArrayTable::<Backends>::open(pins)?.entries() {
        backends += u64::from(entry?.1.flags.contains(BackendFlags::LIVE));
    }
    let names = count(HashTable::<ServiceNames>::open(pins)?.entries())?;
    let affinities = count(HashTable::<Affinities>::open(pins)?.entries())?;
    let counts = PerCpuTable::<Drops>::open(pins)?;
    let mut drops = BTreeMap::new();
    for reason in DropReason::ALL {
        drops.insert(reason.as_str(), counts.get(reason as u32)?.iter().sum());
    }
    fn row<T: Table>(used: u64) -> TableRow {
        TableRow { name: T::NAME, used, capacity: T::CAPACITY }
    }
    // It is a hint; what follows is worth showing without it.
    let others = pins.others().unwrap_or_default();
    let devices = attached(pins)?;
    let not_attached = devices::list().map(|all| bare(&all, &devices)).unwrap_or_default();
    Ok(Status {
        pins: pins.root().display().to_string(),
        other_layouts: others.iter().map(|other| other.root().display().to_string()).collect(),
        devices,
        not_attached,
        tables: vec![
            row::<ServiceNames>(names),
            row::<Frontends>(frontends),
            row::<Backends>(backends),
            row::<Flows>(entries),
            row::<Affinities>(affinities),
        ],
        flows,
        drops,
    })
}

fn count<T>(mut entries: impl Iterator<Item = Result<T, TableError>>) -> Result<u64, TableError> {
    entries.try_fold(0, |count, entry| entry.map(|_| count + 1))
}

fn attached(pins: &Pins) -> Result<Vec<DeviceRow>, ShowError> {
    let mut rows = BTreeMap::new();
    for hook in pinned_hooks(pins)? {
        let index = hook.device.0;
        let row = rows.entry(index).or_insert_with(|| DeviceRow {
            index,
            name: devices::name_of(hook.device),
            ingress: None,
            egress: None,
        });
        match hook.program {
            Program::Ingress => row.ingress = hook.program_id,
            Program::Egress => row.egress = hook.program_id,
            Program::Clock => {}
        }
    }
    Ok(rows.into_values().collect())
}

/// The devices that lack a program.
fn bare(all: &[Device], attached: &[DeviceRow]) -> Vec<BareDevice> {
    let whole = |device: &&Device| {
        attached
            .iter()
            .any(|row| row.index == device.index.0 && row.ingress.is_some() && row.egress.is_some())
    };
    let describe = |device: &Device| BareDevice {
        index: device.index.0,
        name: device.name.clone(),
        reason: placement(device, all).map_or_else(Skip::as_str, |()| "missing"),
    };
    all.iter().filter(|device| !whole(device)).map(describe).collect()
}

impl Show for Status {
    fn table(&self) -> String {
        let number = |id: Option<u32>| id.map_or_else(|| "-".to_owned(), |id| id.to_string());
        let mut devices = grid(["DEVICE", "INDEX", "INGRESS PROGRAM", "EGRESS PROGRAM"]);
        right(&mut devices, [1, 2, 3]);
        for row in &self.devices {
            let name = row.name.clone().unwrap_or_else(|| "(not in this namespace)".to_owned());
            devices.add_row([name, row.index.to_string(), number(row.ingress), number(row.egress)]);
        }
        let mut bare = grid(["NOT ATTACHED", "INDEX", "REASON"]);
        right(&mut bare, [1]);
        for row in &self.not_attached {
            bare.add_row([row.name.as_str(), &row.index.to_string(), row.reason]);
        }
        let bare = if self.not_attached.is_empty() { String::new() } else { format!("{}\n\n", lines(&bare)) };
        let mut tables = grid(["TABLE", "USED", "CAPACITY"]);
        right(&mut tables, [1, 2]);
        for row in &self.tables {
            tables.add_row([row.name.to_owned(), row.used.to_string(), row.capacity.to_string()]);
        }
        let list = |counts: &BTreeMap<&str, u64>| {
            let some: Vec<_> = counts
                .iter()
                .filter(|&(_, &count)| count > 0)
                .map(|(name, count)| format!("{name} {count}"))
                .collect();
            if some.is_empty() { "none".to_owned() } else { some.join(", ") }
        };
        let others = match &*self.other_layouts {
            [] => String::new(),
            others => format!(
                "also   {} (another version's, until this one's agent has synced)\n",
                others.join(", ")
            ),
        };
        format!(
            "pins   {}\n{others}flows  {}\ndrops  {}\n\n{}\n\n{bare}{}",
            self.pins,
            list(&self.flows),
            list(&self.drops),
            lines(&devices),
            lines(&tables)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::{DeviceKind, Ifindex};

    #[test]
    fn devices_without_both_programs_are_shown_with_the_reason() {
        let device = |index, name: &str, kind| Device {
            index: Ifindex(index),
            name: name.to_owned(),
            kind,
            controller: None,
        };
        let all = [
            device(1, "lo", DeviceKind::Loopback),
            device(2, "whole", DeviceKind::Ethernet),
            device(3, "half", DeviceKind::Ethernet),
            device(4, "tun", DeviceKind::Headerless),
        ];
        let row = |index, egress| DeviceRow { index, name: None, ingress: Some(7), egress };
        let bare: Vec<_> = bare(&all, &[row(2, Some(8)), row(3, None)])
            .into_iter()
            .map(|row| (row.name, row.index, row.reason))
            .collect();
        let expected = [
            ("lo".to_owned(), 1, "loopback"),
            ("half".to_owned(), 3, "missing"),
            ("tun".to_owned(), 4, Skip::NoEthernetHeader.as_str()),
        ];
        assert_eq!(bare, expected);
    }
}
