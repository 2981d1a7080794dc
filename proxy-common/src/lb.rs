//! The balancing decision: from a parsed packet to a verdict, the same for every hook and family.
//!
//! ```text
//! ingress:  address filter -> flow? -> yes: follow it
//!                                   -> no:  frontend -> slot -> backend -> two new entries
//! egress:   address filter -> flow? -> yes: follow it
//! ```
//!
//! [`ingress`] and [`egress`] are the packet's fast way and are meant to be inlined; what happens once per
//! connection stands out of line behind them.

use crate::{
    addr::Addr,
    affinity::{Affinity, AffinityKey},
    backend::{Backend, BackendId},
    drop::DropReason,
    filter::AddressRoles,
    flow::{Direction, FlowEntry, FlowFlags, FlowState, TcpFlags},
    frontend::{Frontend, FrontendFlags, FrontendKey, ServiceId},
    time::Ticks,
    tuple::{Endpoint, FlowKey, Hook, Protocol},
};

/// What parsing found out about a packet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Packet {
    /// Its tuple at this hook.
    pub key: FlowKey,
    /// TCP flags; empty for other protocols.
    pub flags: TcpFlags,
    /// Bytes of the frame.
    pub length: u32,
}

/// What to do with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Not ours: leave it as it is.
    Pass,
    /// Give it this destination (at ingress) or this source (at egress).
    Rewrite(Endpoint),
    /// Drop it without a word.
    Drop(DropReason),
    /// Drop it and tell the sender that nobody listens there (NOEP-01).
    Refuse(DropReason),
}

/// An entry of the flow table, where it lies.
pub trait FlowRef: Copy {
    /// A copy of the entry.
    fn load(&self) -> FlowEntry;
    /// Key of the other direction. This and the next two spare the stack a copy of the rest.
    fn peer(&self) -> FlowKey;
    /// How far the flow has come.
    fn state(&self) -> FlowState;
    /// Whether this direction has been silent for too long.
    fn is_idle(&self, now: Ticks) -> bool;
    /// Records that this direction saw a packet.
    fn touch(&self, now: Ticks);
    /// Records a new state of the flow.
    fn enter(&self, state: FlowState, timeout: Ticks);
}

/// Why a flow could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// There is an entry with this key, and it was not to be replaced.
    Exists,
    /// No room.
    Full,
}

/// Whether an insertion may replace what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Insert {
    /// Only if the key is free.
    New,
    /// In any case.
    Replace,
}

/// The tables, the clock and the dice, as the decision needs them.
pub trait Tables {
    /// A flow entry in place.
    type Flow<'a>: FlowRef
    where
        Self: 'a;

    /// The time.
    fn now(&self) -> Ticks;
    /// A random number, uniform over `u32`.
    fn random(&self) -> u32;
    /// How long a flow may stay silent in a state.
    fn timeout(&self, state: FlowState) -> Ticks;
    /// Roles that an address may have.
    fn roles(&self, address: Addr) -> AddressRoles;
    /// The flow entry of a tuple.
    fn flow(&self, key: &FlowKey) -> Option<Self::Flow<'_>>;
    /// Writes a flow entry.
    fn insert_flow(&self, key: &FlowKey, entry: &FlowEntry, mode: Insert) -> Result<(), InsertError>;
    /// Removes a flow entry, if it is there.
    fn remove_flow(&self, key: &FlowKey);
    /// The service at an address and port.
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend>;
    /// The backend in a slot.
    fn slot(&self, index: u32) -> Option<BackendId>;
    /// The mapping of a client.
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity>;
    /// Writes the mapping of a client. A full table forgets another one.
    fn set_affinity(&self, key: &AffinityKey, value: &Affinity);
    /// A duration of so many seconds in ticks.
    fn seconds(&self, seconds: u32) -> Ticks;
    /// A backend by its id.
    fn backend(&self, id: BackendId) -> Option<Backend>;
    /// Counts a flow that was given a backend.
    fn count_connection(&self, service: ServiceId);
    /// Counts a packet of a service.
    fn count_packet(&self, service: ServiceId, direction: Direction, bytes: u32);
    /// Counts a dropped packet of a service.
    fn count_drop(&self, service: ServiceId);
}

