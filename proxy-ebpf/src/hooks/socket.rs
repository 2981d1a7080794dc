//! cgroup hooks: a process is given its backend when it connects or sends, and believes that it talks to the service.
#![expect(unsafe_code, reason = "the context is a raw pointer; all access to it is here")]
#![expect(clippy::cast_possible_truncation, reason = "ports and protocols in words of the context")]

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock_addr,
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval},
    programs::SockAddrContext,
};
use proxy_common::{
    addr::Addr,
    drop::DropReason,
    endian::Be16,
    lb::{self, Process, Tables as _, Wish},
    tuple::{Endpoint, Protocol},
};

use crate::{
    events,
    listeners::Listeners,
    maps::{self, Maps},
};

/// Go on, perhaps with another address.
const PROCEED: i32 = 1;
/// Do not: with the error that was set, as the kernel returns it.
const FAIL: i32 = 0;
/// `ECONNREFUSED`.
const REFUSED: i32 = -111;
/// `EHOSTUNREACH`. The kernel's own clients know what to do about it; NFS before Linux 6.10 tries again at once and for ever
/// after an `EPERM` (626dfed5fa3b).
const UNREACHABLE: i32 = -113;

/// A family's address in the context.
pub(crate) trait Family {
    /// Reads it.
    fn address(ctx: *mut bpf_sock_addr) -> Addr;
    /// Writes it.
    fn set_address(ctx: *mut bpf_sock_addr, address: Addr);
}

/// Sockets of `AF_INET`.
pub(crate) enum Inet {}

/// Sockets of `AF_INET6`, which may name IPv4 addresses in their mapped form.
pub(crate) enum Inet6 {}

impl Family for Inet {
    #[inline(always)]
    fn address(ctx: *mut bpf_sock_addr) -> Addr {
        // SAFETY: a field of the context.
        Addr::from_v4_wire(unsafe { (*ctx).user_ip4 }.to_ne_bytes())
    }

    #[inline(always)]
    fn set_address(ctx: *mut bpf_sock_addr, address: Addr) {
        // SAFETY: a field of the context that programs may write.
        unsafe { (*ctx).user_ip4 = u32::from_ne_bytes(address.v4_wire()) };
    }
}

impl Family for Inet6 {
    #[inline(always)]
    fn address(ctx: *mut bpf_sock_addr) -> Addr {
        // SAFETY: fields of the context; volatile, as the verifier takes them one word at a time only.
        let word = |at: usize| unsafe { (&raw const (*ctx).user_ip6).cast::<u32>().add(at).read_volatile() };
        Addr::from_v6_words([word(0), word(1), word(2), word(3)])
    }

    #[inline(always)]
    fn set_address(ctx: *mut bpf_sock_addr, address: Addr) {
        let [a, b, c, d] = address.words();
        // SAFETY: as above; programs may write these.
        let set = |at: usize, word| unsafe {
            (&raw mut (*ctx).user_ip6).cast::<u32>().add(at).write_volatile(word);
        };
        set(0, a);
        set(1, b);
        set(2, c);
        set(3, d);
    }
}

/// Whom the process or the kernel names.
#[inline(always)]
fn end<F: Family>(ctx: *mut bpf_sock_addr) -> Endpoint {
    // SAFETY: a field of the context; the port is in its lower half.
    let port = unsafe { (*ctx).user_port } as u16;
    Endpoint { address: F::address(ctx), port: Be16::from_wire(port.to_ne_bytes()) }
}

#[inline(always)]
fn set_end<F: Family>(ctx: *mut bpf_sock_addr, end: Endpoint) {
    F::set_address(ctx, end.address);
    // SAFETY: a field of the context that programs may write.
    unsafe { (*ctx).user_port = u32::from(end.port.raw()) };
}

#[inline(always)]
fn cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: a plain helper call on this context.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

/// A socket connects, or sends a datagram to an address. Returns what the kernel is to do.
#[inline(always)]
pub(crate) fn towards<F: Family>(ctx: &SockAddrContext) -> i32 {
    let raw = ctx.sock_addr;
    // SAFETY: a field of the context. What no packet can have as its protocol is a kind of socket (IPPROTO_MPTCP, for one,
    // whose paths are sockets of TCP and come here as such).
    let protocol = match u8::try_from(unsafe { (*raw).protocol }).map(Protocol) {
        Ok(protocol @ (Protocol::TCP | Protocol::UDP)) => protocol,
        _ => return PROCEED,
    };
    // SAFETY: a plain helper call on this context.
    let namespace = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let is_host = Maps.settings().is_some_and(|settings| settings.sockets.is_host(namespace));
    let process = Process { end: end::<F>(raw), protocol, socket: cookie(ctx), namespace, is_host };
    match lb::wish(&Maps, &Listeners(ctx.as_ptr()), &process) {
        Wish::Granted => PROCEED,
        Wish::Instead(end) => {
            set_end::<F>(raw, end);
            PROCEED
        }
        Wish::Refused(reason) => fail(&process, reason, REFUSED),
        Wish::Forbidden(reason) => fail(&process, reason, UNREACHABLE),
    }
}

#[inline(always)]
fn fail(process: &Process, reason: DropReason, error: i32) -> i32 {
    maps::count_drop(reason);
    events::refusal(process, reason);
    // SAFETY: a plain helper call.
    unsafe { bpf_set_retval(error) };
    FAIL
}

/// The kernel names the sender of a datagram, or the peer of a connection. Returns what the kernel is to do.
#[inline(always)]
pub(crate) fn from<F: Family>(ctx: &SockAddrContext) -> i32 {
    if let Some(service) = lb::believed(&Maps, cookie(ctx), end::<F>(ctx.sock_addr)) {
        set_end::<F>(ctx.sock_addr, service);
    }
    PROCEED
}
