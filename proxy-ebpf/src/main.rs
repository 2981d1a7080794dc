//! The kernel programs of Sluice: entry points only.
//!
//! Packets flow parse -> decide -> rewrite. The decision is `proxy_common::lb`; this crate is the bytes around
//! it. `packet` and `maps` hold the `unsafe` of the fast path, `refuse` that of three more helpers.
#![no_std]
#![no_main]
#![deny(unsafe_code)]

mod fragment;
mod hooks;
mod icmp;
mod maps;
mod packet;
mod parse;
mod refuse;
mod rewrite;
mod verified;
mod wire;

use aya_ebpf::{macros::classifier, programs::TcContext};
use network_types::eth::EthHdr;
use proxy_common::tuple::Hook;

/// tc ingress: the packet enters the node; its destination may be a service.
#[classifier]
fn sluice_ingress(ctx: TcContext) -> i32 {
    hooks::tc::run::<{ EthHdr::LEN }>(&ctx, Hook::INGRESS)
}

/// tc egress: the packet leaves the node; it may be a backend's answer to a client of a service.
#[classifier]
fn sluice_egress(ctx: TcContext) -> i32 {
    hooks::tc::run::<{ EthHdr::LEN }>(&ctx, Hook::EGRESS)
}

/// tc ingress of devices whose packets have no link header: tunnels.
#[classifier]
fn sluice_ingress_l3(ctx: TcContext) -> i32 {
    hooks::tc::run::<0>(&ctx, Hook::INGRESS)
}

/// tc egress of such devices.
#[classifier]
fn sluice_egress_l3(ctx: TcContext) -> i32 {
    hooks::tc::run::<0>(&ctx, Hook::EGRESS)
}

/// Returns the kernel's clock, in ticks. Attached nowhere: the agent runs it to learn how fast the clock ticks
/// and what time it is.
#[classifier]
fn sluice_clock(_: TcContext) -> i32 {
    maps::now().0.cast_signed()
}

/// Kernel helpers such as `bpf_l4_csum_replace` are for GPL-compatible programs.
#[expect(unsafe_code, reason = "the kernel looks for the licence under this section and name")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Demanded by the language, never linked: `cargo xtask check` fails if any panic is left in the object.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
