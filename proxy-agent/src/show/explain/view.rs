//! The kernel's tables in memory, as far as one client and one destination need them, and the kernel's own decision on
//! them. What a decision writes is forgotten with it.

use std::{
    cell::{Cell, RefCell, RefMut},
    collections::HashMap,
    net::IpAddr,
};

use proxy_common::{
    addr::Addr,
    addresses::AddressFlags,
    affinity::{Affinity, AffinityKey},
    backend::{Backend, BackendId},
    cache::TupleHash,
    config::NodeSettings,
    device::Device,
    drop::DropReason,
    filter::{AddressRoles, FilterLine, FilterPosition},
    flow::{Direction, Draft, FlowEntry, FlowHead, FlowState},
    frontend::{Frontend, FrontendKey, ServiceId},
    lb::{FlowRef, Insert, InsertError, Listeners, Sockets, Tables, Translation},
    pod::PodReasons,
    ranges::SourceRange,
    socket::{SocketEntry, SocketKey},
    time::Ticks,
    tuple::{Endpoint, FlowKey, Hook, Protocol},
};

/// The tables.
#[derive(Debug)]
pub(super) struct View {
    pub(super) settings: NodeSettings,
    pub(super) now: Ticks,
    pub(super) frontends: HashMap<FrontendKey, Frontend>,
    pub(super) addresses: HashMap<Addr, AddressFlags>,
    pub(super) ranges: Vec<SourceRange>,
    pub(super) slots: HashMap<u32, BackendId>,
    pub(super) backends: HashMap<BackendId, Backend>,
    pub(super) devices: HashMap<u32, Device>,
    pub(super) filter: HashMap<u32, FilterLine>,
    pub(super) flows: HashMap<FlowKey, FlowEntry>,
    pub(super) affinities: HashMap<AffinityKey, Affinity>,
    /// What is known of the client's pod; `None` if nothing is.
    pub(super) pod: Option<PodReasons>,
    /// Whether a process of the node is bound to just the destination.
    pub(super) listens: bool,
}

/// The bits in front of the address in a source range.
const SERVICE_BITS: u32 = 32;

impl View {
    /// Nothing, on a kernel whose clock ticks so often a second.
    pub(super) fn empty(settings: NodeSettings, now: Ticks) -> Self {
        Self {
            settings,
            now,
            frontends: HashMap::new(),
            addresses: HashMap::new(),
            ranges: Vec::new(),
            slots: HashMap::new(),
            backends: HashMap::new(),
            devices: HashMap::new(),
            filter: HashMap::new(),
            flows: HashMap::new(),
            affinities: HashMap::new(),
            pod: None,
            listens: false,
        }
    }

    /// What the address filter says.
    pub(super) fn roles(&self, address: Addr) -> AddressRoles {
        let FilterPosition { line, at } = FilterPosition::of(address);
        self.filter.get(&line).and_then(|line| line.roles.get(at)).copied().unwrap_or_default()
    }

    /// What is known of an address for certain.
    pub(super) fn address(&self, address: Addr) -> AddressFlags {
        self.addresses.get(&address).copied().unwrap_or_default()
    }

    /// Whether a source range admits an address to a service port.
    pub(super) fn admits(&self, service: ServiceId, source: Addr) -> bool {
        let number = |addr: Addr| u128::from_be_bytes(addr.octets());
        self.ranges.iter().filter(|range| range.data.service == service).any(|range| {
            let bits = range.prefix_length.saturating_sub(SERVICE_BITS).min(128);
            let differ = number(range.data.address) ^ number(source);
            differ.checked_shr(128 - bits).unwrap_or(0) == 0
        })
    }

    /// The source ranges of a service port.
    pub(super) fn ranges_of(&self, service: ServiceId) -> impl Iterator<Item = &SourceRange> {
        self.ranges.iter().filter(move |range| range.data.service == service)
    }

    /// The backends in a run of slots.
    pub(super) fn run(&self, base: u32, count: u32) -> impl Iterator<Item = BackendId> {
        (base..base.saturating_add(count)).filter_map(|slot| self.slots.get(&slot).copied())
    }

    /// A source port of `client` that none of its flows has.
    pub(super) fn free_port(&self, client: IpAddr) -> u16 {
        let client = Addr::from(client);
        let is_used = |port: &u16| {
            self.flows.keys().any(|key| {
                [key.source_end(), key.destination_end()]
                    .iter()
                    .any(|end| end.address == client && end.port.to_host() == *port)
            })
        };
        (1024..=u16::MAX).rev().find(|port| !is_used(port)).unwrap_or_default()
    }
}

/// One decision on the tables.
pub(super) struct Trial<'a> {
    view: &'a View,
    /// What the first throw of the dice shows; the others are any.
    first: Cell<Option<u32>>,
    dice: Cell<u32>,
    written: RefCell<HashMap<FlowKey, FlowEntry>>,
    draft: RefCell<Draft>,
}

