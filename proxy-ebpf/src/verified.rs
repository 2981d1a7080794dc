//! Functions that the verifier looks at once, and not on every way that leads to them.
//!
//! It does so for functions that the object exports (`BTF_FUNC_GLOBAL`). They take and return numbers only, and nothing that
//! the verifier knew before the call reaches them.
#![expect(unsafe_code, reason = "the names are ours alone in the object")]
#![expect(clippy::cast_possible_truncation, reason = "halves of words, and a port")]

use proxy_common::{
    addr::Addr,
    crc32c,
    drop::DropReason,
    endian::Be16,
    frontend::SlotRun,
    lb::{self, First, Found, Insert, Packet, Place, Selection},
    tuple::Endpoint,
};

use crate::maps::{self, Maps};

/// [`crc32c::change`]: half a thousand steps.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn sctp_change(changed: u32, behind: u32) -> u32 {
    crc32c::change(changed, behind)
}

/// How a packet may be written, from a number.
#[inline(always)]
const fn mode(number: u32) -> Insert {
    if number == Insert::New as u32 { Insert::New } else { Insert::Replace }
}

/// A reason as a number; one that is none's if there is none.
#[inline(always)]
fn number(reason: Option<DropReason>) -> u32 {
    reason.map_or(u32::MAX, |reason| reason as u32)
}

/// And back.
#[inline(always)]
fn reason(number: u32) -> Option<DropReason> {
    DropReason::ALL.get(number as usize).copied()
}

/// [`lb::select`]: every way to a backend. The packet lies where both sides find it.
#[inline(always)]
pub(crate) fn select(packet: &Packet, mode: Insert) -> Selection {
    let Some(kept) = maps::packet() else {
        return Selection::BROKEN_TABLE;
    };
    *kept = *packet;
    Selection(select_backend(mode as u32))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn select_backend(number: u32) -> u32 {
    maps::packet().map_or(Selection::BROKEN_TABLE, |packet| lb::select(&Maps, packet, mode(number))).0
}

/// [`lb::remember`]: both entries of a flow.
#[inline(always)]
pub(crate) fn remember(packet: &Packet, chosen: Selection, mode: Insert) -> Option<DropReason> {
    let Some(kept) = maps::packet() else {
        return Some(DropReason::BrokenTable);
    };
    *kept = *packet;
    reason(remember_flow(chosen.0, mode as u32))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn remember_flow(chosen: u32, number_of_mode: u32) -> u32 {
    let packet = maps::packet();
    number(packet.map_or(Some(DropReason::BrokenTable), |packet| {
        lb::remember(&Maps, packet, Selection(chosen), mode(number_of_mode))
    }))
}

/// [`lb::masquerade`]: both entries of a flow that gets another source.
#[inline(always)]
pub(crate) fn masquerade(packet: &Packet, mode: Insert) -> Option<DropReason> {
    let Some(kept) = maps::packet() else {
        return Some(DropReason::BrokenTable);
    };
    *kept = *packet;
    reason(masquerade_flow(mode as u32))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn masquerade_flow(number_of_mode: u32) -> u32 {
    let packet = maps::packet();
    number(
        packet.map_or(Some(DropReason::BrokenTable), |packet| {
            lb::masquerade(&Maps, packet, mode(number_of_mode))
        }),
    )
}

/// [`lb::transition`]: a packet that changes its flow.
#[inline(always)]
pub(crate) fn transition(packet: &Packet) -> bool {
    let Some(kept) = maps::packet() else {
        return false;
    };
    *kept = *packet;
    change_flow() != 0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn change_flow() -> u32 {
    maps::packet().is_some_and(|packet| lb::transition(&Maps, packet)).into()
}

/// [`lb::reserve`]: dozens of lookups.
#[inline(always)]
pub(crate) fn reserve(first: First) -> Found {
    Found(reserve_port(first as u32))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn reserve_port(first: u32) -> u32 {
    let first = if first == First::Tried as u32 { First::Tried } else { First::Skipped };
    lb::reserve(&Maps, first).0
}

/// [`lb::place`]: hundreds of lookups. The address comes in halves.
#[inline(always)]
pub(crate) fn place(run: SlotRun, end: &Endpoint) -> Place {
    let [a, b, c, d] = end.address.words().map(u64::from);
    Place(place_backend(run.base, run.count, a | b << 32, c | d << 32, end.port.raw().into()))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn place_backend(base: u32, count: u32, first: u64, last: u64, port: u32) -> u32 {
    let words = [first as u32, (first >> 32) as u32, last as u32, (last >> 32) as u32];
    let port = Be16::from_wire((port as u16).to_ne_bytes());
    let end = Endpoint { address: Addr::from_v6_words(words), port };
    lb::place(&Maps, SlotRun { base, count }, &end).0
}

/// [`lb::admit`] of the packet that has arrived: all that flows begin and go on with, once more.
#[inline(always)]
pub(crate) fn admit() -> Result<Be16, DropReason> {
    let admitted = admit_arrival();
    match DropReason::ALL.get(admitted.wrapping_sub(REFUSED) as usize) {
        Some(&reason) => Err(reason),
        None => Ok(Be16::from_wire((admitted as u16).to_ne_bytes())),
    }
}

/// What is added to the number of a reason. Ports are less.
const REFUSED: u32 = 1 << 16;

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn admit_arrival() -> u32 {
    let admitted = match maps::arrival() {
        Some(arrival) => lb::admit(&Maps, arrival),
        None => Err(DropReason::BrokenTable),
    };
    match admitted {
        Ok(port) => port.raw().into(),
        Err(reason) => REFUSED + reason as u32,
    }
}
