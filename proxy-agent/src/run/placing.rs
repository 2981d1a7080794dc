//! The programs on every device where they belong, and what the datapath knows of these devices.

use std::collections::{BTreeMap, BTreeSet};

use proxy_common::{
    device::{Device as Row, DeviceFlags},
    tables::Devices as Table,
};
use tracing::{info, warn};

use super::{bypass::Bypass, delivering::Delivering};
use crate::{
    datapath::{
        AttachError, Datapath, HashTable, Pins, TableError, attach, detach_others, pinned_hooks, programs,
    },
    devices::{
        Class, Device, DeviceRules, Ifindex, Inventory, LinkHeader, LocalDelivery, Skip, name_of, placement,
        row,
    },
    metrics::Devices as Counts,
};

/// Which devices are served, and how.
pub(super) struct Placing {
    rules: DeviceRules,
    table: HashTable<Table>,
    /// What the table contains.
    rows: BTreeMap<Ifindex, Row>,
    /// Devices that carry this process's programs, and which.
    attached: BTreeMap<Ifindex, Carried>,
    /// Devices that do not, and why.
    skipped: BTreeMap<Ifindex, Skip>,
    /// Devices that should, but could not be served.
    unserved: BTreeMap<Ifindex, String>,
    /// Devices that carry programs and exist, but that the latest list lacks.
    unlisted: BTreeSet<Ifindex>,
    /// What is met before the stack.
    bypass: Bypass,
    /// What is delivered past it.
    delivering: Delivering,
}

/// What decides which programs a device carries.
type Carried = (LinkHeader, LocalDelivery);

/// A device could not be served.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    Attach(#[from] AttachError),
}

impl Placing {
    /// Goes on from what an earlier run wrote about devices.
    pub(super) fn start(pins: &Pins, rules: DeviceRules) -> Result<Self, TableError> {
        let table = HashTable::<Table>::open(pins)?;
        let rows = table.entries().map(|entry| entry.map(|(index, row)| (Ifindex(index), row)));
        Ok(Self {
            bypass: Bypass::start(pins, rules.xdp.clone())?,
            delivering: Delivering::start(pins, rules.delivery)?,
            rules,
            rows: rows.collect::<Result<_, _>>()?,
            table,
            attached: BTreeMap::new(),
            skipped: BTreeMap::new(),
            unserved: BTreeMap::new(),
            unlisted: BTreeSet::new(),
        })
    }

    /// Whether devices wait for another try.
    pub(super) fn is_unfinished(&self) -> bool {
        !self.unserved.is_empty() || !self.unlisted.is_empty()
    }

    /// What became of the devices.
    pub(super) fn counts(&self) -> Counts {
        Counts {
            attached: self.attached.len(),
            skipped: self.skipped.len(),
            unfinished: self.unserved.len() + self.unlisted.len(),
            rows: self.rows.len(),
        }
    }

    /// Forgets the devices whose programs somebody else has taken off, so that they are served anew (SYNC-06). Returns how
    /// many there are.
    pub(super) fn notice_losses(&mut self, pins: &Pins) -> Result<usize, AttachError> {
        let pinned: BTreeSet<_> =
            pinned_hooks(pins)?.into_iter().map(|hook| (hook.device, hook.program.name())).collect();
        let before = self.attached.len();
        self.attached.retain(|index, &mut (header, delivery)| {
            let is_whole =
                programs(header, delivery).iter().all(|program| pinned.contains(&(*index, program.name())));
            if !is_whole {
                warn!(index = index.0, "somebody has removed programs from the device; they are put back");
            }
            is_whole
        });
        Ok(before - self.attached.len() + self.bypass.notice_losses(pins)?)
    }

    /// Looks whether the datapath still knows of devices what it was told, and puts it right if not (SYNC-06). Returns how
    /// many rows were wrong.
    pub(super) fn audit(&mut self) -> Result<usize, TableError> {
        let known: BTreeSet<_> = self.table.keys()?.into_iter().map(Ifindex).collect();
        let mut repaired = 0;
        for (index, row) in &self.rows {
            if self.table.get(&index.0)? != Some(*row) {
                self.table.put(&index.0, row)?;
                repaired += 1;
            }
        }
        for index in known.iter().filter(|index| !self.rows.contains_key(index)) {
            self.table.delete(&index.0)?;
            repaired += 1;
        }
        Ok(repaired)
    }

