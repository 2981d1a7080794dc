//! What the kernel counts, read from its tables when somebody asks.
//!
//! A service port is told of once it has carried or dropped a packet on this node: so the number of series follows what a node
//! does, not what the cluster has.

use std::{collections::BTreeMap, fmt};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _, MetricEncoder},
    metrics::{MetricType, counter::ConstCounter, family::Family, gauge::Gauge},
    registry::Registry,
};
use proxy_common::{
    counters::ServiceCounters,
    delivery::Manner,
    drop::DropReason,
    frontend::ServiceId,
    tables::{
        Addresses, Affinities, Backends, Delivered, Devices, Drops, Flows, Fragments, Frontends, Passages,
        ServiceDrops, ServiceNames, ServiceTraffic, Slots, Sockets, SourceRanges, Table,
    },
    xdp::Passage,
};
use proxy_model::ServicePortName;
use tracing::warn;

use super::{Labels, rounds::set};
use crate::datapath::{HashTable, PerCpuHashTable, PerCpuTable, Pins, TableError, table_capacities};

/// How full the tables are.
#[derive(Clone, Debug, Default)]
pub(super) struct Fills {
    entries: Family<Labels<1>, Gauge>,
    capacities: Family<Labels<1>, Gauge>,
}

/// The tables that may become full.
const FILLED: [&str; 12] = [
    ServiceNames::NAME,
    Frontends::NAME,
    Backends::NAME,
    Slots::NAME,
    Addresses::NAME,
    SourceRanges::NAME,
    Devices::NAME,
    Flows::NAME,
    Affinities::NAME,
    Sockets::NAME,
    Fragments::NAME,
    ServiceDrops::NAME,
];

impl Fills {
    /// So many entries of a table are in use.
    pub(super) fn set(&self, table: &'static str, entries: usize) {
        set(&self.entries.get_or_create(&[("table", table)]), entries);
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("sluice_table_entries", "Entries of a table in use", self.entries.clone());
        let help = "Entries that a table has room for";
        registry.register("sluice_table_capacity", help, self.capacities.clone());
    }

    /// Counts those that only the kernel writes to. The flow table is counted by its sweeps: that takes too long here.
    pub(super) fn count(&self, pins: &Pins) -> Result<(), TableError> {
        for (table, capacity) in
            table_capacities(pins)?.into_iter().filter(|(table, _)| FILLED.contains(table))
        {
            set(&self.capacities.get_or_create(&[("table", table)]), capacity as usize);
        }
        self.set(ServiceDrops::NAME, PerCpuHashTable::<ServiceDrops>::open(pins)?.count()?);
        self.set(Affinities::NAME, HashTable::<Affinities>::open(pins)?.count()?);
        self.set(Sockets::NAME, HashTable::<Sockets>::open(pins)?.count()?);
        self.set(Fragments::NAME, HashTable::<Fragments>::open(pins)?.count()?);
        Ok(())
    }
}

/// Reads counters of packets.
#[derive(Debug)]
pub(super) struct Kernel {
    pins: Pins,
}