/// The decision for a packet that enters the node: where it goes.
#[inline(always)]
pub fn ingress<T: Tables>(tables: &T, packet: &Packet) -> Verdict {
    if !tables.roles(packet.key.destination).contains(AddressRoles::FRONTEND) {
        return Verdict::Pass;
    }
    let Some(flow) = tables.flow(&packet.key) else {
        return open(tables, packet, Insert::New);
    };
    let entry = flow.load();
    let now = tables.now();
    let stays = !entry.state.may_move(packet.flags)
        || tables.backend(entry.backend).is_some_and(|backend| backend.serves(entry.generation));
    let runs = entry.state.is_steady(entry.direction, packet.flags) && !entry.is_idle(now);
    if !stays || !runs && !transition(tables, packet) {
        return open(tables, packet, Insert::Replace);
    }
    follow(tables, packet, flow, &entry, now);
    Verdict::Rewrite(entry.peer.source_end())
}

/// The decision for a packet that leaves the node: where it claims to come from.
#[inline(always)]
pub fn egress<T: Tables>(tables: &T, packet: &Packet) -> Verdict {
    if !tables.roles(packet.key.source).contains(AddressRoles::BACKEND) {
        return Verdict::Pass;
    }
    let Some(flow) = tables.flow(&packet.key) else {
        return Verdict::Pass;
    };
    let entry = flow.load();
    let now = tables.now();
    let runs = entry.state.is_steady(entry.direction, packet.flags) && !entry.is_idle(now);
    if !runs && !transition(tables, packet) {
        return Verdict::Pass;
    }
    follow(tables, packet, flow, &entry, now);
    Verdict::Rewrite(entry.peer.destination_end())
}

/// The decision for an ICMP error about a packet that was translated, by the quoted packet as it stands at this hook: the
/// end that a packet of the same flow and direction as the error would get here. `None` if the quoted packet is of no
/// flow (NAT-02).
///
/// An error travels against the packet that it quotes, so the quoted packet's reverse is what a packet beside the error
/// would look like.
#[inline(always)]
pub fn related<T: Tables>(tables: &T, quoted: &FlowKey) -> Option<Endpoint> {
    let entry = tables.flow(&quoted.reversed())?.load();
    if entry.state == FlowState::VOID {
        return None;
    }
    Some(match quoted.hook {
        Hook::INGRESS => entry.peer.source_end(),
        _ => entry.peer.destination_end(),
    })
}

/// What every packet of a running flow leaves behind.
#[inline(always)]
fn follow<T: Tables>(tables: &T, packet: &Packet, flow: T::Flow<'_>, entry: &FlowEntry, now: Ticks) {
    // Most packets of a busy flow come within one tick of the last: spare the cache line the write.
    if entry.last_seen != now {
        flow.touch(now);
    }
    tables.count_packet(entry.service, entry.direction, packet.length);
}

/// Carries a packet's effect on its flow into both entries. `false` if the flow does not exist, has expired, or
/// is over and this packet begins another one.
#[inline(never)]
fn transition<T: Tables>(tables: &T, packet: &Packet) -> bool {
    let Some(flow) = tables.flow(&packet.key) else {
        return false;
    };
    let entry = flow.load();
    let now = tables.now();
    if entry.state.is_over() && packet.flags.opens() {
        return false;
    }
    let peer = tables.flow(&entry.peer).filter(|peer| peer.peer() == packet.key);
    // A flow that only one side uses is alive: a server pushing datagrams keeps its client's way open.
    if entry.is_idle(now) && peer.is_none_or(|peer| peer.is_idle(now)) {
        return false;
    }
    let next = entry.state.advance(entry.direction, packet.flags);
    if next != entry.state {
        let timeout = tables.timeout(next);
        flow.enter(next, timeout);
        if let Some(peer) = peer {
            peer.enter(next, timeout);
        }
    }
    next != FlowState::VOID
}

