//! What is printed.

use comfy_table::{Table, presets};
use serde::Serialize;
use sluice_tests::bench::{
    summary::Summary,
    text::{finished, percent, spread},
};

use crate::{
    changes,
    measure::{Measure, Row},
    packets,
    peer::Peer,
};

/// What was measured, and on what.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    pub(crate) rounds: u32,
    /// Of requests, for each figure of a round.
    pub(crate) milliseconds: u32,
    /// At a time.
    pub(crate) connections: u32,
    /// Who was not measured because something is not installed.
    pub(crate) missing: Vec<Peer>,
    /// The kube-proxy that made the rules of iptables and nftables, if one did.
    pub(crate) kube_proxy: Option<String>,
    pub(crate) rows: Vec<Row>,
    pub(crate) packets: Vec<packets::Row>,
    pub(crate) programming: Vec<changes::Row>,
}

impl Report {
    /// For people.
    pub(crate) fn text(&self) -> String {
        self.write(presets::NOTHING, str::to_owned)
    }

    /// For docs/performance.md.
    pub(crate) fn markdown(&self) -> String {
        self.write(presets::ASCII_MARKDOWN, |title| format!("**{title}**"))
    }

    /// What was measured, on what and how.
    pub(crate) fn conditions(&self) -> String {
        let Self { kernel, cpu, rounds, milliseconds, connections, .. } = self;
        let mut text = format!(
            "Linux {kernel}, {cpu}; IPv4. Medians of {rounds} rounds, ± half the distance between quartiles.\n\
             For each figure of a round {milliseconds} ms of requests, {connections} at a time, each client waiting for its \
             answer before it asks again (closed loop).\niptables and nftables: "
        );
        text += &match &self.kube_proxy {
            Some(version) => format!("kube-proxy, {version}."),
            None => "rules of kube-proxy's structure, without the process kube-proxy.".to_owned(),
        };
        if let Some(share) = self.cpu_had() {
            text += &format!("\nOf the one CPU that all share, requests had {:.0} %.", percent(share));
        }
        for peer in &self.missing {
            text += &format!("\n{}: not installed here.", peer.as_str());
        }
        text
    }

    /// How much of the CPU the benchmark had to itself while it asked as much as it could: if that is much less than all, the
    /// rates are those of whoever had the rest, and CPU times are what is left to compare.
    fn cpu_had(&self) -> Option<f64> {
        let shares = self.of(Measure::NEW_CONNECTIONS).map(|row| row.rate.median * row.cpu.median / 1e6);
        Summary::of(shares.collect()).map(|share| share.median)
    }

    fn write(&self, preset: &str, heading: impl Fn(&str) -> String) -> String {
        let mut parts = vec![self.conditions()];
        for measure in Measure::ALL {
            if self.of(measure).next().is_some() {
                parts.push(heading(measure.as_str()));
                parts.push(self.requests_table(preset, measure));
            }
        }
        if !self.packets.is_empty() {
            parts.push(heading("Packets that a node sends on, outside to NodePort, other node"));
            parts.push(self.packets_table(preset));
        }
        if !self.programming.is_empty() {
            parts.push(heading("Starting, changing, memory"));
            parts.push(self.programming_table(preset));
        }
        parts.join("\n\n")
    }

