//! What is printed.

use comfy_table::{Table, presets};
use serde::Serialize;

use sluice_tests::bench::{
    client::Life,
    summary::Summary,
    text::{finished, percent, spread},
};

use crate::{calls, requests, scene::Way};

/// What was measured, and on what.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    pub(crate) family: String,
    pub(crate) rounds: u32,
    /// Of requests, for each figure of a round.
    pub(crate) milliseconds: u32,
    /// At a time.
    pub(crate) connections: u32,
    /// For each figure of a round.
    pub(crate) calls_each: u32,
    /// Other services, in the table of calls.
    pub(crate) others: u32,
    pub(crate) requests: Vec<requests::Row>,
    pub(crate) calls: Vec<calls::Row>,
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

    fn write(&self, preset: &str, heading: impl Fn(&str) -> String) -> String {
        let Self { kernel, cpu, family, rounds, milliseconds, connections, calls_each, others, .. } = self;
        let parts = [
            format!(
                "Linux {kernel}, {cpu}; {family}. Medians of {rounds} rounds, ± half the distance between quartiles.\n\
                 For each figure of a round {milliseconds} ms of requests, {connections} connections at a time, or \
                 {calls_each} calls.\nOf the one CPU that all share, requests had {:.0} %.",
                self.cpu_had().map_or(f64::NAN, percent)
            ),
            heading(requests::title(Life::KeepAlive)),
            self.requests_table(preset, Life::KeepAlive),
            heading(requests::title(Life::OneRequest)),
            self.requests_table(preset, Life::OneRequest),
            heading("Nanoseconds per call"),
            self.calls_table(preset, *others),
        ];
        parts.join("\n\n")
    }

    /// How much of the CPU the benchmark had to itself while it asked: if that is much less than all, the rates are those
    /// of whoever had the rest.
    fn cpu_had(&self) -> Option<f64> {
        let shares = self.requests.iter().map(|row| row.rate.median * row.cpu.median / 1e6);
        Summary::of(shares.collect()).map(|share| share.median)
    }

    fn requests_table(&self, preset: &str, life: Life) -> String {
        let mut table = Table::new();
        table.load_preset(preset).set_header([
            "from",
            "to a pod on",
            "way",
            "requests/s",
            "% of direct",
            "target",
            "CPU, µs",
            "% more",
            "p50, µs",
            "p99, µs",
        ]);
        for row in self.requests.iter().filter(|row| row.life == life) {
            let beside_direct = |text: String| if row.way == Way::Direct { String::new() } else { text };
            table.add_row([
                row.client.as_str().to_owned(),
                row.place.as_str().to_owned(),
                row.way.as_str().to_owned(),
                spread(row.rate, 0),
                beside_direct(spread(row.share.map(percent), 1)),
                row.target.map(percent).map_or_else(String::new, |target| format!("{target:.0}")),
                spread(row.cpu, 1),
                beside_direct(spread(row.cpu_share.map(|share| percent(share - 1.0)), 1)),
                format!("{:.0}", row.p50.median),
                format!("{:.0}", row.p99.median),
            ]);
        }
        finished(table, 3)
    }

    fn calls_table(&self, preset: &str, others: u32) -> String {
        let mut table = Table::new();
        let among_others = format!("service among {others}");
        table.load_preset(preset).set_header([
            "from",
            "call",
            "pod, no hooks",
            "pod",
            "service",
            &among_others,
            "service by packet",
            "hook: pod",
            "hook: service",
        ]);
        for row in &self.calls {
            let figures = [
                Some(row.without_hooks),
                Some(row.no_service),
                Some(row.service),
                Some(row.among_others),
                row.by_packet,
                Some(row.hook_no_service),
                Some(row.hook_service),
            ];
            let figures =
                figures.into_iter().map(|figure| figure.map_or_else(String::new, |it| spread(it, 0)));
            table.add_row(
                [row.client.as_str(), row.call.as_str()].map(str::to_owned).into_iter().chain(figures),
            );
        }
        finished(table, 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scene::{Client, Place};

    #[test]
    fn markdown_is_tables_and_text_is_none() {
        let near = |figure: f64| Summary { median: figure, low: figure * 0.9, high: figure * 1.1 };
        let row = requests::Row {
            life: Life::KeepAlive,
            client: Client::Pod,
            place: Place::SameNode,
            way: Way::Socket,
            rate: near(50_000.0),
            cpu: near(20.0),
            share: near(1.0),
            cpu_share: near(1.0),
            target: Some(0.98),
            p50: near(250.0),
            p99: near(400.0),
        };
        let report = Report {
            kernel: "6.18".to_owned(),
            cpu: "a CPU".to_owned(),
            family: "IPv4".to_owned(),
            rounds: 3,
            milliseconds: 500,
            connections: 16,
            calls_each: 64,
            others: 10,
            requests: vec![row],
            calls: Vec::new(),
        };
        let markdown = report.markdown();
        let cells = markdown.lines().find(|line| line.contains("by socket")).unwrap();
        let cells: Vec<_> = cells.split('|').map(str::trim).collect();
        let expected = [
            "a pod",
            "the same node",
            "by socket",
            "50000 ±5000",
            "100.0 ±10.0",
            "98",
            "20.0 ±2.0",
            "0.0 ±10.0",
        ];
        assert_eq!(cells[1..9], expected);
        assert!(markdown.contains("requests had 100 %"), "{markdown}");
        assert!(!report.text().contains('|'), "{}", report.text());
    }
}
