//! "Nobody listens there": the datapath's own answer to a packet for a service without backends.
//!
//! kube-proxy refuses with an ICMP port unreachable for every protocol, TCP included (NOEP-01), which a client
//! reports as "connection refused" at once. The packet itself becomes that answer and leaves by the device that it
//! came from. A slow path: nothing here is meant to be cheap, but it needs no more memory than the packet has.
#![expect(unsafe_code, reason = "helpers that aya does not wrap, and a buffer that one of them fills")]
#![expect(clippy::cast_possible_truncation, reason = "lengths of packets and headers, far below any limit")]

use aya_ebpf::{
    bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    helpers::{bpf_redirect, bpf_skb_change_tail, bpf_skb_load_bytes},
    programs::TcContext,
};
use network_types::{eth::EthHdr, ip::Ipv6Hdr, tcp::TcpHdr, udp::UdpHdr};
use proxy_common::tuple::Protocol;

use crate::{parse::Parsed, wire::IpHeader};

/// Words of the longest quotation: IPv6 and TCP headers. What has more options than fit is dropped without an answer.
const WORDS: usize = (Ipv6Hdr::LEN + TcpHdr::LEN) / 4;
/// Bytes of them.
const LONGEST: usize = WORDS * 4;
/// Bytes of the two addresses in an Ethernet header.
const MACS: usize = 12;

/// Turns the packet into the answer and returns the action that sends it back; `None` if that is not possible, and
/// the packet is to be dropped.
#[inline(never)]
pub(crate) fn refuse<I: IpHeader>(ctx: &TcContext, parsed: &Parsed) -> Option<i32> {
    let key = &parsed.packet.key;
    // The whole transport header, not just the 8 bytes that RFC 792 asks for: a packet whose checksum is still to
    // be computed cannot be cut in front of that checksum.
    let transport = match key.protocol {
        Protocol::TCP => TcpHdr::LEN,
        _ => UdpHdr::LEN,
    };
    let length = parsed.transport.wrapping_sub(parsed.network) + transport;
    if length > LONGEST || length == 0 {
        return None;
    }
    let mut quoted = [0u32; WORDS];
    // SAFETY: the buffer holds `LONGEST` bytes, and `length` was compared with that.
    let read = unsafe {
        bpf_skb_load_bytes(ctx.skb.skb.cast(), EthHdr::LEN as u32, quoted.as_mut_ptr().cast(), length as u32)
    };
    if read != 0 {
        return None;
    }
    let sum = quoted.iter().map(|&word| u64::from(word)).sum();
    let answer = I::unreachable(key.destination, key.source, length as u16, sum);
    // SAFETY: a plain helper call; it also ends segmentation offload of the packet.
    if unsafe { bpf_skb_change_tail(ctx.skb.skb, (EthHdr::LEN + length) as u32, 0) } != 0 {
        return None;
    }
    ctx.adjust_room(size_of::<I::Unreachable>() as i32, BPF_ADJ_ROOM_MAC, 0).ok()?;
    ctx.skb.store(EthHdr::LEN, &answer, 0).ok()?;
    let [a, b, c, d, e, f, g, h, i, j, k, l]: [u8; MACS] = ctx.load(0).ok()?;
    ctx.skb.store(0, &[g, h, i, j, k, l, a, b, c, d, e, f], 0).ok()?;
    // SAFETY: a plain helper call on the device that the packet came from.
    let action = unsafe { bpf_redirect((*ctx.skb.skb).ifindex, 0) };
    i32::try_from(action).ok()
}