/// The first packet of a flow: finds its service, chooses a backend and remembers both directions.
///
/// The two steps are out of line, each with a stack frame that ends before the next begins: together they would be
/// too much for a program's stack. They answer in one register; where the packet goes is read from the new entry.
#[inline(always)]
fn open<T: Tables>(tables: &T, packet: &Packet, mode: Insert) -> Verdict {
    let selection = select(tables, packet);
    match selection {
        Selection::NOT_OURS => return Verdict::Pass,
        Selection::NO_BACKEND if packet.key.source.is_unicast() => {
            return Verdict::Refuse(DropReason::NoBackend);
        }
        Selection::NO_BACKEND => return Verdict::Drop(DropReason::NoBackend),
        Selection::NO_LOCAL_BACKEND => return Verdict::Drop(DropReason::NoLocalBackend),
        Selection::BROKEN_TABLE => return Verdict::Drop(DropReason::BrokenTable),
        Selection(_) => {}
    }
    if let Some(reason) = remember(tables, packet, BackendId(selection.0), mode) {
        return Verdict::Drop(reason);
    }
    match tables.flow(&packet.key) {
        Some(flow) => Verdict::Rewrite(flow.peer().source_end()),
        None => Verdict::Drop(DropReason::FlowTableFull),
    }
}

/// The backend for a new flow, or why there is none: in one register, and with no bits left undefined. The compiler
/// keeps whatever it likes in the unused half of a `Result`, a pointer for instance, and the verifier objects. The
/// largest numbers are no backend ids.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Selection(u32);

impl Selection {
    /// The packet is not for a service.
    const NOT_OURS: Self = Self(u32::MAX);
    const NO_BACKEND: Self = Self(u32::MAX - 1);
    const NO_LOCAL_BACKEND: Self = Self(u32::MAX - 2);
    const BROKEN_TABLE: Self = Self(u32::MAX - 3);

    #[inline(always)]
    const fn is_backend(self) -> bool {
        self.0 < Self::BROKEN_TABLE.0
    }
}

/// Finds the service that a packet is for, and a backend of it.
#[inline(never)]
fn select<T: Tables>(tables: &T, packet: &Packet) -> Selection {
    let key = &packet.key;
    // A TCP packet from the middle of a connection that is not known here belongs to somebody else: to
    // netfilter, if kube-proxy translated it before the switch-over.
    if key.protocol == Protocol::TCP && !packet.flags.opens() {
        return Selection::NOT_OURS;
    }
    let Some(frontend) = tables.frontend(&FrontendKey::new(key.destination_end(), key.protocol)) else {
        return Selection::NOT_OURS;
    };
    let chosen = choose(tables, &frontend, key.source);
    if !chosen.is_backend() {
        tables.count_drop(frontend.service);
    }
    chosen
}

/// The backend that the client is used to, or else any of the frontend's, each with the same probability (LBAL-01).
#[inline(always)]
fn choose<T: Tables>(tables: &T, frontend: &Frontend, client: Addr) -> Selection {
    if frontend.affinity == 0 {
        return draw(tables, frontend);
    }
    let key = AffinityKey { client, service: frontend.service };
    let now = tables.now();
    let mut chosen = familiar(tables, frontend, &key, now);
    if !chosen.is_backend() {
        chosen = draw(tables, frontend);
    }
    // Every new connection starts the time anew, packets of old ones do not (AFF-05).
    if let Some(backend) = tables.backend(BackendId(chosen.0)) {
        let mapping = Affinity { backend: BackendId(chosen.0), generation: backend.generation, last: now };
        tables.set_affinity(&key, &mapping);
    }
    chosen
}

/// The backend of the client's last connection, while it lives and the client has not been away too long.
#[inline(always)]
fn familiar<T: Tables>(tables: &T, frontend: &Frontend, key: &AffinityKey, now: Ticks) -> Selection {
    let Some(Affinity { backend: id, generation, last }) = tables.affinity(key) else {
        return Selection::NO_BACKEND;
    };
    if frontend.slots.count == 0 || last.age(now).exceeds(tables.seconds(frontend.affinity)) {
        return Selection::NO_BACKEND;
    }
    match tables.backend(id) {
        Some(backend) if backend.serves(generation) && backend.service == key.service => Selection(id.0),
        _ => Selection::NO_BACKEND,
    }
}

