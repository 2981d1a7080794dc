//! Direct server return, as bytes: the egress hook puts a packet for another node's backend into Geneve, the ingress hook there
//! takes it out again. What it carries, and why, is in `proxy_common::dsr`; what follows from that in `lb::direct`.
//!
//! The steps are out of line, each with a stack of its own, and read what they need again.
#![expect(unsafe_code, reason = "a helper that aya does not wrap")]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "lengths of packets and headers, far below any limit"
)]

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC},
    helpers::bpf_check_mtu,
    programs::TcContext,
};
use proxy_common::{
    checksum::ChecksumDiff,
    drop::DropReason,
    dsr::{self, Origin},
    endian::Be16,
    filter::AddressRoles,
    hash,
    lb::{self, Tables as _},
    tuple::{Endpoint, FlowKey, Hook, Protocol},
};

use crate::{
    hooks::tc::{NEXT, dropped},
    maps::{self, Maps},
    packet::{Note as _, Packet as _, Unhurried},
    parse::{self, Content, Parsed},
    refuse, verified,
    wire::{Geneve, IpHeader, Part, Problem, transport_checksum},
};

/// Puts a packet with the note into what takes it to its backend's node, and returns the action. Without such a flow, the note
/// was a stray one, and the packet is left as it is.
#[inline(always)]
pub(crate) fn send<I: IpHeader, const LINK: usize>(ctx: &TcContext, parsed: &Parsed) -> i32 {
    // Devices stacked on each other would do it again, and the answer to a packet that is too big goes through the stack.
    ctx.done();
    let Some(reason) = encapsulate::<I, LINK>(ctx, parsed) else {
        return NEXT;
    };
    lb::count_loss(&Maps, &parsed.packet.key, reason);
    let answered = match reason {
        DropReason::TooBig => tell_too_big::<I, LINK>(ctx, refuse::quotation(parsed)),
        _ => None,
    };
    let action = dropped(&parsed.packet, reason);
    answered.unwrap_or(action)
}

/// Encapsulates the packet if its flow is to be answered directly; says why if that is not possible.
#[inline(never)]
fn encapsulate<I: IpHeader, const LINK: usize>(ctx: &TcContext, parsed: &Parsed) -> Option<DropReason> {
    let key = &parsed.packet.key;
    let origin = lb::origin(&Maps, key)?;
    let device = Maps.device(parsed.packet.device);
    let Some(node) = device.and_then(|device| device.source_for(key.source)) else {
        return Some(DropReason::NoSourceAddress);
    };
    let Some(inner) = Unhurried(ctx).load::<I::Header>(LINK) else {
        return Some(DropReason::RewriteFailed);
    };
    let length = ctx.length().wrapping_sub(LINK as u32);
    let mut flags = I::ENCAPSULATION | u64::from(BPF_F_ADJ_ROOM_ENCAP_L4_UDP);
    match room::<I>(ctx, parsed) {
        Room::Enough => flags |= u64::from(BPF_F_ADJ_ROOM_FIXED_GSO),
        // Segments become smaller.
        Room::BySegments => {}
        Room::None => return Some(DropReason::TooBig),
    }
    let ports = (dsr::source_port(hash::of_request(key)), destination_port());
    let geneve = Geneve::new(&origin, I::ETHER_TYPE, I::ADDRESS, length, ports);
    let tunnel = I::tunnel(&inner, node, key.destination, geneve, origin.frontend.address);
    let made = ctx.adjust_room(size_of::<I::Tunnel>() as i32, BPF_ADJ_ROOM_MAC, flags);
    if made.is_err() || ctx.skb.store(LINK, &tunnel, 0).is_err() {
        return Some(DropReason::RewriteFailed);
    }
    None
}

/// Whether a packet and its new headers fit the device.
enum Room {
    /// They do, or all the segments that the packet will be taken apart into.
    Enough,
    /// They would if the segments were smaller, which TCP does not mind.
    BySegments,
    /// They do not.
    None,
}

/// Whether there is room for both.
#[inline(always)]
fn room<I: IpHeader>(ctx: &TcContext, parsed: &Parsed) -> Room {
    let segment = ctx.segment_size();
    // A header that was parsed can be read again.
    let Some(longest) = parsed.longest(&Unhurried(ctx), segment) else {
        return Room::None;
    };
    match mtu(ctx) {
        mtu if longest + size_of::<I::Tunnel>() as u32 <= mtu => Room::Enough,
        _ if segment != 0 && parsed.packet.key.protocol == Protocol::TCP => Room::BySegments,
        _ => Room::None,
    }
}

/// The longest packet that the device takes, from the network header on; 0 if it does not say.
#[inline(always)]
fn mtu(ctx: &TcContext) -> u32 {
    let mut mtu = 0;
    // SAFETY: the helper writes one word: the MTU of the packet's own device (0), which it compares with the packet's length.
    unsafe { bpf_check_mtu(ctx.as_ptr(), 0, &raw mut mtu, 0, 0) };
    mtu
}

