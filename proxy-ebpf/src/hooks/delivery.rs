//! tc ingress, behind all others: packets between a client and a backend on this node are handed over past the stack.
//!
//! The first hook has translated them by now, and whoever stands in between has let them pass. Everything else goes to the stack
//! as it came: nothing is chosen, refused or dropped here.
#![expect(clippy::cast_possible_truncation, reason = "lengths of packets and headers, far below any limit")]

use aya_ebpf::programs::TcContext;
use network_types::{
    eth::{EthHdr, EtherType},
    udp::UdpHdr,
};
use proxy_common::{
    delivery::Manner,
    lb,
    route::LinkAddress,
    tuple::{Hook, Protocol},
};

use super::tc::NEXT;
use crate::{
    delivery,
    maps::Maps,
    packet::{Note as _, Packet},
    parse::{self, Content, Parsed},
    wire::{IpHeader, Ipv4, Ipv6, TcpView},
};

/// Where the network header begins.
const NETWORK: usize = EthHdr::LEN;
const IPV4: u32 = EtherType::Ipv4 as u32;
const IPV6: u32 = EtherType::Ipv6 as u32;

/// Runs the hook on a packet and returns the tc action.
#[inline(always)]
pub(crate) fn run(ctx: &TcContext) -> i32 {
    let family = ctx.skb.protocol();
    // What is noted has more to become at the egress hook, and a mark may lead elsewhere.
    if ctx.is_tagged() || ctx.is_noted() || ctx.is_marked() {
        return NEXT;
    }
    let action = match family {
        IPV4 => deliver::<Ipv4>(ctx),
        IPV6 => deliver::<Ipv6>(ctx),
        _ => None,
    };
    action.unwrap_or(NEXT)
}

/// Hands the packet over; `None` if the stack is to see it, as it came.
#[inline(always)]
fn deliver<I: IpHeader>(ctx: &TcContext) -> Option<i32> {
    let header: I::Header = Packet::load(ctx, NETWORK)?;
    if !I::is_plain(&header) {
        return None;
    }
    let Content::Transport(parsed) = parse::parse::<_, I>(ctx, NETWORK, Hook::EGRESS)? else {
        return None;
    };
    let packet = &parsed.packet;
    if !lb::may_be_delivered(&Maps, &packet.key) {
        return None;
    }
    let passing = delivery::passing::<I>(ctx, &packet.key, packet.device, I::class(&header))?;
    let came_to: LinkAddress = Packet::load(ctx, 0)?;
    if came_to != passing.came_to || longest(ctx, &parsed)? > u32::from(passing.mtu) {
        return None;
    }
    I::hop(ctx, NETWORK)?;
    if passing.manner == Manner::PEER {
        Packet::store(ctx, 0, [passing.neighbour, passing.own])?;
    }
    Some(delivery::send(passing))
}

/// Bytes of the longest packet, network header included, that this one is taken apart into where it leaves.
#[inline(always)]
fn longest(ctx: &TcContext, parsed: &Parsed) -> Option<u32> {
    let segment = ctx.segment_size();
    if segment == 0 {
        return Some(parsed.packet.length.wrapping_sub(NETWORK as u32));
    }
    let header = if parsed.packet.key.protocol == Protocol::TCP {
        Packet::load::<TcpView>(ctx, parsed.transport)?.length() as u32
    } else {
        UdpHdr::LEN as u32
    };
    Some((parsed.transport.wrapping_sub(NETWORK) as u32).wrapping_add(header).wrapping_add(segment))
}
