//! `sluice backends`: every backend record, and how many flows it has.

use std::{collections::HashMap, net::SocketAddr};

use clap::Args;
use proxy_common::{
    backend::{Backend, BackendFlags, BackendId, Generation},
    flow::Direction,
    frontend::ServiceId,
    tables::{Backends as Table, Flows},
};
use serde::Serialize;

use super::{
    Paint, Show, ShowError, Tone, grid, lines,
    names::{Names, ServiceFilter, short},
    right, socket,
};
use crate::{
    cli::ShowArgs,
    datapath::{ArrayTable, HashTable, Pins, TableError},
};

/// How a backend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackendState {
    /// New flows go there.
    Serving,
    /// It keeps the flows that it has and gets no new ones.
    Draining,
    /// It is no longer one. TCP connections that it has may still be running.
    Gone,
}

impl BackendState {
    /// As a record says.
    pub(super) fn of(flags: BackendFlags) -> Self {
        let sets = BackendFlags::CLUSTER_SET.with(BackendFlags::LOCAL_SET);
        match (flags.contains(BackendFlags::LIVE), flags.intersects(sets)) {
            (false, _) => Self::Gone,
            (true, false) => Self::Draining,
            (true, true) => Self::Serving,
        }
    }

    /// The word for it.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Draining => "draining",
            Self::Gone => "gone",
        }
    }

    /// What that means to whoever looks for trouble.
    pub(super) const fn tone(self) -> Option<Tone> {
        match self {
            Self::Serving => None,
            Self::Draining => Some(Tone::Warning),
            Self::Gone => Some(Tone::Bad),
        }
    }
}

/// All backends in the kernel.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Backends {
    /// By service port and address.
    pub backends: Vec<BackendRecord>,
}

/// A backend of a service port.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct BackendRecord {
    /// `namespace/name:port/protocol/family` of the service port.
    pub service: String,
    /// Address and port.
    pub address: SocketAddr,
    /// Its id in the tables.
    pub id: u32,
    /// How many backends its id has named before.
    pub generation: u32,
    /// How it is.
    pub state: BackendState,
    /// Whether it runs on this node.
    pub local: bool,
    /// Whether clients that may reach any node get it.
    pub in_cluster_set: bool,
    /// Whether clients that a policy keeps on this node get it.
    pub in_local_set: bool,
    /// Flows on it that are not over.
    pub flows: u64,
}

/// Arguments of `backends`.
#[derive(Debug, Args)]
pub struct BackendsArgs {
    /// Only those of this Service, or of this port of it
    #[arg(long, value_name = "NS/NAME[:PORT]")]
    pub service: Option<ServiceFilter>,
    /// What all commands have.
    #[command(flatten)]
    pub show: ShowArgs,
}

/// Reads them from the kernel. Of those that are gone, only the ones that still have flows are told.
pub(super) fn backends(pins: &Pins, filter: Option<&ServiceFilter>) -> Result<Backends, ShowError> {
    let names = Names::read(pins)?;
    let chosen = names.chosen(filter)?;
    let flows = open_flows(pins)?;
    let mut rows = Vec::new();
    for entry in ArrayTable::<Table>::open(pins)?.entries() {
        let (id, backend) = entry?;
        let is_chosen = chosen.as_ref().is_none_or(|chosen| chosen.contains(&backend.service));
        if is_chosen && backend != Backend::default() {
            let flows = flows.get(&(BackendId(id), backend.generation)).copied().unwrap_or_default();
            rows.push(BackendRecord::new(id, &backend, names.of(backend.service), flows));
        }
    }
    rows.retain(|row| row.state != BackendState::Gone || row.flows > 0);
    rows.sort();
    Ok(Backends { backends: rows })
}

/// How many flows that are not over each backend has.
fn open_flows(pins: &Pins) -> Result<HashMap<(BackendId, Generation), u64>, TableError> {
    let mut count = HashMap::new();
    for entry in HashTable::<Flows>::open(pins)?.entries() {
        let head = entry?.1.head;
        let is_one = head.direction == Direction::ORIGINAL && head.service != ServiceId::NONE;
        if is_one && !head.state.is_over() {
            *count.entry((head.backend, head.generation)).or_default() += 1;
        }
    }
    Ok(count)
}

