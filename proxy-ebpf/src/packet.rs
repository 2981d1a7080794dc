//! Bytes of a packet, checked against its end.
#![expect(unsafe_code, reason = "direct packet access is pointer access; every pointer is checked here")]

use aya_ebpf::{EbpfContext as _, helpers::bpf_csum_update, programs::TcContext};
use proxy_common::checksum::{ChecksumDiff, Summed};
use zerocopy::{FromBytes, IntoBytes};

mod summed;
mod xdp;

pub(crate) use summed::summed;
pub(crate) use xdp::Frame;

/// The address part of a checksum change belongs to the pseudo header.
const BPF_F_PSEUDO_HDR: u64 = 1 << 4;
/// A UDP checksum of zero means "none" and stays so; one that becomes zero is sent as ones (RFC 768).
const BPF_F_MARK_MANGLED_0: u64 = 1 << 5;

/// Which rules the transport's checksum field follows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChecksumKind {
    /// Always present.
    Mandatory,
    /// Zero means absent.
    ZeroIsAbsent,
}

/// A packet at a hook. What a hook cannot do is not here.
pub(crate) trait Packet {
    /// Bytes of the whole packet, linear or not.
    fn length(&self) -> u32;
    /// Number of the device that the hook belongs to.
    fn device(&self) -> u32;
    /// Reads a header view; `None` beyond the end of the linear data.
    fn load<T: FromBytes>(&self, at: usize) -> Option<T>;
    /// Writes a field; `None` beyond the end of the linear data.
    fn store<T: IntoBytes>(&self, at: usize, value: T) -> Option<()>;
    /// Carries a change of address and port into the transport checksum at `at`, whatever part of it the device
    /// has still to compute. Invalidates what was known about the packet's bounds.
    fn update_checksum(
        &self,
        at: usize,
        kind: ChecksumKind,
        network: NetworkSum,
        diff: ChecksumDiff,
    ) -> Option<()>;
}

/// What the network header's own checksum does when an address changes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum NetworkSum {
    /// IPv4: it changes the other way, so the sum over the whole packet stays.
    Compensates,
    /// IPv6: there is none.
    Absent,
}

/// A pointer to `T` at an offset from `start`, if it lies before `end`.
#[inline(always)]
fn checked<T>(start: usize, end: usize, at: usize) -> Option<*mut T> {
    // Wire views are `packed(2)`: an Ethernet header of 14 bytes leaves what follows on an even address.
    const { assert!(align_of::<T>() <= 2) };
    let pointer = start + at;
    if pointer + size_of::<T>() > end { None } else { Some(pointer as *mut T) }
}

/// Reads what lies at an offset from `start`, if it lies before `end`: the bounds of a packet, as its context has them.
#[inline(always)]
fn read<T: FromBytes>(start: usize, end: usize, at: usize) -> Option<T> {
    let pointer = checked::<T>(start, end, at)?;
    // SAFETY: `checked` has compared the pointer with the packet's end, the verifier proves it again, and any bytes are a
    // valid `T`.
    Some(unsafe { pointer.read() })
}

/// Writes there likewise, into a packet that nobody else reads.
#[inline(always)]
fn write<T: IntoBytes>(start: usize, end: usize, at: usize, value: T) -> Option<()> {
    let pointer = checked::<T>(start, end, at)?;
    // SAFETY: as in `read`; the packet's bytes are the program's to write.
    unsafe { pointer.write(value) };
    Some(())
}

impl Packet for TcContext {
    #[inline(always)]
    fn length(&self) -> u32 {
        self.len()
    }

    #[inline(always)]
    fn device(&self) -> u32 {
        // SAFETY: a field of the context.
        unsafe { (*self.skb.skb).ifindex }
    }

    #[inline(always)]
    fn load<T: FromBytes>(&self, at: usize) -> Option<T> {
        read(self.data(), self.data_end(), at)
    }

    #[inline(always)]
    fn store<T: IntoBytes>(&self, at: usize, value: T) -> Option<()> {
        // The kernel has made the linear data writable before the program (its prologue unclones it).
        write(self.data(), self.data_end(), at, value)
    }

    #[inline(always)]
    fn update_checksum(
        &self,
        at: usize,
        kind: ChecksumKind,
        network: NetworkSum,
        diff: ChecksumDiff,
    ) -> Option<()> {
        match summed(self) {
            // What is still to be computed, or nobody else's sum, is a field like any other.
            Some(summed @ (Summed::NONE | Summed::UNNECESSARY | Summed::PARTIAL)) => {
                write_checksum(self, at, kind, |field| summed.apply(field, diff))
            }
            _ => checksum_by_helper(self, at, kind, network, diff),
        }
    }
}

/// Changes a checksum field by its rules.
#[inline(always)]
fn write_checksum<P: Packet>(
    packet: &P,
    at: usize,
    kind: ChecksumKind,
    change: impl FnOnce(u16) -> u16,
) -> Option<()> {
    let field: u16 = packet.load(at)?;
    if kind == ChecksumKind::ZeroIsAbsent && field == 0 {
        return Some(());
    }
    let new = match change(field) {
        0 if kind == ChecksumKind::ZeroIsAbsent => u16::MAX,
        new => new,
    };
    packet.store(at, new)
}

