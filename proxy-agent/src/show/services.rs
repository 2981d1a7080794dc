//! `sluice services`: the tables that services live in, joined.

mod print;

use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use proxy_common::{
    addresses::AddressFlags,
    counters::ServiceCounters,
    drop::DropReason,
    frontend::{Frontend, FrontendFlags, FrontendKey, ServiceId, SlotRun},
    ranges::SourceRange,
    tables::{Addresses, Backends, Frontends, ServiceDrops, ServiceTraffic, Slots, SourceRanges},
};
use serde::Serialize;

use super::{
    ShowError,
    names::{Names, ServiceFilter},
};
use crate::datapath::{ArrayTable, HashTable, PerCpuHashTable, PerCpuTable, Pins, TableError, TrieTable};

/// All services in the kernel.
#[derive(Debug, Serialize)]
pub struct Services {
    /// By name.
    pub services: Vec<ServiceRow>,
}

/// A service port.
#[derive(Debug, Default, Serialize)]
pub struct ServiceRow {
    /// Its id in the tables.
    pub id: u32,
    /// Its name, as the agent wrote it.
    pub name: String,
    /// Its frontends: its ClusterIP first, its NodePort last.
    pub frontends: Vec<FrontendRow>,
    /// Sources that restricted frontends admit.
    pub source_ranges: Vec<String>,
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
    /// The same by reason, as far as the table of such drops had room.
    pub drops_by_reason: BTreeMap<&'static str, u64>,
}

/// A frontend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FrontendRow {
    /// Address and port; the unspecified address for a NodePort, which stands for all that accept it.
    pub address: SocketAddr,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// What kind of address it is.
    pub kind: FrontendKind,
    /// What it does beyond choosing a backend, as the datapath is told.
    pub flags: Vec<&'static str>,
    /// Seconds that a client stays with its backend; 0 without session affinity.
    pub affinity_seconds: u32,
    /// What happens to connections when there is no backend: `refused` or `dropped`.
    pub without_backends: &'static str,
    /// What it leads to; if `outside` is there, clients inside the cluster only.
    pub backends: Vec<BackendRow>,
    /// What it leads clients outside the cluster to, if that is decided apart.
    pub outside: Option<Outside>,
}

/// What a frontend leads clients outside the cluster to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Outside {
    /// What happens to connections when there is no backend: `refused` or `dropped`.
    pub without_backends: &'static str,
    /// What it leads to.
    pub backends: Vec<BackendRow>,
}

/// What kind of address a frontend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FrontendKind {
    /// The Service's own.
    ClusterIp,
    /// An external IP, or that of a load balancer.
    External,
    /// Every address of the node that accepts NodePorts.
    NodePort,
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackendRow {
    /// Its id in the tables.
    pub id: u32,
    /// Address and port.
    pub address: SocketAddr,
    /// `live`, `live local` or `gone`.
    pub state: String,
}

/// Reads them from the kernel, or those that the filter admits.
pub(super) fn services(pins: &Pins, filter: Option<&ServiceFilter>) -> Result<Services, ShowError> {
    let reader = Reader::open(pins)?;
    let names = Names::read(pins)?;
    let chosen = names.chosen(filter)?;
    let traffic = PerCpuTable::<ServiceTraffic>::open(pins)?;
    let mut rows = BTreeMap::<ServiceId, ServiceRow>::new();
    for entry in HashTable::<Frontends>::open(pins)?.entries() {
        let (key, frontend) = entry?;
        if chosen.as_ref().is_some_and(|chosen| !chosen.contains(&frontend.service)) {
            continue;
        }
        rows.entry(frontend.service).or_default().frontends.push(reader.frontend(&key, &frontend)?);
    }
    for entry in TrieTable::<SourceRanges>::open(pins)?.entries() {
        let (range, _) = entry?;
        if let Some(row) = rows.get_mut(&range.data.service) {
            row.source_ranges.push(cidr(&range));
        }
    }
    for entry in PerCpuHashTable::<ServiceDrops>::open(pins)?.entries() {
        let (key, counts) = entry?;
        let reason = DropReason::ALL.into_iter().find(|reason| *reason as u32 == key.reason);
        if let (Some(row), Some(reason)) = (rows.get_mut(&key.service), reason) {
            row.drops_by_reason.insert(reason.as_str(), counts.iter().sum());
        }
    }
    for (id, row) in &mut rows {
        row.finish(*id, names.of(*id), &traffic.get(id.0)?);
    }
    let mut services: Vec<_> = rows.into_values().collect();
    services.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Services { services })
}

