//! Programs that measure programs. Not part of the agent.
//!
//! `BPF_PROG_TEST_RUN` with a repeat count does not restore the packet in between, so a program that rewrites
//! would be timed on its own output. [`drive`] stands in front: it puts the packet back, picks another flow
//! when asked to, and tail-calls the target. The same in front of [`empty`] is the overhead to subtract. The
//! `floor_*` programs do as little as a step of any such datapath can: what cannot be undercut with stock maps
//! and helpers. `xdp_*` is the same for the hook before the stack. [`generate`] sends packets to devices.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "direct packet and map access in programs that exist to be timed")]
#![expect(clippy::cast_possible_truncation, reason = "lengths of packets and headers, far below any limit")]

mod generate;

use aya_ebpf::{
    EbpfContext,
    bindings::{TC_ACT_UNSPEC, xdp_action::XDP_PASS},
    helpers::bpf_get_prandom_u32,
    macros::{classifier, map, xdp},
    maps::{Array, HashMap, ProgramArray},
    programs::{TcContext, XdpContext},
};
use proxy_common::checksum;

/// Bytes that [`drive`] restores; every packet of the benchmark is at least so long.
const RESTORED: usize = 96;
/// Where the driver's failure shows in the result.
const FAILED: i32 = 0xdead;

/// The packet, as it should be in front of the target.
#[map]
static PACKET: Array<[u64; RESTORED / 8]> = Array::with_max_entries(1, 0);
/// How to vary it.
#[map]
static VARY: Array<Variation> = Array::with_max_entries(1, 0);
/// The program to time.
#[map]
static TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);
/// The same for XDP: an array holds programs of one type.
#[map]
static XDP_TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// How packets differ: 24 bits of source port and address, which are those of a running number.
#[repr(C)]
struct Variation {
    /// Offset of the source port; 0: they do not differ.
    at: u64,
    /// How many packets have run.
    count: u64,
    /// Bits of the number that count: as many flows.
    mask: u64,
    /// Odd: the numbers below a power of two come all, but not in turn. 1: in turn.
    stride: u64,
}

/// Where a packet lies.
trait Bounds: EbpfContext {
    fn bounds(&self) -> (usize, usize);
}

impl Bounds for TcContext {
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        (self.data(), self.data_end())
    }
}

impl Bounds for XdpContext {
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        (self.data(), self.data_end())
    }
}

#[inline(always)]
fn packet<T>(ctx: &impl Bounds, at: usize) -> Option<*mut T> {
    let (start, end) = ctx.bounds();
    let start = start + at;
    if start + size_of::<T>() > end { None } else { Some(start as *mut T) }
}

/// Restores the packet and runs the target.
#[classifier]
fn drive(ctx: TcContext) -> i32 {
    restore(&ctx, &TARGET);
    FAILED
}

/// As [`drive`], before the stack.
#[xdp(frags)]
fn xdp_drive(ctx: XdpContext) -> u32 {
    restore(&ctx, &XDP_TARGET);
    FAILED.cast_unsigned()
}

/// Returns only if it fails.
#[inline(always)]
fn restore(ctx: &impl Bounds, target: &ProgramArray) -> Option<()> {
    let original = PACKET.get(0)?;
    let place = packet::<[u64; RESTORED / 8]>(ctx, 0)?;
    // SAFETY: checked against the packet's end; x86 and arm64 allow the unaligned words, which the verifier knows.
    unsafe { place.write_unaligned(*original) };
    let vary = VARY.get_ptr_mut(0)?;
    // SAFETY: one benchmark runs at a time.
    let Variation { at, count, mask, stride } = unsafe { vary.read() };
    if at != 0 {
        // SAFETY: as above.
        unsafe { (*vary).count = count + 1 };
        let count = count.wrapping_mul(stride) & mask;
        let port = packet::<u16>(ctx, at as usize & 0x7f)?;
        // The port's 16 bits, then the low byte of the source address in front of it.
        // SAFETY: checked against the packet's end.
        unsafe { port.write_unaligned((count as u16).to_be()) };
        let low = packet::<u8>(ctx, if at == 34 { 29 } else { 37 })?;
        // SAFETY: checked against the packet's end.
        unsafe { low.write((count >> 16) as u8) };
    }
    // Gives the stores time to reach the cache: the target must not wait for them. A clock read would do so too, but it
    // drains the pipeline, and then a short target hides behind the loop around it.
    // SAFETY: a plain helper.
    unsafe { bpf_get_prandom_u32() };
    // SAFETY: the array holds a program of the same type, or nothing.
    unsafe { target.tail_call(ctx, 0) };
    None
}

