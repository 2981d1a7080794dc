//! A node without a kernel: the tables that the model wrote, and the balancing decision that the kernel runs.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    time::Duration,
};

use proxy_common::{
    addr::Addr,
    affinity::{Affinity, AffinityKey},
    backend::{Backend, BackendId},
    config::Timeouts,
    counters::ServiceCounters,
    endian::Be16,
    filter::{AddressRoles, FilterPosition},
    flow::{Direction, FlowEntry, FlowState, TcpFlags},
    frontend::{Frontend, FrontendKey, ServiceId},
    lb::{self, FlowRef, Insert, InsertError, Packet, Tables, Verdict},
    time::Ticks,
    tuple::{Endpoint, FlowKey, Hook, Protocol},
};
use proxy_model::{Model, Restored};

use super::{Memory, model_on, settle};

/// A node called `node-a` whose clock ticks once a second.
pub(crate) struct Node {
    pub(crate) model: Model,
    pub(crate) memory: Memory,
    flows: RefCell<HashMap<FlowKey, &'static Cell<FlowEntry>>>,
    affinities: RefCell<HashMap<AffinityKey, Affinity>>,
    counters: RefCell<HashMap<ServiceId, ServiceCounters>>,
    seconds: Cell<u32>,
    dice: Cell<u64>,
}

/// An entry of the flow table. Its memory is never given back, as in the kernel while a program looks at it.
#[derive(Clone, Copy)]
pub(crate) struct Entry(&'static Cell<FlowEntry>);

impl Node {
    pub(crate) fn new() -> Self {
        Self {
            model: model_on(Restored::default()),
            memory: Memory::default(),
            flows: RefCell::default(),
            affinities: RefCell::default(),
            counters: RefCell::default(),
            seconds: Cell::new(0),
            dice: Cell::new(0x9e37_79b9_7f4a_7c15),
        }
    }

    /// Brings the tables up to date.
    pub(crate) fn settle(&mut self) {
        let now = self.clock();
        let problems = settle(&mut self.model, now, &mut self.memory);
        assert!(problems.is_empty(), "{problems:?}");
    }

    /// Lets time pass.
    pub(crate) fn wait(&self, seconds: u32) {
        self.seconds.set(self.seconds.get() + seconds);
    }

    /// Time since the start.
    pub(crate) fn clock(&self) -> Duration {
        Duration::from_secs(self.seconds.get().into())
    }

    /// A packet enters the node. Where does it go?
    pub(crate) fn enter(&self, from: &str, to: &str, protocol: Protocol, flags: TcpFlags) -> Verdict {
        lb::ingress(self, &packet(from, to, protocol, flags, Hook::INGRESS))
    }

    /// A packet leaves the node. Where does it claim to come from?
    pub(crate) fn leave(&self, from: &str, to: &str, protocol: Protocol, flags: TcpFlags) -> Verdict {
        lb::egress(self, &packet(from, to, protocol, flags, Hook::EGRESS))
    }

    /// Where a packet was sent that had to be sent somewhere.
    pub(crate) fn reach(&self, from: &str, to: &str, protocol: Protocol, flags: TcpFlags) -> String {
        match self.enter(from, to, protocol, flags) {
            Verdict::Rewrite(end) => SocketAddr::new(end.address.to_ip(), end.port.to_host()).to_string(),
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

    /// The agent's sweep: expired flows go.
    pub(crate) fn sweep(&self) {
        let now = self.now();
        let idle: Vec<FlowKey> = {
            let flows = self.flows.borrow();
            let expired = |key: &FlowKey| flows.get(key).is_none_or(|entry| entry.get().is_idle(now));
            let gone = flows.iter().filter(|(key, entry)| expired(key) && expired(&entry.get().peer));
            gone.map(|(key, _)| *key).collect()
        };
        idle.iter().for_each(|key| self.remove_flow(key));
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

fn packet(from: &str, to: &str, protocol: Protocol, flags: TcpFlags, hook: Hook) -> Packet {
    Packet { key: FlowKey::new(end(from), end(to), protocol, hook), flags, length: 100 }
}

impl FlowRef for Entry {
    fn load(&self) -> FlowEntry {
        self.0.get()
    }

    fn peer(&self) -> FlowKey {
        self.0.get().peer
    }

    fn state(&self) -> FlowState {
        self.0.get().state
    }

    fn is_idle(&self, now: Ticks) -> bool {
        self.0.get().is_idle(now)
    }

    fn touch(&self, now: Ticks) {
        self.0.set(FlowEntry { last_seen: now, ..self.0.get() });
    }

    fn enter(&self, state: FlowState, timeout: Ticks) {
        self.0.set(FlowEntry { state, timeout, ..self.0.get() });
    }
}

impl Tables for Node {
    type Flow<'a> = Entry;

    fn now(&self) -> Ticks {
        Ticks(self.seconds.get())
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

    fn timeout(&self, state: FlowState) -> Ticks {
        Timeouts::kube_proxy(1).of(state)
    }

    fn roles(&self, address: Addr) -> AddressRoles {
        let position = FilterPosition::of(address);
        self.memory.filter.get(&position.line).map_or(AddressRoles::NONE, |line| line.roles[position.at])
    }

    fn flow(&self, key: &FlowKey) -> Option<Entry> {
        self.flows.borrow().get(key).copied().map(Entry)
    }

    fn insert_flow(&self, key: &FlowKey, entry: &FlowEntry, mode: Insert) -> Result<(), InsertError> {
        let mut flows = self.flows.borrow_mut();
        if mode == Insert::New && flows.contains_key(key) {
            return Err(InsertError::Exists);
        }
        flows.insert(*key, Box::leak(Box::new(Cell::new(*entry))));
        Ok(())
    }

    fn remove_flow(&self, key: &FlowKey) {
        self.flows.borrow_mut().remove(key);
    }

    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.memory.frontends.get(key).copied()
    }

    fn slot(&self, index: u32) -> Option<BackendId> {
        self.memory.slots.get(&index).copied()
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

    fn seconds(&self, seconds: u32) -> Ticks {
        Ticks(seconds)
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

    fn count_drop(&self, service: ServiceId) {
        self.count(service, |counters| counters.drops += 1);
    }
}
