//! What whoever listens is told: new flows, and drops. Out of line, and written straight into the ring's memory: the
//! programs' stacks have no room for an event.
#![expect(unsafe_code, reason = "the ring's memory is behind raw pointers; all access to it is here")]

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns},
    macros::map,
    maps::{Array, PerCpuArray, RingBuf},
};
use proxy_common::{
    backend::Backend,
    drop::DropReason,
    event::{Event, EventKind, Lease},
    flow::FlowFlags,
    frontend::ServiceId,
    lb::{Process, Tables as _},
    tables::{EventLease, Events, LostEvents, Table as _},
    tuple::{Endpoint, FlowKey, Hook},
};

use crate::maps::Maps;

#[map]
static EVENT_LEASE: Array<Lease> = Array::with_max_entries(EventLease::CAPACITY, 0);
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(Events::CAPACITY, 0);
#[map]
static LOST_EVENTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(LostEvents::CAPACITY, 0);

/// Whether anybody wants to hear of that. The clock is asked only if somebody has listened lately.
#[inline(always)]
fn is_wanted(kind: EventKind) -> bool {
    let Some(lease) = EVENT_LEASE.get(0) else {
        return false;
    };
    lease.until != 0 && lease.wants.intersects(kind.wanted_as()) && now() < lease.until
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: a plain helper.
    unsafe { bpf_ktime_get_ns() }
}

/// Tells of something, if there is room for it. Everything that an event says is in the arguments.
#[inline(always)]
fn tell(kind: EventKind, key: &FlowKey, backend: Endpoint, what: What) {
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        if let Some(lost) = LOST_EVENTS.get_ptr_mut(0) {
            // SAFETY: a slot of this CPU's own array. A count may be lost where a program interrupts another.
            unsafe { *lost += 1 };
        }
        return;
    };
    let event = entry.as_mut_ptr();
    let What { reason, service, origin, flags } = what;
    // SAFETY: the ring has reserved room for an event, aligned to eight bytes, for this program alone until it is
    // submitted. Every field is written, and there is no padding.
    unsafe {
        (&raw mut (*event).time).write(now());
        (&raw mut (*event).key).write(*key);
        (&raw mut (*event).backend).write(backend.address);
        (&raw mut (*event).backend_port).write(backend.port);
        (&raw mut (*event).kind).write(kind);
        (&raw mut (*event).reason).write(reason);
        (&raw mut (*event).service).write(service);
        (&raw mut (*event).origin).write(origin);
        (&raw mut (*event).flags).write(flags);
        (&raw mut (*event).reserved).write([0; 3]);
    }
    entry.submit(0);
}

/// What an event says beside its tuple and its backend.
struct What {
    reason: u8,
    service: ServiceId,
    origin: u32,
    flags: FlowFlags,
}

/// The flow that was drafted last has begun, by a packet of a device.
#[inline(never)]
pub(crate) fn flow(device: u32) {
    if !is_wanted(EventKind::FLOW) {
        return;
    }
    let Some(draft) = Maps.draft() else {
        return;
    };
    let head = draft.entry.head;
    let what = What { reason: 0, service: head.service, origin: device, flags: head.flags };
    tell(EventKind::FLOW, &draft.key, draft.reply.source_end(), what);
}

/// A packet of a device was dropped, or refused.
#[inline(never)]
pub(crate) fn dropped(key: &FlowKey, reason: DropReason, device: u32) {
    if is_wanted(EventKind::DROP) {
        let what = What {
            reason: reason as u8,
            service: ServiceId::NONE,
            origin: device,
            flags: FlowFlags::default(),
        };
        tell(EventKind::DROP, key, Endpoint::default(), what);
    }
}

/// A process was given a backend.
#[inline(never)]
pub(crate) fn choice(process: &Process, backend: &Backend) {
    if is_wanted(EventKind::CHOICE) {
        let what =
            What { reason: 0, service: backend.service, origin: caller(), flags: FlowFlags::default() };
        tell(EventKind::CHOICE, &wish(process), backend.end(), what);
    }
}

/// A process was refused, or forbidden, what it asked for.
#[inline(never)]
pub(crate) fn refusal(process: &Process, reason: DropReason) {
    if is_wanted(EventKind::REFUSAL) {
        let what = What {
            reason: reason as u8,
            service: ServiceId::NONE,
            origin: caller(),
            flags: FlowFlags::default(),
        };
        tell(EventKind::REFUSAL, &wish(process), Endpoint::default(), what);
    }
}

/// Whom a process names, as a tuple.
#[inline(always)]
fn wish(process: &Process) -> FlowKey {
    FlowKey::new(Endpoint::default(), process.end, process.protocol, Hook::INGRESS)
}

/// The process that runs.
#[inline(always)]
fn caller() -> u32 {
    // The helper puts the process above the thread.
    (bpf_get_current_pid_tgid() >> 32) as u32
}
