//! The maps, and the decision's view of them.
#![expect(
    unsafe_code,
    reason = "map values are shared memory behind raw pointers; all access to them is here"
)]

use core::ptr::NonNull;

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_F_NO_PREALLOC, BPF_NOEXIST},
    btf_maps::{self, ArrayOfMaps},
    helpers::{bpf_get_current_ancestor_cgroup_id, bpf_get_prandom_u32, bpf_jiffies64},
    macros::{btf_map, map},
    maps::{
        Array, HashMap, LruHashMap, PerCpuArray, PerCpuHashMap,
        lpm_trie::{Key as Prefix, LpmTrie},
    },
};
use proxy_common::{
    addr::Addr,
    addresses::AddressFlags,
    affinity::{Affinity, AffinityKey},
    backend::{Backend, BackendId},
    cache::{Answer, Place as CachePlace, TupleHash},
    config::NodeSettings,
    counters::{ServiceCounters, ServiceDrop},
    device::Device,
    drop::DropReason,
    filter::{AddressRoles, FilterPosition},
    flow::{Direction, Draft, FlowEntry, FlowHead, FlowState},
    fragment::{FragmentKey, Ports},
    frontend::{Frontend, FrontendKey, ServiceId, SlotRun},
    lb::{
        self, Arrival, First, FlowRef, Found, Insert, InsertError, Place, Process, Selection, Tables,
        Translation,
    },
    limit::Bucket,
    pod::{CgroupId, PodReasons},
    ranges::{SourceRange, SourceRangeData},
    shortcut::Shortcut,
    socket::{SocketEntry, SocketKey},
    tables::{
        AddressFilter, Addresses, Affinities, Backends, Devices, Drops, FORMER, Flows, Fragments, Frontends,
        Misfits, PLACES, PRESENT, Passages, Pods, ServiceDrops, ServiceNames, ServiceTraffic, Settings,
        Shortcuts, Slots, Sockets, SourceRanges, Table, XdpDevices,
    },
    time::Ticks,
    tuple::{Endpoint, FlowKey, Hook},
    xdp::{Passage, XdpDevice},
};

use crate::{cache, events, verified};

type Key<T> = <T as Table>::Key;
type Value<T> = <T as Table>::Value;

const fn hash<T: Table>() -> HashMap<Key<T>, Value<T>> {
    HashMap::with_max_entries(T::CAPACITY, BPF_F_NO_PREALLOC)
}

const fn lru_hash<T: Table>() -> LruHashMap<Key<T>, Value<T>> {
    LruHashMap::with_max_entries(T::CAPACITY, 0)
}

const fn per_cpu_hash<T: Table>() -> PerCpuHashMap<Key<T>, Value<T>> {
    PerCpuHashMap::with_max_entries(T::CAPACITY, BPF_F_NO_PREALLOC)
}

const fn lpm_trie() -> LpmTrie<SourceRangeData, Value<SourceRanges>> {
    LpmTrie::with_max_entries(SourceRanges::CAPACITY, BPF_F_NO_PREALLOC)
}

const fn array<T: Table<Key = u32>>() -> Array<Value<T>> {
    Array::with_max_entries(T::CAPACITY, 0)
}

const fn per_cpu_array<T: Table<Key = u32>>() -> PerCpuArray<Value<T>> {
    PerCpuArray::with_max_entries(T::CAPACITY, 0)
}

