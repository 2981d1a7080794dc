//! `sluice services`: the tables that services live in, joined.

use std::{collections::BTreeMap, net::SocketAddr};

use proxy_common::{
    counters::ServiceCounters,
    frontend::{Frontend, FrontendFlags, FrontendKey, ServiceId},
    tables::{Backends, Frontends, ServiceNames, ServiceTraffic, Slots},
};
use serde::Serialize;

use super::{Show, ShowError, grid, lines, right};
use crate::datapath::{ArrayTable, HashTable, PerCpuTable, Pins};

/// All services in the kernel.
#[derive(Debug, Serialize)]
pub struct Services {
    /// By name.
    pub services: Vec<ServiceRow>,
}

/// A service port.
#[derive(Debug, Serialize)]
pub struct ServiceRow {
    /// Its id in the tables.
    pub id: u32,
    /// Its name, as the agent wrote it.
    pub name: String,
    /// Its frontends.
    pub frontends: Vec<FrontendRow>,
    /// Flows that were given a backend.
    pub connections: u64,
    /// Packets from clients.
    pub packets: u64,
    /// Bytes from clients.
    pub bytes: u64,
    /// Packets to clients.
    pub reply_packets: u64,
    /// Bytes to clients.
    pub reply_bytes: u64,
    /// Packets dropped.
    pub drops: u64,
}

/// A frontend.
#[derive(Debug, Serialize)]
pub struct FrontendRow {
    /// Address and port.
    pub address: String,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// Seconds that a client stays with its backend; 0 without session affinity.
    pub affinity_seconds: u32,
    /// What happens to connections when there is no backend: `refused` or `dropped`.
    pub without_backends: &'static str,
    /// What it leads to.
    pub backends: Vec<BackendRow>,
}

/// A backend.
#[derive(Debug, Serialize)]
pub struct BackendRow {
    /// Its id in the tables.
    pub id: u32,
    /// Address and port.
    pub address: String,
    /// `live`, `live local` or `gone`.
    pub state: String,
}

/// Reads them from the kernel.
pub fn services(pins: &Pins) -> Result<Services, ShowError> {
    let frontends = HashTable::<Frontends>::open(pins)?;
    let slots = ArrayTable::<Slots>::open(pins)?;
    let backends = ArrayTable::<Backends>::open(pins)?;
    let names = HashTable::<ServiceNames>::open(pins)?;
    let traffic = PerCpuTable::<ServiceTraffic>::open(pins)?;
    let mut by_service = BTreeMap::<ServiceId, Vec<FrontendRow>>::new();
    for entry in frontends.entries() {
        let (key, frontend) = entry?;
        let row = frontend_row(&key, &frontend, &slots, &backends)?;
        by_service.entry(frontend.service).or_default().push(row);
    }
    let mut rows = Vec::new();
    for (id, mut frontends) in by_service {
        frontends.sort_by(|a, b| (&a.address, &a.protocol).cmp(&(&b.address, &b.protocol)));
        let name = names.get(&id)?.map_or_else(|| format!("(unnamed, id {})", id.0), |name| text(&name));
        let ServiceCounters { connections, packets, bytes, reply_packets, reply_bytes, drops } =
            traffic.get(id.0)?.into_iter().fold(ServiceCounters::default(), ServiceCounters::plus);
        rows.push(ServiceRow {
            id: id.0,
            name,
            frontends,
            connections,
            packets,
            bytes,
            reply_packets,
            reply_bytes,
            drops,
        });
    }
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Services { services: rows })
}

fn frontend_row(
    key: &FrontendKey,
    frontend: &Frontend,
    slots: &ArrayTable<Slots>,
    backends: &ArrayTable<Backends>,
) -> Result<FrontendRow, ShowError> {
    let mut rows = Vec::new();
    for slot in frontend.slot_base..frontend.slot_base.saturating_add(frontend.slot_count) {
        let Some(id) = slots.get(slot)? else {
            break;
        };
        if let Some(backend) = backends.get(id.0)? {
            let end = SocketAddr::new(backend.address.to_ip(), backend.port.to_host());
            rows.push(BackendRow {
                id: id.0,
                address: end.to_string(),
                state: format!("{:?}", backend.flags),
            });
        }
    }
    let end = SocketAddr::new(key.address.to_ip(), key.port.to_host());
    let silent = frontend.flags.contains(FrontendFlags::DROP_WHEN_EMPTY);
    Ok(FrontendRow {
        address: end.to_string(),
        protocol: format!("{:?}", key.protocol),
        affinity_seconds: frontend.affinity,
        without_backends: if silent { "dropped" } else { "refused" },
        backends: rows,
    })
}

/// The name up to its padding.
fn text(name: &[u8]) -> String {
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    String::from_utf8_lossy(&name[..end]).into_owned()
}

impl Show for Services {
    fn table(&self) -> String {
        if self.services.is_empty() {
            return "no services in the kernel".to_owned();
        }
        let mut table = grid(["SERVICE", "FRONTEND", "BACKENDS", "FLOWS", "PACKETS", "REPLIES", "DROPS"]);
        right(&mut table, [3, 4, 5, 6]);
        for service in &self.services {
            let frontends: Vec<_> = service.frontends.iter().map(FrontendRow::cell).collect();
            table.add_row([
                service.name.clone(),
                frontends.join("\n"),
                // The frontends of a service port lead to the same backends.
                service.frontends.first().map(FrontendRow::backends_cell).unwrap_or_default(),
                service.connections.to_string(),
                service.packets.to_string(),
                service.reply_packets.to_string(),
                service.drops.to_string(),
            ]);
        }
        lines(&table)
    }
}

impl FrontendRow {
    /// The protocol is part of the service's name.
    fn cell(&self) -> String {
        match self.affinity_seconds {
            0 => self.address.clone(),
            seconds => format!("{}\n  affinity {seconds} s", self.address),
        }
    }

    fn backends_cell(&self) -> String {
        if self.backends.is_empty() {
            return format!("none: {}", self.without_backends);
        }
        let cells: Vec<_> = self
            .backends
            .iter()
            .map(|backend| format!("{}{}", backend.address, mark(&backend.state)))
            .collect();
        cells.join("\n")
    }
}

fn mark(state: &str) -> &'static str {
    match state {
        "live" => "",
        "live local" => " (local)",
        _ => " (gone)",
    }
}
