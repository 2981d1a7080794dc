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
//! What a running flow makes of its packets each CPU remembers for a moment, and asks itself before the flow table: `cache`.
//!
//! [`ingress`] and [`egress`] are the packet's fast way and are meant to be inlined; what happens once per
//! connection stands out of line: `select` chooses, `remember` writes. Processes whose sockets are served choose in the
//! same way before there is a packet: `process`. Who listens at a service's address on the node itself comes first: `own`.
//! What goes to the backend's node encapsulated, and what comes from others so: `direct`.
//! `through` asks both hooks' questions at once, of packets that the stack need not see.

mod cache;
mod delivery;
mod direct;
mod own;
mod process;
mod remember;
mod select;
mod tables;
mod through;

use crate::{
    addr::Addr,
    cache::Answer,
    drop::DropReason,
    endian::Be16,
    filter::AddressRoles,
    flow::{Direction, FlowFlags, FlowHead, FlowState, TcpFlags},
    time::Ticks,
    tuple::{Endpoint, FlowKey, Hook, Protocol},
};

pub use delivery::{Side, delivered, may_be_delivered};
pub use direct::{Arrival, Place, admit, count_loss, origin, place};
pub use own::Listeners;
pub use process::{Process, Sockets, Wish, believed, wish};
pub use remember::{First, Found, masquerade, remember, reserve};
pub use select::{Selection, select};
pub use tables::{FlowRef, Insert, InsertError, Tables};
pub use through::{is_remembered, learn_entry, learn_exit, may_go_through, note_through};

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

impl Packet {
    /// Whether it may be the first one of a flow.
    #[inline(always)]
    const fn begins(&self) -> bool {
        self.key.protocol.0 == Protocol::UDP.0 || self.flags.opens()
    }
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
    /// Drop it and tell the sender that its connection is over.
    Reset(DropReason),
}

impl From<Result<Translation, DropReason>> for Verdict {
    #[inline(always)]
    fn from(result: Result<Translation, DropReason>) -> Self {
        match result {
            Ok(translation) => Self::Rewrite(translation),
            Err(reason) => Self::Drop(reason),
        }
    }
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
    /// At ingress: whether the egress hook is to encapsulate the packet for the backend's node.
    pub dsr: bool,
}

impl Translation {
    /// What packets become whose other direction has the key `peer`: its reverse, at this hook.
    #[must_use]
    #[inline(always)]
    pub const fn of(hook: Hook, peer: &FlowKey, flags: FlowFlags) -> Self {
        let (end, other_port) = if hook.number() == Hook::INGRESS.number() {
            (peer.source_end(), peer.destination_port)
        } else {
            (peer.destination_end(), peer.source_port)
        };
        Self::with(end, other_port, flags)
    }

    /// What packets of a flow with these facts become.
    #[must_use]
    #[inline(always)]
    pub const fn with(end: Endpoint, other_port: Be16, flags: FlowFlags) -> Self {
        let (masquerade, dsr) = (flags.contains(FlowFlags::MASQUERADE), flags.contains(FlowFlags::DSR));
        Self { end, other_port, masquerade, dsr }
    }
}

/// The decision for a packet that enters the node: where it goes.
#[inline(always)]
pub fn ingress<T: Tables, L: Listeners>(tables: &T, listeners: &L, packet: &Packet) -> Verdict {
    let roles = tables.roles(packet.key.destination);
    if !roles.intersects(AddressRoles::FRONTEND.with(AddressRoles::NODE))
        || own::may_be_both(roles) && own::is_for_process(tables, listeners, packet)
    {
        return Verdict::Pass;
    }
    if let Some(Answer { translation, ground }) = cache::recall(tables, &packet.key, packet.flags) {
        tables.count_packet(ground.service, ground.direction, packet.length);
        return Verdict::Rewrite(translation);
    }
    let mode = match tables.flow(&packet.key) {
        None => Insert::New,
        Some(flow) if !stays(tables, packet.flags, &flow.head()) => match remember::lose(tables, packet) {
            Some(reason) => return Verdict::Reset(reason),
            None => Insert::Replace,
        },
        Some(flow) if !follow(tables, packet, flow, Memory::Asked) => Insert::Replace,
        Some(flow) => return Verdict::Rewrite(flow.translation(Hook::INGRESS)),
    };
    open(tables, listeners, packet, mode)
}

/// The decision for a packet that leaves the node: where it claims to come from. `masquerade` is what the ingress hook
/// said of it.
#[inline(always)]
pub fn egress<T: Tables>(tables: &T, packet: &Packet, masquerade: bool) -> Verdict {
    if !masquerade && !tables.roles(packet.key.source).contains(AddressRoles::BACKEND) {
        return Verdict::Pass;
    }
    if let Some(Answer { translation, ground }) = cache::recall(tables, &packet.key, packet.flags) {
        tables.count_packet(ground.service, ground.direction, packet.length);
        return Verdict::Rewrite(translation);
    }
    let mode = match tables.flow(&packet.key) {
        None => Insert::New,
        Some(flow) if follow(tables, packet, flow, Memory::Asked) => {
            return Verdict::Rewrite(flow.translation(Hook::EGRESS));
        }
        Some(_) => Insert::Replace,
    };
    if !masquerade || !remember::is_masqueraded(tables, &packet.key) {
        return Verdict::Pass;
    }
    // A connection that got no port when it began does not get one when it is given up.
    if !packet.begins() && !remember::is_taken_up(tables, &packet.key) {
        return Verdict::Drop(DropReason::NoSourcePort);
    }
    match tables.masquerade(packet, mode) {
        Some(reason) => Verdict::Drop(reason),
        None => drafted(tables, Hook::EGRESS).into(),
    }
}

