//! `sluice status`: programs, devices, tables, drops.

mod pods;
mod print;
mod sockets;

use std::{
    collections::{BTreeMap, HashSet, btree_map::Entry},
    net::IpAddr,
};

use proxy_common::{
    addr::Addr,
    backend::BackendFlags,
    delivery::Manner,
    device::{Device as DeviceFacts, DeviceFlags},
    drop::DropReason,
    flow::Direction,
    frontend::{Frontend, FrontendFlags, ServiceId},
    misfit::Misfit,
    tables::{
        Addresses, Affinities, Backends, Delivered, Devices, Drops, Flows, Fragments, Frontends, Misfits,
        Passages, Pods, ServiceDrops, ServiceNames, Settings, Slots, Sockets, SourceRanges, Table,
        XdpDevices,
    },
    xdp::{Passage, XdpDevice, XdpMode, XdpStand},
};
use proxy_model::ServicePortName;
use serde::Serialize;

pub(super) use pods::pod_name;
pub use pods::{PodRow, PodStatus};
pub(super) use print::explanation;
pub use sockets::{MissingHook, SocketHookRow, SocketStatus};

use super::ShowError;
use crate::{
    datapath::{
        ArrayTable, HashTable, PerCpuHashTable, PerCpuTable, Pins, Program, TableError, TrieTable,
        pinned_hooks, table_capacities, xdp_hooks,
    },
    devices::{self, Class, Device, Inventory, Skip, placement},
};

/// What the kernel holds.
#[derive(Debug, Serialize)]
pub struct Status {
    /// Where it is pinned.
    pub pins: String,
    /// Where other layouts are pinned: those of agents from before or after this one.
    pub other_layouts: Vec<String>,
    /// Devices with a pinned link.
    pub devices: Vec<DeviceRow>,
    /// Devices of this network namespace that lack a program. Empty as well if they cannot be listed.
    pub not_attached: Vec<BareDevice>,
    /// Who is served at sockets.
    pub sockets: SocketStatus,
    /// Tables and how full they are.
    pub tables: Vec<TableRow>,
    /// Service ports that do not fit, as the agent last knew. They are served as they were, if they were.
    pub misfits: Vec<MisfitRow>,
    /// Flows through services by state.
    pub flows: BTreeMap<&'static str, u64>,
    /// Flows whose sources are rewritten as they leave the node.
    pub rewritten_sources: u64,
    /// Frontends whose clients are given backends by hash, out of Maglev tables.
    pub maglev_frontends: u64,
    /// Frontends whose backends on other nodes answer clients outside themselves.
    pub dsr_frontends: u64,
    /// Ports that sources may be rewritten to.
    pub source_ports: u32,
    /// Flows that may begin in each second on each CPU; 0: any number.
    pub new_flow_limit: u32,
    /// Packets of running flows that were met before the stack, by what became of them.
    pub passages: BTreeMap<&'static str, u64>,
    /// Packets that were delivered past the stack, by how.
    pub deliveries: BTreeMap<&'static str, u64>,
    /// Dropped packets by reason.
    pub drops: BTreeMap<&'static str, u64>,
}

/// A device.
#[derive(Debug, Serialize)]
pub struct DeviceRow {
    /// Its number.
    pub index: u32,
    /// Its name; `None` if no such device is in this network namespace.
    pub name: Option<String>,
    /// Who is behind it: `local-clients` or `uplink`. This and the next three are what the datapath is told.
    pub class: Option<&'static str>,
    /// Whether what enters through it is pod traffic, if that is told by the device.
    pub pod_traffic: bool,
    /// The IPv4 address that sources are rewritten to as packets leave through it.
    pub source_v4: Option<IpAddr>,
    /// The same for IPv6.
    pub source_v6: Option<IpAddr>,
    /// Kernel id of the program at ingress.
    pub ingress: Option<u32>,
    /// Kernel id of the program at egress.
    pub egress: Option<u32>,
    /// Kernel id of the program that delivers past the stack; `None` if the stack delivers.
    pub delivery: Option<u32>,
    /// Whether its packets are met before the stack: `native`, `generic`, or why not. `None` if it is no uplink.
    pub xdp: Option<String>,
}

