//! Every map, once: name, kind, key, value, default capacity.
//!
//! The kernel declares its maps from these types, the agent opens them through these types, and a test holds
//! the two against each other.

use core::{fmt::Debug, hash::Hash};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{
    addr::Addr,
    addresses::AddressFlags,
    affinity::{Affinity, AffinityKey},
    backend::{Backend, BackendId},
    cache::{CachePage, EPOCHS, PAGES},
    config::NodeSettings,
    counters::{ServiceCounters, ServiceDrop},
    delivery::{DELIVERIES, Delivery, DeliveryDevice},
    device::Device,
    drop::DropReason,
    event::Lease,
    filter::{FilterLine, LINES},
    flow::FlowEntry,
    fragment::{FragmentKey, Ports},
    frontend::{Frontend, FrontendKey, ServiceId},
    misfit::Misfit,
    pod::{CgroupId, PodEntry},
    ranges::SourceRange,
    shortcut::{self, ShortcutPage},
    socket::{SocketEntry, SocketKey},
    tuple::FlowKey,
    xdp::{Passage, XdpDevice},
};

/// Bytes that may cross between kernel and agent: no padding, no invalid bit patterns.
pub trait MapBytes: FromBytes + IntoBytes + Immutable + Copy + 'static {}

impl<T: FromBytes + IntoBytes + Immutable + Copy + 'static> MapBytes for T {}

/// The kind of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableKind {
    /// Hash table with memory taken as entries come (`BPF_F_NO_PREALLOC`).
    Hash,
    /// The same with a value per CPU.
    PerCpuHash,
    /// Hash table that forgets the entry used least recently when it is full.
    LruHash,
    /// Trie of prefixes, the longest of which is found (`BPF_F_NO_PREALLOC`).
    LpmTrie,
    /// Array: every index below the capacity exists.
    Array,
    /// Array with a value per CPU.
    PerCpuArray,
    /// Ring of records that one reader takes out; no keys, and its capacity in bytes.
    Ring,
}

/// How a table that is pinned already is given another capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Growth {
    /// It is not.
    Fixed,
    /// Only the agent adds entries: it copies them to another map while nothing else is written, and loads the programs with
    /// that one.
    Replaced,
    /// Programs add entries. They find the table through an array of maps of this name, [`PRESENT`] and [`FORMER`], and look
    /// in both while the agent moves entries.
    Moved(&'static str),
}

/// Place of the table in use, in an array of maps.
pub const PRESENT: u32 = 0;

/// Place of the table that entries are moved from, if they are. Programs find entries there and write none.
pub const FORMER: u32 = 1;

/// How many places there are.
pub const PLACES: u32 = 2;

/// One map.
pub trait Table {
    /// Key.
    type Key: MapBytes + Eq + Hash + Debug;
    /// Value; of one CPU for per-CPU tables.
    type Value: MapBytes + PartialEq + Debug;
    /// Name in the object file and of the pin; at most 15 characters, as the kernel shows no more.
    const NAME: &'static str;
    /// Kind of the map.
    const KIND: TableKind;
    /// Entries that there is room for, unless the agent is told otherwise; of a ring, bytes.
    const CAPACITY: u32;
    /// How it is given another capacity.
    const GROWTH: Growth = Growth::Fixed;
}

/// Frontend -> how to serve it. Written by the agent, read for each new flow. Absence: not a service.
#[derive(Debug)]
pub enum Frontends {}

impl Table for Frontends {
    type Key = FrontendKey;
    type Value = Frontend;
    const NAME: &'static str = "FRONTENDS";
    const KIND: TableKind = TableKind::Hash;
    const CAPACITY: u32 = 65_536;
    const GROWTH: Growth = Growth::Replaced;
}

/// Room for addresses of the node itself. Every other one is the ClusterIP of a frontend, so the table of addresses is not full
/// before that of frontends is.
pub const NODE_ADDRESSES: u32 = 4_096;

/// Address -> what is known about it. Written by the agent; read for new flows and for packets that no frontend is
/// there for. Absence: an address like any other.
#[derive(Debug)]
pub enum Addresses {}

impl Table for Addresses {
    type Key = Addr;
    type Value = AddressFlags;
    const NAME: &'static str = "ADDRESSES";
    const KIND: TableKind = TableKind::Hash;
    const CAPACITY: u32 = Frontends::CAPACITY + NODE_ADDRESSES;
    const GROWTH: Growth = Growth::Replaced;
}

