//! What is printed.

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::{
    calls::{self, Call},
    client::Life,
    requests,
    scene::{Client, Place, Way},
    summary::Summary,
};

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
                 {calls_each} calls."
            ),
            heading("Requests over connections that stay"),
            self.requests_table(preset, Life::KeepAlive),
            heading("Requests with a connection each"),
            self.requests_table(preset, Life::OneRequest),
            heading("Nanoseconds per call"),
            self.calls_table(preset, *others),
        ];
        parts.join("\n\n")
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
                client(row.client).to_owned(),
                place(row.place).to_owned(),
                way(row.way).to_owned(),
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
            table.add_row([client(row.client), call(row.call)].map(str::to_owned).into_iter().chain(figures));
        }
        finished(table, 2)
    }
}

/// All columns but the first `names` have numbers in them.
fn finished(mut table: Table, names: usize) -> String {
    table.column_iter_mut().skip(names).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

fn percent(share: f64) -> f64 {
    share * 100.0
}

fn spread(Summary { median, low, high }: Summary, digits: usize) -> String {
    format!("{median:.digits$} ±{:.digits$}", (high - low) / 2.0)
}

fn client(client: Client) -> &'static str {
    match client {
        Client::Host => "the node",
        Client::Pod => "a pod",
    }
}

fn place(place: Place) -> &'static str {
    match place {
        Place::SameNode => "the same node",
        Place::OtherNode => "the other node",
    }
}

fn way(way: Way) -> &'static str {
    match way {
        Way::Direct => "direct",
        Way::DirectWithHooks => "direct, with hooks",
        Way::Socket => "by socket",
        Way::Packet => "by packet",
    }
}

fn call(call: Call) -> &'static str {
    match call {
        Call::UdpConnectAgain => "UDP connect, same socket",
        Call::UdpConnect => "UDP connect, new socket",
        Call::UdpSend => "UDP sendto",
        Call::UdpReceive => "UDP recvfrom",
        Call::TcpConnect => "TCP connect, handshake",
        Call::PeerName => "TCP getpeername",
    }
}
