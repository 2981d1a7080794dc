//! How far a packet's checksum has come: a field of the kernel's `sk_buff` that programs are not shown.
//!
//! `bpf_cast_to_kern_ctx`, a function of the kernel and no helper, makes the context the `sk_buff` that it stands for, and costs
//! nothing. Where it is and where the field lies, the agent reads from the kernel's BTF. Where it cannot, both numbers stay
//! zero, and the verifier takes the call for what it is then: code that is never reached.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use proxy_common::{checksum::Summed, kernel};

/// Where `ip_summed` is in an `sk_buff`: the byte, or 0 if that is not known, and the lowest bit of it. Set by the agent, so
/// read as memory; to the verifier they are known numbers.
#[unsafe(no_mangle)]
static IP_SUMMED: [u32; 2] = [0; 2];

/// How far the packet's checksum has come; `None` if this kernel does not tell.
#[inline(always)]
pub(crate) fn summed(ctx: &TcContext) -> Option<Summed> {
    let field = &raw const IP_SUMMED;
    // SAFETY: a static of this object, which the kernel has frozen.
    let [byte, bit] = unsafe { field.read_volatile() };
    if byte == 0 {
        return None;
    }
    // SAFETY: the agent makes this the call that is meant, or the line is not reached.
    let cast: unsafe extern "C" fn(*mut __sk_buff) -> *const u8 =
        unsafe { core::mem::transmute(kernel::CAST_TO_KERN_CTX) };
    // SAFETY: the kernel lets programs read fields of an `sk_buff` by their offset, and checks that one is there.
    let bits = unsafe { cast(ctx.skb.skb).add(byte as usize).read_volatile() };
    Some(Summed(bits >> bit & 3))
}
