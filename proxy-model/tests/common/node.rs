//! A node without a kernel: the tables that the model wrote, and the balancing decision that the kernel runs.

use std::{
    cell::{Cell, RefCell, RefMut},
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use proxy_common::{
    addr::Addr,
    addresses::AddressFlags,
    affinity::{Affinity, AffinityKey},
    backend::{Backend, BackendId},
    cache::{Answer, CachedFlow, Place, TupleHash},
    config::NodeSettings,
    counters::ServiceCounters,
    device::{Device, DeviceFlags},
    drop::DropReason,
    endian::Be16,
    filter::{AddressRoles, FilterPosition},
    flow::{Direction, Draft, FlowEntry, FlowHead, FlowState, TcpFlags},
    frontend::{Frontend, FrontendKey, ServiceId},
    lb::{
        self, FlowRef, Insert, InsertError, Listeners, Packet, Process, Sockets, Tables, Translation,
        Verdict, Wish,
    },
    limit::Bucket,
    pod::{CgroupId, PodReasons},
    ranges::SourceRange,
    socket::{SocketEntry, SocketKey},
    time::Ticks,
    tuple::{Endpoint, FlowKey, Hook, Protocol},
};
use proxy_model::{Model, Options, Restored};

use super::{Memory, settle};

/// Number of a device that pods of the node are behind.
pub(crate) const POD_DEVICE: u32 = 5;
/// Number of the device that everybody else is behind.
pub(crate) const UPLINK: u32 = 2;

/// A node called `node-a` whose clock ticks once a second, unless the settings say otherwise.
pub(crate) struct Node {
    pub(crate) model: Model,
    pub(crate) memory: Memory,
    pub(crate) settings: NodeSettings,
    pub(crate) devices: HashMap<u32, Device>,
    flows: RefCell<HashMap<FlowKey, &'static Cell<FlowEntry>>>,
    cache: RefCell<HashMap<(u32, Place), CachedFlow>>,
    epochs: RefCell<HashMap<u32, u32>>,
    /// Whether CPUs remember what they did with packets, if the clock is fast enough.
    pub(crate) remembers: bool,
    /// The CPU that the next packet comes on.
    pub(crate) cpu: Cell<u32>,
    /// How often the flow table was asked.
    pub(crate) lookups: Cell<usize>,
    affinities: RefCell<HashMap<AffinityKey, Affinity>>,
    sockets: RefCell<HashMap<SocketKey, SocketEntry>>,
    counters: RefCell<HashMap<ServiceId, ServiceCounters>>,
    draft: RefCell<Draft>,
    bucket: Cell<Bucket>,
    /// What another CPU writes just before this one writes its next flow.
    rival: RefCell<Vec<(FlowKey, FlowEntry)>>,
    /// Where processes of the node listen.
    pub(crate) listeners: Vec<(Endpoint, Protocol)>,
    /// Packets of connections that processes of the node have.
    pub(crate) connected: Vec<FlowKey>,
    /// The cgroups that the calling process is in, from the root.
    pub(crate) cgroups: Vec<CgroupId>,
    /// How many of them were asked about.
    pub(crate) cgroups_asked: Cell<usize>,
    /// What was dropped, in order.
    pub(crate) drops: RefCell<Vec<(ServiceId, DropReason)>>,
    ticks: Cell<u32>,
    dice: Cell<u64>,
}

/// An entry of the flow table. Its memory is never given back, as in the kernel while a program looks at it.
#[derive(Clone, Copy)]
pub(crate) struct Entry(&'static Cell<FlowEntry>);

impl Node {
    pub(crate) fn new() -> Self {
        Self::with(Options::on_node("node-a"))
    }

    /// The same with other options. Its uplink has 192.0.2.1, its pods' bridge 10.244.1.1, and the like for IPv6.
    pub(crate) fn with(options: Options) -> Self {
        let address = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
        let device = |flags, v4, v6| Device { flags, source_v4: address(v4), source_v6: address(v6) };
        let devices = [
            (POD_DEVICE, device(DeviceFlags::LOCAL_CLIENTS, "10.244.1.1", "fd00:10:244:1::1")),
            (UPLINK, device(DeviceFlags::default(), "192.0.2.1", "2001:db8::1")),
        ];
        Self {
            model: Model::new(options, Restored::default()),
            memory: Memory::default(),
            settings: NodeSettings::new(1),
            devices: devices.into(),
            flows: RefCell::default(),
            cache: RefCell::default(),
            epochs: RefCell::default(),
            remembers: true,
            cpu: Cell::new(0),
            lookups: Cell::new(0),
            affinities: RefCell::default(),
            sockets: RefCell::default(),
            counters: RefCell::default(),
            draft: RefCell::default(),
            bucket: Cell::default(),
            rival: RefCell::default(),
            listeners: Vec::new(),
            connected: Vec::new(),
            cgroups: Vec::new(),
            cgroups_asked: Cell::new(0),
            drops: RefCell::default(),
            ticks: Cell::new(0),
            dice: Cell::new(0x9e37_79b9_7f4a_7c15),
        }
    }

    /// Brings the tables up to date.
    pub(crate) fn settle(&mut self) {
        let now = self.clock();
        let problems = settle(&mut self.model, now, &mut self.memory);
        assert!(problems.is_empty(), "{problems:?}");
        self.settings.pod_networks = self.model.pod_networks();
    }

    /// Lets time pass.
    pub(crate) fn wait(&self, seconds: u32) {
        self.pass(self.settings.ticks(seconds).0);
    }

    /// Lets ticks of the clock pass.
    pub(crate) fn pass(&self, ticks: u32) {
        self.ticks.set(self.ticks.get() + ticks);
    }

    /// Time since the start.
    pub(crate) fn clock(&self) -> Duration {
        Duration::from_secs((self.ticks.get() / self.settings.ticks_per_second).into())
    }

    /// A pod's packet enters the node. Where does it go?
    pub(crate) fn enter(&self, from: &str, to: &str, protocol: Protocol, flags: TcpFlags) -> Verdict {
        self.enter_by(POD_DEVICE, from, to, protocol, flags)
    }

    /// A packet enters the node by a device. Where does it go?
    pub(crate) fn enter_by(
        &self,
        device: u32,
        from: &str,
        to: &str,
        protocol: Protocol,
        flags: TcpFlags,
    ) -> Verdict {
        lb::ingress(self, self, &Packet { device, ..packet(from, to, protocol, flags, Hook::INGRESS) })
    }

    /// A packet leaves the node towards a pod of it. Where does it claim to come from?
    pub(crate) fn leave(&self, from: &str, to: &str, protocol: Protocol, flags: TcpFlags) -> Verdict {
        self.leave_by(POD_DEVICE, from, to, protocol, flags, false)
    }

    /// A packet leaves the node by a device. Where does it claim to come from?
    pub(crate) fn leave_by(
        &self,
        device: u32,
        from: &str,
        to: &str,
        protocol: Protocol,
        flags: TcpFlags,
        masquerade: bool,
    ) -> Verdict {
        let packet = Packet { device, ..packet(from, to, protocol, flags, Hook::EGRESS) };
        lb::egress(self, &packet, masquerade)
    }

    /// A process connects a socket, or sends a datagram on it. To whom?
    pub(crate) fn wish(&self, socket: u64, to: &str, protocol: Protocol, is_host: bool) -> Wish {
        let process = Process { end: end(to), protocol, socket, namespace: u64::from(is_host), is_host };
        lb::wish(self, self, &process)
    }

    /// Where a packet was sent that had to be sent somewhere.
    pub(crate) fn reach(&self, from: &str, to: &str, protocol: Protocol, flags: TcpFlags) -> String {
        match self.enter(from, to, protocol, flags) {
            Verdict::Rewrite(Translation { end, .. }) => text(end),
            verdict => panic!("{from} to {to}: {verdict:?}"),
        }
    }

    /// What was counted for all services together.
    pub(crate) fn counted(&self) -> ServiceCounters {
        self.counters.borrow().values().copied().fold(ServiceCounters::default(), ServiceCounters::plus)
    }

    /// Roles that the flows need, by position in the filter.
    pub(crate) fn roles_of_flows(&self) -> HashMap<FilterPosition, AddressRoles> {
        let mut needed: HashMap<FilterPosition, AddressRoles> = HashMap::new();
        for key in self.flows.borrow().keys() {
            let (address, role) = match key.hook {
                Hook::INGRESS => (key.destination, AddressRoles::FRONTEND),
                _ => (key.source, AddressRoles::BACKEND),
            };
            let roles = needed.entry(FilterPosition::of(address)).or_default();
            *roles = roles.with(role);
        }
        needed
    }

    /// How far the flow of packets that enter the node has come, if there is one.
    pub(crate) fn state_of(&self, from: &str, to: &str) -> Option<FlowState> {
        let flows = self.flows.borrow();
        let of = |protocol| FlowKey::new(end(from), end(to), protocol, Hook::INGRESS);
        flows.get(&of(Protocol::TCP)).map(|entry| entry.get().head.state)
    }

    /// Takes all entries out of the flow table, and has another CPU write them at the worst moment.
    pub(crate) fn race(&self) {
        let entries = self.flows.take().into_iter().map(|(key, entry)| (key, entry.get()));
        self.rival.replace(entries.collect());
    }

    /// How many entries the flow table has.
    pub(crate) fn entries(&self) -> usize {
        self.flows.borrow().len()
    }

    /// The agent's sweep: expired flows go.
    pub(crate) fn sweep(&self) {
        let now = self.now();
        let idle: Vec<FlowKey> = {
            let flows = self.flows.borrow();
            let expired = |key: &FlowKey| flows.get(key).is_none_or(|entry| entry.get().head.is_idle(now));
            let gone = flows.iter().filter(|(key, entry)| expired(key) && expired(&entry.get().peer));
            gone.map(|(key, _)| *key).collect()
        };
        idle.iter().for_each(|key| self.delete_flow(key));
    }

    /// Where this CPU remembers a tuple: one of a few places, so that tuples meet there.
    fn place(&self, hash: TupleHash) -> (u32, Place) {
        (self.cpu.get(), Place { page: 0, at: hash.place(1).at % 16 })
    }

    fn count(&self, service: ServiceId, change: impl FnOnce(&mut ServiceCounters)) {
        change(self.counters.borrow_mut().entry(service).or_default());
    }
}

/// An address and port from text.
pub(crate) fn end(text: &str) -> Endpoint {
    let end: SocketAddr = text.parse().unwrap();
    Endpoint { address: end.ip().into(), port: Be16::from_host(end.port()) }
}

/// The verdict that gives a packet to or from `other` another end.
pub(crate) fn rewritten(new: &str, other: &str) -> Verdict {
    Verdict::Rewrite(Translation {
        end: end(new),
        other_port: end(other).port,
        masquerade: false,
        dsr: false,
    })
}

/// Address and port as text.
pub(crate) fn text(end: Endpoint) -> String {
    SocketAddr::new(end.address.to_ip(), end.port.to_host()).to_string()
}

fn packet(from: &str, to: &str, protocol: Protocol, flags: TcpFlags, hook: Hook) -> Packet {
    Packet { key: FlowKey::new(end(from), end(to), protocol, hook), flags, length: 100, device: POD_DEVICE }
}

/// Whether two addresses share their first bits.
fn share(bits: u32, a: Addr, b: Addr) -> bool {
    let number = |addr: Addr| u128::from_be_bytes(addr.octets());
    (number(a) ^ number(b)).checked_shr(128 - bits).unwrap_or(0) == 0
}

impl FlowRef for Entry {
    fn head(&self) -> FlowHead {
        self.0.get().head
    }

    fn leads_to(&self, key: &FlowKey) -> bool {
        self.0.get().peer == *key
    }

    fn peer_hash(&self) -> TupleHash {
        TupleHash::of(&self.0.get().peer)
    }

    fn translation(&self, hook: Hook) -> Translation {
        let FlowEntry { peer, head } = self.0.get();
        Translation::of(hook, &peer, head.flags)
    }

    fn copy_to(&self, draft: &mut Draft) {
        draft.entry = self.0.get();
        draft.reply = draft.entry.peer;
    }

    fn touch(&self, now: Ticks) {
        let FlowEntry { peer, head } = self.0.get();
        self.0.set(FlowEntry { peer, head: FlowHead { last_seen: now, ..head } });
    }

    fn enter(&self, state: FlowState, timeout: Ticks) {
        let FlowEntry { peer, head } = self.0.get();
        self.0.set(FlowEntry { peer, head: FlowHead { state, timeout, ..head } });
    }
}

impl Listeners for Node {
    fn is_connected(&self, key: &FlowKey) -> bool {
        self.connected.contains(key)
    }

    fn listens(&self, end: &Endpoint, protocol: Protocol) -> bool {
        self.listeners.contains(&(*end, protocol))
    }
}

impl Tables for Node {
    type Flow<'a> = Entry;
    type Draft<'a> = RefMut<'a, Draft>;

    fn now(&self) -> Ticks {
        Ticks(self.ticks.get())
    }

    fn random(&self) -> u32 {
        // xorshift64 (Marsaglia 2003); its high half is the better one.
        let mut x = self.dice.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.dice.set(x);
        u32::try_from(x >> 32).unwrap()
    }

    fn settings(&self) -> Option<&NodeSettings> {
        Some(&self.settings)
    }

    fn address(&self, address: Addr) -> AddressFlags {
        self.memory.addresses.get(&address).copied().unwrap_or_default()
    }

    fn device(&self, ifindex: u32) -> Option<Device> {
        self.devices.get(&ifindex).copied()
    }

    fn admits(&self, service: ServiceId, source: Addr) -> bool {
        let wanted = SourceRange::of(service, source);
        self.memory.ranges.keys().any(|range| {
            range.data.service == service
                && share(range.prefix_length - 32, range.data.address, wanted.data.address)
        })
    }

    fn roles(&self, address: Addr) -> AddressRoles {
        let position = FilterPosition::of(address);
        self.memory.filter.get(&position.line).map_or(AddressRoles::NONE, |line| line.roles[position.at])
    }

    fn flow(&self, key: &FlowKey) -> Option<Entry> {
        self.lookups.set(self.lookups.get() + 1);
        self.flows.borrow().get(key).copied().map(Entry)
    }

    fn other(&self, flow: Entry) -> Option<Entry> {
        self.flow(&flow.0.get().peer)
    }

    fn draft(&self) -> Option<RefMut<'_, Draft>> {
        Some(self.draft.borrow_mut())
    }

    fn put_flow(&self, key: &FlowKey, entry: &FlowEntry, mode: Insert) -> Result<(), InsertError> {
        let mut flows = self.flows.borrow_mut();
        for (key, entry) in self.rival.take() {
            flows.insert(key, Box::leak(Box::new(Cell::new(entry))));
        }
        if mode == Insert::New && flows.contains_key(key) {
            return Err(InsertError::Exists);
        }
        flows.insert(*key, Box::leak(Box::new(Cell::new(*entry))));
        Ok(())
    }

    fn delete_flow(&self, key: &FlowKey) {
        self.flows.borrow_mut().remove(key);
    }

    fn recall(&self, key: &FlowKey, hash: TupleHash) -> Option<Answer> {
        self.cache.borrow().get(&self.place(hash)).filter(|entry| entry.key == *key).map(CachedFlow::answer)
    }

    fn learn(&self, key: &FlowKey, hash: TupleHash, answer: &Answer) {
        let mut cache = self.cache.borrow_mut();
        let entry = cache.entry(self.place(hash)).or_default();
        if self.remembers && entry.gives_way(key, answer.ground.learned) {
            *entry = CachedFlow::new(0, *key, answer);
        }
    }

    fn epoch(&self, hash: TupleHash) -> u32 {
        self.epochs.borrow().get(&hash.epoch()).copied().unwrap_or_default()
    }

    fn outdate(&self, hash: TupleHash) {
        *self.epochs.borrow_mut().entry(hash.epoch()).or_default() += 1;
    }

    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.memory.frontends.get(key).copied()
    }

    fn slot(&self, index: u32) -> Option<BackendId> {
        self.memory.slots.get(&index).copied()
    }

    fn may_begin(&self) -> bool {
        let mut bucket = self.bucket.get();
        let may = bucket.take(self.settings.new_flow_rate(), self.now());
        self.bucket.set(bucket);
        may
    }

    fn backend(&self, id: BackendId) -> Option<Backend> {
        self.memory.backends.get(&id.0).copied()
    }

    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.affinities.borrow().get(key).copied()
    }

    fn set_affinity(&self, key: &AffinityKey, value: &Affinity) {
        self.affinities.borrow_mut().insert(*key, *value);
    }

    fn count_connection(&self, service: ServiceId) {
        self.count(service, |counters| counters.connections += 1);
    }

    fn count_packet(&self, service: ServiceId, direction: Direction, bytes: u32) {
        self.count(service, |counters| {
            if direction == Direction::ORIGINAL {
                counters.packets += 1;
                counters.bytes += u64::from(bytes);
            } else {
                counters.reply_packets += 1;
                counters.reply_bytes += u64::from(bytes);
            }
        });
    }

    fn count_drop(&self, service: ServiceId, reason: DropReason) {
        self.count(service, |counters| counters.drops += 1);
        self.drops.borrow_mut().push((service, reason));
    }
}

impl Sockets for Node {
    fn socket(&self, key: &SocketKey) -> Option<SocketEntry> {
        self.sockets.borrow().get(key).copied()
    }

    fn set_socket(&self, key: &SocketKey, entry: &SocketEntry) {
        self.sockets.borrow_mut().insert(*key, *entry);
    }

    fn pod(&self, level: u8) -> Option<PodReasons> {
        self.cgroups_asked.set(self.cgroups_asked.get() + 1);
        self.memory.pods.get(self.cgroups.get(usize::from(level))?).map(|pod| pod.reason)
    }
}
