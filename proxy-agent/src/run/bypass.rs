//! The programs that meet packets before the stack, on the uplinks where they may be.
//!
//! They are never needed: what they do not send on, the others translate. So nothing here is an error of the agent; how each
//! uplink stands is written down for `sluice status`, and told once.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter,
};

use proxy_common::{
    tables::XdpDevices as Table,
    xdp::{XdpDevice, XdpMode, XdpStand},
};
use tracing::{info, warn};

use crate::{
    datapath::{AttachError, Datapath, HashTable, Pins, TableError, attach_xdp, detach_xdp, xdp_hooks},
    devices::{Conntrack, Device, Ifindex, Inventory, XdpRules, name_of},
};

/// Which uplinks have the program, and why others have not.
pub(super) struct Bypass {
    rules: XdpRules,
    table: HashTable<Table>,
    /// What the table contains.
    rows: BTreeMap<Ifindex, XdpDevice>,
    /// Uplinks with a program of this process.
    attached: BTreeMap<Ifindex, XdpMode>,
    /// Uplinks that this process has tried to bring a program onto, in vain.
    failed: BTreeSet<Ifindex>,
    /// Uplinks of the round that goes on, and how they are meant to stand.
    wanted: BTreeMap<Ifindex, XdpStand>,
    conntrack: Conntrack,
}

impl Bypass {
    /// Goes on from what an earlier run wrote about uplinks.
    pub(super) fn start(pins: &Pins, rules: XdpRules) -> Result<Self, TableError> {
        let table = HashTable::<Table>::open(pins)?;
        let rows = table.entries().map(|entry| entry.map(|(index, row)| (Ifindex(index), row)));
        Ok(Self {
            rules,
            rows: rows.collect::<Result<_, _>>()?,
            table,
            attached: BTreeMap::new(),
            failed: BTreeSet::new(),
            wanted: BTreeMap::new(),
            conntrack: Conntrack::now(),
        })
    }

    /// Before the uplinks are gone through.
    pub(super) fn begin(&mut self) {
        self.wanted.clear();
        self.conntrack = Conntrack::now();
    }

    /// Notes how an uplink is meant to stand.
    pub(super) fn want(&mut self, device: &Device, all: &Inventory) {
        let stand = self.rules.of(device).stand(device, all, self.conntrack);
        self.wanted.insert(device.index, stand);
        // Other drivers give their frames to whatever this says of a device: before its program goes, it says so no more.
        let has_native = self.rows.get(&device.index).is_some_and(|row| row.takes_from(XdpMode::Native));
        if stand.mode().is_none() || has_native && stand != XdpStand::Native {
            self.note(device, XdpDevice::new(stand), "");
        }
    }

    /// Writes down how an uplink stands, and tells it if that is new.
    fn note(&mut self, device: &Device, row: XdpDevice, error: &str) {
        let [a, b, c, d, e, f] = device.address;
        let row = row.at([[a, b], [c, d], [e, f]].map(u16::from_ne_bytes));
        if self.rows.get(&device.index) == Some(&row) {
            return;
        }
        let stand = row.stand().map_or("unknown", XdpStand::as_str);
        // Nobody has to be told that what nobody asked for is not there.
        if row.stand() != Some(XdpStand::Off) {
            info!(device = device.name, xdp = stand, error, "packets of running flows past the stack");
        }
        match self.table.put(&device.index.0, &row) {
            Ok(()) => drop(self.rows.insert(device.index, row)),
            // Only status misses it.
            Err(error) => warn!("{}", crate::report(&error)),
        }
    }

    /// Takes programs off whatever was not gone through, or is meant to have none or one of the other mode; then brings those
    /// that are missing onto the others.
    pub(super) fn finish(
        &mut self,
        datapath: &mut Datapath,
        pins: &Pins,
        all: &Inventory,
    ) -> Result<(), AttachError> {
        let wanted = |index| self.wanted.get(&index).and_then(|stand| stand.mode());
        let is_unlisted = |index| all.device(index).is_none() && name_of(index).is_some();
        // The kernel takes no program for a device while there is one on a device on top of it. So those make room for one that is
        // tried for the first time, and the lower ones come first.
        let pinned = xdp_hooks(pins)?;
        let is_new = |device: &Device| {
            let index = device.index;
            !self.failed.contains(&index)
                && wanted(index).is_some_and(|mode| !pinned.contains(&(index, mode)))
        };
        let makes_room = |index| all.device(index).is_some_and(|device| below(device, all).any(is_new));
        let gone = detach_xdp(pins, |index, mode| {
            wanted(index) == Some(mode) && !makes_room(index) || is_unlisted(index)
        })?;
        self.attached.retain(|index, mode| !gone.contains(&(*index, *mode)));
        for (index, _) in gone {
            info!(index = index.0, "packets no longer go past the stack");
        }
        let mut devices: Vec<_> = all.devices.iter().collect();
        devices.sort_by_key(|device| below(device, all).count());
        for device in devices {
            self.attach(datapath, pins, device);
        }
        let stays = |index: &Ifindex| self.wanted.contains_key(index) || is_unlisted(*index);
        self.failed.retain(stays);
        let forgotten: Vec<_> = self.rows.keys().filter(|index| !stays(index)).copied().collect();
        for index in forgotten {
            match self.table.delete(&index.0) {
                Ok(()) => drop(self.rows.remove(&index)),
                Err(error) => warn!("{}", crate::report(&error)),
            }
        }
        Ok(())
    }

    /// Brings its program onto an uplink that is meant to have one.
    fn attach(&mut self, datapath: &mut Datapath, pins: &Pins, device: &Device) {
        let Some(stand) = self.wanted.get(&device.index).copied() else { return };
        let Some(mode) = stand.mode() else { return };
        if self.attached.get(&device.index) != Some(&mode) {
            if let Err(error) = attach_xdp(datapath, pins, device, mode) {
                self.failed.insert(device.index);
                return self.note(device, error.stand(), &crate::report(&error));
            }
            self.failed.remove(&device.index);
            self.attached.insert(device.index, mode);
        }
        self.note(device, XdpDevice::new(stand), "");
    }

    /// Forgets the uplinks whose program somebody else has taken off. Returns how many there are.
    pub(super) fn notice_losses(&mut self, pins: &Pins) -> Result<usize, AttachError> {
        let pinned = xdp_hooks(pins)?;
        let before = self.attached.len();
        self.attached.retain(|index, mode| pinned.contains(&(*index, *mode)));
        Ok(before - self.attached.len())
    }
}

/// The devices that a device stands on, one on the other.
fn below<'a>(device: &Device, all: &'a Inventory) -> impl Iterator<Item = &'a Device> {
    /// More than anybody stacks; devices may change while they are listed, and seem to stand on each other.
    const HIGHEST: usize = 8;
    let lower = |device: &Device| device.lower.and_then(|lower| all.device(lower));
    iter::successors(lower(device), move |device| lower(device)).take(HIGHEST)
}
