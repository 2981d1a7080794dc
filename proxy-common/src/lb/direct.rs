//! Direct server return: packets that go to their backend's node encapsulated, and those that come from other nodes so.
//!
//! The first node chooses, and remembers both directions as of any flow, though it sees only one. The backend's node follows or
//! writes the flow as if the client had come to it, except that the choice has been made: the same two entries, the same answer.
//! What a packet carries says what the client sent it to ([`Origin`]), so that node needs no memory to begin with.
//!
//! The steps there are out of line and come one after the other: a program's stack has no room for them within each other.

use crate::{
    backend::{Backend, BackendId},
    drop::DropReason,
    dsr::Origin,
    endian::Be16,
    flow::FlowFlags,
    frontend::{Frontend, FrontendFlags, FrontendKey, SlotRun},
    tuple::{Endpoint, FlowKey, Hook},
};

use super::{
    Insert, Memory, Packet, Tables, Translation, drafted, follow, select::Selection, tables::FlowRef as _,
};

/// Slots that are looked through for a backend of this node: more pods than kubelet takes on a node, several times over.
const SLOTS: u32 = 512;

/// How packets leave the node whose answers would not come back by themselves. One that goes to its own sender, or whose
/// frontend says so, is masqueraded in any case.
#[inline(always)]
pub(super) fn way_out<T: Tables>(
    tables: &T,
    packet: &Packet,
    backend: &Backend,
    chosen: Selection,
) -> FlowFlags {
    if !chosen.answers_directly() || chosen.masquerades() || backend.address == packet.key.source {
        return FlowFlags::MASQUERADE;
    }
    // The way back says it, too: the egress hook looks there.
    if let Some(mut draft) = tables.draft() {
        draft.entry.head.flags = FlowFlags::DSR;
    }
    FlowFlags::DSR
}

/// What a packet was that leaves for its backend's node, if its flow is to be answered directly. The note that it carries may
/// be from elsewhere: the flow's own way back knows.
#[inline(always)]
pub fn origin<T: Tables>(tables: &T, key: &FlowKey) -> Option<Origin> {
    let reply = tables.flow(&key.reversed())?;
    let Translation { end, other_port, dsr, .. } = reply.translation(Hook::EGRESS);
    dsr.then_some(Origin { frontend: end, client_port: other_port })
}

/// Counts a packet of such a flow that could not leave.
#[inline(never)]
pub fn count_loss<T: Tables>(tables: &T, key: &FlowKey, reason: DropReason) {
    if let Some(reply) = tables.flow(&key.reversed()) {
        tables.count_drop(reply.head().service, reason);
    }
}

/// A packet that another node has sent here.
#[derive(Clone, Copy, Debug, Default)]
pub struct Arrival {
    /// As the client sent it, apart from its length.
    pub packet: Packet,
    /// The backend that the other node chose. Without a port if the packet is a later fragment.
    pub backend: Endpoint,
}

/// Follows or begins the flow of a packet that another node has sent here. Returns the port that it is to have at the client's
/// end, or why it is dropped.
#[inline(always)]
pub fn admit<T: Tables>(tables: &T, arrival: &Arrival) -> Result<Be16, DropReason> {
    if let Some(port) = follow_on(tables, arrival) {
        return Ok(port);
    }
    let packet = &arrival.packet;
    let chosen = locate(tables, arrival);
    if !chosen.is_backend() {
        return Err(DropReason::NotServedHere);
    }
    // What is taken up half way asks as it is written.
    if packet.begins() && !tables.may_begin() {
        return Err(DropReason::NewFlowLimit);
    }
    // An entry that is there leads elsewhere, or is over.
    if let Some(reason) = tables.remember(packet, chosen, Insert::Replace) {
        return Err(reason);
    }
    tables.tell_flow(packet.device);
    Ok(drafted(tables, Hook::INGRESS)?.other_port)
}

/// Follows the flow of such a packet; `None` if there is none, and it begins one.
#[inline(never)]
fn follow_on<T: Tables>(tables: &T, arrival: &Arrival) -> Option<Be16> {
    let Arrival { packet, backend } = arrival;
    let flow = tables.flow(&packet.key)?;
    let Translation { end, other_port, .. } = flow.translation(Hook::INGRESS);
    let is_same =
        end.address == backend.address && (end.port == backend.port || backend.port == Be16::default());
    (is_same && follow(tables, packet, flow, Memory::NotAsked)).then_some(other_port)
}

/// A backend's id, or that there is none; in one register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Place(pub u32);

impl Place {
    /// There is no such backend.
    pub const NONE: Self = Self(u32::MAX);
}

/// The backend with this end in a run of slots.
#[inline(always)]
pub fn place<T: Tables>(tables: &T, run: SlotRun, end: &Endpoint) -> Place {
    for at in 0..SLOTS {
        if at >= run.count {
            break;
        }
        if let Some(id) = tables.slot(run.base.wrapping_add(at))
            && let Some(backend) = tables.backend(id)
            && backend.port == end.port
            && backend.address == end.address
        {
            return Place(id.0);
        }
    }
    Place::NONE
}

/// The backend that such a packet is for, if its frontend has connections answered so and the backend is here: no other node
/// decides what this one serves.
#[inline(never)]
fn locate<T: Tables>(tables: &T, arrival: &Arrival) -> Selection {
    let Some(frontend) = find(tables, &arrival.packet.key) else {
        return Selection::NOT_OURS;
    };
    match tables.place(frontend.outside, &arrival.backend) {
        Place::NONE => {
            tables.count_drop(frontend.service, DropReason::NotServedHere);
            Selection::NOT_OURS
        }
        Place(id) => Selection::of_other_node(BackendId(id), &frontend),
    }
}

/// The frontend that the client has sent to. A NodePort's address is the other node's, so the port alone says which it is.
#[inline(always)]
fn find<T: Tables>(tables: &T, key: &FlowKey) -> Option<Frontend> {
    let end = key.destination_end();
    let found = tables
        .frontend(&FrontendKey::new(end, key.protocol))
        .or_else(|| tables.frontend(&FrontendKey::node_port(end, key.protocol)))?;
    found.flags.contains(FrontendFlags::DSR).then_some(found)
}