impl ServiceRow {
    /// Fills in what belongs to the service as a whole, and puts the rest in order.
    fn finish(&mut self, id: ServiceId, name: String, traffic: &[ServiceCounters]) {
        self.id = id.0;
        self.name = name;
        self.frontends.sort_by_key(|frontend| (frontend.kind, frontend.address));
        self.source_ranges.sort();
        let sum = traffic.iter().copied().fold(ServiceCounters::default(), ServiceCounters::plus);
        let ServiceCounters { connections, packets, bytes, reply_packets, reply_bytes, drops } = sum;
        self.connections = connections;
        self.packets = packets;
        self.bytes = bytes;
        self.reply_packets = reply_packets;
        self.reply_bytes = reply_bytes;
        self.drops = drops;
    }
}

/// The tables behind a frontend.
struct Reader {
    addresses: HashTable<Addresses>,
    slots: ArrayTable<Slots>,
    backends: ArrayTable<Backends>,
}

impl Reader {
    fn open(pins: &Pins) -> Result<Self, TableError> {
        Ok(Self {
            addresses: HashTable::open(pins)?,
            slots: ArrayTable::open(pins)?,
            backends: ArrayTable::open(pins)?,
        })
    }

    fn frontend(&self, key: &FrontendKey, frontend: &Frontend) -> Result<FrontendRow, TableError> {
        let Frontend { service: _, flags, affinity, slots, outside } = *frontend;
        let address = SocketAddr::new(key.address.to_ip(), key.port.to_host());
        let facts = self.addresses.get(&key.address)?.unwrap_or_default();
        let outside = if flags.contains(FrontendFlags::BY_ORIGIN) {
            Some(Outside {
                without_backends: without_backends(flags, FrontendFlags::DROP_OUTSIDE_WHEN_EMPTY),
                backends: self.run(outside)?,
            })
        } else {
            None
        };
        Ok(FrontendRow {
            address,
            protocol: format!("{:?}", key.protocol),
            kind: kind_of(key, facts),
            flags: flags.names().collect(),
            affinity_seconds: affinity,
            without_backends: without_backends(flags, FrontendFlags::DROP_WHEN_EMPTY),
            backends: self.run(slots)?,
            outside,
        })
    }

    /// The backends in a run of slots, each once.
    fn run(&self, run: SlotRun) -> Result<Vec<BackendRow>, TableError> {
        let (mut rows, mut seen) = (Vec::new(), HashSet::new());
        for slot in run.base..run.base.saturating_add(run.count) {
            let Some(id) = self.slots.get(slot)? else {
                break;
            };
            if seen.insert(id)
                && let Some(backend) = self.backends.get(id.0)?
            {
                rows.push(BackendRow {
                    id: id.0,
                    address: SocketAddr::new(backend.address.to_ip(), backend.port.to_host()),
                    state: format!("{:?}", backend.flags),
                });
            }
        }
        Ok(rows)
    }
}

/// What kind of address a frontend is, at an address of which these facts are known.
pub(super) fn kind_of(key: &FrontendKey, facts: AddressFlags) -> FrontendKind {
    if key.is_node_port() {
        FrontendKind::NodePort
    } else if facts.contains(AddressFlags::CLUSTER_IP) {
        FrontendKind::ClusterIp
    } else {
        FrontendKind::External
    }
}

fn without_backends(flags: FrontendFlags, silent: FrontendFlags) -> &'static str {
    if flags.contains(silent) { "dropped" } else { "refused" }
}

/// A source range as people write it.
pub(super) fn cidr(range: &SourceRange) -> String {
    let ip = range.data.address.to_ip();
    let whole = SourceRange::of(range.data.service, range.data.address).prefix_length;
    let bits = match ip {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    };
    let missing = whole.saturating_sub(range.prefix_length);
    format!("{ip}/{}", u32::saturating_sub(bits, missing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_ranges_are_shown_as_they_are_written() {
        for (ip, length) in
            [("10.0.0.0", 8), ("0.0.0.0", 1), ("10.0.0.1", 32), ("fd00::", 8), ("fd00::1", 128)]
        {
            let network: IpAddr = ip.parse().unwrap();
            let range = SourceRange::new(ServiceId(7), network.into(), length);
            assert_eq!(cidr(&range), format!("{ip}/{length}"));
        }
    }
}
