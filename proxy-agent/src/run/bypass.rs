//! The program that meets packets before the stack, on the uplinks where it may be.
//!
//! It is never needed: what it does not send on, the others translate. So nothing here is an error of the agent; how each
//! uplink stands is written down for `sluice status`, and told once.

use std::collections::{BTreeMap, BTreeSet};

use proxy_common::{
    tables::XdpDevices as Table,
    xdp::{XdpDevice, XdpStand},
};
use tracing::{info, warn};

use crate::{
    datapath::{AttachError, Datapath, HashTable, Pins, TableError, attach_xdp, detach_xdp, xdp_hooks},
    devices::{Conntrack, Device, Ifindex, Inventory, XdpMode, name_of},
};

/// Which uplinks have the program, and why others have not.
pub(super) struct Bypass {
    mode: XdpMode,
    table: HashTable<Table>,
    /// What the table contains.
    rows: BTreeMap<Ifindex, XdpDevice>,
    /// Uplinks with this process's program.
    attached: BTreeSet<Ifindex>,
    /// Uplinks of the round that goes on, and how they are meant to stand.
    wanted: BTreeMap<Ifindex, XdpStand>,
    conntrack: Conntrack,
}

impl Bypass {
    /// Goes on from what an earlier run wrote about uplinks.
    pub(super) fn start(pins: &Pins, mode: XdpMode) -> Result<Self, TableError> {
        let table = HashTable::<Table>::open(pins)?;
        let rows = table.entries().map(|entry| entry.map(|(index, row)| (Ifindex(index), row)));
        Ok(Self {
            mode,
            rows: rows.collect::<Result<_, _>>()?,
            table,
            attached: BTreeSet::new(),
            wanted: BTreeMap::new(),
            conntrack: Conntrack::now(),
        })
    }

    /// Before the uplinks are gone through.
    pub(super) fn begin(&mut self) {
        self.wanted.clear();
        self.conntrack = Conntrack::now();
    }

    /// Brings the program onto an uplink, if it belongs there.
    pub(super) fn place(&mut self, datapath: &mut Datapath, pins: &Pins, device: &Device, all: &Inventory) {
        let stand = self.mode.stand(device, all, self.conntrack);
        self.wanted.insert(device.index, stand);
        if stand != XdpStand::Native {
            self.note(device, XdpDevice::new(stand), "");
            return;
        }
        if !self.attached.contains(&device.index) {
            if let Err(error) = attach_xdp(datapath, pins, device) {
                return self.note(device, error.stand(), &crate::report(&error));
            }
            self.attached.insert(device.index);
        }
        self.note(device, XdpDevice::new(stand), "");
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

    /// Takes the program off whatever was not gone through, or is meant to have none, and forgets the former.
    pub(super) fn finish(&mut self, pins: &Pins, all: &Inventory) -> Result<(), AttachError> {
        let wanted = &self.wanted;
        let is_unlisted = |index| all.device(index).is_none() && name_of(index).is_some();
        let gone =
            detach_xdp(pins, |index| wanted.get(&index) == Some(&XdpStand::Native) || is_unlisted(index))?;
        self.attached.retain(|index| !gone.contains(index));
        for index in gone {
            info!(index = index.0, "packets no longer go past the stack");
        }
        let stays = |index: &Ifindex| wanted.contains_key(index) || is_unlisted(*index);
        let forgotten: Vec<_> = self.rows.keys().filter(|index| !stays(index)).copied().collect();
        for index in forgotten {
            match self.table.delete(&index.0) {
                Ok(()) => drop(self.rows.remove(&index)),
                Err(error) => warn!("{}", crate::report(&error)),
            }
        }
        Ok(())
    }

    /// Forgets the uplinks whose program somebody else has taken off. Returns how many there are.
    pub(super) fn notice_losses(&mut self, pins: &Pins) -> Result<usize, AttachError> {
        let pinned = xdp_hooks(pins)?;
        let before = self.attached.len();
        self.attached.retain(|index| pinned.iter().any(|(device, _)| device == index));
        Ok(before - self.attached.len())
    }
}
