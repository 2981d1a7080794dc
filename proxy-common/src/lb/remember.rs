//! Writing a new flow: two entries that name each other, under tuples that no other flow has.
//!
//! A translated packet must be told from every other by its new tuple alone, or answers would go astray. Usually the
//! client's port does that. Where it does not (two services lead one client port to the same backend, NAT-05; many clients
//! share the node's address), another port is searched.

use crate::{
    backend::{Backend, BackendFlags, BackendId, Generation},
    device::{Device, DeviceFlags},
    drop::DropReason,
    endian::Be16,
    flow::{Direction, Draft, FlowFlags, FlowHead, FlowState},
    frontend::ServiceId,
    tuple::{Endpoint, FlowKey, Hook},
};

use super::{Insert, InsertError, Packet, Tables, cache, direct, select::Selection, tables::FlowRef as _};

/// How many ports are tried. With 9 of 10 taken, all are taken once in a thousand times.
const PROBES: u32 = 64;

/// Writes both entries of a new flow through a service, and counts it; says why if it could not. The draft is the flow then: if
/// another CPU was faster with the same tuple, that one's, as its choice stands.
#[inline(never)]
pub fn remember<T: Tables>(
    tables: &T,
    packet: &Packet,
    chosen: Selection,
    mode: Insert,
) -> Option<DropReason> {
    let Some(backend) = tables.backend(chosen.backend()) else {
        return Some(DropReason::BrokenTable);
    };
    // What begins was asked for before it chose; what is taken up may have turned out to be a process's own after that.
    if !packet.begins() && !tables.may_begin() {
        tables.count_drop(backend.service, DropReason::NewFlowLimit);
        return Some(DropReason::NewFlowLimit);
    }
    let key = &packet.key;
    let reply = FlowKey::new(backend.end(), key.source_end(), key.protocol, Hook::EGRESS);
    let made = Made { backend: chosen.backend(), generation: backend.generation, service: backend.service };
    begin(tables, packet, &reply, made);
    let mut flags = if chosen.resets() { FlowFlags::RESET } else { FlowFlags::default() };
    if chosen.masquerades() || needs_masquerade(tables, packet, &backend) {
        flags = flags.with(direct::way_out(tables, packet, &backend, chosen));
    }
    let outcome = write(tables, mode, flags, First::Tried);
    match outcome {
        None => {
            tables.count_connection(backend.service);
            tables.count_packet(backend.service, Direction::ORIGINAL, packet.length);
        }
        Some(reason) => tables.count_drop(backend.service, reason),
    }
    outcome
}

/// Ends the flow of a packet whose backend is gone, if its client is to be told, and says as what that counts. A SYN begins
/// anew, and what has expired is no flow.
#[inline(never)]
pub(super) fn lose<T: Tables>(tables: &T, packet: &Packet) -> Option<DropReason> {
    let flow = tables.flow(&packet.key)?;
    let head = flow.head();
    let other = tables.other(flow).filter(|other| other.leads_to(&packet.key));
    let now = tables.now();
    let is_alive = !head.is_idle(now) || other.is_some_and(|other| !other.head().is_idle(now));
    if !head.flags.contains(FlowFlags::RESET) || packet.flags.opens() || !is_alive {
        return None;
    }
    let timeout = tables.timeout(FlowState::RESET);
    // What the client has sent before it hears of this is answered alike.
    flow.touch(now);
    cache::enter(tables, packet, flow, other, FlowState::RESET, timeout);
    tables.count_drop(head.service, DropReason::BackendGone);
    Some(DropReason::BackendGone)
}

/// Whether the packet belongs to a flow through a service whose sources are rewritten. The note that it carries may be from
/// elsewhere: the flow's own way back knows.
#[inline(never)]
pub(super) fn is_masqueraded<T: Tables>(tables: &T, key: &FlowKey) -> bool {
    let request = tables.flow(&key.reversed()).and_then(|reply| tables.other(reply));
    request.is_some_and(|request| request.head().flags.contains(FlowFlags::MASQUERADE))
}