#[map]
static FRONTENDS: HashMap<Key<Frontends>, Value<Frontends>> = hash::<Frontends>();
#[map]
static SLOTS: Array<Value<Slots>> = array::<Slots>();
#[map]
static BACKENDS: Array<Value<Backends>> = array::<Backends>();
#[map]
static FLOWS: HashMap<Key<Flows>, Value<Flows>> = hash::<Flows>();
#[map]
static ADDRESS_FILTER: Array<Value<AddressFilter>> = array::<AddressFilter>();
#[map]
static SERVICE_NAMES: HashMap<Key<ServiceNames>, Value<ServiceNames>> = hash::<ServiceNames>();
#[map]
static SERVICE_TRAFFIC: PerCpuArray<Value<ServiceTraffic>> = per_cpu_array::<ServiceTraffic>();
#[map]
static AFFINITIES: LruHashMap<Key<Affinities>, Value<Affinities>> = lru_hash::<Affinities>();
#[map]
static ADDRESSES: HashMap<Key<Addresses>, Value<Addresses>> = hash::<Addresses>();
#[map]
static DEVICES: HashMap<Key<Devices>, Value<Devices>> = hash::<Devices>();
#[map]
static SOURCE_RANGES: LpmTrie<SourceRangeData, Value<SourceRanges>> = lpm_trie();
#[map]
static FRAGMENTS: LruHashMap<Key<Fragments>, Value<Fragments>> = lru_hash::<Fragments>();
#[map]
static SERVICE_DROPS: PerCpuHashMap<Key<ServiceDrops>, Value<ServiceDrops>> = per_cpu_hash::<ServiceDrops>();
#[map]
static SOCKETS: LruHashMap<Key<Sockets>, Value<Sockets>> = lru_hash::<Sockets>();
#[map]
static PODS: HashMap<Key<Pods>, Value<Pods>> = hash::<Pods>();
#[map]
static MISFITS: HashMap<Key<Misfits>, Value<Misfits>> = hash::<Misfits>();
#[map]
static SETTINGS: Array<Value<Settings>> = array::<Settings>();
#[map]
static DROPS: PerCpuArray<Value<Drops>> = per_cpu_array::<Drops>();
#[map]
static XDP_DEVICES: HashMap<Key<XdpDevices>, Value<XdpDevices>> = hash::<XdpDevices>();
#[map]
static SHORTCUTS: PerCpuArray<Value<Shortcuts>> = per_cpu_array::<Shortcuts>();
#[map]
static PASSAGES: PerCpuArray<Value<Passages>> = per_cpu_array::<Passages>();

/// What the kernel compares with a hash table that is to stand in an array: capacities may differ.
type Hash<T> = btf_maps::HashMap<Key<T>, Value<T>, 1, { BPF_F_NO_PREALLOC as usize }>;

/// The same of tables that forget.
type LruHash<T> = btf_maps::LruHashMap<Key<T>, Value<T>, 1>;

// Programs find these tables through the arrays alone. One lookup more, in a cache line that is always hot, and an entry is
// found while all of them move.
#[btf_map]
static FLOW_TABLES: ArrayOfMaps<Hash<Flows>, { PLACES as usize }> = ArrayOfMaps::new();
#[btf_map]
static AFFINITY_TABLES: ArrayOfMaps<LruHash<Affinities>, { PLACES as usize }> = ArrayOfMaps::new();
#[btf_map]
static SOCKET_TABLES: ArrayOfMaps<LruHash<Sockets>, { PLACES as usize }> = ArrayOfMaps::new();

/// Memory for one flow that is being written; means nothing between packets, so nobody else knows it.
#[map]
static DRAFTS: PerCpuArray<Draft> = PerCpuArray::with_max_entries(1, 0);

/// New flows of each CPU. A bucket serves the programs of one agent's start, and is full whenever one begins.
#[map]
static NEW_FLOWS: PerCpuArray<Bucket> = PerCpuArray::with_max_entries(1, 0);

/// Memory for one packet that another node has sent here; means nothing between packets either.
#[map]
static ARRIVALS: PerCpuArray<Arrival> = PerCpuArray::with_max_entries(1, 0);

/// Memory for such a packet. One at a time.
#[inline(always)]
pub(crate) fn arrival() -> Option<&'static mut Arrival> {
    // SAFETY: a slot of this CPU's own array; programs do not nest on a CPU at this hook.
    ARRIVALS.get_ptr_mut(0).map(|arrival| unsafe { &mut *arrival })
}

/// Memory for a packet that begins a flow; means nothing between packets.
#[map]
static PACKETS: PerCpuArray<lb::Packet> = PerCpuArray::with_max_entries(1, 0);

/// Memory for such a packet. One at a time.
#[inline(always)]
pub(crate) fn packet() -> Option<&'static mut lb::Packet> {
    // SAFETY: a slot of this CPU's own array; programs do not nest on a CPU at this hook.
    PACKETS.get_ptr_mut(0).map(|packet| unsafe { &mut *packet })
}

/// The kernel's clock.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "ticks are jiffies modulo 2^32")]
pub(crate) fn now() -> Ticks {
    // SAFETY: a plain helper, inlined by the verifier into one load.
    Ticks(unsafe { bpf_jiffies64() } as u32)
}

/// Counts a dropped packet.
#[inline(always)]
pub(crate) fn count_drop(reason: DropReason) {
    if let Some(count) = DROPS.get_ptr_mut(reason as u32) {
        // SAFETY: a slot of this CPU's own array; programs do not nest on a CPU at this hook.
        unsafe { *count += 1 };
    }
}

