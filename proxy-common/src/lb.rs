//! The balancing decision: from a parsed packet to a verdict, the same for every hook and family.
//!
//! ```text
//! ingress:  address filter -> flow? -> yes: follow it
//!                                   -> no:  frontend -> set -> slot -> backend -> two new entries
//! egress:   address filter -> flow? -> yes: follow it
//!           masquerade?    -> flow? -> yes: follow it
//!                                   -> no:  device's address -> free port -> two new entries
//! ```
//!
//! [`ingress`] and [`egress`] are the packet's fast way and are meant to be inlined; what happens once per
//! connection stands out of line: `select` chooses, `remember` writes.

mod remember;
mod select;
mod tables;

use crate::{
    addr::Addr,
    drop::DropReason,
    endian::Be16,
    filter::AddressRoles,
    flow::{Direction, FlowEntry, FlowFlags, FlowState, TcpFlags},
    time::Ticks,
    tuple::{Endpoint, FlowKey, Hook},
};

pub use tables::{FlowRef, Insert, InsertError, Tables};

/// What parsing found out about a packet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Packet {
    /// Its tuple at this hook.
    pub key: FlowKey,
    /// TCP flags, or what means the same in SCTP; empty for UDP.
    pub flags: TcpFlags,
    /// Bytes of the frame.
    pub length: u32,
    /// Number of the device that the hook belongs to.
    pub device: u32,
}

/// What to do with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Not ours: leave it as it is.
    Pass,
    /// Translate it.
    Rewrite(Translation),
    /// Drop it without a word.
    Drop(DropReason),
    /// Drop it and tell the sender that nobody listens there (NOEP-01).
    Refuse(DropReason),
}

/// What a packet of a flow becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Its destination from now on (at ingress), or its source (at egress).
    pub end: Endpoint,
    /// The port of the other end. It differs from the packet's only where two flows would look the same (NAT-05).
    pub other_port: Be16,
    /// At ingress: whether the egress hook is to rewrite the source.
    pub masquerade: bool,
}

impl Translation {
    /// What the packets of a flow entry become at the hook where it was found: the reverse of the other direction's key.
    #[inline(always)]
    const fn of(hook: Hook, peer: &FlowKey, flags: FlowFlags) -> Self {
        let (end, other_port) = if hook.number() == Hook::INGRESS.number() {
            (peer.source_end(), peer.destination_port)
        } else {
            (peer.destination_end(), peer.source_port)
        };
        Self { end, other_port, masquerade: flags.contains(FlowFlags::MASQUERADE) }
    }
}

/// The decision for a packet that enters the node: where it goes.
#[inline(always)]
pub fn ingress<T: Tables>(tables: &T, packet: &Packet) -> Verdict {
    const SERVED: AddressRoles = AddressRoles::FRONTEND.with(AddressRoles::NODE);
    if !tables.roles(packet.key.destination).intersects(SERVED) {
        return Verdict::Pass;
    }
    let Some(flow) = tables.flow(&packet.key) else {
        return open(tables, packet, Insert::New);
    };
    let entry = flow.load();
    let now = tables.now();
    let stays = !entry.state.may_move(packet.flags)
        || entry.direction == Direction::REPLY
        || tables.backend(entry.backend).is_some_and(|backend| backend.serves(entry.generation));
    let runs = entry.state.is_steady(entry.direction, packet.flags) && !entry.is_idle(now);
    if !stays || !runs && !transition(tables, packet) {
        return open(tables, packet, Insert::Replace);
    }
    follow(tables, packet, flow, &entry, now);
    Verdict::Rewrite(Translation::of(Hook::INGRESS, &entry.peer, entry.flags))
}

/// The decision for a packet that leaves the node: where it claims to come from. `masquerade` is what the ingress hook
/// said of it.
#[inline(always)]
pub fn egress<T: Tables>(tables: &T, packet: &Packet, masquerade: bool) -> Verdict {
    if !masquerade && !tables.roles(packet.key.source).contains(AddressRoles::BACKEND) {
        return Verdict::Pass;
    }
    let mut mode = Insert::New;
    if let Some(flow) = tables.flow(&packet.key) {
        let entry = flow.load();
        let now = tables.now();
        let runs = entry.state.is_steady(entry.direction, packet.flags) && !entry.is_idle(now);
        if runs || transition(tables, packet) {
            follow(tables, packet, flow, &entry, now);
            return Verdict::Rewrite(Translation::of(Hook::EGRESS, &entry.peer, entry.flags));
        }
        mode = Insert::Replace;
    }
    if !masquerade {
        return Verdict::Pass;
    }
    match remember::masquerade(tables, packet, mode) {
        Some(reason) => Verdict::Drop(reason),
        None => written(tables, &packet.key),
    }
}

/// The decision for a packet of a protocol without ports: a ping, for one. Whoever asks a ClusterIP for more than its
/// service ports hears that there is nothing (CIP-03).
#[inline(always)]
pub fn without_ports<T: Tables>(tables: &T, source: Addr, destination: Addr) -> Verdict {
    if select::is_unknown_port(tables, destination) && source.is_unicast() {
        Verdict::Refuse(DropReason::UnknownPort)
    } else {
        Verdict::Pass
    }
}

/// The decision for an ICMP error about a packet that was translated, by the quoted packet as it stands at this hook: what
/// a packet of the same flow and direction as the error would get here. `None` if the quoted packet is of no flow
/// (NAT-02).
///
/// An error travels against the packet that it quotes, so the quoted packet's reverse is what a packet beside the error
/// would look like.
#[inline(always)]
pub fn related<T: Tables>(tables: &T, quoted: &FlowKey) -> Option<Translation> {
    let entry = tables.flow(&quoted.reversed())?.load();
    if entry.state == FlowState::VOID {
        return None;
    }
    Some(Translation::of(quoted.hook, &entry.peer, entry.flags))
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

/// The first packet of a flow through a service: finds the service, chooses a backend and remembers both directions.
///
/// The two steps are out of line, each with a stack frame that ends before the next begins: together they would be
/// too much for a program's stack. They answer in one register; where the packet goes is read from the new entry.
#[inline(always)]
fn open<T: Tables>(tables: &T, packet: &Packet, mode: Insert) -> Verdict {
    let selection = select::select(tables, packet);
    if let Some(verdict) = selection.refusal(packet.key.source) {
        return verdict;
    }
    match remember::remember(tables, packet, selection, mode) {
        Some(reason) => Verdict::Drop(reason),
        None => written(tables, &packet.key),
    }
}

/// What the entry says that has just been written.
#[inline(always)]
fn written<T: Tables>(tables: &T, key: &FlowKey) -> Verdict {
    match tables.flow(key) {
        Some(flow) => {
            let entry = flow.load();
            Verdict::Rewrite(Translation::of(key.hook, &entry.peer, entry.flags))
        }
        None => Verdict::Drop(DropReason::FlowTableFull),
    }
}