/// Whether the packet has just taken up a connection half way, at the ingress hook: one that began here has its entries at the
/// egress hook before it comes so far.
#[inline(never)]
pub(super) fn is_taken_up<T: Tables>(tables: &T, key: &FlowKey) -> bool {
    tables.flow(&key.reversed()).is_some_and(|reply| reply.head().state == FlowState::SYN_RECEIVED)
}

/// Writes both entries of a flow whose source is rewritten as it leaves the node: to the address of the device that it
/// leaves by (MASQ-09), from a port that tells its answers from all others.
#[inline(never)]
pub fn masquerade<T: Tables>(tables: &T, packet: &Packet, mode: Insert) -> Option<DropReason> {
    let key = &packet.key;
    let Some(address) = tables.device(packet.device).and_then(|device| device.source_for(key.source)) else {
        return Some(DropReason::NoSourceAddress);
    };
    let node = Endpoint { address, port: key.source_port };
    let reply = FlowKey::new(key.destination_end(), node, key.protocol, Hook::INGRESS);
    let nobody = Made { backend: BackendId(0), generation: Generation(0), service: ServiceId::NONE };
    begin(tables, packet, &reply, nobody);
    // The host's own sockets use ports of their own accord; what a client chose may be one of those.
    let usable =
        tables.settings().is_some_and(|settings| settings.source_ports.contains(key.source_port.to_host()));
    let first = if usable { First::Tried } else { First::Skipped };
    write(tables, mode, FlowFlags::default(), first)
}

/// Whether answers would not come back through this node by themselves: neither client nor backend is here, or both are
/// the same pod, to which the backend's answers would seem to come from itself (MASQ-08).
#[inline(always)]
fn needs_masquerade<T: Tables>(tables: &T, packet: &Packet, backend: &Backend) -> bool {
    if backend.address == packet.key.source {
        return true;
    }
    let is_local = |device: Device| device.flags.contains(DeviceFlags::LOCAL_CLIENTS);
    !backend.flags.contains(BackendFlags::LOCAL) && !tables.device(packet.device).is_some_and(is_local)
}

/// For whom a flow is.
struct Made {
    backend: BackendId,
    generation: Generation,
    service: ServiceId,
}

/// Drafts a flow that the packet has just begun, with the entry of the way back.
#[inline(always)]
fn begin<T: Tables>(tables: &T, packet: &Packet, reply: &FlowKey, made: Made) {
    let key = &packet.key;
    let Some(mut draft) = tables.draft() else {
        return;
    };
    let state = FlowState::initial(key.protocol, packet.flags);
    let Made { backend, generation, service } = made;
    draft.key = *key;
    draft.reply = *reply;
    draft.entry.peer = *key;
    draft.entry.head = FlowHead {
        backend,
        generation,
        service,
        last_seen: tables.now(),
        timeout: tables.timeout(state),
        state,
        direction: Direction::REPLY,
        flags: FlowFlags::default(),
        reserved: 0,
    };
}

/// Whether the port that the client chose may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum First {
    /// It is tried first.
    Tried = 0,
    /// It is not.
    Skipped = 1,
}

/// Writes the way back under a port that is free, then the way there.
#[inline(always)]
fn write<T: Tables>(tables: &T, mode: Insert, flags: FlowFlags, first: First) -> Option<DropReason> {
    // The way back first: once the request is on its way, its answer must find it.
    match tables.reserve(first) {
        Found::PORT => {}
        Found::FULL => return Some(DropReason::FlowTableFull),
        _ => return Some(DropReason::NoSourcePort),
    }
    let Some(mut draft) = tables.draft() else {
        return Some(DropReason::BrokenTable);
    };
    draft.entry.peer = draft.reply;
    draft.entry.head.direction = Direction::ORIGINAL;
    draft.entry.head.flags = flags;
    let error = tables.insert_flow(&draft.key, &draft.entry, mode).err()?;
    let there = tables.flow(&draft.key);
    if there.is_none_or(|flow| !flow.leads_to(&draft.reply)) {
        tables.remove_flow(&draft.reply);
    }
    match there {
        Some(flow) if error == InsertError::Exists => {
            flow.copy_to(&mut draft);
            None
        }
        _ => Some(DropReason::FlowTableFull),
    }
}

