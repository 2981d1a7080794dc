//! Where a packet leaves: the kernel's routing, behind a cache, because asking costs more than all the rest.
#![expect(unsafe_code, reason = "the helper takes a pointer to what is asked, which lies in a map")]

use aya_ebpf::{
    EbpfContext as _, bindings::bpf_fib_lookup as Layout, helpers::bpf_fib_lookup, macros::map,
    maps::PerCpuArray, programs::XdpContext,
};
use proxy_common::{
    endian::Be16,
    lb::Tables as _,
    route::{LinkAddress, Route, Way},
    tuple::{FlowKey, Protocol},
};

use crate::{
    maps::{self, Maps},
    wire::{IpHeader, Ipv4, Ipv6},
};

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

const _: () = assert!(size_of::<Question>() == size_of::<Layout>());

impl Question {
    #[inline(always)]
    pub(crate) fn address<I: IpHeader>(&mut self, tuple: &FlowKey) {
        self.family = I::FAMILY;
        self.source = I::kernels(tuple.source);
        self.destination = I::kernels(tuple.destination);
    }
}

/// Where packets with this tuple leave that came by `device`; `None` if the stack is to see this one.
#[inline(always)]
pub(crate) fn way(ctx: &XdpContext, tuple: &FlowKey, device: u32, class: u32) -> Option<Way> {
    let settings = Maps.settings()?;
    let now = maps::now();
    let route = maps::route(tuple)?;
    if !route.is_fresh(now, settings) || !route.is_for(tuple, device, class) {
        route.renew(tuple, device, class, now);
        ask(ctx, route);
        if route.is_for_stack() {
            return None;
        }
    }
    Some(route.way)
}

/// Asks the kernel, as for a packet that it would forward: what comes by this device, by all rules. Anything but a device
/// and a neighbour that answers is no way. Out of line, on a stack of its own.
#[inline(never)]
#[expect(clippy::cast_possible_wrap, clippy::cast_possible_truncation, reason = "64 bytes")]
fn ask(ctx: &XdpContext, route: &mut Route) {
    const SUCCESS: i64 = 0;
    let Some(question) = QUESTIONS.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: a slot of this CPU's own array; programs do not nest on a CPU at this hook.
    let question = unsafe { &mut *question };
    let tuple = &route.tuple;
    if tuple.source.is_v4() {
        question.address::<Ipv4>(tuple);
    } else {
        question.address::<Ipv6>(tuple);
    }
    question.protocol = tuple.protocol;
    question.source_port = tuple.source_port;
    question.destination_port = tuple.destination_port;
    question.mtu = 0;
    question.device = route.device;
    question.class = route.class;
    let size = size_of::<Question>() as i32;
    // SAFETY: a helper call on this context; `Question` has the size and the fields of what it reads and writes.
    let answer = unsafe { bpf_fib_lookup(ctx.as_ptr(), (&raw mut *question).cast(), size, 0) };
    route.way.device = if answer == SUCCESS { question.device } else { 0 };
    route.way.mtu = question.mtu;
    route.way.own = question.own;
    route.way.next = question.next;
}
