//! A generator of packets, and where they end, for `BPF_PROG_TEST_RUN` with live frames: those that the program redirects are
//! sent. So a device is given packets as a driver gives them to it, without a sender's stack in front.

use aya_ebpf::{
    bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS},
    helpers::{bpf_redirect, bpf_xdp_adjust_head, bpf_xdp_adjust_tail},
    macros::{map, xdp},
    maps::Array,
    programs::XdpContext,
};
use network_types::{eth::EtherType, ip::IpProto};

use crate::packet;

/// Bytes of a frame: the shortest that Ethernet has, without its check sequence.
const FRAME: usize = 60;
/// Frames that there is room for.
const FRAMES: u32 = 64;

/// Whatever is sent, in turn, each in whole words.
#[map]
static FRAMES_SENT: Array<[u64; FRAME.div_ceil(8)]> = Array::with_max_entries(FRAMES, 0);
/// Where it is sent.
#[map]
static GENERATOR: Array<Generator> = Array::with_max_entries(1, 0);
/// How many frames have ended.
#[map]
static SWALLOWED: Array<u64> = Array::with_max_entries(1, 0);

/// What the generator does.
#[repr(C)]
struct Generator {
    /// Number of the device that frames are sent by.
    device: u32,
    /// How many have been sent; the lower bits say which frame comes next.
    count: u32,
    /// How much of the room in front of a frame is taken away, in bytes.
    taken: i32,
}

/// Sends the next frame. What the memory of this one had before does not matter: receivers have rewritten it.
#[xdp]
fn xdp_generate(ctx: XdpContext) -> u32 {
    generate(&ctx).unwrap_or(XDP_ABORTED)
}

#[inline(always)]
#[expect(clippy::cast_sign_loss, reason = "an action")]
fn generate(ctx: &XdpContext) -> Option<u32> {
    let generator = GENERATOR.get_ptr_mut(0)?;
    // SAFETY: one generator runs at a time.
    let Generator { device, count, taken } = unsafe { generator.read() };
    // SAFETY: as above.
    unsafe { (*generator).count = count.wrapping_add(1) };
    if taken != 0 {
        // SAFETY: plain helpers on this context; what they refuse leaves a frame that is too short or too long for all that follows.
        let moved = unsafe { bpf_xdp_adjust_head(ctx.ctx, -taken) | bpf_xdp_adjust_tail(ctx.ctx, -taken) };
        if moved != 0 {
            return None;
        }
    }
    let frame = FRAMES_SENT.get(count % FRAMES)?;
    let place = packet::<[u32; FRAME / 4]>(ctx, 0)?;
    // SAFETY: checked against the packet's end; there are no fewer words in the map.
    unsafe { place.write_unaligned(core::ptr::from_ref(frame).cast::<[u32; FRAME / 4]>().read()) };
    // SAFETY: the helper notes the device for this frame, and takes any number.
    Some(unsafe { bpf_redirect(device, 0) } as u32)
}

/// Ends UDP over IPv4, and counts it. Neighbours still find each other.
#[xdp(frags)]
fn xdp_swallow(ctx: XdpContext) -> u32 {
    const KIND: usize = 12;
    const PROTOCOL: usize = 23;
    let (Some(kind), Some(protocol)) = (packet::<u16>(&ctx, KIND), packet::<u8>(&ctx, PROTOCOL)) else {
        return XDP_PASS;
    };
    // SAFETY: checked against the packet's end.
    let (kind, protocol) = unsafe { (kind.read_unaligned(), protocol.read()) };
    if kind != EtherType::Ipv4 as u16 || protocol != IpProto::Udp as u8 {
        return XDP_PASS;
    }
    if let Some(count) = SWALLOWED.get_ptr_mut(0) {
        // SAFETY: frames end on one CPU.
        unsafe { *count += 1 };
    }
    XDP_DROP
}
