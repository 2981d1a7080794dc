//! From the kernel's maps to what a decision about one client and one destination needs of them.

use std::net::IpAddr;

use proxy_common::{
    addr::Addr,
    affinity::AffinityKey,
    backend::Backend,
    config::NodeSettings,
    filter::FilterPosition,
    frontend::{Frontend, SlotRun},
    tables::{
        AddressFilter, Addresses, Affinities, Backends, Devices, Flows, Frontends, Settings, Slots,
        SourceRanges,
    },
};

use super::{
    Target,
    decide::{Client, matched},
    view::View,
};
use crate::{
    datapath::{ArrayTable, HashTable, Pins, TableError, TrieTable},
    show::{ShowError, time::Time},
};

impl View {
    /// Reads it. What a client is used to is not among it; that needs a frontend to be known.
    pub(super) fn read(pins: &Pins, client: Option<IpAddr>, target: &Target) -> Result<Self, ShowError> {
        let time = Time::read(pins)?;
        let settings = ArrayTable::<Settings>::open(pins)?.get(0)?;
        let mut view = Self::empty(settings.unwrap_or(NodeSettings::new(time.rate)), time.now);
        view.frontends = HashTable::<Frontends>::open(pins)?.entries().collect::<Result<_, _>>()?;
        view.devices = HashTable::<Devices>::open(pins)?.entries().collect::<Result<_, _>>()?;
        for range in TrieTable::<SourceRanges>::open(pins)?.entries() {
            view.ranges.push(range?.0);
        }
        let addresses = HashTable::<Addresses>::open(pins)?;
        let filter = ArrayTable::<AddressFilter>::open(pins)?;
        for address in [Some(target.end.ip()), client].into_iter().flatten().map(Addr::from) {
            view.addresses.extend(addresses.get(&address)?.map(|flags| (address, flags)));
            let line = FilterPosition::of(address).line;
            view.filter.extend(filter.get(line)?.map(|found| (line, found)));
        }
        if let Some(client) = client.map(Addr::from) {
            for entry in HashTable::<Flows>::open(pins)?.entries() {
                let (key, flow) = entry?;
                if key.source == client || key.destination == client {
                    view.flows.insert(key, flow);
                }
            }
        }
        Ok(view)
    }

    /// Reads what belongs to the frontend that the destination addresses, if it does.
    pub(super) fn read_service(
        &mut self,
        pins: &Pins,
        client: &Client,
        target: &Target,
    ) -> Result<(), TableError> {
        let Some(found) = matched(self, client, target) else {
            return Ok(());
        };
        let Frontend { service, slots, outside, .. } = found.frontend;
        let table = ArrayTable::<Slots>::open(pins)?;
        for SlotRun { base, count } in [slots, outside] {
            for index in base..base.saturating_add(count) {
                self.slots.extend(table.get(index)?.map(|backend| (index, backend)));
            }
        }
        for entry in ArrayTable::<Backends>::open(pins)?.entries() {
            let (id, record) = entry?;
            if record.service == service && record != Backend::default() {
                self.backends.insert(proxy_common::backend::BackendId(id), record);
            }
        }
        let key = AffinityKey { client: client.known_as(self), service };
        let mapping = HashTable::<Affinities>::open(pins)?.get(&key)?;
        self.affinities.extend(mapping.map(|mapping| (key, mapping)));
        Ok(())
    }
}
