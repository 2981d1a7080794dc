//! Functions that the verifier looks at once, and not on every way that leads to them.
//!
//! It does so for functions that the object exports (`BTF_FUNC_GLOBAL`). They take and return numbers only, and nothing that
//! the verifier knew before the call reaches them.
#![expect(unsafe_code, reason = "the names are ours alone in the object")]

use proxy_common::{
    crc32c,
    lb::{self, First, Found},
};

use crate::maps::Maps;

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
