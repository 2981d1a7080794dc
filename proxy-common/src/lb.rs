//! The balancing decision: from a parsed packet to a verdict, the same for every hook and family.
//!
//! ```text
//! ingress:  address filter -> flow? -> yes: follow it
//!                                   -> no:  frontend -> slot -> backend -> two new entries
//! egress:   address filter -> flow? -> yes: follow it
//! ```
//!
//! [`ingress`] and [`egress`] are the packet's fast way and are meant to be inlined; what happens once per
//! connection stands behind [`open`] and [`transition`], which a kernel hook may put out of line.

use crate::{
    addr::Addr,
    backend::{Affinity, AffinityKey, Backend, BackendId},
    drop::DropReason,
    filter::AddressRoles,
    flow::{Direction, FlowEntry, FlowState, TcpFlags, Ticks},
    frontend::{Frontend, FrontendFlags, FrontendKey, ServiceId},
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
pub fn transition<T: Tables>(tables: &T, packet: &Packet) -> bool {
    let Some(flow) = tables.flow(&packet.key) else {
        return false;
    };
    let entry = flow.load();
    let now = tables.now();
    if entry.state.is_over() && packet.flags.opens() {
        return false;
    }
    let peer = tables.flow(&entry.peer);
    // A flow that only one side uses is alive: a server pushing datagrams keeps its client's way open.
    if entry.is_idle(now) && peer.is_none_or(|peer| peer.load().is_idle(now)) {
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
#[inline(never)]
pub fn open<T: Tables>(tables: &T, packet: &Packet, mode: Insert) -> Verdict {
    let Packet { key, flags, length } = packet;
    // A TCP packet from the middle of a connection that is not known here belongs to somebody else: to
    // netfilter, if kube-proxy translated it before the switch-over.
    if key.protocol == Protocol::TCP && !flags.opens() {
        return Verdict::Pass;
    }
    let Some(frontend) = tables.frontend(&FrontendKey::new(key.destination_end(), key.protocol)) else {
        return Verdict::Pass;
    };
    let service = frontend.service;
    match choose(tables, &frontend, key.source)
        .and_then(|(id, backend)| remember(tables, key, service, id, &backend, mode))
    {
        Ok(end) => {
            tables.count_connection(service);
            tables.count_packet(service, Direction::ORIGINAL, *length);
            Verdict::Rewrite(end)
        }
        Err(reason) => {
            tables.count_drop(service);
            match reason {
                DropReason::NoBackend => Verdict::Refuse(reason),
                _ => Verdict::Drop(reason),
            }
        }
    }
}

/// The backend that the client is used to, or else any of the frontend's, each with the same probability (LBAL-01).
#[inline(always)]
fn choose<T: Tables>(
    tables: &T,
    frontend: &Frontend,
    client: Addr,
) -> Result<(BackendId, Backend), DropReason> {
    if frontend.affinity == 0 {
        return draw(tables, frontend);
    }
    let key = AffinityKey { client, service: frontend.service };
    let now = tables.now();
    let (id, backend) = match familiar(tables, frontend, &key, now) {
        Some(found) => found,
        None => draw(tables, frontend)?,
    };
    // Every new connection starts the time anew, packets of old ones do not (AFF-05).
    tables.set_affinity(&key, &Affinity { backend: id, generation: backend.generation, last: now });
    Ok((id, backend))
}

/// The backend of the client's last connection, while it lives and the client has not been away too long.
#[inline(always)]
fn familiar<T: Tables>(
    tables: &T,
    frontend: &Frontend,
    key: &AffinityKey,
    now: Ticks,
) -> Option<(BackendId, Backend)> {
    let Affinity { backend: id, generation, last } = tables.affinity(key)?;
    if frontend.slot_count == 0 || last.age(now).exceeds(tables.seconds(frontend.affinity)) {
        return None;
    }
    let backend = tables.backend(id)?;
    (backend.serves(generation) && backend.service == key.service).then_some((id, backend))
}

/// Any backend of the frontend.
#[inline(always)]
fn draw<T: Tables>(tables: &T, frontend: &Frontend) -> Result<(BackendId, Backend), DropReason> {
    let nobody = if frontend.flags.contains(FrontendFlags::DROP_WHEN_EMPTY) {
        DropReason::NoLocalBackend
    } else {
        DropReason::NoBackend
    };
    let slot = frontend.choose(tables.random()).ok_or(nobody)?;
    let id = tables.slot(slot).ok_or(DropReason::BrokenTable)?;
    let backend = tables.backend(id).ok_or(DropReason::BrokenTable)?;
    Ok((id, backend))
}

/// Writes both entries of a new flow. Returns where its packets go: to the backend given, or to the one that
/// another CPU chose for the same tuple a moment earlier.
#[inline(always)]
fn remember<T: Tables>(
    tables: &T,
    key: &FlowKey,
    service: ServiceId,
    id: BackendId,
    backend: &Backend,
    mode: Insert,
) -> Result<Endpoint, DropReason> {
    let reply = FlowKey::new(backend.end(), key.source_end(), key.protocol, Hook::EGRESS);
    let state = FlowState::initial(key.protocol);
    let mut entry = FlowEntry {
        peer: *key,
        backend: id,
        generation: backend.generation,
        service,
        last_seen: tables.now(),
        timeout: tables.timeout(state),
        state,
        direction: Direction::REPLY,
        reserved: [0; 2],
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
        Ok(()) => Ok(backend.end()),
        Err(InsertError::Full) => {
            tables.remove_flow(&reply);
            Err(DropReason::FlowTableFull)
        }
        Err(InsertError::Exists) => {
            let winner = tables.flow(key).map(|flow| flow.load()).ok_or(DropReason::FlowTableFull)?;
            if winner.peer != reply {
                tables.remove_flow(&reply);
            }
            Ok(winner.peer.source_end())
        }
    }
}

/// Whether the reply entry at `reply` may be overwritten by a new flow from `key`: it is that flow's own old
/// one, or belongs to a flow that is over or has expired.
#[inline(always)]
fn is_free<T: Tables>(tables: &T, reply: &FlowKey, key: &FlowKey) -> bool {
    let Some(old) = tables.flow(reply).map(|flow| flow.load()) else {
        return true;
    };
    let now = tables.now();
    let peer_idle = || tables.flow(&old.peer).is_none_or(|peer| peer.load().is_idle(now));
    old.peer == *key || old.state.is_over() || old.is_idle(now) && peer_idle()
}
