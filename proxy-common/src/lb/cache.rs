//! Answers given again: to packets that leave a running flow as it is, without asking the flow table.

use crate::{
    cache::{Answer, Ground, TupleHash, is_busy, lifetime},
    flow::{FlowHead, FlowState, TcpFlags},
    time::Ticks,
    tuple::{FlowKey, Hook},
};

use super::{Packet, Tables, runs, stays, tables::FlowRef as _};

/// What this CPU has lately made of packets with this key and these flags, if that still holds. The packet is yet to be counted.
#[inline(always)]
pub(super) fn recall<T: Tables>(tables: &T, key: &FlowKey, packet_flags: TcpFlags) -> Option<Answer> {
    if !packet_flags.may_leave_state() {
        return None;
    }
    let hash = TupleHash::of(key);
    let answer = tables.recall(key, hash)?;
    holds(tables, &answer.ground, hash, key.hook, packet_flags).then_some(answer)
}

/// Whether an answer to packets of a tuple with this hash, at this hook and with these flags, still holds.
#[inline(always)]
pub(super) fn holds<T: Tables>(
    tables: &T,
    ground: &Ground,
    hash: TupleHash,
    hook: Hook,
    packet_flags: TcpFlags,
) -> bool {
    let Ground { service, backend, generation, state, direction, flags, .. } = *ground;
    let head = FlowHead { service, backend, generation, state, direction, flags, ..FlowHead::default() };
    ground.is_fresh(tables.now())
        && ground.epoch == tables.epoch(hash)
        && state.is_steady(direction, packet_flags)
        && (hook != Hook::INGRESS || stays(tables, packet_flags, &head))
}

/// Remembers what becomes of packets like this one, if their flow is busy. It runs, and `head` is how it stood before this one.
#[inline(always)]
pub(super) fn note<T: Tables>(tables: &T, key: &FlowKey, flags: TcpFlags, head: &FlowHead, now: Ticks) {
    if tables.settings().is_some_and(|settings| is_busy(head.last_seen.age(now), settings)) {
        learn(tables, key, flags);
    }
}

/// Remembers what becomes of packets with this key. The flow is looked up anew: the epoch has to be known before, and most
/// packets need neither.
#[inline(never)]
fn learn<T: Tables>(tables: &T, key: &FlowKey, flags: TcpFlags) {
    let Some(settings) = tables.settings() else {
        return;
    };
    let hash = TupleHash::of(key);
    let epoch = tables.epoch(hash);
    let Some(flow) = tables.flow(key) else {
        return;
    };
    let (now, head, lifetime) = (tables.now(), flow.head(), lifetime(settings));
    // One of little patience might expire meanwhile.
    if !runs(&head, flags, now) || !head.timeout.exceeds(lifetime) {
        return;
    }
    let ground = Ground::new(&head, epoch, now, lifetime);
    tables.learn(key, hash, &Answer { translation: flow.translation(key.hook), ground });
}

/// Records a new state in both entries of a flow, of which one has the key of the packet. What is remembered of a flow that
/// runs no longer is void from then on; before it ran, nothing was remembered.
#[inline(always)]
pub(super) fn enter<'a, T: Tables>(
    tables: &'a T,
    packet: &Packet,
    flow: T::Flow<'a>,
    peer: Option<T::Flow<'a>>,
    state: FlowState,
    timeout: Ticks,
) {
    let is_over = flow.head().state.runs() && !state.runs();
    flow.enter(state, timeout);
    if is_over {
        tables.outdate(TupleHash::of(&packet.key));
    }
    if let Some(peer) = peer {
        peer.enter(state, timeout);
        if is_over {
            tables.outdate(flow.peer_hash());
        }
    }
}
