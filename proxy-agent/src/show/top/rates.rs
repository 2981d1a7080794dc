//! From counters at two times to rates.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use proxy_common::{counters::ServiceCounters, frontend::ServiceId, tables::ServiceTraffic};
use serde::Serialize;

use super::Column;
use crate::{
    datapath::{PerCpuTable, Pins, TableError},
    show::{
        Paint, ServiceFilter, Show, ShowError, grid, lines,
        names::{Names, short},
        right,
    },
};

/// What all service ports do per second.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Rates {
    /// Seconds that they were counted for.
    pub interval_seconds: f64,
    /// Of each service port.
    pub services: Vec<ServiceRates>,
}

/// What a service port does per second.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ServiceRates {
    /// `namespace/name:port/protocol/family`.
    pub service: String,
    /// Flows that were given a backend.
    pub connections: f64,
    /// Packets from clients.
    pub packets: f64,
    /// Packets to clients.
    pub reply_packets: f64,
    /// Bits from clients.
    pub bits: f64,
    /// Bits to clients.
    pub reply_bits: f64,
    /// Packets dropped.
    pub drops: f64,
}

/// Counts, and remembers what it counted last.
pub(super) struct Sampler {
    pins: Pins,
    traffic: PerCpuTable<ServiceTraffic>,
    filter: Option<ServiceFilter>,
    at: Instant,
    before: HashMap<ServiceId, (String, ServiceCounters)>,
}

impl Sampler {
    /// Begins to count. Fails if a filter admits nobody.
    pub(super) fn start(pins: &Pins, filter: Option<ServiceFilter>) -> Result<Self, ShowError> {
        Names::read(pins)?.chosen(filter.as_ref())?;
        let traffic = PerCpuTable::open(pins)?;
        let mut sampler =
            Self { pins: pins.clone(), traffic, filter, at: Instant::now(), before: HashMap::new() };
        sampler.take()?;
        Ok(sampler)
    }

    /// What has been counted since the last time.
    pub(super) fn take(&mut self) -> Result<Rates, TableError> {
        let names = Names::read(&self.pins)?;
        let now = Instant::now();
        let mut after = HashMap::new();
        for (id, name) in names.iter() {
            if self.filter.as_ref().is_none_or(|filter| filter.admits(name)) {
                let counters = self.traffic.get(id.0)?;
                let sum = counters.into_iter().fold(ServiceCounters::default(), ServiceCounters::plus);
                after.insert(id, (name.to_owned(), sum));
            }
        }
        let elapsed = now.duration_since(self.at);
        let rates = rates(&self.before, &after, elapsed);
        (self.before, self.at) = (after, now);
        Ok(rates)
    }
}

/// The rates of all that are there now. What has come since, or has another's id, began at nothing.
fn rates(
    before: &HashMap<ServiceId, (String, ServiceCounters)>,
    after: &HashMap<ServiceId, (String, ServiceCounters)>,
    elapsed: Duration,
) -> Rates {
    let seconds = elapsed.as_secs_f64();
    let row = |(id, (name, now)): (&ServiceId, &(String, ServiceCounters))| {
        let old = before.get(id).filter(|(old, _)| old == name).map(|(_, counters)| *counters);
        let old = old.unwrap_or_default();
        #[expect(clippy::cast_precision_loss, reason = "packets of one interval are far less than 2^52")]
        let rate = |now: u64, old: u64| now.saturating_sub(old) as f64 / seconds.max(f64::EPSILON);
        ServiceRates {
            service: name.clone(),
            connections: rate(now.connections, old.connections),
            packets: rate(now.packets, old.packets),
            reply_packets: rate(now.reply_packets, old.reply_packets),
            bits: rate(now.bytes, old.bytes) * 8.0,
            reply_bits: rate(now.reply_bytes, old.reply_bytes) * 8.0,
            drops: rate(now.drops, old.drops),
        }
    };
    Rates { interval_seconds: seconds, services: after.iter().map(row).collect() }
}

impl ServiceRates {
    /// The number in a column; that of the name is nothing.
    pub(super) const fn number(&self, column: Column) -> f64 {
        match column {
            Column::Service => 0.0,
            Column::Flows => self.connections,
            Column::Packets => self.packets,
            Column::Replies => self.reply_packets,
            Column::Bits => self.bits,
            Column::ReplyBits => self.reply_bits,
            Column::Drops => self.drops,
        }
    }

    /// What stands in a column.
    pub(super) fn cell(&self, column: Column) -> String {
        match column {
            Column::Service => self.service.clone(),
            column => short_number(self.number(column)),
        }
    }

    fn plus(self, other: &Self) -> Self {
        Self {
            service: self.service,
            connections: self.connections + other.connections,
            packets: self.packets + other.packets,
            reply_packets: self.reply_packets + other.reply_packets,
            bits: self.bits + other.bits,
            reply_bits: self.reply_bits + other.reply_bits,
            drops: self.drops + other.drops,
        }
    }
}

