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
        self.write(presets::NOTHING, |title| title.to_owned())
    }

    /// For docs/performance.md.
    pub(crate) fn markdown(&self) -> String {
        self.write(presets::ASCII_MARKDOWN, |title| format!("**{title}**"))
    }

    fn write(&self, preset: &str, heading: impl Fn(&str) -> String) -> String {
        let Self { kernel, cpu, family, rounds, milliseconds, connections, calls_each, others, .. } = self;
        let origin = format!(
            "Linux {kernel}, {cpu}, {family}. Medians of {rounds} rounds, quartiles in brackets; {milliseconds} ms of \
             requests over {connections} connections at a time, {calls_each} calls, for each figure of a round."
        );
        let mut parts = vec![origin];
        for (life, title) in [
            (Life::KeepAlive, "Requests over connections that stay"),
            (Life::OneRequest, "Requests with a connection each"),
        ] {
            parts.push(heading(title));
            parts.push(self.requests_table(preset, life));
        }
        parts.push(heading("Nanoseconds per call"));
        parts.push(self.calls_table(preset, *others));
        parts.join("\n\n")
    }

    fn requests_table(&self, preset: &str, life: Life) -> String {
        let mut table = Table::new();
        table.load_preset(preset).set_header([
            "from",
            "to a pod on",
            "way",
            "requests/s",
            "of direct, %",
            "target",
            "CPU, µs",
            "of direct, %",
            "p50, µs",
            "p99, µs",
        ]);
        for row in self.requests.iter().filter(|row| row.life == life) {
            table.add_row([
                client(row.client).to_owned(),
                place(row.place).to_owned(),
                way(row.way).to_owned(),
                spread(row.rate, 0),
                share(row.way, row.share),
                row.target.map_or_else(String::new, |target| format!("{:.0}", target * 100.0)),
                spread(row.cpu, 1),
                share(row.way, row.cpu_share),
                format!("{:.0}", row.p50.median),
                format!("{:.0}", row.p99.median),
            ]);
        }
        finished(table, 3)
    }

    fn calls_table(&self, preset: &str, others: u32) -> String {
        let mut table = Table::new();
        let among_others = format!("service, among {others}");
        table.load_preset(preset).set_header([
            "from",
            "call",
            "pod, no hooks",
            "pod",
            "service",
            &among_others,
            "service, by packet",
            "hook: pod",
            "hook: service",
        ]);
        for row in &self.calls {
            table.add_row([
                client(row.client).to_owned(),
                call(row.call).to_owned(),
                spread(row.without_hooks, 0),
                spread(row.no_service, 0),
                spread(row.service, 0),
                spread(row.among_others, 0),
                row.by_packet.map_or_else(String::new, |summary| spread(summary, 0)),
                spread(row.hook_no_service, 0),
                spread(row.hook_service, 0),
            ]);
        }
        finished(table, 2)
    }
}

/// With numbers, all columns but the first `names`, flush right.
fn finished(mut table: Table, names: usize) -> String {
    table.column_iter_mut().skip(names).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

fn spread(Summary { median, low, high }: Summary, digits: usize) -> String {
    format!("{median:.digits$} ({low:.digits$}-{high:.digits$})")
}

fn share(way: Way, share: Summary) -> String {
    if way == Way::Direct { String::new() } else { spread(share.times(100.0), 1) }
}

fn client(client: Client) -> &'static str {
    match client {
        Client::Host => "node",
        Client::Pod => "pod",
    }
}

fn place(place: Place) -> &'static str {
    match place {
        Place::SameNode => "same node",
        Place::OtherNode => "other node",
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