/// A device without both programs.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct BareDevice {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Why that is so; `missing` if it should not be.
    pub reason: &'static str,
}

/// A table.
#[derive(Debug, Serialize)]
pub struct TableRow {
    /// Its name.
    pub name: &'static str,
    /// Entries in use.
    pub used: u64,
    /// Entries there can be.
    pub capacity: u32,
}

/// A service port that does not fit.
#[derive(Debug, Serialize)]
pub struct MisfitRow {
    /// The service port.
    pub service_port: String,
    /// The table that is full.
    pub table: String,
    /// How many more entries it was to have.
    pub wanted: u32,
}

/// Reads it from the kernel.
pub(super) fn status(pins: &Pins) -> Result<Status, ShowError> {
    let mut flows = BTreeMap::new();
    let mut rewritten_sources = 0;
    let mut entries = 0;
    for entry in HashTable::<Flows>::open(pins)?.entries() {
        let (_, flow) = entry?;
        entries += 1;
        match (flow.head.direction, flow.head.service) {
            (Direction::ORIGINAL, ServiceId::NONE) => rewritten_sources += 1,
            (Direction::ORIGINAL, _) => *flows.entry(flow.head.state.as_str()).or_default() += 1,
            _ => {}
        }
    }
    let mut backends = 0;
    for entry in ArrayTable::<Backends>::open(pins)?.entries() {
        backends += u64::from(entry?.1.flags.contains(BackendFlags::LIVE));
    }
    let (mut maglev_frontends, mut dsr_frontends, mut runs) = (0, 0, HashSet::new());
    for entry in HashTable::<Frontends>::open(pins)?.entries() {
        let (_, Frontend { flags, slots, outside, .. }) = entry?;
        maglev_frontends += u64::from(flags.contains(FrontendFlags::MAGLEV));
        dsr_frontends += u64::from(flags.contains(FrontendFlags::DSR));
        runs.extend([slots, outside]);
    }
    let slots = runs.iter().map(|run| u64::from(run.count)).sum();
    let settings = ArrayTable::<Settings>::open(pins)?.get(0)?;
    let counts = PerCpuTable::<Drops>::open(pins)?;
    let mut drops = BTreeMap::new();
    for reason in DropReason::ALL {
        drops.insert(reason.as_str(), counts.get(reason as u32)?.iter().sum());
    }
    let counts = PerCpuTable::<Passages>::open(pins)?;
    let mut passages = BTreeMap::new();
    for passage in Passage::ALL {
        passages.insert(passage.as_str(), counts.get(passage as u32)?.iter().sum());
    }
    let counts = PerCpuTable::<Delivered>::open(pins)?;
    let mut deliveries = BTreeMap::new();
    for manner in Manner::ALL {
        deliveries.insert(manner.as_str(), counts.get(manner.0.into())?.iter().sum());
    }
    // It is a hint; what follows is worth showing without it.
    let others = pins.others().unwrap_or_default();
    let devices = attached(pins)?;
    let capacities = table_capacities(pins)?;
    let row = |name, used| {
        let capacity =
            capacities.iter().find(|(table, _)| *table == name).map_or(0, |(_, capacity)| *capacity);
        TableRow { name, used, capacity }
    };
    let not_attached = devices::list().map(|all| bare(&all, &devices)).unwrap_or_default();
    Ok(Status {
        pins: pins.root().display().to_string(),
        other_layouts: others.iter().map(|other| other.root().display().to_string()).collect(),
        devices,
        not_attached,
        sockets: sockets::sockets(pins, settings.as_ref())?,
        tables: vec![
            row(ServiceNames::NAME, used::<ServiceNames>(pins)?),
            row(Frontends::NAME, used::<Frontends>(pins)?),
            row(Backends::NAME, backends),
            row(Slots::NAME, slots),
            row(Addresses::NAME, used::<Addresses>(pins)?),
            row(SourceRanges::NAME, count(TrieTable::<SourceRanges>::open(pins)?.entries())?),
            row(Devices::NAME, used::<Devices>(pins)?),
            row(Flows::NAME, entries),
            row(Affinities::NAME, used::<Affinities>(pins)?),
            row(Sockets::NAME, used::<Sockets>(pins)?),
            row(Pods::NAME, used::<Pods>(pins)?),
            row(Fragments::NAME, used::<Fragments>(pins)?),
            row(ServiceDrops::NAME, count(PerCpuHashTable::<ServiceDrops>::open(pins)?.entries())?),
        ],
        misfits: misfits(pins)?,
        flows,
        rewritten_sources,
        maglev_frontends,
        dsr_frontends,
        source_ports: settings.map_or(0, |settings| settings.source_ports.len()),
        new_flow_limit: settings.map_or(0, |settings| settings.new_flows),
        passages,
        deliveries,
        drops,
    })
}