impl Rates {
    /// Puts the services in order: names from A to Z, numbers from high to low, or the other way round.
    pub(super) fn sort(&mut self, by: Column, reversed: bool) {
        self.services.sort_by(|a, b| {
            let order = b.number(by).total_cmp(&a.number(by)).then_with(|| a.service.cmp(&b.service));
            if reversed { order.reverse() } else { order }
        });
    }

    /// All of them together.
    pub(super) fn total(&self) -> ServiceRates {
        let nothing = ServiceRates { service: "all".to_owned(), ..ServiceRates::default() };
        self.services.iter().fold(nothing, ServiceRates::plus)
    }
}

/// A number in at most five characters.
pub(super) fn short_number(number: f64) -> String {
    let (scaled, unit) = match number {
        n if n >= 999.5e9 => (n / 1e12, "T"),
        n if n >= 999.5e6 => (n / 1e9, "G"),
        n if n >= 999.5e3 => (n / 1e6, "M"),
        n if n >= 999.5 => (n / 1e3, "k"),
        n => (n, ""),
    };
    if scaled >= 99.5 || scaled == 0.0 { format!("{scaled:.0}{unit}") } else { format!("{scaled:.1}{unit}") }
}

impl Show for Rates {
    fn table(&self, paint: Paint) -> String {
        if self.services.is_empty() {
            return "no services in the kernel".to_owned();
        }
        let mut table = grid(Column::ALL.map(Column::heading), paint);
        right(&mut table, [1, 2, 3, 4, 5, 6]);
        for row in &self.services {
            let cells = Column::ALL.map(|column| match column {
                Column::Service => short(&row.service).0.to_owned() + " " + short(&row.service).1,
                column => row.cell(column),
            });
            table.add_row(cells);
        }
        lines(&table)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Rates of services that are called so, and do as much as said.
    pub(in super::super) fn example(services: &[(&str, f64)]) -> Rates {
        let row = |(service, rate): &(&str, f64)| ServiceRates {
            service: (*service).to_owned(),
            connections: *rate,
            packets: rate * 10.0,
            reply_packets: rate * 9.0,
            bits: rate * 8_000.0,
            reply_bits: rate * 800_000.0,
            drops: 0.0,
        };
        Rates { interval_seconds: 2.0, services: services.iter().map(row).collect() }
    }

    #[test]
    fn rates_are_what_was_counted_in_the_time() {
        let counters = |packets, bytes| ServiceCounters { packets, bytes, ..ServiceCounters::default() };
        let table = |rows: &[(u32, &str, ServiceCounters)]| -> HashMap<_, _> {
            rows.iter()
                .map(|(id, name, counters)| (ServiceId(*id), ((*name).to_owned(), *counters)))
                .collect()
        };
        let before = table(&[
            (1, "a", counters(100, 1000)),
            (2, "old", counters(500, 0)),
            (3, "gone", counters(1, 1)),
        ]);
        let after = table(&[(1, "a", counters(300, 5000)), (2, "new", counters(8, 0))]);
        let mut rates = rates(&before, &after, Duration::from_secs(4));
        rates.sort(Column::Service, false);
        let found: Vec<_> =
            rates.services.iter().map(|row| (row.service.as_str(), row.packets, row.bits)).collect();
        assert_eq!(found, [("a", 50.0, 8000.0), ("new", 2.0, 0.0)]);
    }

    #[test]
    fn the_busiest_come_first_and_equals_by_name() {
        let mut rates = example(&[("c", 1.0), ("a", 5.0), ("b", 1.0)]);
        let order = |rates: &Rates| rates.services.iter().map(|row| row.service.clone()).collect::<String>();
        rates.sort(Column::Flows, false);
        assert_eq!(order(&rates), "abc");
        rates.sort(Column::Flows, true);
        assert_eq!(order(&rates), "cba");
        rates.sort(Column::Service, false);
        assert_eq!(order(&rates), "abc");
        assert!((rates.total().connections - 7.0).abs() < f64::EPSILON);
    }

    #[test]
    fn numbers_are_short() {
        for (number, expected) in [
            (0.0, "0"),
            (0.5, "0.5"),
            (42.0, "42.0"),
            (100.0, "100"),
            (999.4, "999"),
            (999.6, "1.0k"),
            (12_345.0, "12.3k"),
            (999_600.0, "1.0M"),
            (2.5e9, "2.5G"),
            (7.1e12, "7.1T"),
        ] {
            assert_eq!(short_number(number), expected);
        }
    }

    #[test]
    fn text_is_for_those_without_a_terminal() {
        let mut rates =
            example(&[("default/web:http/TCP/IPv4", 12.0), ("kube-system/dns:dns/UDP/IPv6", 3000.0)]);
        rates.sort(Column::Flows, false);
        let expected = "\
SERVICE                       NEW FLOWS/S  PACKETS/S  REPLIES/S  BIT/S  REPLY BIT/S  DROPS/S
kube-system/dns:dns UDP/IPv6         3.0k      30.0k      27.0k  24.0M         2.4G        0
default/web:http TCP/IPv4            12.0        120        108  96.0k         9.6M        0";
        assert_eq!(rates.table(Paint::Plain), expected);
    }
}