/// Counts a packet of running flows.
#[inline(always)]
pub(crate) fn count_passage(passage: Passage) {
    if let Some(count) = PASSAGES.get_ptr_mut(passage as u32) {
        // SAFETY: a slot of this CPU's own array; programs do not nest on a CPU at this hook.
        unsafe { *count += 1 };
    }
}

/// How an uplink stands; `None` if it is none.
#[inline(always)]
pub(crate) fn xdp_device(index: u32) -> Option<XdpDevice> {
    // SAFETY: copied out at once. A row that is replaced meanwhile may mix two of one device.
    unsafe { XDP_DEVICES.get(index) }.copied()
}

/// Where this CPU keeps the shortcut of tuples with a hash; there may be another one's.
#[inline(always)]
pub(crate) fn shortcut(hash: TupleHash) -> Option<&'static mut Shortcut> {
    let CachePlace { page, at } = hash.place(Shortcuts::CAPACITY);
    let page = SHORTCUTS.get_ptr_mut(page)?;
    // SAFETY: a position within the page, which the verifier proves again, of this CPU's own array; programs do not nest on a CPU
    // at this hook.
    Some(unsafe { &mut *(&raw mut (*page).entries).cast::<Shortcut>().add(at) })
}

/// The ports of the datagram that a fragment belongs to.
#[inline(always)]
pub(crate) fn ports(key: &FragmentKey) -> Option<Ports> {
    // SAFETY: copied out at once; two ports in one word are never half of one datagram's and half of another's.
    unsafe { FRAGMENTS.get(key) }.copied()
}

/// Remembers the ports of a datagram. A full table forgets another one.
#[inline(always)]
pub(crate) fn remember_ports(key: &FragmentKey, ports: Ports) {
    let _forgotten = FRAGMENTS.insert(key, ports, 0);
}

/// A flow entry in the map. Its memory stays an entry of this map while the program runs, but since Linux 6.1 an entry
/// that is replaced or removed meanwhile may at once become another flow's (`bpf_mem_cache_free` in kernel/bpf/hashtab.c).
/// What is read then is checked against the keys that it names; what is written then hits a flow within nanoseconds of
/// its birth, as a state or time that its next packet corrects. No flow is a null pointer, lest the compiler keep the
/// difference in a word that the verifier does not follow.
#[derive(Clone, Copy)]
pub(crate) struct Flow(NonNull<FlowEntry>);

impl FlowRef for Flow {
    #[inline(always)]
    fn head(&self) -> FlowHead {
        // SAFETY: the pointer came from a lookup in this run and was checked against null; a concurrent write
        // may show fields of two moments, which each decision tolerates.
        unsafe { (&raw const (*self.0.as_ptr()).head).read() }
    }

    #[inline(always)]
    fn leads_to(&self, key: &FlowKey) -> bool {
        // SAFETY: as above.
        unsafe { &(*self.0.as_ptr()).peer == key }
    }

    #[inline(always)]
    fn peer_hash(&self) -> TupleHash {
        // SAFETY: as above.
        unsafe { TupleHash::of(&(*self.0.as_ptr()).peer) }
    }

    #[inline(always)]
    fn translation(&self, hook: Hook) -> Translation {
        // SAFETY: as above. The tuple of an entry never changes in place.
        unsafe { Translation::of(hook, &(*self.0.as_ptr()).peer, (*self.0.as_ptr()).head.flags) }
    }

    #[inline(always)]
    fn copy_to(&self, draft: &mut Draft) {
        // SAFETY: as above. Bytes go from one map's memory to another's.
        unsafe {
            draft.reply = (*self.0.as_ptr()).peer;
            draft.entry.head.flags = (*self.0.as_ptr()).head.flags;
        }
    }

    #[inline(always)]
    fn touch(&self, now: Ticks) {
        // SAFETY: as above; an aligned word.
        unsafe { (&raw mut (*self.0.as_ptr()).head.last_seen).write(now) };
    }

    #[inline(always)]
    fn enter(&self, state: FlowState, timeout: Ticks) {
        // SAFETY: as above. The longer timeout of the two moments applies in between, at worst.
        unsafe {
            (&raw mut (*self.0.as_ptr()).head.timeout).write(timeout);
            (&raw mut (*self.0.as_ptr()).head.state).write(state);
        }
    }
}

/// Finds a flow, moved already or not.
#[inline(always)]
fn find_flow(key: &FlowKey) -> Option<Flow> {
    let find = |place| FLOW_TABLES.get(place)?.get_ptr_mut(key).and_then(NonNull::new).map(Flow);
    find(PRESENT).or_else(|| find(FORMER))
}