impl<'a> Trial<'a> {
    /// One in which the dice choose number `at` of `count` slots.
    pub(super) fn choosing(view: &'a View, at: u32, count: u32) -> Self {
        // The smallest number that `SlotRun::choose` makes `at` of.
        let first = (u64::from(at) << 32).div_ceil(u64::from(count.max(1)));
        Self {
            view,
            first: Cell::new(u32::try_from(first).ok()),
            dice: Cell::new(0x9e37_79b9),
            written: RefCell::default(),
            draft: RefCell::default(),
        }
    }
}

/// A flow entry, as it was found.
#[derive(Clone, Copy)]
pub(super) struct Found(FlowEntry);

impl FlowRef for Found {
    fn head(&self) -> FlowHead {
        self.0.head
    }

    fn leads_to(&self, key: &FlowKey) -> bool {
        self.0.peer == *key
    }

    fn peer_hash(&self) -> TupleHash {
        TupleHash::of(&self.0.peer)
    }

    fn translation(&self, hook: Hook) -> Translation {
        Translation::of(hook, &self.0.peer, self.0.head.flags)
    }

    fn copy_to(&self, draft: &mut Draft) {
        (draft.reply, draft.entry) = (self.0.peer, self.0);
    }

    fn touch(&self, _: Ticks) {}

    fn enter(&self, _: FlowState, _: Ticks) {}
}

impl Tables for Trial<'_> {
    type Flow<'a>
        = Found
    where
        Self: 'a;
    type Draft<'a>
        = RefMut<'a, Draft>
    where
        Self: 'a;

    fn now(&self) -> Ticks {
        self.view.now
    }

    fn random(&self) -> u32 {
        self.first.take().unwrap_or_else(|| {
            // Any sequence that does not repeat soon (Knuth's multiplier).
            let next = self.dice.get().wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            self.dice.set(next);
            next
        })
    }

    fn settings(&self) -> Option<&NodeSettings> {
        Some(&self.view.settings)
    }

    fn roles(&self, address: Addr) -> AddressRoles {
        self.view.roles(address)
    }

    fn address(&self, address: Addr) -> AddressFlags {
        self.view.address(address)
    }

    fn device(&self, ifindex: u32) -> Option<Device> {
        self.view.devices.get(&ifindex).copied()
    }

    fn flow(&self, key: &FlowKey) -> Option<Found> {
        let written = self.written.borrow().get(key).copied();
        written.or_else(|| self.view.flows.get(key).copied()).map(Found)
    }

    fn other(&self, flow: Found) -> Option<Found> {
        self.flow(&flow.0.peer)
    }

    fn draft(&self) -> Option<RefMut<'_, Draft>> {
        Some(self.draft.borrow_mut())
    }

    fn put_flow(&self, key: &FlowKey, entry: &FlowEntry, mode: Insert) -> Result<(), InsertError> {
        if mode == Insert::New && self.flow(key).is_some() {
            return Err(InsertError::Exists);
        }
        self.written.borrow_mut().insert(*key, *entry);
        Ok(())
    }

    fn delete_flow(&self, key: &FlowKey) {
        self.written.borrow_mut().remove(key);
    }

    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.view.frontends.get(key).copied()
    }

    fn admits(&self, service: ServiceId, source: Addr) -> bool {
        self.view.admits(service, source)
    }

    fn slot(&self, index: u32) -> Option<BackendId> {
        self.view.slots.get(&index).copied()
    }

    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.view.affinities.get(key).copied()
    }

    fn set_affinity(&self, _: &AffinityKey, _: &Affinity) {}

    fn may_begin(&self) -> bool {
        true
    }

    fn backend(&self, id: BackendId) -> Option<Backend> {
        self.view.backends.get(&id).copied()
    }

    fn count_connection(&self, _: ServiceId) {}

    fn count_packet(&self, _: ServiceId, _: Direction, _: u32) {}

    fn count_drop(&self, _: ServiceId, _: DropReason) {}
}

/// A socket that has not been used yet.
impl Sockets for Trial<'_> {
    fn socket(&self, _: &SocketKey) -> Option<SocketEntry> {
        None
    }

    fn set_socket(&self, _: &SocketKey, _: &SocketEntry) {}

    fn pod(&self, _: u8) -> Option<PodReasons> {
        self.view.pod
    }
}

/// The sockets of the node, as far as the one destination is concerned.
impl Listeners for View {
    fn listens(&self, _: &Endpoint, _: Protocol) -> bool {
        self.listens
    }

    /// Only new connections are explained, and those that have a flow.
    fn is_connected(&self, _: &FlowKey) -> bool {
        false
    }
}
