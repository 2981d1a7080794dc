//! How packets between a client and a backend on this node are delivered: what the flow table and the kernel's routing say,
//! behind a cache, as to ask them costs more than the stack does.
#![expect(unsafe_code, reason = "values of maps, and helpers that take pointers")]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "sizes of structures, and actions"
)]

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1},
    helpers::{bpf_redirect_neigh, bpf_redirect_peer},
    macros::map,
    maps::{HashMap, PerCpuArray},
    programs::TcContext,
};
use proxy_common::{
    delivery::{self, Delivery, DeliveryDevice, DeliveryFlags, Manner, Passing},
    lb::{self, Side, Tables as _},
    tables::{Delivered, Deliveries, DeliveryDevices, Table as _},
    tuple::FlowKey,
};

use crate::{
    maps::{self, Maps},
    route::Question,
    wire::IpHeader,
};

#[map]
static DELIVERY_DEVICES: HashMap<u32, DeliveryDevice> =
    HashMap::with_max_entries(DeliveryDevices::CAPACITY, BPF_F_NO_PREALLOC);
#[map]
static DELIVERIES: PerCpuArray<Delivery> = PerCpuArray::with_max_entries(Deliveries::CAPACITY, 0);
#[map]
static DELIVERED: PerCpuArray<u64> = PerCpuArray::with_max_entries(Delivered::CAPACITY, 0);

const BPF_FIB_LKUP_RET_SUCCESS: i64 = 0;
const BPF_FIB_LKUP_RET_NO_NEIGH: i64 = 7;
const BPF_FIB_LOOKUP_SKIP_NEIGH: u32 = 1 << 2;

/// The route and the neighbour are known.
const WHOLE: u32 = 0;
/// The route is.
const NO_NEIGHBOUR: u32 = 1;
/// Neither.
const NOWHERE: u32 = 2;

/// How packets with this tuple go that came by `device`; `None` if they go to the stack.
#[inline(always)]
pub(crate) fn passing<I: IpHeader>(
    ctx: &TcContext,
    tuple: &FlowKey,
    device: u32,
    class: u32,
) -> Option<&'static Passing> {
    let settings = Maps.settings()?;
    let now = maps::now();
    // SAFETY: a slot of this CPU's own array; programs do not nest on a CPU at this hook.
    let delivery =
        DELIVERIES.get_ptr_mut(delivery::index(tuple)).map(|delivery| unsafe { &mut *delivery })?;
    if !delivery.holds(tuple, device, class, now, settings) {
        delivery.tuple = *tuple;
        delivery.device = device;
        delivery.class = class;
        delivery.learned = now;
        delivery.passing = Passing::default();
        ask::<I>(ctx, delivery);
    }
    Some(&delivery.passing).filter(|passing| passing.manner != Manner::STACK)
}

/// Asks whether the packet's flow is one that the stack need not see, and where it goes. The other way is asked about as well:
/// what one of them cannot go, neither goes; and what would not be answered by the device that it came by is the stack's to judge
/// (`rp_filter`).
#[inline(never)]
fn ask<I: IpHeader>(ctx: &TcContext, delivery: &mut Delivery) -> Option<()> {
    let side = lb::delivered(&Maps, &delivery.tuple)?;
    let came = device(delivery.device)?;
    let mut way = Question { device: came.routed, class: delivery.class, ..Question::default() };
    let there = route::<I>(ctx, &delivery.tuple, &mut way);
    let leaves = device(way.device).filter(|_| there != NOWHERE)?;
    let passing = &mut delivery.passing;
    passing.device = way.device;
    passing.mtu = way.mtu;
    passing.family = way.family;
    passing.next = way.destination;
    passing.came_to = came.address;
    passing.own = way.own;
    passing.neighbour = way.next;
    way.class = delivery.class;
    let back = route::<I>(ctx, &delivery.tuple.reversed(), &mut way);
    if back == NOWHERE || way.device != came.routed {
        return None;
    }
    // Before Linux 6.16 a packet that a bridge's port has taken for another machine's stays one in the pod.
    let enters = there == WHOLE
        && side == Side::Request
        && came.routed == delivery.device
        && leaves.flags.contains(DeliveryFlags::PAIR);
    passing.manner = if enters { Manner::PEER } else { Manner::NEIGHBOUR };
    Some(())
}

#[inline(always)]
fn device(index: u32) -> Option<DeliveryDevice> {
    // SAFETY: copied out at once. A row that is replaced meanwhile may mix two of one device.
    unsafe { DELIVERY_DEVICES.get(index) }.copied()
}

/// Asks the kernel as for a packet that it would forward, which came by the question's device, by all rules. If the neighbour is
/// not known, which the kernel finds out as it sends the packet, all else is.
#[inline(always)]
fn route<I: IpHeader>(ctx: &TcContext, tuple: &FlowKey, question: &mut Question) -> u32 {
    // The kernel answers where it is asked.
    let Question { device, class, .. } = *question;
    match lookup::<I>(ctx, tuple, question, 0) {
        BPF_FIB_LKUP_RET_SUCCESS => WHOLE,
        BPF_FIB_LKUP_RET_NO_NEIGH => {
            (question.device, question.class) = (device, class);
            match lookup::<I>(ctx, tuple, question, BPF_FIB_LOOKUP_SKIP_NEIGH) {
                BPF_FIB_LKUP_RET_SUCCESS => NO_NEIGHBOUR,
                _ => NOWHERE,
            }
        }
        _ => NOWHERE,
    }
}

/// Out of line, as it is asked four times.
#[inline(never)]
fn lookup<I: IpHeader>(ctx: &TcContext, tuple: &FlowKey, question: &mut Question, flags: u32) -> i64 {
    question.ask::<_, I>(ctx, tuple, flags)
}

/// Sends the packet on, and returns the action.
#[inline(always)]
pub(crate) fn send(passing: &Passing) -> i32 {
    if let Some(count) = DELIVERED.get_ptr_mut(passing.manner.0.into()) {
        // SAFETY: a slot of this CPU's own array; programs do not nest on a CPU at this hook.
        unsafe { *count += 1 };
    }
    if passing.manner == Manner::PEER {
        // SAFETY: the helper notes the device for this packet, and takes any number.
        return unsafe { bpf_redirect_peer(passing.device, 0) as i32 };
    }
    let mut next = bpf_redir_neigh {
        nh_family: passing.family.into(),
        __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 { ipv6_nh: passing.next },
    };
    let size = size_of::<bpf_redir_neigh>() as i32;
    // SAFETY: as above; it copies the address.
    unsafe { bpf_redirect_neigh(passing.device, &raw mut next, size, 0) as i32 }
}