/// Range of sources that a service port admits. Written by the agent, read for new flows of restricted frontends.
/// Absence: not admitted. The value is the prefix length again: it tells which range a lookup has found.
#[derive(Debug)]
pub enum SourceRanges {}

impl Table for SourceRanges {
    type Key = SourceRange;
    type Value = u32;
    const NAME: &'static str = "SOURCE_RANGES";
    const KIND: TableKind = TableKind::LpmTrie;
    const CAPACITY: u32 = 65_536;
    const GROWTH: Growth = Growth::Replaced;
}

/// Number of a device (`ifindex`) -> the device. Written by the agent before the programs are attached to it, read for
/// new flows.
#[derive(Debug)]
pub enum Devices {}

impl Table for Devices {
    type Key = u32;
    type Value = Device;
    const NAME: &'static str = "DEVICES";
    const KIND: TableKind = TableKind::Hash;
    const CAPACITY: u32 = 4_096;
}

/// Datagram at a hook -> its ports. Written when its first fragment is seen, read for the others. Absence: the first
/// fragment has not been seen, or was forgotten.
#[derive(Debug)]
pub enum Fragments {}

impl Table for Fragments {
    type Key = FragmentKey;
    type Value = Ports;
    const NAME: &'static str = "FRAGMENTS";
    const KIND: TableKind = TableKind::LruHash;
    const CAPACITY: u32 = 8_192;
}

/// Slot -> backend id. Written by the agent, read for each new flow. A frontend owns a contiguous run.
#[derive(Debug)]
pub enum Slots {}

impl Table for Slots {
    type Key = u32;
    type Value = BackendId;
    const NAME: &'static str = "SLOTS";
    const KIND: TableKind = TableKind::Array;
    const CAPACITY: u32 = 524_288;
    const GROWTH: Growth = Growth::Replaced;
}

/// Backend id -> backend. Written by the agent; read for each new flow and each packet of a UDP flow.
#[derive(Debug)]
pub enum Backends {}

impl Table for Backends {
    type Key = u32;
    type Value = Backend;
    const NAME: &'static str = "BACKENDS";
    const KIND: TableKind = TableKind::Array;
    const CAPACITY: u32 = 262_144;
    const GROWTH: Growth = Growth::Replaced;
}

/// Tuple at a hook -> its translation, one entry per direction. Written by the datapath; the agent removes
/// expired entries to free memory. Absence: no flow.
#[derive(Debug)]
pub enum Flows {}

impl Table for Flows {
    type Key = FlowKey;
    type Value = FlowEntry;
    const NAME: &'static str = "FLOWS";
    const KIND: TableKind = TableKind::Hash;
    const CAPACITY: u32 = 524_288;
    const GROWTH: Growth = Growth::Moved("FLOW_TABLES");
}

/// Page -> what this CPU has lately made of packets, by hashes of their tuples. Written and read by the datapath. An answer
/// that holds keeps its place against other tuples.
#[derive(Debug)]
pub enum FlowCache {}

impl Table for FlowCache {
    type Key = u32;
    type Value = CachePage;
    const NAME: &'static str = "FLOW_CACHE";
    const KIND: TableKind = TableKind::PerCpuArray;
    const CAPACITY: u32 = PAGES;
}

/// Hash of a tuple -> a number that is another one whenever what is remembered for such tuples becomes void. Written and read by
/// the datapath.
#[derive(Debug)]
pub enum FlowEpochs {}

impl Table for FlowEpochs {
    type Key = u32;
    type Value = u32;
    const NAME: &'static str = "FLOW_EPOCHS";
    const KIND: TableKind = TableKind::Array;
    const CAPACITY: u32 = EPOCHS;
}

/// Line of the address filter -> roles of the addresses that hash there. Written by the agent, read for every
/// packet.
#[derive(Debug)]
pub enum AddressFilter {}

impl Table for AddressFilter {
    type Key = u32;
    type Value = FilterLine;
    const NAME: &'static str = "ADDRESS_FILTER";
    const KIND: TableKind = TableKind::Array;
    const CAPACITY: u32 = LINES;
}