    /// The rows of a measure.
    pub(crate) fn of(&self, measure: Measure) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.measure == measure)
    }

    fn requests_table(&self, preset: &str, measure: Measure) -> String {
        let mut table = Table::new();
        let rate = if measure == Measure::Bulk { "Gbit/s" } else { "requests/s" };
        let cpu = if measure == Measure::Bulk { "CPU, ns/kB" } else { "CPU, µs" };
        let head = ["path", "services", "way", rate, "% of direct", cpu, "% more"];
        let latencies: &[_] =
            if measure == Measure::Bulk { &[] } else { &["p50, µs", "p99, µs", "p99.9, µs"] };
        table.load_preset(preset).set_header(head.iter().chain(latencies));
        for row in self.of(measure) {
            let beside_direct = |share: Option<Summary>, change: fn(f64) -> f64| {
                let share = share.filter(|_| row.peer != Peer::Direct).map(|share| share.map(change));
                share.map_or_else(String::new, |share| spread(share, 1))
            };
            let rate = match measure {
                Measure::Bulk => spread(row.rate.map(|bytes| bytes * 8.0 / 1e9), 1),
                _ => spread(row.rate, 0),
            };
            let cells = [
                row.path.as_str().to_owned(),
                if row.peer == Peer::Direct { String::new() } else { row.services.to_string() },
                row.peer.as_str().to_owned(),
                rate,
                beside_direct(row.share, percent),
                spread(row.cpu, 1),
                beside_direct(row.cpu_share, |share| percent(share - 1.0)),
            ];
            let latencies = row.latencies.into_iter().flatten().map(|latency| spread(latency, 0));
            table.add_row(cells.into_iter().chain(latencies));
        }
        finished(table, 3)
    }

    fn packets_table(&self, preset: &str) -> String {
        let mut table = Table::new();
        table.load_preset(preset).set_header([
            "way",
            "ns/packet without the node",
            "through it",
            "the node's",
            "packets/s per CPU",
        ]);
        for row in &self.packets {
            let figures = [row.without, row.through, row.node, row.rate].map(|figure| spread(figure, 0));
            table.add_row([row.peer.as_str().to_owned()].into_iter().chain(figures));
        }
        finished(table, 1)
    }

    fn programming_table(&self, preset: &str) -> String {
        let mut table = Table::new();
        table.load_preset(preset).set_header([
            "services",
            "by",
            "cold start, s",
            "service made, ms",
            "endpoint gone, ms",
            "changes",
            "process, MiB",
            "kernel, MiB",
        ]);
        let mebibytes = |bytes: u64| format!("{:.0}", bytes as f64 / f64::from(1 << 20));
        for row in &self.programming {
            table.add_row([
                row.services.to_string(),
                row.system.as_str().to_owned(),
                format!("{:.2}", row.start.seconds),
                spread(row.made.map(|seconds| seconds * 1e3), 1),
                spread(row.gone.map(|seconds| seconds * 1e3), 1),
                row.changes.to_string(),
                row.start.process_bytes.map_or_else(|| "-".to_owned(), mebibytes),
                mebibytes(row.start.kernel_bytes),
            ]);
        }
        finished(table, 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::Path;

    #[test]
    fn markdown_is_tables_and_says_who_was_left_out() {
        let near = |figure: f64| Summary { median: figure, low: figure * 0.9, high: figure * 1.1 };
        let row = |peer: Peer, rate: f64| Row {
            services: 1_000,
            measure: Measure::NEW_CONNECTIONS,
            path: Path::PodToOther,
            peer,
            rate: near(rate),
            cpu: near(1e6 / rate),
            share: Some(near(rate / 10_000.0)),
            cpu_share: Some(near(1.25)),
            latencies: Some([near(100.0), near(200.0), near(300.0)]),
        };
        let report = Report {
            kernel: "6.18".to_owned(),
            cpu: "a CPU".to_owned(),
            rounds: 3,
            milliseconds: 500,
            connections: 16,
            missing: vec![Peer::Nftables],
            kube_proxy: None,
            rows: vec![row(Peer::Direct, 10_000.0), row(Peer::Sluice, 9_500.0)],
            packets: Vec::new(),
            programming: Vec::new(),
        };
        let markdown = report.markdown();
        let cells = markdown.lines().find(|line| line.contains("Sluice")).unwrap();
        let cells: Vec<_> = cells.split('|').map(str::trim).collect();
        let expected = [
            "pod to ClusterIP, other node",
            "1000",
            "Sluice",
            "9500 ±950",
            "95.0 ±9.5",
            "105.3 ±10.5",
            "25.0 ±12.5",
            "100 ±10",
            "200 ±20",
            "300 ±30",
        ];
        assert_eq!(cells[1..11], expected);
        assert!(markdown.contains("requests had 100 %"), "{markdown}");
        assert!(markdown.contains("nftables: not installed here"), "{markdown}");
        assert!(!report.text().contains('|'), "{}", report.text());
    }
}
