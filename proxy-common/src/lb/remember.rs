//! Writing a new flow: two entries that name each other, under tuples that no other flow has.
//!
//! A translated packet must be told from every other by its new tuple alone, or answers would go astray. Usually the
//! client's port does that. Where it does not (two services lead one client port to the same backend, NAT-05; many clients
//! share the node's address), another port is searched.

use crate::{
    backend::{Backend, BackendFlags},
    device::{Device, DeviceFlags},
    drop::DropReason,
    endian::Be16,
    flow::{Direction, FlowEntry, FlowFlags, FlowState},
    frontend::ServiceId,
    tuple::{Endpoint, FlowKey, Hook},
};

use super::{Insert, InsertError, Packet, Tables, select::Selection, tables::FlowRef as _};

/// How many ports are tried. With 9 of 10 taken, all are taken once in a thousand times.
const PROBES: u32 = 64;

/// Writes both entries of a new flow through a service, and counts it; says why if it could not. If another CPU was faster
/// with the same tuple, its choice stands.
#[inline(never)]
pub(super) fn remember<T: Tables>(
    tables: &T,
    packet: &Packet,
    chosen: Selection,
    mode: Insert,
) -> Option<DropReason> {
    let Some(backend) = tables.backend(chosen.backend()) else {
        return Some(DropReason::BrokenTable);
    };
    let key = &packet.key;
    let mut reply = FlowKey::new(backend.end(), key.source_end(), key.protocol, Hook::EGRESS);
    let mut entry = FlowEntry {
        backend: chosen.backend(),
        generation: backend.generation,
        service: backend.service,
        ..begun(tables, key)
    };
    let masquerade = chosen.masquerades() || needs_masquerade(tables, packet, &backend);
    let outcome =
        write(tables, key, &mut reply, &mut entry, Way { mode, masquerade, first: Some(key.source_port) });
    match outcome {
        None => {
            tables.count_connection(backend.service);
            tables.count_packet(backend.service, Direction::ORIGINAL, packet.length);
        }
        Some(reason) => tables.count_drop(backend.service, reason),
    }
    outcome
}

/// Writes both entries of a flow whose source is rewritten as it leaves the node: to the address of the device that it
/// leaves by (MASQ-09), from a port that tells its answers from all others.
#[inline(never)]
pub(super) fn masquerade<T: Tables>(tables: &T, packet: &Packet, mode: Insert) -> Option<DropReason> {
    let key = &packet.key;
    let Some(address) = tables.device(packet.device).and_then(|device| device.source_for(key.source)) else {
        return Some(DropReason::NoSourceAddress);
    };
    let node = Endpoint { address, port: key.source_port };
    let mut reply = FlowKey::new(key.destination_end(), node, key.protocol, Hook::INGRESS);
    let mut entry = begun(tables, key);
    // The host's own sockets use ports of their own accord; what a client chose may be one of those.
    let usable =
        tables.settings().is_some_and(|settings| settings.source_ports.contains(key.source_port.to_host()));
    let first = if usable { Some(key.source_port) } else { None };
    write(tables, key, &mut reply, &mut entry, Way { mode, masquerade: false, first })
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

/// An entry of a flow that the packet with this key has just begun: the way back.
#[inline(always)]
fn begun<T: Tables>(tables: &T, key: &FlowKey) -> FlowEntry {
    let state = FlowState::initial(key.protocol);
    FlowEntry {
        peer: *key,
        service: ServiceId::NONE,
        last_seen: tables.now(),
        timeout: tables.timeout(state),
        state,
        direction: Direction::REPLY,
        ..FlowEntry::default()
    }
}

/// How a flow is to be written.
#[derive(Clone, Copy)]
struct Way {
    /// Whether an entry at the flow's own key may be replaced.
    mode: Insert,
    /// Whether its source is to be rewritten as it leaves.
    masquerade: bool,
    /// The port to be tried first.
    first: Option<Be16>,
}

/// Writes the way back under a port that is free, then the way there.
#[inline(always)]
fn write<T: Tables>(
    tables: &T,
    key: &FlowKey,
    reply: &mut FlowKey,
    entry: &mut FlowEntry,
    way: Way,
) -> Option<DropReason> {
    // The way back first: once the request is on its way, its answer must find it.
    if let Some(first) = way.first {
        reply.destination_port = first;
    }
    if let Some(reason) = Found(reserve(tables, reply, entry, way.first.is_some())).problem() {
        return Some(reason);
    }
    entry.peer = *reply;
    entry.direction = Direction::ORIGINAL;
    if way.masquerade {
        entry.flags = FlowFlags::MASQUERADE;
    }
    let error = tables.insert_flow(key, entry, way.mode).err()?;
    let winner = tables.flow(key).map(|flow| flow.peer());
    if winner != Some(*reply) {
        tables.remove_flow(reply);
    }
    if error == InsertError::Exists { None } else { Some(DropReason::FlowTableFull) }
}

/// How the search for a port ended, in one register.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Found(u32);

impl Found {
    const PORT: Self = Self(0);
    const NO_PORT: Self = Self(1);
    const FULL: Self = Self(2);

    #[inline(always)]
    const fn problem(self) -> Option<DropReason> {
        match self {
            Self::PORT => None,
            Self::FULL => Some(DropReason::FlowTableFull),
            _ => Some(DropReason::NoSourcePort),
        }
    }
}

/// Writes `entry` under `reply`, whose destination port is changed until the tuple is free. What belongs to a connection
/// that is over is taken only if nothing better was found: its end may still be remembered by the backend.
#[inline(never)]
fn reserve<T: Tables>(tables: &T, reply: &mut FlowKey, entry: &FlowEntry, has_first: bool) -> u32 {
    let mut over = 0;
    for probe in 0..PROBES {
        if probe > 0 || !has_first {
            let Some(settings) = tables.settings() else {
                break;
            };
            reply.destination_port = Be16::from_host(settings.source_ports.choose(tables.random()));
        }
        match occupation(tables, reply, &entry.peer) {
            Occupation::Absent => match tables.insert_flow(reply, entry, Insert::New) {
                Ok(()) => return Found::PORT.0,
                Err(InsertError::Full) => return Found::FULL.0,
                Err(InsertError::Exists) => {}
            },
            Occupation::Stale => return replace(tables, reply, entry),
            Occupation::Over if over == 0 => over = reply.destination_port.to_host(),
            Occupation::Over | Occupation::Taken => {}
        }
    }
    if over == 0 {
        return Found::NO_PORT.0;
    }
    reply.destination_port = Be16::from_host(over);
    replace(tables, reply, entry)
}

#[inline(always)]
fn replace<T: Tables>(tables: &T, reply: &FlowKey, entry: &FlowEntry) -> u32 {
    match tables.insert_flow(reply, entry, Insert::Replace) {
        Ok(()) => Found::PORT.0,
        Err(_) => Found::FULL.0,
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
fn occupation<T: Tables>(tables: &T, reply: &FlowKey, key: &FlowKey) -> Occupation {
    let Some(old) = tables.flow(reply) else {
        return Occupation::Absent;
    };
    let peer = old.peer();
    if peer == *key {
        return Occupation::Stale;
    }
    let now = tables.now();
    let stale = match tables.flow(&peer) {
        Some(other) if other.peer() == *reply => old.is_idle(now) && other.is_idle(now),
        _ => true,
    };
    match old.state().is_over() {
        _ if stale => Occupation::Stale,
        true => Occupation::Over,
        false => Occupation::Taken,
    }
}