/// Room for the longest name: namespace, service and port of 63 bytes each, protocol, family, separators.
pub const NAME_BYTES: usize = 208;

/// Service id -> `namespace/service:port/protocol/family`, padded with zeros. Written and read by the agent alone; it makes the
/// kernel's tables readable without the API, and a restarted agent finds its ids by it.
#[derive(Debug)]
pub enum ServiceNames {}

impl Table for ServiceNames {
    type Key = ServiceId;
    type Value = [u8; NAME_BYTES];
    const NAME: &'static str = "SERVICE_NAMES";
    const KIND: TableKind = TableKind::Hash;
    const CAPACITY: u32 = 16_384;
    const GROWTH: Growth = Growth::Replaced;
}

/// Service id -> traffic. Written by the datapath, read by the agent.
#[derive(Debug)]
pub enum ServiceTraffic {}

impl Table for ServiceTraffic {
    type Key = u32;
    type Value = ServiceCounters;
    const NAME: &'static str = "SERVICE_TRAFFIC";
    const KIND: TableKind = TableKind::PerCpuArray;
    const CAPACITY: u32 = ServiceNames::CAPACITY;
    const GROWTH: Growth = Growth::Replaced;
}

/// 0 -> settings. Written by the agent before the programs are attached, read when a flow changes its state.
#[derive(Debug)]
pub enum Settings {}

impl Table for Settings {
    type Key = u32;
    type Value = NodeSettings;
    const NAME: &'static str = "SETTINGS";
    const KIND: TableKind = TableKind::Array;
    const CAPACITY: u32 = 1;
}

/// Client and service port -> its backend. Written by the datapath for services with session affinity. Absence: the
/// client is new, or was forgotten; a mapping that has expired or whose backend is gone counts as absent.
#[derive(Debug)]
pub enum Affinities {}

impl Table for Affinities {
    type Key = AffinityKey;
    type Value = Affinity;
    const NAME: &'static str = "AFFINITIES";
    const KIND: TableKind = TableKind::LruHash;
    const CAPACITY: u32 = 65_536;
    const GROWTH: Growth = Growth::Moved("AFFINITY_TABLES");
}

/// Drop reason -> packets. Written by the datapath, read by the agent.
#[derive(Debug)]
pub enum Drops {}

impl Table for Drops {
    type Key = u32;
    type Value = u64;
    const NAME: &'static str = "DROPS";
    const KIND: TableKind = TableKind::PerCpuArray;
    #[expect(clippy::cast_possible_truncation, reason = "a handful of reasons")]
    const CAPACITY: u32 = DropReason::ALL.len() as u32;
}

/// Service port and drop reason -> packets. Written by the datapath, read by the agent. Absence: none were dropped.
#[derive(Debug)]
pub enum ServiceDrops {}

impl Table for ServiceDrops {
    type Key = ServiceDrop;
    type Value = u64;
    const NAME: &'static str = "SERVICE_DROPS";
    const KIND: TableKind = TableKind::PerCpuHash;
    const CAPACITY: u32 = 65_536;
    const GROWTH: Growth = Growth::Replaced;
}

/// Socket and peer -> what the process takes it for, or who it is. Written and read at sockets; the agent reads it to find
/// sockets whose backend is gone, and writes what is there anew, lest it be forgotten. A full table forgets the entry used
/// least recently: a process then sees a backend's address where it would have seen the service's.
#[derive(Debug)]
pub enum Sockets {}

impl Table for Sockets {
    type Key = SocketKey;
    type Value = SocketEntry;
    const NAME: &'static str = "SOCKETS";
    const KIND: TableKind = TableKind::LruHash;
    const CAPACITY: u32 = 65_536;
    const GROWTH: Growth = Growth::Moved("SOCKET_TABLES");
}

/// Cgroup that kubelet made for a pod -> the pod. Written by the agent, read when a process of a pod connects. Absence:
/// nothing is known of the pod.
#[derive(Debug)]
pub enum Pods {}

impl Table for Pods {
    type Key = CgroupId;
    type Value = PodEntry;
    const NAME: &'static str = "PODS";
    const KIND: TableKind = TableKind::Hash;
    const CAPACITY: u32 = 4_096;
}

/// Number of an uplink (`ifindex`) -> whether its packets are met before the stack, or why not. Written by the agent; read by
/// the datapath before packets leave by another uplink than they came by, and by whoever asks how things stand.
#[derive(Debug)]
pub enum XdpDevices {}