/// Does nothing: what is left is the loop, the driver and the tail call.
#[classifier]
fn empty(_: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// As [`empty`], before the stack.
#[xdp(frags)]
fn xdp_empty(_: XdpContext) -> u32 {
    XDP_PASS
}

#[derive(Clone, Copy)]
#[repr(C)]
struct FloorKey {
    source: u32,
    destination: u32,
    ports: u32,
    protocol: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct FloorValue {
    address: u32,
    port: u16,
    unused: u16,
}

#[map]
static FLOOR_FLOWS: HashMap<FloorKey, FloorValue> = HashMap::with_max_entries(1 << 18, 0);

/// Keys as long as those of the flow table.
#[map]
static FLOOR_LONG: HashMap<[u32; 10], FloorValue> = HashMap::with_max_entries(1024, 0);

const IPV4_TCP: usize = 54;

/// Reads the tuple of an IPv4 TCP packet.
#[inline(always)]
fn floor_key(ctx: &impl Bounds) -> Option<FloorKey> {
    let header = packet::<[u16; IPV4_TCP / 2]>(ctx, 0)?;
    // SAFETY: checked against the packet's end.
    let word = |at: usize| unsafe { header.cast::<u8>().add(at).cast::<u32>().read_unaligned() };
    // SAFETY: as above.
    let protocol = unsafe { header.cast::<u8>().add(23).read() };
    if protocol != 6 {
        return None;
    }
    Some(FloorKey { source: word(26), destination: word(30), ports: word(34), protocol: 6 })
}

/// Floor: parse, nothing else.
#[classifier]
fn floor_parse(ctx: TcContext) -> i32 {
    match floor_key(&ctx) {
        // The tuple must be used, or the compiler leaves nothing of it.
        Some(key) if key.source ^ key.destination ^ key.ports == 0 => FAILED,
        _ => TC_ACT_UNSPEC,
    }
}

/// Floor: parse, one hash lookup that misses.
#[classifier]
fn floor_miss(ctx: TcContext) -> i32 {
    match floor_key(&ctx) {
        Some(mut key) => {
            key.protocol = 255;
            if FLOOR_FLOWS.get_ptr(key).is_some() { FAILED } else { TC_ACT_UNSPEC }
        }
        None => TC_ACT_UNSPEC,
    }
}

/// Floor: the same with a key of 40 bytes.
#[classifier]
fn floor_miss_long(ctx: TcContext) -> i32 {
    match floor_key(&ctx) {
        Some(FloorKey { source, destination, ports, .. }) => {
            let key = [0, 0, 0, source, 0, 0, 0, destination, ports, 255];
            if FLOOR_LONG.get_ptr(key).is_some() { FAILED } else { TC_ACT_UNSPEC }
        }
        None => TC_ACT_UNSPEC,
    }
}

/// Floor: parse, one hash lookup, DNAT with the transport checksum by helper.
#[classifier]
fn floor_dnat(ctx: TcContext) -> i32 {
    let by_helper = |_, from: u32, to: u32, from_port: u16, to_port: u16| {
        ctx.l4_csum_replace(50, u64::from(from), u64::from(to), 0x10 | 4).ok()?;
        ctx.l4_csum_replace(50, u64::from(from_port), u64::from(to_port), 2).ok()
    };
    floor_rewrite(&ctx, by_helper).map_or(FAILED, |()| TC_ACT_UNSPEC)
}

/// Floor: the same where no skb knows anything of the checksum.
#[xdp(frags)]
fn xdp_floor_dnat(ctx: XdpContext) -> u32 {
    let directly = |header: *mut u16, from: u32, to: u32, from_port: u16, to_port: u16| {
        let change = u64::from(!from) + u64::from(to) + u64::from(!from_port) + u64::from(to_port);
        // SAFETY: within the header that was checked.
        unsafe {
            let check = header.add(25);
            check.write_unaligned(checksum::apply(check.read_unaligned(), fold(change) as u32));
        }
        Some(())
    };
    floor_rewrite(&ctx, directly).map_or(FAILED.cast_unsigned(), |()| XDP_PASS)
}

/// `transport` brings its checksum up to date: the header, addresses and ports before and after.
#[inline(always)]
fn floor_rewrite(
    ctx: &impl Bounds,
    transport: impl FnOnce(*mut u16, u32, u32, u16, u16) -> Option<()>,
) -> Option<()> {
    let key = floor_key(ctx)?;
    let Some(value) = FLOOR_FLOWS.get_ptr(key) else {
        let first =
            FloorValue { address: key.destination ^ 0x0101_0101, port: 0x1f90_u16.to_be(), unused: 0 };
        return FLOOR_FLOWS.insert(key, first, 0).ok();
    };
    // SAFETY: checked by the lookup.
    let value = unsafe { *value };
    let header = packet::<[u16; IPV4_TCP / 2]>(ctx, 0)?.cast::<u16>();
    let diff = u32::try_from(fold(u64::from(!key.destination) + u64::from(value.address))).ok()?;
    // SAFETY: within the header checked above.
    let port = unsafe {
        let check = header.add(12);
        check.write_unaligned(checksum::apply(check.read_unaligned(), diff));
        header.add(15).cast::<u32>().write_unaligned(value.address);
        let port = header.add(18).read_unaligned();
        header.add(18).write_unaligned(value.port);
        port
    };
    transport(header, key.destination, value.address, port, value.port)
}

#[inline(always)]
const fn fold(sum: u64) -> u64 {
    (sum & 0xffff_ffff) + (sum >> 32)
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
