//! Packets that go through the node without its stack: the ingress hook's question and the egress hook's, asked at once.
//!
//! Only packets that both hooks rewrite are answered, and only if both flows run and the packet changes neither. That is
//! what comes from outside for a backend on another node, and what that answers. Whatever else there is to decide, to
//! choose, to write or to refuse, the hooks do as they always do: the packet goes there as it came.

use crate::{
    filter::AddressRoles,
    tuple::{Endpoint, FlowKey, Hook},
};

use super::{Packet, Tables, Translation, note, own, runs, stays, tables::FlowRef as _};

/// A packet that both hooks would rewrite. Nothing has happened yet.
pub struct Through<'a, T: Tables + 'a> {
    /// Its tuple in between, as it is routed: what the ingress hook makes of it.
    pub routed: FlowKey,
    flows: [T::Flow<'a>; 2],
}

/// The decision for a packet that enters the node, if it can be taken for both hooks and changes nothing.
#[inline(always)]
pub fn through<'a, T: Tables>(tables: &'a T, packet: &Packet) -> Option<Through<'a, T>> {
    let key = &packet.key;
    let roles = tables.roles(key.destination);
    if !roles.intersects(AddressRoles::FRONTEND.with(AddressRoles::NODE))
        || own::may_be_both(roles) && own::is_cluster_ip_of_node(tables, key.destination)
    {
        return None;
    }
    let now = tables.now();
    let entry = tables.flow(key)?;
    if !stays(tables, packet.flags, &entry.head()) || !runs(&entry.head(), packet.flags, now) {
        return None;
    }
    let Translation { end, other_port, masquerade, dsr } = entry.translation(Hook::INGRESS);
    // The egress hook would encapsulate it, whatever an earlier flow of this tuple has left there.
    if dsr {
        return None;
    }
    let source = Endpoint { address: key.source, port: other_port };
    let routed = FlowKey::new(source, end, key.protocol, Hook::EGRESS);
    if !masquerade && !tables.roles(routed.source).contains(AddressRoles::BACKEND) {
        return None;
    }
    let exit = tables.flow(&routed)?;
    if !runs(&exit.head(), packet.flags, now) {
        return None;
    }
    Some(Through { routed, flows: [entry, exit] })
}

impl<T: Tables> Through<'_, T> {
    /// What the ingress hook makes of the packet.
    #[inline(always)]
    pub const fn entering(&self) -> Translation {
        let other_port = self.routed.source_port;
        Translation { end: self.routed.destination_end(), other_port, masquerade: false, dsr: false }
    }

    /// What the egress hook makes of it then.
    #[inline(always)]
    pub fn leaving(&self) -> Translation {
        let [_, exit] = self.flows;
        exit.translation(Hook::EGRESS)
    }

    /// What the packet leaves behind at both hooks, when it is sure to go: as [`ingress`](super::ingress) and
    /// [`egress`](super::egress) have it.
    #[inline(always)]
    pub fn note(&self, tables: &T, length: u32) {
        let now = tables.now();
        for flow in self.flows {
            note(tables, flow, &flow.head(), length, now);
        }
    }
}