impl Table for XdpDevices {
    type Key = u32;
    type Value = XdpDevice;
    const NAME: &'static str = "XDP_DEVICES";
    const KIND: TableKind = TableKind::Hash;
    const CAPACITY: u32 = Devices::CAPACITY;
}

/// Page -> shortcuts of this CPU, by hashes of tuples. Written and read by the datapath, before the stack. Another tuple with the
/// same hash takes the place.
#[derive(Debug)]
pub enum Shortcuts {}

impl Table for Shortcuts {
    type Key = u32;
    type Value = ShortcutPage;
    const NAME: &'static str = "SHORTCUTS";
    const KIND: TableKind = TableKind::PerCpuArray;
    const CAPACITY: u32 = shortcut::PAGES;
}

/// What became of packets of running flows before the stack -> how many. Written by the datapath, read by the agent.
#[derive(Debug)]
pub enum Passages {}

impl Table for Passages {
    type Key = u32;
    type Value = u64;
    const NAME: &'static str = "PASSAGES";
    const KIND: TableKind = TableKind::PerCpuArray;
    #[expect(clippy::cast_possible_truncation, reason = "a handful")]
    const CAPACITY: u32 = Passage::ALL.len() as u32;
}

/// Number of a device (`ifindex`) -> what is to be known to deliver packets from it and to it past the stack. Written by the
/// agent, read by the datapath. Absence: the stack delivers.
#[derive(Debug)]
pub enum DeliveryDevices {}

impl Table for DeliveryDevices {
    type Key = u32;
    type Value = DeliveryDevice;
    const NAME: &'static str = "DELIVERY_DEVICES";
    const KIND: TableKind = TableKind::Hash;
    const CAPACITY: u32 = Devices::CAPACITY;
}

/// Hash of a tuple -> how its packets are delivered, as the kernel's routing had it lately. Written and read by the datapath.
/// Another tuple with the same hash takes the place.
#[derive(Debug)]
pub enum Deliveries {}

impl Table for Deliveries {
    type Key = u32;
    type Value = Delivery;
    const NAME: &'static str = "DELIVERIES";
    const KIND: TableKind = TableKind::PerCpuArray;
    const CAPACITY: u32 = DELIVERIES;
}

/// Manner ([`Manner`](crate::delivery::Manner)) -> packets of services that were delivered so. Written by the datapath, read by
/// the agent.
#[derive(Debug)]
pub enum Delivered {}

impl Table for Delivered {
    type Key = u32;
    type Value = u64;
    const NAME: &'static str = "DELIVERED";
    const KIND: TableKind = TableKind::PerCpuArray;
    const CAPACITY: u32 = 3;
}

/// 0 -> who listens to events. Written by whoever does, read for each new flow and each drop.
#[derive(Debug)]
pub enum EventLease {}

impl Table for EventLease {
    type Key = u32;
    type Value = Lease;
    const NAME: &'static str = "EVENT_LEASE";
    const KIND: TableKind = TableKind::Array;
    const CAPACITY: u32 = 1;
}

/// Records of [`Event`](crate::event::Event). Written by the datapath, and at sockets, while somebody listens.
#[derive(Debug)]
pub enum Events {}

impl Table for Events {
    type Key = ();
    type Value = ();
    const NAME: &'static str = "EVENTS";
    const KIND: TableKind = TableKind::Ring;
    const CAPACITY: u32 = 512 << 10;
}

/// 0 -> events that found no room in the ring. Written by the datapath, read by whoever listens.
#[derive(Debug)]
pub enum LostEvents {}

impl Table for LostEvents {
    type Key = u32;
    type Value = u64;
    const NAME: &'static str = "LOST_EVENTS";
    const KIND: TableKind = TableKind::PerCpuArray;
    const CAPACITY: u32 = 1;
}

/// Place in a list -> a service port that a table has no room for. Written by the agent for whoever asks how things stand;
/// what stands behind the end of the list is not told.
#[derive(Debug)]
pub enum Misfits {}

impl Table for Misfits {
    type Key = u32;
    type Value = Misfit;
    const NAME: &'static str = "MISFITS";
    const KIND: TableKind = TableKind::Hash;
    const CAPACITY: u32 = 1_024;
}