/// Any backend of the frontend.
#[inline(always)]
fn draw<T: Tables>(tables: &T, frontend: &Frontend) -> Selection {
    let Some(slot) = frontend.slots.choose(tables.random()) else {
        let silent = frontend.flags.contains(FrontendFlags::DROP_WHEN_EMPTY);
        return if silent { Selection::NO_LOCAL_BACKEND } else { Selection::NO_BACKEND };
    };
    // The kernel may recycle a frontend's value while it is copied; what does not fit together is not used.
    let backend = tables.slot(slot).and_then(|id| Some((id, tables.backend(id)?)));
    match backend {
        Some((id, backend)) if backend.service == frontend.service => Selection(id.0),
        _ => Selection::BROKEN_TABLE,
    }
}

/// Writes both entries of a new flow and counts it; says why if it could not. If another CPU was faster with the same
/// tuple, its choice stands.
#[inline(never)]
fn remember<T: Tables>(tables: &T, packet: &Packet, id: BackendId, mode: Insert) -> Option<DropReason> {
    let Some(backend) = tables.backend(id) else {
        return Some(DropReason::BrokenTable);
    };
    match insert(tables, &packet.key, id, &backend, mode) {
        Ok(()) => {
            tables.count_connection(backend.service);
            tables.count_packet(backend.service, Direction::ORIGINAL, packet.length);
            None
        }
        Err(reason) => {
            tables.count_drop(backend.service);
            Some(reason)
        }
    }
}

#[inline(always)]
fn insert<T: Tables>(
    tables: &T,
    key: &FlowKey,
    id: BackendId,
    backend: &Backend,
    mode: Insert,
) -> Result<(), DropReason> {
    let reply = FlowKey::new(backend.end(), key.source_end(), key.protocol, Hook::EGRESS);
    let state = FlowState::initial(key.protocol);
    let mut entry = FlowEntry {
        peer: *key,
        backend: id,
        generation: backend.generation,
        service: backend.service,
        last_seen: tables.now(),
        timeout: tables.timeout(state),
        state,
        direction: Direction::REPLY,
        flags: FlowFlags::default(),
        reserved: 0,
    };
    // The way back first: once the request is on its way, its answer must find it.
    match tables.insert_flow(&reply, &entry, Insert::New) {
        Ok(()) => {}
        Err(InsertError::Full) => return Err(DropReason::FlowTableFull),
        Err(InsertError::Exists) => {
            if !is_free(tables, &reply, key) {
                return Err(DropReason::TupleCollision);
            }
            tables.insert_flow(&reply, &entry, Insert::Replace).map_err(|_| DropReason::FlowTableFull)?;
        }
    }
    entry.peer = reply;
    entry.direction = Direction::ORIGINAL;
    match tables.insert_flow(key, &entry, mode) {
        Ok(()) => Ok(()),
        Err(error) => {
            let winner = tables.flow(key).map(|flow| flow.peer());
            if winner != Some(reply) {
                tables.remove_flow(&reply);
            }
            if error == InsertError::Exists { Ok(()) } else { Err(DropReason::FlowTableFull) }
        }
    }
}

/// Whether the reply entry at `reply` may be overwritten by a new flow from `key`: it is that flow's own old
/// one, or belongs to a flow that is over or has expired.
#[inline(always)]
fn is_free<T: Tables>(tables: &T, reply: &FlowKey, key: &FlowKey) -> bool {
    let Some(old) = tables.flow(reply) else {
        return true;
    };
    let now = tables.now();
    let peer = old.peer();
    if peer == *key || old.state().is_over() {
        return true;
    }
    match tables.flow(&peer) {
        Some(other) if other.peer() == *reply => old.is_idle(now) && other.is_idle(now),
        // Its flow moved to another backend and left this entry behind.
        _ => true,
    }
}