/// Tells the client what would fit, and returns the action. The answer seems to come from the pod, by this device: the stack
/// sends it on as it would send a router's there, and on its way out it is translated like any error about the flow.
#[inline(never)]
fn tell_too_big<I: IpHeader, const LINK: usize>(ctx: &TcContext, length: usize) -> Option<i32> {
    let fits = mtu(ctx).checked_sub(size_of::<I::Tunnel>() as u32)?;
    refuse::answer::<I, LINK>(ctx, length, Problem::TooBig(u16::try_from(fits).unwrap_or(u16::MAX)))?;
    refuse::send_back::<LINK>(ctx, refuse::IN)
}

/// The port that other nodes send to.
#[inline(always)]
fn destination_port() -> Be16 {
    Maps.settings().map_or(Be16::default(), |settings| settings.dsr_port)
}

/// Whether a packet may have been sent here by another node. Costs all that is not UDP a comparison.
#[inline(always)]
pub(crate) fn is_meant(parsed: &Parsed) -> bool {
    let key = &parsed.packet.key;
    key.protocol == Protocol::UDP
        && key.destination_port == destination_port()
        && parsed.part == Part::Whole
        && Maps.roles(key.destination).contains(AddressRoles::BACKEND)
}

/// Takes a packet out of what another node has sent it in, and returns the action. What it did not send stays as it is.
#[inline(always)]
pub(crate) fn receive<I: IpHeader, const LINK: usize>(ctx: &TcContext, parsed: &Parsed) -> i32 {
    if !recognise::<I, LINK>(ctx) {
        return NEXT;
    }
    let problem = match examine::<I, LINK>(ctx) {
        None => Some(DropReason::BadEncapsulation),
        Some(()) => match verified::admit() {
            Ok(port) => strip::<I, LINK>(ctx, port).is_none().then_some(DropReason::RewriteFailed),
            Err(reason) => Some(reason),
        },
    };
    problem.map_or(NEXT, |reason| dropped(&parsed.packet, reason))
}

/// Reads what is outside, and notes what it says the packet was and where it goes. `false` if this is another use of the port.
#[inline(never)]
fn recognise<I: IpHeader, const LINK: usize>(ctx: &TcContext) -> bool {
    let Some((pod, geneve, frontend)) = Unhurried(ctx).load(LINK).as_ref().and_then(I::tunnelled) else {
        return false;
    };
    let Some(arrival) = maps::arrival().filter(|_| geneve.is_ours(I::ETHER_TYPE, I::ADDRESS)) else {
        return false;
    };
    let key = &mut arrival.packet.key;
    let Origin { frontend, client_port } = Origin::new(frontend, geneve.ports());
    (key.destination, key.destination_port, key.source_port) = (frontend.address, frontend.port, client_port);
    arrival.backend.address = pod;
    true
}

/// Reads the packet inside, and completes what is noted of it; `None` if it is none that a node sends so.
#[inline(never)]
fn examine<I: IpHeader, const LINK: usize>(ctx: &TcContext) -> Option<()> {
    let tunnel = size_of::<I::Tunnel>();
    let arrival = maps::arrival()?;
    let Some(Content::Transport(inner)) = parse::parse::<_, I>(&Unhurried(ctx), LINK + tunnel, Hook::INGRESS)
    else {
        return None;
    };
    let inner = inner.packet;
    if inner.key.protocol == Protocol::SCTP || inner.key.destination != arrival.backend.address {
        return None;
    }
    arrival.backend.port = inner.key.destination_port;
    let packet = &mut arrival.packet;
    let (client, frontend) = (packet.key.source_port, packet.key.destination_end());
    let client = Endpoint { address: inner.key.source, port: client };
    packet.key = FlowKey::new(client, frontend, inner.key.protocol, Hook::INGRESS);
    packet.flags = inner.flags;
    packet.length = inner.length.wrapping_sub(tunnel as u32);
    packet.device = inner.device;
    Some(())
}

/// Takes the headers off, and gives the packet its client's port.
#[inline(never)]
fn strip<I: IpHeader, const LINK: usize>(ctx: &TcContext, port: Be16) -> Option<()> {
    let flags = I::DECAPSULATION | u64::from(BPF_F_ADJ_ROOM_FIXED_GSO);
    ctx.adjust_room(-(size_of::<I::Tunnel>() as i32), BPF_ADJ_ROOM_MAC, flags).ok()?;
    let packet = Unhurried(ctx);
    let header = I::read(&packet, LINK)?;
    if header.part == Part::Later {
        return Some(());
    }
    let old: Be16 = packet.load(header.transport)?;
    if old == port {
        return Some(());
    }
    let (check, kind) = transport_checksum(header.protocol);
    let diff = ChecksumDiff { pseudo: 0, payload: 0 }.with_port(old, port);
    packet.store(header.transport, port)?;
    packet.update_checksum(header.transport + check, kind, I::NETWORK_SUM, diff)
}
