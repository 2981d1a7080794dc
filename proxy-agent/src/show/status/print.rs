//! The status for people.

use std::collections::BTreeMap;

use proxy_common::drop::DropReason;

use super::{DeviceRow, Status};
use crate::show::{Paint, Show, Tone, grid, lines, right};

impl Show for Status {
    fn table(&self, paint: Paint) -> String {
        let mut text = format!("pins     {}\n", self.pins);
        if !self.other_layouts.is_empty() {
            let others = self.other_layouts.join(", ");
            text += &format!("also     {others} (another version's, until this one's agent has synced)\n");
        }
        text += &format!("flows    {}\n", list(&self.flows));
        text += &match self.new_flow_limit {
            0 => "limit    none: any number of flows may begin\n".to_owned(),
            limit => format!("limit    {limit} flows may begin in a second on each CPU\n"),
        };
        text += &format!(
            "sources  rewritten for {} flows; {} ports are there for it\n",
            self.rewritten_sources, self.source_ports
        );
        if self.maglev_frontends > 0 {
            text += &format!("maglev   {} frontends choose backends by hash\n", self.maglev_frontends);
        }
        if self.dsr_frontends > 0 {
            text += &format!("dsr      {} frontends are answered by backends' nodes\n", self.dsr_frontends);
        }
        if self.passages.values().any(|&count| count > 0) {
            text += &format!("xdp      {}\n", list(&self.passages));
        }
        if self.deliveries.values().any(|&count| count > 0) {
            text += &format!("direct   {}\n", list(&self.deliveries));
        }
        text += &self.sockets.lines();
        let sections = [
            self.drop_table(paint),
            self.device_table(paint),
            self.bare_table(paint),
            self.socket_table(paint),
            self.missing_table(paint),
            self.fill_table(paint),
            self.misfit_table(paint),
        ];
        for section in sections.into_iter().flatten() {
            text += &format!("\n{}\n", lines(&section));
        }
        text.trim_end().to_owned()
    }
}

impl Status {
    fn drop_table(&self, paint: Paint) -> Option<comfy_table::Table> {
        let mut table = grid(["DROPPED", "PACKETS", "BECAUSE"], paint);
        right(&mut table, [1]);
        for reason in DropReason::ALL {
            let packets = self.drops.get(reason.as_str()).copied().unwrap_or_default();
            if packets > 0 {
                table.add_row([reason.as_str(), &packets.to_string(), explanation(reason)]);
            }
        }
        (!table.is_empty()).then_some(table)
    }

    fn device_table(&self, paint: Paint) -> Option<comfy_table::Table> {
        let mut table = grid(
            [
                "DEVICE",
                "INDEX",
                "CLASS",
                "SOURCE IPV4",
                "SOURCE IPV6",
                "INGRESS PROGRAM",
                "EGRESS PROGRAM",
                "XDP",
            ],
            paint,
        );
        right(&mut table, [1, 5, 6]);
        for row in &self.devices {
            table.add_row(row.cells());
        }
        Some(table)
    }

    fn bare_table(&self, paint: Paint) -> Option<comfy_table::Table> {
        let mut table = grid(["NOT ATTACHED", "INDEX", "REASON"], paint);
        right(&mut table, [1]);
        for row in &self.not_attached {
            let tone = if row.reason == "missing" { Tone::Bad } else { Tone::Good };
            let name = if tone == Tone::Bad { Paint::cell(&row.name, tone) } else { row.name.clone().into() };
            table.add_row([name, row.index.to_string().into(), row.reason.into()]);
        }
        (!table.is_empty()).then_some(table)
    }

    fn socket_table(&self, paint: Paint) -> Option<comfy_table::Table> {
        let mut table = grid(["SOCKET HOOK", "PROGRAM"], paint);
        right(&mut table, [1]);
        for row in &self.sockets.hooks {
            let elsewhere = row.other_cgroup.as_ref().map(|cgroup| format!(" (cgroup {cgroup})"));
            table.add_row([row.name.to_owned() + &elsewhere.unwrap_or_default(), row.program.to_string()]);
        }
        (!table.is_empty()).then_some(table)
    }

    fn missing_table(&self, paint: Paint) -> Option<comfy_table::Table> {
        let mut table = grid(["SOCKET HOOK NOT ATTACHED", "REASON"], paint);
        for row in &self.sockets.missing {
            table.add_row([row.name, row.reason.as_str()]);
        }
        (!table.is_empty()).then_some(table)
    }

    fn fill_table(&self, paint: Paint) -> Option<comfy_table::Table> {
        let mut table = grid(["TABLE", "USED", "CAPACITY"], paint);
        right(&mut table, [1, 2]);
        for row in &self.tables {
            table.add_row([row.name.to_owned(), row.used.to_string(), row.capacity.to_string()]);
        }
        Some(table)
    }
}

impl Status {
    fn misfit_table(&self, paint: Paint) -> Option<comfy_table::Table> {
        let mut table = grid(["SERVICE PORT THAT DOES NOT FIT", "FULL TABLE", "WANTED"], paint);
        right(&mut table, [2]);
        for row in &self.misfits {
            table.add_row([&row.service_port, &row.table, &row.wanted.to_string()]);
        }
        (!table.is_empty()).then_some(table)
    }
}

impl DeviceRow {
    fn cells(&self) -> [String; 8] {
        let pods = if self.pod_traffic { ", pods" } else { "" };
        [
            self.name.clone().unwrap_or_else(|| "(not in this namespace)".to_owned()),
            self.index.to_string(),
            or_dash(self.class) + pods,
            or_dash(self.source_v4),
            or_dash(self.source_v6),
            or_dash(self.ingress),
            or_dash(self.egress),
            or_dash(self.xdp.as_deref()),
        ]
    }
}

fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// The counts that are not zero.
fn list(counts: &BTreeMap<&str, u64>) -> String {
    let some: Vec<_> = counts
        .iter()
        .filter(|&(_, &count)| count > 0)
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    if some.is_empty() { "none".to_owned() } else { some.join(", ") }
}

/// What a drop reason means to whoever runs the node.
pub(in crate::show) const fn explanation(reason: DropReason) -> &'static str {
    match reason {
        DropReason::NoBackend => "the service has no endpoint that is ready; clients are told",
        DropReason::FlowTableFull => "no room to remember another flow",
        DropReason::BrokenTable => "the tables contradict each other: a bug, or somebody else wrote to them",
        DropReason::RewriteFailed => "the packet changed while it was read: a bug",
        DropReason::NoLocalBackend => "a policy keeps the service on this node, and no endpoint is here",
        DropReason::NotInSourceRanges => "the client is in none of loadBalancerSourceRanges",
        DropReason::UnknownPort => "the Service has no such port or protocol; clients are told",
        DropReason::NoSourcePort => "no free port to rewrite the source to",
        DropReason::NoSourceAddress => "the device to leave by has no address to rewrite the source to",
        DropReason::BackendGone => {
            "the endpoint of a connection is gone, and the Service wants clients told (TCP RST)"
        }
        DropReason::NewFlowLimit => {
            "more flows begin than --new-flow-limit lets: a flood, or a limit too low"
        }
        DropReason::TooBig => {
            "the packet does not fit into the encapsulation that DSR takes; the client is told what would"
        }
        DropReason::NotServedHere => {
            "another node sent it here by DSR, for a service or backend that this node does not serve so"
        }
        DropReason::BadEncapsulation => "sent here as if by DSR, and no packet that a node sends so",
        DropReason::OrphanFragment => "a fragment came before the first of its datagram",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::show::{BareDevice, MisfitRow, MissingHook, SocketStatus, TableRow};

    #[test]
    fn people_see_what_is_there_and_why_packets_were_dropped() {
        let uplink = DeviceRow {
            class: Some("uplink"),
            source_v4: Some("192.0.2.1".parse().unwrap()),
            ingress: Some(40),
            egress: Some(41),
            xdp: Some("native".to_owned()),
            ..DeviceRow::new(2, Some("eth0".to_owned()), None)
        };
        let pod =
            DeviceRow { class: Some("local-clients"), pod_traffic: true, ..DeviceRow::new(7, None, None) };
        let status = Status {
            pins: "/sys/fs/bpf/sluice/v4".to_owned(),
            other_layouts: Vec::new(),
            devices: vec![uplink, pod],
            not_attached: vec![BareDevice { index: 1, name: "lo".to_owned(), reason: "loopback" }],
            sockets: SocketStatus {
                missing: vec![MissingHook { name: "sluice_connect4", reason: "no pin".to_owned() }],
                ..SocketStatus::example()
            },
            tables: vec![TableRow { name: "FLOWS", used: 6, capacity: 524_288 }],
            misfits: vec![MisfitRow {
                service_port: "default/web:http/TCP/IPv4".to_owned(),
                table: "BACKENDS".to_owned(),
                wanted: 3,
            }],
            flows: BTreeMap::from([("established", 2), ("time-wait", 0)]),
            rewritten_sources: 1,
            maglev_frontends: 3,
            dsr_frontends: 2,
            source_ports: 34_305,
            new_flow_limit: 100_000,
            passages: BTreeMap::from([("forwarded", 9), ("form", 0), ("route", 1)]),
            deliveries: BTreeMap::from([("neighbour", 7), ("peer", 8)]),
            drops: BTreeMap::from([("no_backend", 12), ("unknown_port", 0)]),
        };
        let expected = "\
pins     /sys/fs/bpf/sluice/v4
flows    established 2
limit    100000 flows may begin in a second on each CPU
sources  rewritten for 1 flows; 34305 ports are there for it
maglev   3 frontends choose backends by hash
dsr      2 frontends are answered by backends' nodes
xdp      forwarded 9, route 1
direct   neighbour 7, peer 8
sockets  auto: the node's own processes, and TCP of pods that are known not to mind, are served when they connect or send; other traffic by packets; NodePorts are at loopback too
cgroup   /sys/fs/cgroup, 8 of 8 programs attached
pods     0 by sockets; 0 by packets; others by packets

DROPPED     PACKETS  BECAUSE
no_backend       12  the service has no endpoint that is ready; clients are told

DEVICE                   INDEX  CLASS                SOURCE IPV4  SOURCE IPV6  INGRESS PROGRAM  EGRESS PROGRAM  XDP
eth0                         2  uplink               192.0.2.1    -                         40              41  native
(not in this namespace)      7  local-clients, pods  -            -                          -               -  -

NOT ATTACHED  INDEX  REASON
lo                1  loopback

SOCKET HOOK          PROGRAM
sluice_getpeername4        9
sluice_getpeername6        9
sluice_recvmsg4            9
sluice_recvmsg6            9
sluice_connect4            9
sluice_connect6            9
sluice_sendmsg4            9
sluice_sendmsg6            9

SOCKET HOOK NOT ATTACHED  REASON
sluice_connect4           no pin

TABLE  USED  CAPACITY
FLOWS     6    524288

SERVICE PORT THAT DOES NOT FIT  FULL TABLE  WANTED
default/web:http/TCP/IPv4       BACKENDS         3";
        assert_eq!(status.table(Paint::Plain), expected);
    }
}
