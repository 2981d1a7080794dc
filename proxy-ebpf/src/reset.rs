//! "This connection is over": the datapath's own answer to a segment whose backend is gone, if the Service asks for that.
//!
//! The segment becomes a RST from the service, made as a host makes one that knows of no connection (RFC 9293 3.10.7.1),
//! and leaves by the device that it came from. A slow path.
#![expect(clippy::cast_possible_truncation, reason = "lengths of packets and headers, far below any limit")]

use core::mem::offset_of;

use aya_ebpf::programs::TcContext;
use network_types::tcp::TcpHdr;
use proxy_common::{checksum, flow::TcpFlags};

use crate::{
    packet::{Packet as _, Unhurried},
    refuse::{OUT, cut, send_back},
    wire::{Be32, IpHeader, TcpView},
};

/// Turns the segment, whose TCP header is at `transport`, into the RST that answers it, and returns the action that sends it
/// back; `None` if that is not possible, and the segment is to be dropped. `LINK` is the length of the link header.
#[inline(never)]
pub(crate) fn reset<I: IpHeader, const LINK: usize>(ctx: &TcContext, transport: usize) -> Option<i32> {
    let packet = Unhurried(ctx);
    let mut network: I::Header = packet.load(LINK)?;
    let mut segment: TcpView = packet.load(transport)?;
    let headers = transport.wrapping_sub(LINK) + segment.length();
    segment.reset(I::length(&network).wrapping_sub(headers) as u32);
    let pseudo = I::answer(&mut network, TcpHdr::LEN as u16);
    // For a packet whose checksum the device will finish, the field has the sum of the pseudo header. The helper below
    // leaves that alone, and makes a whole checksum of it in any other packet. (Options, which would put the header where
    // the device does not look for it, keep such a packet from being cut.)
    segment.check = !checksum::of(pseudo);
    let change = checksum::fold32(2 * u64::from(segment.check) + segment.sum());
    let transport = LINK + size_of::<I::Header>();
    cut(ctx, transport + TcpHdr::LEN)?;
    ctx.skb.store(LINK, &network, 0).ok()?;
    ctx.skb.store(transport, &segment, 0).ok()?;
    ctx.l4_csum_replace(transport + offset_of!(TcpView, check), 0, u64::from(change), 0).ok()?;
    send_back::<LINK>(ctx, OUT)
}

impl TcpView {
    /// Makes it the RST that answers it, if so many bytes of payload followed (RFC 9293 3.10.7.1).
    #[inline(always)]
    fn reset(&mut self, payload: u32) {
        let flags = TcpFlags(self.flags);
        (self.source, self.destination) = (self.destination, self.source);
        if flags.contains(TcpFlags::ACK) {
            self.sequence = self.acknowledgement;
            self.acknowledgement = Be32::from_host(0);
            self.flags = TcpFlags::RST.0;
        } else {
            // SYN and FIN are counted as a byte each.
            let controls =
                u32::from(flags.contains(TcpFlags::SYN)) + u32::from(flags.contains(TcpFlags::FIN));
            let end = self.sequence.to_host().wrapping_add(payload).wrapping_add(controls);
            self.sequence = Be32::from_host(0);
            self.acknowledgement = Be32::from_host(end);
            self.flags = TcpFlags::RST.with(TcpFlags::ACK).0;
        }
        self.data_offset = ((TcpHdr::LEN / 4) as u8) << 4;
        self.window = 0;
        self.check = 0;
        self.urgent = 0;
    }

    /// What a header without checksum, window and options adds to the sum that the checksum covers.
    #[inline(always)]
    fn sum(&self) -> u64 {
        let ports = u64::from(self.source.raw()) + u64::from(self.destination.raw());
        let flags = u64::from(u16::from_ne_bytes([self.data_offset, self.flags]));
        ports + self.sequence.sum() + self.acknowledgement.sum() + flags
    }
}
