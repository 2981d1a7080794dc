//! tc (tcx) hooks: ingress rewrites destinations, egress rewrites sources, nothing else.
#![expect(clippy::cast_possible_truncation, reason = "lengths of packets and headers, far below any limit")]

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    programs::TcContext,
};
use network_types::eth::{EthHdr, EtherType};
use proxy_common::{
    drop::DropReason,
    lb::{self, Verdict},
    tuple::Hook,
};

use crate::{
    icmp,
    maps::{self, Maps},
    parse::{self, Content, HEADERS},
    refuse,
    rewrite::{self, End},
    wire::{Ipv4, Ipv6},
};

/// `TCX_NEXT`: leave the packet to whoever else is attached, then to the stack.
const NEXT: i32 = TC_ACT_UNSPEC;
const IPV4: u32 = EtherType::Ipv4 as u32;
const IPV6: u32 = EtherType::Ipv6 as u32;

/// Runs the hook on a packet and returns the tc action.
#[inline(always)]
pub(crate) fn run(ctx: &TcContext, hook: Hook) -> i32 {
    match balance(ctx, hook) {
        Ok(action) => action,
        Err(reason) => {
            maps::count_drop(reason);
            TC_ACT_SHOT
        }
    }
}

/// Parse, decide, rewrite. Headers differ by family, the decision does not: it stands here once.
#[inline(always)]
fn balance(ctx: &TcContext, hook: Hook) -> Result<i32, DropReason> {
    let family = ctx.skb.protocol();
    if family != IPV4 && family != IPV6 {
        return Ok(NEXT);
    }
    // A driver may leave headers in fragments; what the packet does not have cannot be pulled.
    let linear = ctx.data_end().wrapping_sub(ctx.data());
    if linear < HEADERS
        && linear < ctx.len() as usize
        && ctx.pull_data(ctx.len().min(HEADERS as u32)).is_err()
    {
        return Ok(NEXT);
    }
    let parsed = match family {
        IPV4 => parse::parse::<_, Ipv4>(ctx, EthHdr::LEN, hook),
        _ => parse::parse::<_, Ipv6>(ctx, EthHdr::LEN, hook),
    };
    let parsed = match parsed {
        Some(Content::Transport(parsed)) => parsed,
        Some(Content::Icmp(at)) => {
            match family {
                IPV4 => icmp::translate::<Ipv4>(ctx, at, hook),
                _ => icmp::translate::<Ipv6>(ctx, at, hook),
            };
            return Ok(NEXT);
        }
        None => return Ok(NEXT),
    };
    let (verdict, end) = match hook {
        Hook::INGRESS => (lb::ingress(&Maps, &parsed.packet), End::Destination),
        _ => (lb::egress(&Maps, &parsed.packet), End::Source),
    };
    let new = match verdict {
        Verdict::Pass => return Ok(NEXT),
        Verdict::Drop(reason) => return Err(reason),
        Verdict::Refuse(reason) => {
            let answered = match family {
                IPV4 => refuse::refuse::<Ipv4>(ctx, &parsed),
                _ => refuse::refuse::<Ipv6>(ctx, &parsed),
            };
            maps::count_drop(reason);
            return Ok(answered.unwrap_or(TC_ACT_SHOT));
        }
        Verdict::Rewrite(new) => new,
    };
    #[cfg(feature = "log")]
    {
        let [a, b, c, d] = new.address.words().map(u64::from);
        log(ctx, &parsed.packet.key, a | b << 32, c | d << 32, new.port.to_host());
    }
    match family {
        IPV4 => rewrite::rewrite::<_, Ipv4>(ctx, &parsed, end, new),
        _ => rewrite::rewrite::<_, Ipv6>(ctx, &parsed, end, new),
    }
    .map(|()| NEXT)
    .ok_or(DropReason::RewriteFailed)
}

/// Logs a translation, in builds made with `--datapath-log`. Out of line, because formatting needs a stack of its
/// own; in five scalars, because a subprogram takes no more.
#[cfg(feature = "log")]
#[inline(never)]
fn log(ctx: &TcContext, key: &proxy_common::tuple::FlowKey, first: u64, last: u64, port: u16) {
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