fn used<T: Table>(pins: &Pins) -> Result<u64, TableError> {
    count(HashTable::<T>::open(pins)?.entries())
}

/// Service ports that found no room, in the order of their names.
fn misfits(pins: &Pins) -> Result<Vec<MisfitRow>, TableError> {
    let row = |misfit: Misfit| MisfitRow {
        service_port: ServicePortName::from_row(&misfit.port)
            .map_or_else(String::new, |port| port.to_string()),
        table: misfit.table().to_owned(),
        wanted: misfit.wanted,
    };
    let entries = HashTable::<Misfits>::open(pins)?;
    let mut rows =
        entries.entries().map(|entry| entry.map(|(_, misfit)| row(misfit))).collect::<Result<Vec<_>, _>>()?;
    rows.sort_by(|a, b| a.service_port.cmp(&b.service_port));
    Ok(rows)
}

fn count<T>(mut entries: impl Iterator<Item = Result<T, TableError>>) -> Result<u64, TableError> {
    entries.try_fold(0, |count, entry| entry.map(|_| count + 1))
}

fn attached(pins: &Pins) -> Result<Vec<DeviceRow>, ShowError> {
    let facts = HashTable::<Devices>::open(pins)?;
    let mut rows = BTreeMap::new();
    for hook in pinned_hooks(pins)? {
        let index = hook.device.0;
        let row = match rows.entry(index) {
            Entry::Occupied(row) => row.into_mut(),
            Entry::Vacant(row) => {
                row.insert(DeviceRow::new(index, devices::name_of(hook.device), facts.get(&index)?))
            }
        };
        match hook.program {
            Program::Ingress | Program::IngressL3 => row.ingress = hook.program_id,
            Program::Egress | Program::EgressL3 => row.egress = hook.program_id,
            Program::Delivery => row.delivery = hook.program_id,
            Program::Clock => {}
        }
    }
    let met = xdp_hooks(pins)?;
    for entry in HashTable::<XdpDevices>::open(pins)?.entries() {
        let (index, uplink) = entry?;
        if let Some(row) = rows.get_mut(&index) {
            let mode = met.iter().find(|(device, _)| device.0 == index).map(|(_, mode)| *mode);
            row.xdp = Some(describe_xdp(uplink, mode));
        }
    }
    Ok(rows.into_values().collect())
}

/// How an uplink stands that has a program of this mode, in words.
fn describe_xdp(uplink: XdpDevice, attached: Option<XdpMode>) -> String {
    match uplink.stand() {
        Some(stand) if stand.mode().is_some() && stand.mode() != attached => "missing".to_owned(),
        Some(XdpStand::Refused) => {
            let error = std::io::Error::from_raw_os_error(uplink.error.cast_signed());
            format!("{}: {error}", XdpStand::Refused.as_str())
        }
        Some(stand) => stand.as_str().to_owned(),
        None => "unknown".to_owned(),
    }
}

impl DeviceRow {
    fn new(index: u32, name: Option<String>, facts: Option<DeviceFacts>) -> Self {
        let has = |flag| facts.is_some_and(|facts| facts.flags.contains(flag));
        let address = |address: Addr| (address != Addr::default()).then(|| address.to_ip());
        let class = if has(DeviceFlags::LOCAL_CLIENTS) { Class::LocalClients } else { Class::Uplink };
        Self {
            index,
            name,
            class: facts.map(|_| class.as_str()),
            pod_traffic: has(DeviceFlags::POD_TRAFFIC),
            source_v4: facts.and_then(|facts| address(facts.source_v4)),
            source_v6: facts.and_then(|facts| address(facts.source_v6)),
            ingress: None,
            egress: None,
            delivery: None,
            xdp: None,
        }
    }
}

