//! What both sides rely on: the layout of every table, and every decision taken from them.
//!
//! The kernel programs (`proxy-ebpf`) and the agent are two programs that meet only in BPF maps. This crate
//! is that meeting point. It owns the types of keys and values ([`tables`] lists them all), the meaning of
//! their fields, and [`lb`], the whole path from a parsed packet to a [`Verdict`](lb::Verdict). The kernel
//! runs [`lb`] over real maps; tests run the same code over ordinary hash maps.
//!
//! It must not know packets (bytes, checksums of real frames), Kubernetes, aya, or an operating system.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod addr;
pub mod addresses;
pub mod affinity;
pub mod backend;
mod bits;
pub mod cache;
pub mod checksum;
pub mod config;
pub mod counters;
pub mod crc32c;
pub mod delivery;
pub mod device;
pub mod drop;
pub mod dsr;
pub mod endian;
pub mod event;
pub mod filter;
pub mod flow;
pub mod fragment;
pub mod frontend;
pub mod hash;
pub mod kernel;
pub mod lb;
pub mod limit;
pub mod misfit;
pub mod pod;
pub mod ranges;
pub mod route;
pub mod shortcut;
pub mod socket;
pub mod tables;
pub mod time;
pub mod tuple;
pub mod xdp;

/// Version of every layout in this crate; the agent pins maps below `v{LAYOUT_VERSION}`.
///
/// Raise it in the commit that changes the size, order or meaning of a field of a key or value, so that an
/// agent never adopts maps which it would misread. In every layout, `FRONTENDS` and `ADDRESSES` are hash tables without which no
/// flow begins: an agent of another one empties them, so that these programs go on with what they have.
pub const LAYOUT_VERSION: u32 = 7;
