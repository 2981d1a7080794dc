//! A packet before the stack has seen it. There, no checksum is known to be still to compute: bytes are all there is.

use aya_ebpf::{helpers::bpf_xdp_get_buff_len, programs::XdpContext};
use proxy_common::checksum::{self, ChecksumDiff};
use zerocopy::{FromBytes, IntoBytes};

use super::{ChecksumKind, NetworkSum, Packet, read, write, write_checksum};

impl Packet for XdpContext {
    /// Of the part that lies in one piece; see [`Frame::length_to`].
    #[inline(always)]
    fn length(&self) -> u32 {
        // Never too long; but of plain truncation the compiler makes a subtraction in 32 bits, which pointers must not meet.
        u32::try_from(self.data_end().wrapping_sub(self.data())).unwrap_or(u32::MAX)
    }

    #[inline(always)]
    fn device(&self) -> u32 {
        // SAFETY: a field of the context.
        unsafe { (*self.ctx).ingress_ifindex }
    }

    #[inline(always)]
    fn load<T: FromBytes>(&self, at: usize) -> Option<T> {
        read(self.data(), self.data_end(), at)
    }

    #[inline(always)]
    fn store<T: IntoBytes>(&self, at: usize, value: T) -> Option<()> {
        write(self.data(), self.data_end(), at, value)
    }

    #[inline(always)]
    fn update_checksum(
        &self,
        at: usize,
        kind: ChecksumKind,
        _network: NetworkSum,
        diff: ChecksumDiff,
    ) -> Option<()> {
        write_checksum(self, at, kind, |field| checksum::apply(field, diff.total()))
    }
}

/// A frame whose headers lie in one piece, and perhaps not the rest.
pub(crate) trait Frame {
    /// Bytes of the frame; `None` if it ends before `end`, where its headers say that it goes on to.
    fn length_to(&self, end: usize) -> Option<u32>;
}

impl Frame for XdpContext {
    #[inline(always)]
    fn length_to(&self, end: usize) -> Option<u32> {
        let mut length = Packet::length(self);
        if (length as usize) < end {
            // SAFETY: a plain helper call on this context.
            length = u32::try_from(unsafe { bpf_xdp_get_buff_len(self.ctx) }).ok()?;
        }
        (length as usize >= end).then_some(length)
    }
}