/// [`Packet::update_checksum`] without knowing how far the checksum has come.
#[inline(always)]
fn checksum_by_helper(
    ctx: &TcContext,
    at: usize,
    kind: ChecksumKind,
    network: NetworkSum,
    diff: ChecksumDiff,
) -> Option<()> {
    let flags = match kind {
        ChecksumKind::Mandatory => 0,
        ChecksumKind::ZeroIsAbsent => BPF_F_MARK_MANGLED_0,
    };
    // A size of 0 says that the value is a difference. Two calls, because only the pseudo header's part
    // may touch a checksum that the device completes (CHECKSUM_PARTIAL).
    ctx.l4_csum_replace(at, 0, u64::from(diff.pseudo), flags | BPF_F_PSEUDO_HDR).ok()?;
    if diff.payload != 0 {
        ctx.l4_csum_replace(at, 0, u64::from(diff.payload), flags).ok()?;
    }
    if network == NetworkSum::Absent {
        // The helper takes the pseudo header's change out of a device-computed sum of the whole packet
        // (CHECKSUM_COMPLETE), which is right for IPv4 only (BPF_F_IPV6, Linux 6.16, repairs that): put it
        // back. Fails, as it should, when the device computed no such sum.
        // SAFETY: a plain helper call on this context.
        let _not_complete = unsafe { bpf_csum_update(ctx.as_ptr().cast(), diff.pseudo) };
    }
    Some(())
}

/// What the ingress hook says to the egress hook about a packet: give it another source. It travels in `tc_index`, which
/// nothing else in the kernel has used since the DSMARK scheduler went, which survives cloning, segmentation and
/// fragmentation, and which costs one load where a table would cost a lookup. Cilium keeps flags in the lower bits, hence
/// none there. A stray value does no harm: only a packet of a flow that wants it gets another source.
const MASQUERADE: u32 = 0x51c0;
/// The same, to say: encapsulate it for its backend's node.
const ENCAPSULATE: u32 = 0x51c1;

/// What is said about a packet beside its bytes.
pub(crate) trait Note {
    /// Whether it belongs to a VLAN, as the device below the VLAN's own sees it. The VLAN's device sees it too, untagged.
    fn is_tagged(&self) -> bool;
    /// Whether the source is to be rewritten.
    fn is_masqueraded(&self) -> bool;
    /// Whether it is to be encapsulated.
    fn is_for_other_node(&self) -> bool;
    /// Whether there is a note of either kind.
    fn is_noted(&self) -> bool;
    /// Whether somebody has marked it, which routing and policy may ask for.
    fn is_marked(&self) -> bool;
    /// What each segment carries that it will be taken apart into; 0 if it will not.
    fn segment_size(&self) -> u32;
    /// Leaves the note.
    fn masquerade(&self);
    /// Leaves the other one.
    fn encapsulate(&self);
    /// Removes it: devices stacked on each other would do it again.
    fn done(&self);
}

impl Note for TcContext {
    #[inline(always)]
    fn is_tagged(&self) -> bool {
        // SAFETY: a field of the context.
        unsafe { (*self.skb.skb).vlan_present != 0 }
    }

    #[inline(always)]
    fn is_masqueraded(&self) -> bool {
        // SAFETY: a field of the context.
        unsafe { (*self.skb.skb).tc_index == MASQUERADE }
    }

    #[inline(always)]
    fn is_for_other_node(&self) -> bool {
        // SAFETY: a field of the context.
        unsafe { (*self.skb.skb).tc_index == ENCAPSULATE }
    }

    #[inline(always)]
    fn is_noted(&self) -> bool {
        self.is_masqueraded() || self.is_for_other_node()
    }

    #[inline(always)]
    fn is_marked(&self) -> bool {
        // SAFETY: a field of the context.
        unsafe { (*self.skb.skb).mark != 0 }
    }

    #[inline(always)]
    fn segment_size(&self) -> u32 {
        // SAFETY: a field of the context.
        unsafe { (*self.skb.skb).gso_size }
    }

    #[inline(always)]
    fn masquerade(&self) {
        // SAFETY: a field of the context that programs may write.
        unsafe { (*self.skb.skb).tc_index = MASQUERADE };
    }

    #[inline(always)]
    fn encapsulate(&self) {
        // SAFETY: as above.
        unsafe { (*self.skb.skb).tc_index = ENCAPSULATE };
    }

    #[inline(always)]
    fn done(&self) {
        // SAFETY: as above.
        unsafe { (*self.skb.skb).tc_index = 0 };
    }
}

/// A packet read and written through helpers, at any offset and beyond the linear data: for slow paths, whose offsets
/// the verifier cannot follow.
pub(crate) struct Unhurried<'a>(pub(crate) &'a TcContext);

impl Packet for Unhurried<'_> {
    #[inline(always)]
    fn length(&self) -> u32 {
        self.0.length()
    }

    #[inline(always)]
    fn device(&self) -> u32 {
        self.0.device()
    }

    #[inline(always)]
    fn load<T: FromBytes>(&self, at: usize) -> Option<T> {
        self.0.load(at).ok()
    }

    #[inline(always)]
    fn store<T: IntoBytes>(&self, at: usize, value: T) -> Option<()> {
        self.0.skb.store(at, &value, 0).ok()
    }

    #[inline(always)]
    fn update_checksum(
        &self,
        at: usize,
        kind: ChecksumKind,
        network: NetworkSum,
        diff: ChecksumDiff,
    ) -> Option<()> {
        checksum_by_helper(self.0, at, kind, network, diff)
    }
}