impl BackendRecord {
    fn new(id: u32, backend: &Backend, service: String, flows: u64) -> Self {
        let has = |flag| backend.flags.contains(flag);
        Self {
            service,
            address: socket(backend.end()),
            id,
            generation: backend.generation.0,
            state: BackendState::of(backend.flags),
            local: has(BackendFlags::LOCAL),
            in_cluster_set: has(BackendFlags::CLUSTER_SET),
            in_local_set: has(BackendFlags::LOCAL_SET),
            flows,
        }
    }

    /// The sets that it is in.
    fn sets(&self) -> &'static str {
        match (self.in_cluster_set, self.in_local_set) {
            _ if self.state == BackendState::Gone => "-",
            (true, true) => "cluster, local",
            (true, false) => "cluster",
            (false, true) => "local",
            (false, false) => "-",
        }
    }
}

impl Show for Backends {
    fn table(&self, paint: Paint) -> String {
        if self.backends.is_empty() {
            return "no backends in the kernel".to_owned();
        }
        let header = ["SERVICE", "PROTO", "BACKEND", "WHERE", "STATE", "SETS", "FLOWS"];
        let mut table = grid(header, paint);
        right(&mut table, [6]);
        let mut before = "";
        for row in &self.backends {
            let (service, protocol) = short(&row.service);
            let same = before == row.service;
            before = &row.service;
            let state = row.state.as_str();
            table.add_row([
                if same { "" } else { service }.into(),
                if same { "" } else { protocol }.into(),
                row.address.to_string().into(),
                if row.local { "here" } else { "elsewhere" }.into(),
                row.state.tone().map_or_else(|| state.into(), |tone| Paint::cell(state, tone)),
                row.sets().into(),
                row.flows.to_string().into(),
            ]);
        }
        lines(&table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: u32, service: &str, address: &str, flags: BackendFlags, flows: u64) -> BackendRecord {
        let address: SocketAddr = address.parse().unwrap();
        let port = proxy_common::endian::Be16::from_host(address.port());
        let backend = Backend { address: address.ip().into(), port, flags, ..Backend::default() };
        BackendRecord::new(id, &backend, service.to_owned(), flows)
    }

    #[test]
    fn people_see_who_gets_each_backend() {
        const LIVE: BackendFlags = BackendFlags::LIVE;
        const LOCAL: BackendFlags = BackendFlags::LIVE.with(BackendFlags::LOCAL);
        const CLUSTER: BackendFlags = BackendFlags::CLUSTER_SET;
        let web = "default/web:http/TCP/IPv4";
        let both = LOCAL.with(CLUSTER).with(BackendFlags::LOCAL_SET);
        let backends = vec![
            record(1, web, "10.244.1.5:8080", both, 12),
            record(2, web, "10.244.2.7:8080", LIVE.with(CLUSTER), 0),
            record(3, web, "10.244.2.8:8080", BackendFlags::default(), 1),
            record(
                40,
                "kube-system/dns:dns/UDP/IPv6",
                "[fd00::1]:53",
                LOCAL.with(BackendFlags::LOCAL_SET),
                0,
            ),
            record(41, "kube-system/dns:dns/UDP/IPv6", "[fd00::2]:53", LIVE, 7),
        ];
        let expected = "\
SERVICE              PROTO     BACKEND          WHERE      STATE     SETS            FLOWS
default/web:http     TCP/IPv4  10.244.1.5:8080  here       serving   cluster, local     12
                               10.244.2.7:8080  elsewhere  serving   cluster             0
                               10.244.2.8:8080  elsewhere  gone      -                   1
kube-system/dns:dns  UDP/IPv6  [fd00::1]:53     here       serving   local               0
                               [fd00::2]:53     elsewhere  draining  -                   7";
        assert_eq!(Backends { backends }.table(Paint::Plain), expected);
        assert_eq!(Backends { backends: Vec::new() }.table(Paint::Plain), "no backends in the kernel");
    }
}
