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
    lb::{self, First, Found, Place},
    tuple::Endpoint,
};

use crate::maps::{self, Maps};

/// [`crc32c::change`]: half a thousand steps.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn sctp_change(changed: u32, behind: u32) -> u32 {
    crc32c::change(changed, behind)
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
