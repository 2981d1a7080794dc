//! Packets that go through the node without its stack: the ingress hook's question and the egress hook's, asked at once.
//!
//! Only packets that both hooks rewrite are answered, and only if both flows run and the packet changes neither. That is
//! what comes from outside for a backend on another node, and what that answers. Whatever else there is to decide, to
//! choose, to write or to refuse, the hooks do as they always do: the packet goes there as it came.
//!
//! ```text
//! may_go_through -> is_remembered? -> yes: as the shortcut says
//!                                  -> no:  learn_entry, learn_exit: as both flows say
//! ```

use crate::{
    addr::Addr,
    cache::{Ground, TupleHash, lifetime},
    filter::AddressRoles,
    flow::{FlowFlags, FlowHead},
    shortcut::{Shortcut, ShortcutFlags},
    time::Ticks,
    tuple::{FlowKey, Hook},
};

use super::{Packet, Tables, Translation, cache::holds, own, runs, stays, tables::FlowRef as _};

/// Whether a packet that enters the node may be one, by its destination: the ingress hook's first question.
#[inline(always)]
pub fn may_go_through<T: Tables>(tables: &T, destination: Addr) -> bool {
    let roles = tables.roles(destination);
    roles.intersects(AddressRoles::FRONTEND.with(AddressRoles::NODE))
        && !(own::may_be_both(roles) && own::is_cluster_ip_of_node(tables, destination))
}

/// Whether the egress hook would look at such a packet.
#[inline(always)]
fn is_seen_at_exit<T: Tables>(tables: &T, packet: &Packet, masquerade: bool) -> bool {
    masquerade || tables.roles(packet.key.source).contains(AddressRoles::BACKEND)
}

/// Whether a shortcut is for packets like this one, whose tuple has this hash, and still holds.
#[inline(always)]
pub fn is_remembered<T: Tables>(
    tables: &T,
    packet: &Packet,
    class: u32,
    hash: TupleHash,
    shortcut: &Shortcut,
) -> bool {
    let [entry, exit] = &shortcut.grounds;
    if !shortcut.is_for(&packet.key, packet.device, class)
        || !holds(tables, entry, hash, Hook::INGRESS, packet.flags)
    {
        return false;
    }
    // The stack is always right.
    !shortcut.flags.contains(ShortcutFlags::THROUGH)
        || holds(tables, exit, shortcut.routed, Hook::EGRESS, packet.flags)
            && is_seen_at_exit(tables, packet, entry.flags.contains(FlowFlags::MASQUERADE))
}

/// Writes into a shortcut, which is new and for this packet, what the ingress hook makes of it. `routed` becomes the packet's tuple
/// in between, as it is routed. Returns whether that is all that keeps the packet from the egress hook.
#[inline(never)]
pub fn learn_entry<T: Tables>(
    tables: &T,
    packet: &Packet,
    shortcut: &mut Shortcut,
    routed: &mut FlowKey,
) -> bool {
    let Packet { key, flags, .. } = packet;
    let (now, epoch) = (tables.now(), tables.epoch(TupleHash::of(key)));
    let Some(entry) = tables.flow(key) else {
        return false;
    };
    let head = entry.head();
    if !stays(tables, *flags, &head) || !runs(&head, *flags, now) {
        return false;
    }
    shortcut.grounds[0] = ground(tables, &head, epoch, now);
    let Translation { end, other_port, masquerade, dsr } = entry.translation(Hook::INGRESS);
    // The egress hook would encapsulate it, whatever an earlier flow of this tuple has left there.
    if dsr || !is_seen_at_exit(tables, packet, masquerade) {
        return false;
    }
    entry.touch(now);
    // Field by field: a whole key would lie on the stack first.
    routed.source = key.source;
    routed.destination = end.address;
    routed.source_port = other_port;
    routed.destination_port = end.port;
    routed.protocol = key.protocol;
    routed.hook = Hook::EGRESS;
    routed.reserved = [0; 2];
    true
}

/// Writes into it what the egress hook makes of the packet then. Returns whether both hooks rewrite it.
#[inline(never)]
pub fn learn_exit<T: Tables>(tables: &T, packet: &Packet, shortcut: &mut Shortcut, routed: &FlowKey) -> bool {
    let hash = TupleHash::of(routed);
    let (now, epoch) = (tables.now(), tables.epoch(hash));
    let Some(exit) = tables.flow(routed).filter(|exit| runs(&exit.head(), packet.flags, now)) else {
        // The next packets may find one.
        shortcut.grounds[0].lifetime = Ticks(0);
        return false;
    };
    shortcut.grounds[1] = ground(tables, &exit.head(), epoch, now);
    let Translation { end, other_port, .. } = exit.translation(Hook::EGRESS);
    shortcut.routed = hash;
    shortcut.source = end.address;
    shortcut.source_port = end.port;
    shortcut.destination = routed.destination;
    shortcut.destination_port = other_port;
    shortcut.flags = ShortcutFlags::THROUGH;
    exit.touch(now);
    true
}

/// What an answer stands on. A flow of little patience might expire while it is remembered, so it is not.
#[inline(always)]
fn ground<T: Tables>(tables: &T, head: &FlowHead, epoch: u32, now: Ticks) -> Ground {
    let lifetime = tables.settings().map_or(Ticks(0), lifetime);
    let lifetime = if head.timeout.exceeds(lifetime) { lifetime } else { Ticks(0) };
    Ground::new(head, epoch, now, lifetime)
}

/// What a packet that goes its shortcut leaves behind at both hooks, as [`ingress`](super::ingress) and [`egress`](super::egress)
/// have it.
#[inline(always)]
pub fn note_through<T: Tables>(tables: &T, shortcut: &Shortcut, length: u32) {
    for Ground { service, direction, .. } in &shortcut.grounds {
        tables.count_packet(*service, *direction, length);
    }
}