/// The kernel's tables.
pub(crate) struct Maps;

impl Maps {
    #[inline(always)]
    fn count(service: ServiceId, add: impl FnOnce(&mut ServiceCounters)) {
        if let Some(counters) = SERVICE_TRAFFIC.get_ptr_mut(service.0) {
            // SAFETY: a slot of this CPU's own array; programs do not nest on a CPU at this hook.
            add(unsafe { &mut *counters });
        }
    }
}

impl Tables for Maps {
    type Flow<'a> = Flow;
    type Draft<'a> = &'a mut Draft;

    #[inline(always)]
    fn now(&self) -> Ticks {
        now()
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: a plain helper.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn settings(&self) -> Option<&NodeSettings> {
        SETTINGS.get(0)
    }

    #[inline(always)]
    fn address(&self, address: Addr) -> AddressFlags {
        // SAFETY: copied out at once, one word.
        unsafe { ADDRESSES.get(address) }.copied().unwrap_or_default()
    }

    #[inline(always)]
    fn device(&self, ifindex: u32) -> Option<Device> {
        // SAFETY: copied out at once. Rows are written before a device's programs run and rarely changed; one that is
        // replaced meanwhile may mix two of its own states.
        unsafe { DEVICES.get(ifindex) }.copied()
    }

    #[inline(always)]
    fn admits(&self, service: ServiceId, source: Addr) -> bool {
        let SourceRange { prefix_length, data } = SourceRange::of(service, source);
        SOURCE_RANGES.get(Prefix::new(prefix_length, data)).is_some()
    }

    #[inline(always)]
    fn roles(&self, address: Addr) -> AddressRoles {
        let FilterPosition { line, at } = FilterPosition::of(address);
        ADDRESS_FILTER.get(line).and_then(|line| line.roles.get(at)).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey) -> Option<Flow> {
        find_flow(key)
    }

    #[inline(always)]
    fn other(&self, flow: Flow) -> Option<Flow> {
        // SAFETY: as for the methods of `Flow`. The helper takes a key that lies in a map.
        let peer = unsafe { &(*flow.0.as_ptr()).peer };
        find_flow(peer)
    }

    #[inline(always)]
    fn draft(&self) -> Option<&mut Draft> {
        // SAFETY: a slot of this CPU's own array; programs do not nest on a CPU at this hook.
        DRAFTS.get_ptr_mut(0).map(|draft| unsafe { &mut *draft })
    }

    #[inline(always)]
    fn select(&self, packet: &lb::Packet, mode: Insert) -> Selection {
        verified::select(packet, mode)
    }

    #[inline(always)]
    fn remember(&self, packet: &lb::Packet, chosen: Selection, mode: Insert) -> Option<DropReason> {
        verified::remember(packet, chosen, mode)
    }

    #[inline(always)]
    fn masquerade(&self, packet: &lb::Packet, mode: Insert) -> Option<DropReason> {
        verified::masquerade(packet, mode)
    }

    #[inline(always)]
    fn transition(&self, packet: &lb::Packet) -> bool {
        verified::transition(packet)
    }

    #[inline(always)]
    fn place(&self, run: SlotRun, end: &Endpoint) -> Place {
        verified::place(run, end)
    }

    #[inline(always)]
    fn reserve(&self, first: First) -> Found {
        verified::reserve(first)
    }

    #[inline(always)]
    fn put_flow(&self, key: &FlowKey, entry: &FlowEntry, mode: Insert) -> Result<(), InsertError> {
        const EEXIST: i32 = -17;
        let flags = match mode {
            Insert::New => BPF_NOEXIST,
            Insert::Replace => BPF_ANY,
        };
        let is_left_behind = |table: &Hash<Flows>| table.get_ptr(key).is_some();
        if mode == Insert::New && FLOW_TABLES.get(FORMER).is_some_and(is_left_behind) {
            return Err(InsertError::Exists);
        }
        let table = FLOW_TABLES.get(PRESENT).ok_or(InsertError::Full)?;
        table.insert(key, entry, u64::from(flags)).map_err(|error| match error {
            EEXIST => InsertError::Exists,
            _ => InsertError::Full,
        })
    }

    #[inline(always)]
    fn delete_flow(&self, key: &FlowKey) {
        for place in [PRESENT, FORMER] {
            if let Some(table) = FLOW_TABLES.get(place) {
                let _absent = table.remove(key);
            }
        }
    }

    #[inline(always)]
    fn may_begin(&self) -> bool {
        let (Some(bucket), Some(settings)) = (NEW_FLOWS.get_ptr_mut(0), self.settings()) else {
            return false;
        };
        // SAFETY: a slot of this CPU's own array; programs do not nest on a CPU at this hook.
        unsafe { &mut *bucket }.take(settings.new_flow_rate(), now())
    }

    #[inline(always)]
    fn recall(&self, key: &FlowKey, hash: TupleHash) -> Option<Answer> {
        cache::recall(key, hash)
    }

    #[inline(always)]
    fn learn(&self, key: &FlowKey, hash: TupleHash, answer: &Answer) {
        cache::learn(key, hash, answer);
    }

    #[inline(always)]
    fn epoch(&self, hash: TupleHash) -> u32 {
        cache::epoch(hash)
    }

    #[inline(always)]
    fn outdate(&self, hash: TupleHash) {
        cache::outdate(hash);
    }

    #[inline(always)]
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        // SAFETY: copied out at once. A value that is recycled meanwhile may mix two frontends; `lb` uses a backend
        // only if it belongs to the frontend's service.
        unsafe { FRONTENDS.get(key) }.copied()
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<BackendId> {
        SLOTS.get(index).copied()
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        // SAFETY: copied out at once. An element that the kernel recycles meanwhile may show another client's
        // backend, which the caller refuses unless it is of the same service.
        let find = |place| unsafe { AFFINITY_TABLES.get(place)?.get(key) }.copied();
        find(PRESENT).or_else(|| find(FORMER))
    }

    #[inline(always)]
    fn set_affinity(&self, key: &AffinityKey, value: &Affinity) {
        if let Some(table) = AFFINITY_TABLES.get(PRESENT) {
            let _forgotten = table.insert(key, value, 0);
        }
    }

    #[inline(always)]
    fn backend(&self, id: BackendId) -> Option<Backend> {
        BACKENDS.get(id.0).copied()
    }

    #[inline(always)]
    fn count_connection(&self, service: ServiceId) {
        Self::count(service, |counters| counters.connections += 1);
    }

    #[inline(always)]
    fn count_packet(&self, service: ServiceId, direction: Direction, bytes: u32) {
        Self::count(service, |counters| {
            let (packets, total) = if direction == Direction::ORIGINAL {
                (&mut counters.packets, &mut counters.bytes)
            } else {
                (&mut counters.reply_packets, &mut counters.reply_bytes)
            };
            *packets += 1;
            *total += u64::from(bytes);
        });
    }

    #[inline(always)]
    fn count_drop(&self, service: ServiceId, reason: DropReason) {
        Self::count(service, |counters| counters.drops += 1);
        let key = ServiceDrop::new(service, reason);
        match SERVICE_DROPS.get_ptr_mut(key) {
            // SAFETY: this CPU's own value; programs do not nest on a CPU at this hook.
            Some(count) => unsafe { *count += 1 },
            // The first one of this CPU, even if another has made the entry meanwhile. A full table has no room for it.
            None => {
                let _uncounted = SERVICE_DROPS.insert(key, 1, 0);
            }
        }
    }

    #[inline(always)]
    fn tell_flow(&self, device: u32) {
        events::flow(device);
    }
}

impl lb::Sockets for Maps {
    #[inline(always)]
    fn socket(&self, key: &SocketKey) -> Option<SocketEntry> {
        // SAFETY: copied out at once. An element that the kernel recycles meanwhile may show another socket's peer; whoever
        // forgets 65,536 sockets within nanoseconds has other problems.
        let find = |place| unsafe { SOCKET_TABLES.get(place)?.get(key) }.copied();
        find(PRESENT).or_else(|| find(FORMER))
    }

    #[inline(always)]
    fn set_socket(&self, key: &SocketKey, entry: &SocketEntry) {
        if let Some(table) = SOCKET_TABLES.get(PRESENT) {
            let _forgotten = table.insert(key, entry, 0);
        }
    }

    #[inline(always)]
    fn pod(&self, level: u8) -> Option<PodReasons> {
        // SAFETY: a plain helper, allowed to all programs since Linux 6.4. A level below the process's own gives 0, which is
        // no cgroup's number.
        let cgroup = CgroupId(unsafe { bpf_get_current_ancestor_cgroup_id(i32::from(level)) });
        // SAFETY: one word, copied out at once. An element that the kernel recycles meanwhile may show another pod's reason.
        PODS.get_ptr(cgroup).map(|pod| unsafe { (*pod).reason })
    }

    #[inline(always)]
    fn tell_choice(&self, process: &Process, backend: &Backend) {
        events::choice(process, backend);
    }
}
