//! What the datapath knows of devices that packets are delivered between past the stack.

use std::collections::BTreeMap;

use proxy_common::{delivery::DeliveryDevice as Row, tables::DeliveryDevices as Table};

use crate::{
    datapath::{HashTable, Pins, TableError},
    devices::{BridgeNetfilter, Ifindex, Inventory, LocalDelivery},
};

/// The table of such devices.
pub(super) struct Delivering {
    mode: LocalDelivery,
    table: HashTable<Table>,
    /// What the table contains.
    rows: BTreeMap<Ifindex, Row>,
}

impl Delivering {
    /// Goes on from what an earlier run wrote.
    pub(super) fn start(pins: &Pins, mode: LocalDelivery) -> Result<Self, TableError> {
        let table = HashTable::<Table>::open(pins)?;
        let rows = table.entries().map(|entry| entry.map(|(index, row)| (Ifindex(index), row)));
        Ok(Self { mode, rows: rows.collect::<Result<_, _>>()?, table })
    }

    /// Whether packets of a device may be delivered past the stack.
    pub(super) fn from(&self, index: Ifindex) -> LocalDelivery {
        if self.rows.contains_key(&index) { LocalDelivery::Direct } else { LocalDelivery::Stack }
    }

    /// Writes what is to be known of all devices now. Until a row is there, and once it is gone, the stack delivers.
    pub(super) fn note(&mut self, all: &Inventory) -> Result<(), TableError> {
        let netfilter = BridgeNetfilter::now();
        let row = |device| self.mode.row(device, all, netfilter);
        let wanted: BTreeMap<_, _> =
            all.devices.iter().filter_map(|device| Some((device.index, row(device)?))).collect();
        for (index, row) in &wanted {
            if self.rows.get(index) != Some(row) {
                self.table.put(&index.0, row)?;
                self.rows.insert(*index, *row);
            }
        }
        let gone: Vec<_> = self.rows.keys().filter(|index| !wanted.contains_key(index)).copied().collect();
        for index in gone {
            self.table.delete(&index.0)?;
            self.rows.remove(&index);
        }
        Ok(())
    }
}
