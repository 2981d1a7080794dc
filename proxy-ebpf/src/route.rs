//! Where a packet leaves: the kernel's routing.
#![expect(unsafe_code, reason = "the helper takes a pointer to what is asked, which lies in a map")]

use aya_ebpf::{
    EbpfContext as _, bindings::bpf_fib_lookup as Layout, helpers::bpf_fib_lookup, macros::map,
    maps::PerCpuArray, programs::XdpContext,
};
use proxy_common::{
    endian::Be16,
    route::{LinkAddress, Way},
    tuple::{FlowKey, Protocol},
};

use crate::wire::{IpHeader, Ipv4, Ipv6};

/// What the kernel is asked, and where it writes its answer (`struct bpf_fib_lookup`).
#[derive(Default)]
#[repr(C)]
pub(crate) struct Question {
    pub(crate) family: u8,
    pub(crate) protocol: Protocol,
    pub(crate) source_port: Be16,
    pub(crate) destination_port: Be16,
    /// How long the packet is; then, what fits. Nothing is said of it, so that one answer is right for all lengths.
    pub(crate) mtu: u16,
    /// The device that the packet came by; then, the one that it leaves by.
    pub(crate) device: u32,
    pub(crate) class: u32,
    pub(crate) source: [u32; 4],
    pub(crate) destination: [u32; 4],
    pub(crate) vlan: [u16; 2],
    pub(crate) own: LinkAddress,
    pub(crate) next: LinkAddress,
}

/// Memory for one question; means nothing between packets, so nobody else knows it.
#[map]
static QUESTIONS: PerCpuArray<Question> = PerCpuArray::with_max_entries(1, 0);

/// Memory for the tuple that is asked about; likewise.
#[map]
static TUPLES: PerCpuArray<FlowKey> = PerCpuArray::with_max_entries(1, 0);

const _: () = assert!(size_of::<Question>() == size_of::<Layout>());

/// Memory for the tuple of a packet as it is routed. One at a time.
#[inline(always)]
pub(crate) fn tuple() -> Option<&'static mut FlowKey> {
    // SAFETY: a slot of this CPU's own array; programs do not nest on a CPU at this hook.
    TUPLES.get_ptr_mut(0).map(|tuple| unsafe { &mut *tuple })
}

impl Question {
    #[inline(always)]
    pub(crate) fn address<I: IpHeader>(&mut self, tuple: &FlowKey) {
        self.family = I::FAMILY;
        self.source = I::kernels(tuple.source);
        self.destination = I::kernels(tuple.destination);
    }
}

/// Where packets with this tuple leave that came by `device`: what the kernel says of a packet that it would forward, by all rules.
/// Anything but a device and a neighbour that answers is no way.
#[inline(always)]
#[expect(clippy::cast_possible_wrap, clippy::cast_possible_truncation, reason = "64 bytes")]
pub(crate) fn ask(ctx: &XdpContext, tuple: &FlowKey, device: u32, class: u32, way: &mut Way) {
    const SUCCESS: i64 = 0;
    let Some(question) = QUESTIONS.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: a slot of this CPU's own array; programs do not nest on a CPU at this hook.
    let question = unsafe { &mut *question };
    if tuple.source.is_v4() {
        question.address::<Ipv4>(tuple);
    } else {
        question.address::<Ipv6>(tuple);
    }
    question.protocol = tuple.protocol;
    question.source_port = tuple.source_port;
    question.destination_port = tuple.destination_port;
    question.mtu = 0;
    question.device = device;
    question.class = class;
    let size = size_of::<Question>() as i32;
    // SAFETY: a helper call on this context; `Question` has the size and the fields of what it reads and writes.
    let answer = unsafe { bpf_fib_lookup(ctx.as_ptr(), (&raw mut *question).cast(), size, 0) };
    way.device = if answer == SUCCESS { question.device } else { 0 };
    way.mtu = question.mtu;
    way.own = question.own;
    way.next = question.next;
}
