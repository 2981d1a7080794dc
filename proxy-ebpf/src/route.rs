//! Where a packet leaves: the kernel's routing.
#![expect(unsafe_code, reason = "the helper takes a pointer to what is asked, which lies in a map")]

use aya_ebpf::{
    EbpfContext, bindings::bpf_fib_lookup as Layout, helpers::bpf_fib_lookup, macros::map, maps::PerCpuArray,
    programs::XdpContext,
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
    /// How long the packet is; then, what fits.
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
    fn address<I: IpHeader>(&mut self, tuple: &FlowKey) {
        self.family = I::FAMILY;
        self.source = I::kernels(tuple.source);
        self.destination = I::kernels(tuple.destination);
    }

    /// Asks the kernel as for packets with this tuple that it would forward, by all rules, with device and class as they are here;
    /// the answer stands in the same place. Returns what `bpf_fib_lookup` does.
    #[inline(always)]
    #[expect(clippy::cast_possible_wrap, clippy::cast_possible_truncation, reason = "64 bytes")]
    pub(crate) fn ask<C: EbpfContext, I: IpHeader>(&mut self, ctx: &C, tuple: &FlowKey, flags: u32) -> i64 {
        self.address::<I>(tuple);
        self.protocol = tuple.protocol;
        self.source_port = tuple.source_port;
        self.destination_port = tuple.destination_port;
        // Any length makes the kernel say what fits; one answer is right for all.
        self.mtu = 1;
        let size = size_of::<Self>() as i32;
        // SAFETY: a helper call on this context; a question has the size and the fields of what it reads and writes.
        unsafe { bpf_fib_lookup(ctx.as_ptr(), (&raw mut *self).cast(), size, flags) }
    }
}

/// Where packets with this tuple leave that came by `device`: what the kernel says of a packet that it would forward, by all rules.
/// Anything but a device and a neighbour that answers is no way.
#[inline(always)]
pub(crate) fn ask(ctx: &XdpContext, tuple: &FlowKey, device: u32, class: u32, way: &mut Way) {
    const SUCCESS: i64 = 0;
    let Some(question) = QUESTIONS.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: a slot of this CPU's own array; programs do not nest on a CPU at this hook.
    let question = unsafe { &mut *question };
    question.device = device;
    question.class = class;
    let answer = if tuple.source.is_v4() {
        question.ask::<_, Ipv4>(ctx, tuple, 0)
    } else {
        question.ask::<_, Ipv6>(ctx, tuple, 0)
    };
    way.device = if answer == SUCCESS { question.device } else { 0 };
    way.mtu = question.mtu;
    way.own = question.own;
    way.next = question.next;
}
