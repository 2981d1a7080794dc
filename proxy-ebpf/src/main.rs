//! The kernel programs of Sluice: entry points only.
//!
//! Packets flow parse -> decide -> rewrite. The decision is `proxy_common::lb`; this crate is the bytes around
//! it. `packet`, `maps`, `cache` and `route` hold the `unsafe` of the fast path, `refuse` that of three more helpers.
#![no_std]
#![no_main]
#![deny(unsafe_code)]

mod cache;
mod delivery;
mod dsr;
mod events;
mod fragment;
mod hooks;
mod icmp;
mod listeners;
mod maps;
mod packet;
mod parse;
mod refuse;
mod reset;
mod rewrite;
mod route;
mod verified;
mod wire;

use aya_ebpf::{
    macros::{cgroup_sock_addr, classifier, xdp},
    programs::{SockAddrContext, TcContext, XdpContext},
};
use hooks::socket::{Inet, Inet6};
use network_types::eth::EthHdr;
use proxy_common::{tuple::Hook, xdp::XdpMode};

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

/// tc ingress, behind everybody else's: packets between a client and a backend on this node go past the stack.
#[classifier]
fn sluice_delivery(ctx: TcContext) -> i32 {
    hooks::delivery::run(&ctx)
}

/// XDP: what both tc hooks would do to packets of running flows, before the stack. Frames may be longer than a page.
#[xdp(frags)]
fn sluice_xdp(ctx: XdpContext) -> u32 {
    hooks::xdp::run(&ctx, XdpMode::Native)
}

/// The same for devices on whose behalf the kernel runs it. It says that it takes frames in one piece only: for one that takes
/// others, Linux 6.9 to 6.18 at least copy packets and forget the length of their link header (`skb_pp_cow_data`), which tc
/// programs behind it go by.
#[xdp]
fn sluice_xdp_generic(ctx: XdpContext) -> u32 {
    hooks::xdp::run(&ctx, XdpMode::Generic)
}

/// cgroup: a socket connects, IPv4.
#[cgroup_sock_addr(connect4)]
fn sluice_connect4(ctx: SockAddrContext) -> i32 {
    hooks::socket::towards::<Inet>(&ctx)
}

/// cgroup: a socket connects, IPv6.
#[cgroup_sock_addr(connect6)]
fn sluice_connect6(ctx: SockAddrContext) -> i32 {
    hooks::socket::towards::<Inet6>(&ctx)
}

/// cgroup: a socket sends a datagram to an address, IPv4.
#[cgroup_sock_addr(sendmsg4)]
fn sluice_sendmsg4(ctx: SockAddrContext) -> i32 {
    hooks::socket::towards::<Inet>(&ctx)
}

/// cgroup: a socket sends a datagram to an address, IPv6.
#[cgroup_sock_addr(sendmsg6)]
fn sluice_sendmsg6(ctx: SockAddrContext) -> i32 {
    hooks::socket::towards::<Inet6>(&ctx)
}

/// cgroup: a socket receives a datagram, IPv4.
#[cgroup_sock_addr(recvmsg4)]
fn sluice_recvmsg4(ctx: SockAddrContext) -> i32 {
    hooks::socket::from::<Inet>(&ctx)
}

/// cgroup: a socket receives a datagram, IPv6.
#[cgroup_sock_addr(recvmsg6)]
fn sluice_recvmsg6(ctx: SockAddrContext) -> i32 {
    hooks::socket::from::<Inet6>(&ctx)
}

/// cgroup: a process asks whom its socket is connected to, IPv4.
#[cgroup_sock_addr(getpeername4)]
fn sluice_getpeername4(ctx: SockAddrContext) -> i32 {
    hooks::socket::from::<Inet>(&ctx)
}

/// cgroup: a process asks whom its socket is connected to, IPv6.
#[cgroup_sock_addr(getpeername6)]
fn sluice_getpeername6(ctx: SockAddrContext) -> i32 {
    hooks::socket::from::<Inet6>(&ctx)
}

/// Returns the kernel's clock, in ticks. Attached nowhere: the agent runs it to learn how fast the clock ticks
/// and what time it is.
#[classifier]
fn sluice_clock(_: TcContext) -> i32 {
    maps::now().0.cast_signed()
}

/// Returns how far the checksum of a packet has come. Attached nowhere: if the kernel takes this, it takes the same of the
/// others.
#[classifier]
fn sluice_summed(ctx: TcContext) -> i32 {
    packet::summed(&ctx).map_or(-1, |summed| i32::from(summed.0))
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