/// How the search for a port ended, in one register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Found(pub u32);

impl Found {
    const PORT: Self = Self(0);
    const NO_PORT: Self = Self(1);
    const FULL: Self = Self(2);
}

/// Writes the way back of the draft, whose destination port is changed until its tuple is free: the port that it has, if
/// that is to be tried, then any. What belongs to a connection that is over is taken only if nothing better was found: its
/// end may still be remembered by the backend.
#[inline(always)]
pub fn reserve<T: Tables>(tables: &T, first: First) -> Found {
    let (Some(mut draft), Some(settings)) = (tables.draft(), tables.settings()) else {
        return Found::NO_PORT;
    };
    if first == First::Tried {
        // Nearly always nobody has the tuple; the insertion looks for itself, so nothing else does before.
        match tables.insert_flow(&draft.reply, &draft.entry, Insert::New) {
            Ok(()) => return Found::PORT,
            Err(InsertError::Full) => return Found::FULL,
            Err(InsertError::Exists) => {}
        }
        match occupation(tables, &draft) {
            Occupation::Stale => return replace(tables, &draft),
            // Its own earlier connection does not keep a client from its own port.
            Occupation::Over if draft.reply.destination_end() == draft.key.source_end() => {
                return replace(tables, &draft);
            }
            Occupation::Absent | Occupation::Over | Occupation::Taken => {}
        }
    }
    let now = tables.now();
    let mut last_resort = Be16::default();
    for _ in 0..PROBES {
        draft.reply.destination_port = Be16::from_host(settings.source_ports.choose(tables.random()));
        let Some(old) = tables.flow(&draft.reply) else {
            return match tables.insert_flow(&draft.reply, &draft.entry, Insert::New) {
                Ok(()) => Found::PORT,
                Err(InsertError::Full) => Found::FULL,
                // Another CPU has just found the same one. The client tries again.
                Err(InsertError::Exists) => Found::NO_PORT,
            };
        };
        let head = old.head();
        if head.state.is_over() || head.is_idle(now) {
            last_resort = draft.reply.destination_port;
        }
    }
    draft.reply.destination_port = last_resort;
    match occupation(tables, &draft) {
        Occupation::Stale | Occupation::Over => replace(tables, &draft),
        Occupation::Absent | Occupation::Taken => Found::NO_PORT,
    }
}

#[inline(always)]
fn replace<T: Tables>(tables: &T, draft: &Draft) -> Found {
    match tables.insert_flow(&draft.reply, &draft.entry, Insert::Replace) {
        Ok(()) => Found::PORT,
        Err(_) => Found::FULL,
    }
}

/// Who has a tuple.
enum Occupation {
    /// Nobody.
    Absent,
    /// Nobody that needs it: the same flow from before, one that has expired, or one that moved to another backend and
    /// left this entry behind.
    Stale,
    /// A connection that is over.
    Over,
    /// A flow.
    Taken,
}

#[inline(always)]
fn occupation<T: Tables>(tables: &T, draft: &Draft) -> Occupation {
    let Some(old) = tables.flow(&draft.reply) else {
        return Occupation::Absent;
    };
    if old.leads_to(&draft.key) {
        return Occupation::Stale;
    }
    let now = tables.now();
    let stale = match tables.other(old) {
        Some(other) if other.leads_to(&draft.reply) => old.head().is_idle(now) && other.head().is_idle(now),
        _ => true,
    };
    match old.head().state.is_over() {
        _ if stale => Occupation::Stale,
        true => Occupation::Over,
        false => Occupation::Taken,
    }
}
