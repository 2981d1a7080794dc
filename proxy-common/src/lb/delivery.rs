//! Packets between a client and a backend on this node that the stack need not see, as their sources and destinations are what
//! they are routed by: both ways of a flow, or neither. Who looks only at one way takes the other's packets for invalid.

use crate::{
    backend::BackendFlags,
    filter::AddressRoles,
    flow::{Direction, FlowFlags, FlowState},
    tuple::FlowKey,
};

use super::{Tables, tables::FlowRef as _};

/// Which way of a flow a packet goes, and what its way out has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// To the backend: nothing is left to be done.
    Request,
    /// To the client: the egress hook gives it its service's address.
    Reply,
}

/// Whether a packet with this tuple, as it is routed, may be of such a flow. The cheap question.
#[inline(always)]
pub fn may_be_delivered<T: Tables>(tables: &T, routed: &FlowKey) -> bool {
    tables.roles(routed.destination).contains(AddressRoles::BACKEND)
        || tables.roles(routed.source).contains(AddressRoles::BACKEND)
}

/// Which way of such a flow a packet with this tuple goes, as it is routed; `None` if it is of none. The key is one of the egress
/// hook's.
#[inline(always)]
pub fn delivered<T: Tables>(tables: &T, routed: &FlowKey) -> Option<Side> {
    if is_answered(tables, routed) {
        return Some(Side::Reply);
    }
    // What the egress hook has anything to do with goes there through the stack.
    (is_answered(tables, &routed.reversed()) && tables.flow(routed).is_none()).then_some(Side::Request)
}

/// Whether a tuple is that of answers of a backend on this node, in a flow that neither hides its client nor is answered past
/// the first node.
#[inline(always)]
fn is_answered<T: Tables>(tables: &T, routed: &FlowKey) -> bool {
    let Some(reply) = tables.flow(routed) else {
        return false;
    };
    let head = reply.head();
    let is_local = |id| tables.backend(id).is_some_and(|backend| backend.flags.contains(BackendFlags::LOCAL));
    let elsewhere = FlowFlags::MASQUERADE.with(FlowFlags::DSR);
    head.direction == Direction::REPLY
        && head.state != FlowState::VOID
        && is_local(head.backend)
        && tables
            .other(reply)
            .is_some_and(|request| request.leads_to(routed) && !request.head().flags.intersects(elsewhere))
}