/// The devices that lack a program.
fn bare(all: &Inventory, attached: &[DeviceRow]) -> Vec<BareDevice> {
    let whole = |device: &&Device| {
        attached
            .iter()
            .any(|row| row.index == device.index.0 && row.ingress.is_some() && row.egress.is_some())
    };
    let describe = |device: &Device| BareDevice {
        index: device.index.0,
        name: device.name.clone(),
        reason: placement(device, all).map_or_else(Skip::as_str, |()| "missing"),
    };
    all.devices.iter().filter(|device| !whole(device)).map(describe).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::{DeviceKind, Ifindex, LinkHeader};

    #[test]
    fn devices_without_both_programs_are_shown_with_the_reason() {
        let device = |index, name: &str, kind, controller: Option<u32>| Device {
            index: Ifindex(index),
            name: name.to_owned(),
            kind,
            header: LinkHeader::Ethernet,
            address: [0; 6],
            leads_into: false,
            controller: controller.map(Ifindex),
            lower: None,
        };
        let devices = vec![
            device(1, "lo", DeviceKind::Loopback, None),
            device(2, "whole", DeviceKind::Other, None),
            device(3, "half", DeviceKind::Other, None),
            device(4, "bond0", DeviceKind::Bond, None),
            device(5, "port", DeviceKind::Other, Some(4)),
        ];
        let all = Inventory { devices, ..Inventory::default() };
        let row = |index, egress| DeviceRow { ingress: Some(7), egress, ..DeviceRow::new(index, None, None) };
        let bare: Vec<_> = bare(&all, &[row(2, Some(8)), row(3, None), row(4, Some(8))])
            .into_iter()
            .map(|row| (row.name, row.index, row.reason))
            .collect();
        let expected = [
            ("lo".to_owned(), 1, "loopback"),
            ("half".to_owned(), 3, "missing"),
            ("port".to_owned(), 5, Skip::PortOfBond.as_str()),
        ];
        assert_eq!(bare, expected);
    }

    #[test]
    fn uplinks_tell_why_their_packets_are_not_met_before_the_stack() {
        let native = XdpDevice::new(XdpStand::Native);
        let generic = XdpDevice::new(XdpStand::Generic);
        for (row, by_driver, by_kernel) in [(native, "native", "missing"), (generic, "missing", "generic")] {
            assert_eq!(describe_xdp(row, Some(XdpMode::Native)), by_driver);
            assert_eq!(describe_xdp(row, Some(XdpMode::Generic)), by_kernel);
            assert_eq!(describe_xdp(row, None), "missing");
        }
        assert_eq!(describe_xdp(XdpDevice::new(XdpStand::Off), None), "off");
        let refused = describe_xdp(XdpDevice::refused(95), None);
        assert!(refused.starts_with("refused: Operation not supported"), "{refused}");
        let newer = XdpDevice { stand: 99, ..XdpDevice::default() };
        assert_eq!(describe_xdp(newer, Some(XdpMode::Native)), "unknown");
    }

    #[test]
    fn facts_about_a_device_are_told_as_far_as_they_are_known() {
        let ip: IpAddr = "192.0.2.1".parse().unwrap();
        let facts = DeviceFacts { source_v4: ip.into(), ..DeviceFacts::default() };
        let row = DeviceRow::new(2, None, Some(facts));
        assert_eq!((row.class, row.source_v4, row.source_v6), (Some("uplink"), Some(ip), None));
        let facts = DeviceFacts { flags: DeviceFlags::LOCAL_CLIENTS, ..facts };
        assert_eq!(DeviceRow::new(2, None, Some(facts)).class, Some("local-clients"));
        assert_eq!(DeviceRow::new(2, None, None).class, None);
    }
}