    /// Brings the programs onto every device where they belong, and off the others.
    pub(super) fn place(
        &mut self,
        datapath: &mut Datapath,
        pins: &Pins,
        all: &Inventory,
    ) -> Result<(), AttachError> {
        let mut wanted = BTreeMap::new();
        let mut skipped = BTreeMap::new();
        let mut unserved = BTreeMap::new();
        self.bypass.begin();
        if let Err(error) = self.delivering.note(all) {
            warn!("{}; the stack delivers there", crate::report(&error));
        }
        for device in &all.devices {
            let (index, name) = (device.index, &device.name);
            if let Err(reason) = placement(device, all) {
                if self.skipped.get(&index) != Some(&reason) {
                    info!(device = name, reason = reason.as_str(), "not attached");
                }
                skipped.insert(index, reason);
                continue;
            }
            let carried = (device.header, self.delivering.from(index));
            wanted.insert(index, carried);
            if let Err(error) = self.serve(datapath, pins, device, carried, all) {
                // Often the device has just vanished; the retry will know.
                let error = crate::report(&error);
                if self.unserved.get(&index) != Some(&error) {
                    warn!("{error}; will try again");
                }
                unserved.insert(index, error);
            }
            if self.rows.get(&index).is_some_and(|row| class_of(row) == Class::Uplink) {
                self.bypass.want(device, all);
            }
        }
        self.bypass.finish(datapath, pins, all)?;
        self.skipped = skipped;
        self.unserved = unserved;
        self.detach(pins, all, &wanted)
    }

    /// Writes what is known of a device, and then attaches to it: a program that knows nothing of its device would take
    /// its clients for strangers, and find no source address.
    fn serve(
        &mut self,
        datapath: &mut Datapath,
        pins: &Pins,
        device: &Device,
        carried: Carried,
        all: &Inventory,
    ) -> Result<(), ServeError> {
        let (index, name) = (device.index, &device.name);
        let row = row(device, all, &self.rules);
        let before = self.rows.get(&index).copied();
        if before != Some(row) {
            self.table.put(&index.0, &row)?;
            self.rows.insert(index, row);
        }
        let class = class_of(&row).as_str();
        if self.attached.get(&index) == Some(&carried) {
            if before.is_some_and(|before| class_of(&before).as_str() != class) {
                info!(device = name, class, "the class of the device has changed");
            }
            return Ok(());
        }
        attach(datapath, pins, device, carried.1)?;
        self.attached.insert(index, carried);
        info!(device = name, index = index.0, class, "attached");
        Ok(())
    }

    /// Removes the programs from all devices but those `wanted`, and then forgets the devices.
    fn detach(
        &mut self,
        pins: &Pins,
        all: &Inventory,
        wanted: &BTreeMap<Ifindex, Carried>,
    ) -> Result<(), AttachError> {
        self.unlisted.clear();
        let gone = detach_others(pins, |hook| {
            let index = hook.device;
            let unlisted = all.device(index).is_none() && name_of(index).is_some();
            if unlisted {
                self.unlisted.insert(index);
            }
            unlisted
                || wanted
                    .get(&index)
                    .is_some_and(|&(header, delivery)| programs(header, delivery).contains(&hook.program))
        })?;
        let unlisted = &self.unlisted;
        let stays = |index: &Ifindex| wanted.contains_key(index) || unlisted.contains(index);
        self.attached.retain(|index, _| stays(index));
        for index in gone.iter().filter(|index| !stays(index)) {
            info!(index = index.0, "detached");
        }
        let forgotten: Vec<_> = self.rows.keys().filter(|index| !stays(index)).copied().collect();
        for index in forgotten {
            match self.table.delete(&index.0) {
                Ok(()) => {
                    self.rows.remove(&index);
                }
                // It does no harm, and the next time is soon enough.
                Err(error) => warn!("{}", crate::report(&error)),
            }
        }
        Ok(())
    }
}

/// The class that a row tells.
fn class_of(row: &Row) -> Class {
    if row.flags.contains(DeviceFlags::LOCAL_CLIENTS) { Class::LocalClients } else { Class::Uplink }
}
