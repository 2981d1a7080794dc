//! tc (tcx) hooks: ingress rewrites destinations, egress rewrites sources, nothing else.
#![expect(clippy::cast_possible_truncation, reason = "lengths of packets and headers, far below any limit")]

use aya_ebpf::{
    EbpfContext as _,
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    programs::TcContext,
};
use network_types::eth::EtherType;
use proxy_common::{
    drop::DropReason,
    lb::{self, Verdict},
    tuple::{FlowKey, Hook},
};

use crate::{
    dsr, events, fragment, icmp,
    listeners::Listeners,
    maps::{self, Maps},
    packet::Note as _,
    parse::{self, Content, HEADERS},
    refuse, reset, rewrite,
    wire::{IpHeader, Ipv4, Ipv6, Part},
};

/// `TCX_NEXT`: leave the packet to whoever else is attached, then to the stack.
pub(crate) const NEXT: i32 = TC_ACT_UNSPEC;
pub(super) const IPV4: u32 = EtherType::Ipv4 as u32;
pub(super) const IPV6: u32 = EtherType::Ipv6 as u32;

/// Runs the hook on a packet and returns the tc action. `LINK` is the length of the link header.
///
/// Parse, decide, rewrite. Headers differ by family, the decision does not: it stands here once.
#[inline(always)]
pub(crate) fn run<const LINK: usize>(ctx: &TcContext, hook: Hook) -> i32 {
    let family = ctx.skb.protocol();
    if family != IPV4 && family != IPV6 || ctx.is_tagged() {
        return NEXT;
    }
    // A driver may leave headers in fragments; what the packet does not have cannot be pulled. Sockets leave no headers
    // there, and to pull their data would copy the packet: the socket holds on to it, to send it again.
    let linear = ctx.data_end().wrapping_sub(ctx.data());
    if linear < parse::needed::<_, LINK>(ctx, family == IPV4)
        && linear < ctx.len() as usize
        && ctx.pull_data(ctx.len().min(HEADERS as u32)).is_err()
    {
        return NEXT;
    }
    let content = match family {
        IPV4 => parse::parse::<_, Ipv4>(ctx, LINK, hook),
        _ => parse::parse::<_, Ipv6>(ctx, LINK, hook),
    };
    let mut parsed = match content {
        Some(Content::Transport(parsed)) => parsed,
        Some(Content::Other) => {
            return match family {
                IPV4 => without_ports::<Ipv4, LINK>(ctx, hook),
                _ => without_ports::<Ipv6, LINK>(ctx, hook),
            };
        }
        None => return NEXT,
    };
    let is_noted = ctx.is_noted();
    if parsed.part != Part::Whole && !fragment::complete(&mut parsed, is_noted) {
        let FlowKey { source, destination, .. } = &parsed.packet.key;
        return match lb::without_ports(&Maps, source, destination) {
            Verdict::Refuse(_) if hook == Hook::INGRESS => {
                dropped(&parsed.packet, DropReason::OrphanFragment)
            }
            _ => NEXT,
        };
    }
    if hook == Hook::EGRESS && ctx.is_for_other_node() {
        return match family {
            IPV4 => dsr::send::<Ipv4, LINK>(ctx, &parsed),
            _ => dsr::send::<Ipv6, LINK>(ctx, &parsed),
        };
    }
    let verdict = match hook {
        Hook::INGRESS => lb::ingress(&Maps, &Listeners(ctx.as_ptr()), &parsed.packet),
        _ => lb::egress(&Maps, &parsed.packet, ctx.is_masqueraded()),
    };
    let new = match verdict {
        // Only now: what is ours in any other way has been found to be.
        Verdict::Pass if hook == Hook::INGRESS && dsr::is_meant(&parsed) => {
            return match family {
                IPV4 => dsr::receive::<Ipv4, LINK>(ctx, &parsed),
                _ => dsr::receive::<Ipv6, LINK>(ctx, &parsed),
            };
        }
        Verdict::Pass => return NEXT,
        Verdict::Drop(reason) => return dropped(&parsed.packet, reason),
        Verdict::Refuse(reason) => {
            let length = refuse::quotation(&parsed);
            let answered = match family {
                IPV4 => refuse::refuse::<Ipv4, LINK>(ctx, length),
                _ => refuse::refuse::<Ipv6, LINK>(ctx, length),
            };
            let action = dropped(&parsed.packet, reason);
            return answered.unwrap_or(action);
        }
        Verdict::Reset(reason) => {
            let transport = parsed.transport;
            let answered = match family {
                // A fragment has not all that the answer needs.
                _ if parsed.part != Part::Whole => None,
                IPV4 => reset::reset::<Ipv4, LINK>(ctx, transport),
                _ => reset::reset::<Ipv6, LINK>(ctx, transport),
            };
            let action = dropped(&parsed.packet, reason);
            return answered.unwrap_or(action);
        }
        Verdict::Rewrite(new) => new,
    };
    #[cfg(feature = "log")]
    {
        let [a, b, c, d] = new.end.address.words().map(u64::from);
        log(ctx, &parsed.packet.key, a | b << 32, c | d << 32, new.end.port.to_host());
    }
    match hook {
        Hook::INGRESS if new.masquerade => ctx.masquerade(),
        Hook::INGRESS if new.dsr => ctx.encapsulate(),
        Hook::EGRESS if ctx.is_masqueraded() => ctx.done(),
        _ => {}
    }
    let rewritten = match family {
        IPV4 => rewrite::rewrite::<_, Ipv4>(ctx, &parsed, &new),
        _ => rewrite::rewrite::<_, Ipv6>(ctx, &parsed, &new),
    };
    match rewritten {
        Some(()) => NEXT,
        None => dropped(&parsed.packet, DropReason::RewriteFailed),
    }
}

/// Counts a dropped packet, tells whoever listens, and returns the action.
#[inline(always)]
pub(crate) fn dropped(packet: &lb::Packet, reason: DropReason) -> i32 {
    maps::count_drop(reason);
    events::dropped(&packet.key, reason, packet.device);
    TC_ACT_SHOT
}

/// A packet of a protocol without ports: an ICMP error about a flow, a ping to a service, or none of Sluice's business.
/// Returns the action. The steps are out of line and read the header again, each on a stack of its own.
#[inline(always)]
fn without_ports<I: IpHeader, const LINK: usize>(ctx: &TcContext, hook: Hook) -> i32 {
    if icmp::translate::<I, LINK>(ctx, hook).is_some() || hook != Hook::INGRESS {
        return NEXT;
    }
    let length = refuse::unknown::<I, LINK>(ctx);
    if length == 0 {
        return NEXT;
    }
    maps::count_drop(DropReason::UnknownPort);
    refuse::refuse::<I, LINK>(ctx, length).unwrap_or(TC_ACT_SHOT)
}

/// Logs a translation, in builds made with `--datapath-log`. Out of line, because formatting needs a stack of its
/// own; in five scalars, because a subprogram takes no more.
#[cfg(feature = "log")]
#[inline(never)]
fn log(ctx: &TcContext, key: &FlowKey, first: u64, last: u64, port: u16) {
    let [a, b, c, d] = [first as u32, (first >> 32) as u32, last as u32, (last >> 32) as u32];
    aya_log_ebpf::debug!(
        ctx,
        "hook {}: {:i} {} to {:i} {} gets {:i} {}",
        key.hook.number(),
        key.source.octets(),
        key.source_port.to_host(),
        key.destination.octets(),
        key.destination_port.to_host(),
        proxy_common::addr::Addr::from_v6_words([a, b, c, d]).octets(),
        port
    );
}