/// Everything that is read for one answer.
#[derive(Debug, Default)]
struct Reading {
    /// Drops on the node by reason.
    drops: Vec<(&'static str, u64)>,
    /// Packets that were met before the stack, by what became of them.
    passages: Vec<(&'static str, u64)>,
    /// Packets that were delivered past the stack, by how.
    deliveries: Vec<(&'static str, u64)>,
    services: Vec<Service>,
}

/// A service port and what it has carried.
#[derive(Debug)]
struct Service {
    name: ServicePortName,
    counters: ServiceCounters,
    /// Drops by reason.
    drops: BTreeMap<&'static str, u64>,
}

impl Reading {
    fn take(pins: &Pins) -> Result<Self, TableError> {
        let totals = PerCpuTable::<Drops>::open(pins)?;
        let total = |reason: DropReason| Ok((reason.as_str(), totals.get(reason as u32)?.iter().sum()));
        let drops = DropReason::ALL.into_iter().map(total).collect::<Result<_, TableError>>()?;
        let counts = PerCpuTable::<Passages>::open(pins)?;
        let count = |passage: Passage| Ok((passage.as_str(), counts.get(passage as u32)?.iter().sum()));
        let passages = Passage::ALL.into_iter().map(count).collect::<Result<_, TableError>>()?;
        let counts = PerCpuTable::<Delivered>::open(pins)?;
        let count = |manner: Manner| Ok((manner.as_str(), counts.get(manner.0.into())?.iter().sum()));
        let deliveries = Manner::ALL.into_iter().map(count).collect::<Result<_, TableError>>()?;
        let mut by_service = BTreeMap::<ServiceId, BTreeMap<&'static str, u64>>::new();
        for entry in PerCpuHashTable::<ServiceDrops>::open(pins)?.entries() {
            let (key, counts) = entry?;
            if let Some(reason) = DropReason::ALL.into_iter().find(|reason| *reason as u32 == key.reason) {
                by_service.entry(key.service).or_default().insert(reason.as_str(), counts.iter().sum());
            }
        }
        let traffic = PerCpuTable::<ServiceTraffic>::open(pins)?;
        let mut services = Vec::new();
        for entry in HashTable::<ServiceNames>::open(pins)?.entries() {
            let (id, row) = entry?;
            let counters = traffic.get(id.0)?;
            let counters = counters.into_iter().fold(ServiceCounters::default(), ServiceCounters::plus);
            if counters == ServiceCounters::default() {
                continue;
            }
            if let Some(name) = ServicePortName::from_row(&row) {
                services.push(Service::new(name, counters, by_service.remove(&id).unwrap_or_default()));
            }
        }
        services.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self { drops, passages, deliveries, services })
    }
}

impl Service {
    fn new(name: ServicePortName, counters: ServiceCounters, mut drops: BTreeMap<&'static str, u64>) -> Self {
        // The table of reasons may have had no room.
        let known: u64 = drops.values().sum();
        let other = counters.drops.saturating_sub(known);
        if other > 0 {
            drops.insert("other", other);
        }
        Self { name, counters, drops }
    }

    /// What its samples are labelled with.
    fn labels(&self) -> [(&'static str, &str); 5] {
        let ServicePortName { service, port, transport, family } = &self.name;
        [
            ("namespace", &service.namespace),
            ("service", &service.name),
            ("port", port),
            ("protocol", transport.as_str()),
            ("ip_family", family.as_str()),
        ]
    }

    /// The same and one more.
    fn labels_with(&self, key: &'static str, value: &'static str) -> [(&'static str, &str); 6] {
        let [namespace, service, port, protocol, family] = self.labels();
        [namespace, service, port, protocol, family, (key, value)]
    }
}

impl Kernel {
    pub(super) const fn new(pins: Pins) -> Self {
        Self { pins }
    }
}

impl Collector for Kernel {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let read = Reading::take(&self.pins).unwrap_or_else(|error| {
            warn!(error = %crate::report(&error), "cannot read what the kernel counts");
            Reading::default()
        });
        let Reading { drops, passages, deliveries, services } = read;
        let mut counter =
            |name: &str, help: &str, samples: &dyn Fn(&mut MetricEncoder<'_>) -> fmt::Result| {
                samples(&mut encoder.encode_descriptor(name, help, None, MetricType::Counter)?)
            };
        counter("sluice_drops", "Packets that were dropped.", &|metric| {
            drops.iter().try_for_each(|(reason, count)| put(metric, &[("reason", *reason)], *count))
        })?;
        let help = "Packets of running flows that were met before the stack.";
        counter("sluice_xdp_packets", help, &|metric| {
            passages.iter().try_for_each(|(result, count)| put(metric, &[("result", *result)], *count))
        })?;
        let help = "Packets of services that were delivered past the stack.";
        counter("sluice_local_deliveries", help, &|metric| {
            deliveries.iter().try_for_each(|(manner, count)| put(metric, &[("manner", *manner)], *count))
        })?;
        counter(
            "sluice_service_connections",
            "Connections and flows that were given a backend.",
            &|metric| {
                services
                    .iter()
                    .try_for_each(|service| put(metric, &service.labels(), service.counters.connections))
            },
        )?;
        let both = |metric: &mut MetricEncoder<'_>, of: &dyn Fn(&ServiceCounters) -> (u64, u64)| {
            services.iter().try_for_each(|service| {
                let (requests, replies) = of(&service.counters);
                put(metric, &service.labels_with("direction", "request"), requests)?;
                put(metric, &service.labels_with("direction", "reply"), replies)
            })
        };
        let help = "Packets from and to clients; one that a device cuts into several counts once.";
        counter("sluice_service_packets", help, &|metric| {
            both(metric, &|all| (all.packets, all.reply_packets))
        })?;
        counter("sluice_service_bytes", "Bytes of these packets.", &|metric| {
            both(metric, &|all| (all.bytes, all.reply_bytes))
        })?;
        counter("sluice_service_drops", "Packets that were dropped.", &|metric| {
            services.iter().try_for_each(|service| {
                let mut drops = service.drops.iter();
                drops.try_for_each(|(reason, count)| {
                    put(metric, &service.labels_with("reason", reason), *count)
                })
            })
        })
    }
}

fn put<const N: usize>(
    metric: &mut MetricEncoder<'_>,
    labels: &[(&'static str, &str); N],
    value: u64,
) -> fmt::Result {
    ConstCounter::new(value).encode(metric.encode_family(labels)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_without_a_known_reason_are_told_too() {
        let counters = ServiceCounters { drops: 7, ..ServiceCounters::default() };
        let service = |known: &[(&'static str, u64)]| {
            Service::new("a/b/TCP/IPv4".parse().unwrap(), counters, known.iter().copied().collect()).drops
        };
        assert_eq!(service(&[]), BTreeMap::from([("other", 7)]));
        assert_eq!(service(&[("no_backend", 5)]), BTreeMap::from([("no_backend", 5), ("other", 2)]));
        assert_eq!(service(&[("no_backend", 7)]), BTreeMap::from([("no_backend", 7)]));
        // They are read one after the other.
        assert_eq!(service(&[("no_backend", 8)]), BTreeMap::from([("no_backend", 8)]));
    }
}