/// The decision for a packet of a protocol without ports: a ping, for one. Whoever asks a ClusterIP for more than its
/// service ports hears that there is nothing (CIP-03), unless the node has the address and can answer itself.
#[inline(always)]
pub fn without_ports<T: Tables>(tables: &T, source: &Addr, destination: &Addr) -> Verdict {
    if select::is_unknown_port(tables, destination) && source.is_unicast() {
        Verdict::Refuse(DropReason::UnknownPort)
    } else {
        Verdict::Pass
    }
}

/// The decision for an ICMP error about a packet that was translated: what a packet of the same flow and direction as the
/// error would become here. An error travels against the packet that it quotes, so `beside`, the key of such a packet, is
/// the reverse of the quoted one's. `None` if there is no such flow (NAT-02).
#[inline(always)]
pub fn related<T: Tables>(tables: &T, beside: &FlowKey) -> Option<Translation> {
    let flow = tables.flow(beside)?;
    if flow.head().state == FlowState::VOID {
        return None;
    }
    Some(flow.translation(beside.hook))
}

/// Whether a packet with `flags` of a flow may still go to its backend. Answers to the node's own address have none to go to.
#[inline(always)]
fn stays<T: Tables>(tables: &T, flags: TcpFlags, head: &FlowHead) -> bool {
    let may_leave =
        head.state.may_move(flags) || head.flags.contains(FlowFlags::RESET) && head.state.may_be_reset(flags);
    !may_leave
        || head.direction == Direction::REPLY
        || tables.backend(head.backend).is_some_and(|backend| backend.serves(head.generation))
}

/// Whether a packet continues its flow, and what every such packet leaves behind.
#[inline(always)]
fn follow<T: Tables>(tables: &T, packet: &Packet, flow: T::Flow<'_>, memory: Memory) -> bool {
    let head = flow.head();
    let now = tables.now();
    if runs(&head, packet.flags, now) {
        if memory == Memory::Asked {
            cache::note(tables, &packet.key, packet.flags, &head, now);
        }
    } else if !tables.transition(packet) {
        return false;
    }
    note(tables, flow, &head, packet.length, now);
    true
}

/// Whether this CPU's memory is asked about packets with a tuple before the flow table is; if not, it need not learn of them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Memory {
    Asked,
    NotAsked,
}

/// Whether a flow runs, and a packet with `flags` leaves it as it is.
#[inline(always)]
fn runs(head: &FlowHead, flags: TcpFlags, now: Ticks) -> bool {
    head.state.is_steady(head.direction, flags) && !head.is_idle(now)
}

/// What every packet of a flow leaves behind.
#[inline(always)]
fn note<T: Tables>(tables: &T, flow: T::Flow<'_>, head: &FlowHead, length: u32, now: Ticks) {
    // Most packets of a busy flow come within one tick of the last: spare the cache line the write.
    if head.last_seen != now {
        flow.touch(now);
    }
    tables.count_packet(head.service, head.direction, length);
}

/// Carries a packet's effect on its flow into both entries. `false` if the flow does not exist, has expired, or
/// is over and this packet begins another one.
#[inline(never)]
pub fn transition<T: Tables>(tables: &T, packet: &Packet) -> bool {
    let Some(flow) = tables.flow(&packet.key) else {
        return false;
    };
    let head = flow.head();
    let now = tables.now();
    if head.state.is_over() && packet.flags.opens() {
        return false;
    }
    let peer = tables.other(flow).filter(|peer| peer.leads_to(&packet.key));
    // A flow that only one side uses is alive: a server pushing datagrams keeps its client's way open.
    if head.is_idle(now) && peer.is_none_or(|peer| peer.head().is_idle(now)) {
        return false;
    }
    let mut next = head.state.advance(head.direction, packet.flags);
    if head.flags.contains(FlowFlags::DSR) {
        next = next.seen_from_one_side();
    }
    if next != head.state {
        let timeout = tables.timeout(next);
        cache::enter(tables, packet, flow, peer, next, timeout);
    }
    next != FlowState::VOID
}

/// The first packet of a flow through a service, or the first that is seen here: finds the service, chooses a backend and
/// remembers both directions.
///
/// The two steps are out of line, each with a stack frame that ends before the next begins: together they would be
/// too much for a program's stack. They answer in one register; where the packet goes is read from the draft of the new entry.
#[inline(always)]
fn open<T: Tables, L: Listeners>(tables: &T, listeners: &L, packet: &Packet, mode: Insert) -> Verdict {
    let selection = tables.select(packet, mode);
    if let Some(verdict) = selection.refusal(packet.key.source) {
        if mode == Insert::Replace {
            // What is left of an earlier connection would catch the rest of one that begins without it.
            tables.remove_flow(&packet.key);
        }
        return verdict;
    }
    if !packet.begins() && own::is_of_process(tables, listeners, &packet.key) {
        return Verdict::Pass;
    }
    match tables.remember(packet, selection, mode) {
        Some(reason) => Verdict::Drop(reason),
        None => {
            tables.tell_flow(packet.device);
            drafted(tables, Hook::INGRESS).into()
        }
    }
}

/// What the flow says that has just been written: read from its draft, as a lookup of the entry would cost as much as all the rest
/// of the answer.
#[inline(always)]
fn drafted<T: Tables>(tables: &T, hook: Hook) -> Result<Translation, DropReason> {
    let draft = tables.draft().ok_or(DropReason::BrokenTable)?;
    Ok(Translation::of(hook, &draft.reply, draft.entry.head.flags))
}
