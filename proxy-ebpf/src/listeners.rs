//! The sockets of the network namespace that a hook is in.
#![expect(unsafe_code, reason = "helpers that aya does not wrap, and the socket that they find")]

use core::{ffi::c_void, mem};

use aya_ebpf::{
    bindings::{
        BPF_F_CURRENT_NETNS, bpf_sock, bpf_sock_tuple,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Ipv4Tuple,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as Ipv6Tuple,
    },
    helpers::{bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
};
use proxy_common::{
    addr::Addr,
    lb,
    tuple::{Endpoint, FlowKey, Protocol},
};

/// The namespace of the hook.
const CURRENT: u64 = BPF_F_CURRENT_NETNS.cast_unsigned() as u64;

/// The sockets around a program, which is known by its context.
pub(crate) struct Listeners(pub(crate) *mut c_void);

#[expect(clippy::cast_possible_truncation, reason = "lengths of small structures")]
impl lb::Listeners for Listeners {
    #[inline(always)]
    fn listens(&self, end: &Endpoint, protocol: Protocol) -> bool {
        let (words, dport) = (end.address.words(), end.port.raw());
        // From nobody, port 0: a socket that is found has no peer.
        // SAFETY: a structure of numbers.
        let mut tuple: bpf_sock_tuple = unsafe { mem::zeroed() };
        let length = if end.address.is_v4() {
            tuple.__bindgen_anon_1.ipv4 = Ipv4Tuple { saddr: 0, daddr: words[3], sport: 0, dport };
            size_of::<Ipv4Tuple>()
        } else {
            tuple.__bindgen_anon_1.ipv6 = Ipv6Tuple { saddr: [0; 4], daddr: words, sport: 0, dport };
            size_of::<Ipv6Tuple>()
        } as u32;
        // SAFETY: plain helper calls; the tuple is as long as it says.
        let socket = unsafe {
            match protocol {
                Protocol::TCP => bpf_sk_lookup_tcp(self.0, &raw mut tuple, length, CURRENT, 0),
                Protocol::UDP => bpf_sk_lookup_udp(self.0, &raw mut tuple, length, CURRENT, 0),
                _ => return false,
            }
        };
        if socket.is_null() {
            return false;
        }
        let is_bound = bound_to(socket, end.address);
        // SAFETY: the socket was found, and is not used any more.
        unsafe { bpf_sk_release(socket.cast()) };
        is_bound
    }

    #[inline(always)]
    fn is_connected(&self, key: &FlowKey) -> bool {
        /// `TCP_LISTEN` (include/net/tcp_states.h).
        const LISTEN: u32 = 10;
        let (source, destination) = (key.source.words(), key.destination.words());
        let (sport, dport) = (key.source_port.raw(), key.destination_port.raw());
        // SAFETY: a structure of numbers.
        let mut tuple: bpf_sock_tuple = unsafe { mem::zeroed() };
        let length = if key.destination.is_v4() {
            tuple.__bindgen_anon_1.ipv4 = Ipv4Tuple { saddr: source[3], daddr: destination[3], sport, dport };
            size_of::<Ipv4Tuple>()
        } else {
            tuple.__bindgen_anon_1.ipv6 = Ipv6Tuple { saddr: source, daddr: destination, sport, dport };
            size_of::<Ipv6Tuple>()
        } as u32;
        // What is left of a connection, or only begins, is found by this helper as well.
        // SAFETY: a plain helper call; the tuple is as long as it says.
        let socket = unsafe { bpf_skc_lookup_tcp(self.0, &raw mut tuple, length, CURRENT, 0) };
        if socket.is_null() {
            return false;
        }
        // SAFETY: a field of a socket that was found and not released yet.
        let is_connected = unsafe { (*socket).state } != LISTEN;
        // SAFETY: the socket was found, and is not used any more.
        unsafe { bpf_sk_release(socket.cast()) };
        is_connected
    }
}

/// Whether a socket is bound to an address, and not to all.
#[inline(always)]
fn bound_to(socket: *const bpf_sock, address: Addr) -> bool {
    let [a, b, c, d] = address.words();
    if address.is_v4() {
        // SAFETY: a field of a socket that was found and not released yet.
        return unsafe { (*socket).src_ip4 } == d;
    }
    // SAFETY: the same; volatile, as the verifier takes them one word at a time only.
    let word = |at: usize| unsafe { (&raw const (*socket).src_ip6).cast::<u32>().add(at).read_volatile() };
    word(0) == a && word(1) == b && word(2) == c && word(3) == d
}
