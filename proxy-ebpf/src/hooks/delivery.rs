//! tc ingress, behind all others: packets between a client and a backend on this node are handed over past the stack.
//!
//! The first hook has translated them by now, and whoever stands in between has let them pass. Everything else goes to the stack
//! as it came: nothing is chosen, refused or dropped here.

use aya_ebpf::programs::TcContext;
use network_types::eth::EthHdr;
use proxy_common::{delivery::Manner, lb, route::LinkAddress, tuple::Hook};

use super::tc::{IPV4, IPV6, NEXT};
use crate::{
    delivery,
    maps::Maps,
    packet::{Note as _, Packet},
    parse::{self, Content},
    wire::{IpHeader, Ipv4, Ipv6},
};

/// Where the network header begins.
const NETWORK: usize = EthHdr::LEN;

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
    if came_to != passing.came_to || parsed.longest(ctx, ctx.segment_size())? > u32::from(passing.mtu) {
        return None;
    }
    I::hop(ctx, NETWORK)?;
    if passing.manner == Manner::PEER {
        Packet::store(ctx, 0, [passing.neighbour, passing.own])?;
    }
    Some(delivery::send(passing))
}
