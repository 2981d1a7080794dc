//! The tables as text, without ids.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use proxy_common::{
    backend::BackendFlags,
    frontend::{Frontend, FrontendFlags, FrontendKey, SlotRun},
    ranges::SourceRange,
};
use proxy_model::ServicePortName;

use super::Memory;

impl Memory {
    /// One line per frontend, in order. Node ports are at the unspecified address.
    pub(crate) fn render(&self) -> String {
        let mut lines: Vec<_> =
            self.frontends.iter().map(|(key, row)| self.render_frontend(key, row)).collect();
        lines.sort();
        lines.into_iter().map(|(_, line)| line).collect()
    }

    /// One line per address, in order.
    pub(crate) fn render_addresses(&self) -> String {
        let mut rows: Vec<_> =
            self.addresses.iter().map(|(address, flags)| (address.to_ip(), flags)).collect();
        rows.sort_by_key(|(ip, _)| *ip);
        rows.into_iter().map(|(ip, flags)| format!("{ip} {flags:?}\n")).collect()
    }

    fn render_frontend(&self, key: &FrontendKey, row: &Frontend) -> ((SocketAddr, String), String) {
        let end = SocketAddr::new(key.address.to_ip(), key.port.to_host());
        let protocol = key.protocol.name().unwrap_or("?");
        let name = self.names.get(&row.service).and_then(ServicePortName::from_row);
        let name = name.map_or("?".to_owned(), |name| name.to_string());
        let has = |flag| row.flags.contains(flag);
        let mut notes = Vec::new();
        if row.affinity > 0 {
            notes.push(format!("affinity {} s", row.affinity));
        }
        if has(FrontendFlags::MASQUERADE) {
            notes.push("masquerade".to_owned());
        }
        if has(FrontendFlags::RESET) {
            notes.push("reset".to_owned());
        }
        if has(FrontendFlags::MAGLEV) {
            notes.push("maglev".to_owned());
        }
        if has(FrontendFlags::DSR) {
            notes.push("dsr".to_owned());
        }
        if has(FrontendFlags::RESTRICTED) {
            notes.push(format!("from {}", self.render_ranges(row)));
        }
        let notes = if notes.is_empty() { String::new() } else { format!(" ({})", notes.join(", ")) };
        let mut line = format!("{end}/{protocol} {name}{notes} -> ");
        line += &self.render_run(row.slots, has(FrontendFlags::DROP_WHEN_EMPTY));
        if has(FrontendFlags::BY_ORIGIN) {
            line += "; outside -> ";
            line += &self.render_run(row.outside, has(FrontendFlags::DROP_OUTSIDE_WHEN_EMPTY));
        }
        if has(FrontendFlags::DSR) {
            line += "; from other nodes -> ";
            line += &self.render_run(row.outside, false);
        }
        line.push('\n');
        ((end, protocol.to_owned()), line)
    }

    fn render_run(&self, run: SlotRun, silent: bool) -> String {
        let mut backends: Vec<_> = (run.base..run.base + run.count)
            .map(|slot| self.slots.get(&slot).and_then(|id| self.backends.get(&id.0)))
            .map(|backend| {
                backend.map_or("?".to_owned(), |backend| {
                    let end = SocketAddr::new(backend.address.to_ip(), backend.port.to_host());
                    let place = match backend.flags {
                        flags if !flags.contains(BackendFlags::LIVE) => " (gone)",
                        flags if flags.contains(BackendFlags::LOCAL) => " (local)",
                        _ => "",
                    };
                    format!("{end}{place}")
                })
            })
            .collect();
        backends.sort();
        backends.dedup();
        match &backends[..] {
            [] if silent => "drop".to_owned(),
            [] => "refuse".to_owned(),
            backends => backends.join(", "),
        }
    }

    fn render_ranges(&self, row: &Frontend) -> String {
        let own = self.ranges.keys().filter(|range| range.data.service == row.service);
        let mut texts: Vec<String> = own.map(render_range).collect();
        texts.sort();
        texts.join(" ")
    }
}

fn render_range(range: &SourceRange) -> String {
    let bits = range.prefix_length - 32;
    match range.data.address.to_ip() {
        IpAddr::V4(ip) => format!("{ip}/{}", bits - 96),
        IpAddr::V6(ip) => format!("{}/{bits}", Ipv6Addr::from(ip.octets())),
    }
}
