//! "Nobody listens there": the datapath's own answer to a packet for a service without backends.
//!
//! kube-proxy refuses with an ICMP port unreachable for every protocol, TCP included (NOEP-01), which a client
//! reports as "connection refused" at once. The packet itself becomes that answer and leaves by the device that it
//! came from. A slow path: nothing here is meant to be cheap, but it needs no more memory than the packet has.
#![expect(unsafe_code, reason = "helpers that aya does not wrap, and a buffer that one of them fills")]
#![expect(clippy::cast_possible_truncation, reason = "lengths of packets and headers, far below any limit")]

use aya_ebpf::{
    bindings::{BPF_F_INGRESS, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC},
    helpers::{bpf_redirect, bpf_skb_change_tail, bpf_skb_load_bytes},
    programs::TcContext,
};
use network_types::{ip::Ipv6Hdr, tcp::TcpHdr, udp::UdpHdr};
use proxy_common::{
    endian::Be16,
    lb::{self, Verdict},
    tuple::{Endpoint, FlowKey, Hook, Protocol},
};

use crate::{
    events,
    maps::Maps,
    packet::{Packet as _, Unhurried},
    parse::Parsed,
    wire::{IpHeader, Part, Problem, SCTP_CHECK},
};

/// Words of the longest quotation: IPv6 and TCP headers. What has more options than fit is dropped without an answer.
const WORDS: usize = (Ipv6Hdr::LEN + TcpHdr::LEN) / 4;
/// Bytes of them.
const LONGEST: usize = WORDS * 4;
/// Bytes of the two addresses in an Ethernet header.
const MACS: usize = 12;

/// How much of a packet without ports is quoted, from its network header on; 0 if it is not refused: it goes to no
/// ClusterIP, or nobody may be told (RFC 1122 3.2.2, RFC 4443 2.4) as it is a later fragment or an ICMP error itself.
#[inline(never)]
pub(crate) fn unknown<I: IpHeader, const LINK: usize>(ctx: &TcContext) -> usize {
    let Some(header) = I::read(&Unhurried(ctx), LINK) else {
        return 0;
    };
    let is_error = || Unhurried(ctx).load(header.transport).is_none_or(I::is_error);
    if header.part == Part::Later || header.protocol == I::ICMP && is_error() {
        return 0;
    }
    match lb::without_ports(&Maps, &header.source, &header.destination) {
        Verdict::Refuse(reason) => {
            let end = |address| Endpoint { address, port: Be16::default() };
            let key =
                FlowKey::new(end(header.source), end(header.destination), header.protocol, Hook::INGRESS);
            events::dropped(&key, reason, ctx.device());
            header.transport.wrapping_sub(LINK) + UdpHdr::LEN
        }
        _ => 0,
    }
}

/// How much of a packet with ports is quoted, from its network header on. The whole transport header, not just the 8 bytes
/// that RFC 792 asks for: a packet whose checksum is still to be computed cannot be cut in front of that checksum. Nothing
/// of a later fragment, about which nobody may be told (RFC 1122 3.2.2).
#[inline(always)]
pub(crate) fn quotation(parsed: &Parsed) -> usize {
    let transport = match parsed.packet.key.protocol {
        _ if parsed.part == Part::Later => return 0,
        Protocol::TCP => TcpHdr::LEN,
        Protocol::SCTP => SCTP_CHECK + size_of::<u32>(),
        _ => UdpHdr::LEN,
    };
    parsed.transport.wrapping_sub(parsed.network) + transport
}

/// Turns the packet into the answer to its sender from its destination, which quotes `length` bytes, and returns the action
/// that sends it back; `None` if that is not possible, and the packet is to be dropped. `LINK` is the length of the link
/// header.
#[inline(never)]
pub(crate) fn refuse<I: IpHeader, const LINK: usize>(ctx: &TcContext, length: usize) -> Option<i32> {
    answer::<I, LINK>(ctx, length, Problem::NobodyListens)?;
    send_back::<LINK>(ctx, OUT)
}

/// Turns the packet into the ICMP error that tells its sender of a problem, from its destination.
#[inline(always)]
pub(crate) fn answer<I: IpHeader, const LINK: usize>(
    ctx: &TcContext,
    length: usize,
    problem: Problem,
) -> Option<()> {
    if length > LONGEST || length == 0 {
        return None;
    }
    let mut quoted = [0u32; WORDS];
    // SAFETY: the buffer holds `LONGEST` bytes, and `length` was compared with that.
    let read = unsafe {
        bpf_skb_load_bytes(ctx.skb.skb.cast(), LINK as u32, quoted.as_mut_ptr().cast(), length as u32)
    };
    if read != 0 {
        return None;
    }
    let sum = quoted.iter().map(|&word| u64::from(word)).sum();
    let (client, service) = I::addresses(&quoted)?;
    let answer = I::error(problem, service, client, length as u16, sum);
    cut(ctx, LINK + length)?;
    ctx.adjust_room(size_of::<I::Error>() as i32, BPF_ADJ_ROOM_MAC, 0).ok()?;
    ctx.skb.store(LINK, &answer, 0).ok()
}

/// Out by the device.
pub(crate) const OUT: u64 = 0;
/// In by the device, as if it had come from there.
pub(crate) const IN: u64 = BPF_F_INGRESS as u64;

/// Makes the packet, an answer by now, turn round at this device, `OUT` or `IN`, and returns the action that does so.
#[inline(always)]
pub(crate) fn send_back<const LINK: usize>(ctx: &TcContext, way: u64) -> Option<i32> {
    if LINK >= MACS {
        let [a, b, c, d, e, f, g, h, i, j, k, l]: [u8; MACS] = ctx.load(0).ok()?;
        ctx.skb.store(0, &[g, h, i, j, k, l, a, b, c, d, e, f], 0).ok()?;
    }
    // SAFETY: a plain helper call on the device that the packet is at.
    let action = unsafe { bpf_redirect((*ctx.skb.skb).ifindex, way) };
    i32::try_from(action).ok()
}

/// Cuts the packet to `length` bytes. Ends segmentation offload of the packet.
#[inline(always)]
pub(crate) fn cut(ctx: &TcContext, length: usize) -> Option<()> {
    // SAFETY: a plain helper call.
    (unsafe { bpf_skb_change_tail(ctx.skb.skb, length as u32, 0) } == 0).then_some(())
}
