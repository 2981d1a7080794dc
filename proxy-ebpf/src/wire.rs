//! Headers as they lie in the packet, and the few things that differ between the families.
//!
//! The views are `packed(2)`, which is the truth behind a 14-byte Ethernet header: the compiler then reads
//! halfwords instead of bytes. Their offsets are held against the `network-types` definitions.

use core::mem::offset_of;

use network_types::{eth::EtherType, tcp::TcpHdr, udp::UdpHdr};
use proxy_common::{
    addr::Addr,
    checksum::{self, ChecksumDiff},
    endian::Be16,
    flow::TcpFlags,
    tuple::Protocol,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::packet::{ChecksumKind, NetworkSum, Packet};

mod geneve;
mod ipv4;
mod ipv6;

pub(crate) use geneve::Geneve;
pub(crate) use ipv4::Ipv4;
pub(crate) use ipv6::Ipv6;

/// TCP header without options.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C, packed(2))]
pub(crate) struct TcpView {
    pub(crate) source: Be16,
    pub(crate) destination: Be16,
    pub(crate) sequence: Be32,
    pub(crate) acknowledgement: Be32,
    /// Words of the header in the upper half.
    pub(crate) data_offset: u8,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) check: u16,
    pub(crate) urgent: u16,
}

impl TcpView {
    /// Bytes of the header, options included.
    #[inline(always)]
    pub(crate) const fn length(&self) -> usize {
        (self.data_offset >> 4) as usize * 4
    }
}

/// A number of 32 bits in network byte order.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(transparent)]
pub(crate) struct Be32([u16; 2]);

impl Be32 {
    #[inline(always)]
    pub(crate) const fn from_host(number: u32) -> Self {
        Self(zerocopy::transmute!(number.to_be()))
    }

    #[inline(always)]
    pub(crate) const fn to_host(self) -> u32 {
        u32::from_be(zerocopy::transmute!(self.0))
    }

    /// Its part of a checksum.
    #[inline(always)]
    pub(crate) const fn sum(self) -> u64 {
        let word: u32 = zerocopy::transmute!(self.0);
        word as u64
    }
}

/// UDP header.
#[derive(Clone, Copy, FromBytes)]
#[repr(C, packed(2))]
pub(crate) struct UdpView {
    pub(crate) source: Be16,
    pub(crate) destination: Be16,
    _length: Be16,
    pub(crate) check: u16,
}

/// SCTP common header, and that of the first chunk (RFC 9260 3).
#[derive(Clone, Copy, FromBytes)]
#[repr(C, packed(2))]
pub(crate) struct SctpView {
    pub(crate) source: Be16,
    pub(crate) destination: Be16,
    _tag: [u16; 2],
    _check: [u16; 2],
    chunk: u8,
    _flags: u8,
    _length: Be16,
}

impl SctpView {
    /// What the first chunk does to the association, in the terms of TCP. A chunk that opens or ends one is always the
    /// first of its packet, or follows none that matters.
    #[inline(always)]
    pub(crate) const fn flags(&self) -> TcpFlags {
        const INIT: u8 = 1;
        const INIT_ACK: u8 = 2;
        const ABORT: u8 = 6;
        const SHUTDOWN: u8 = 7;
        const SHUTDOWN_ACK: u8 = 8;
        const SHUTDOWN_COMPLETE: u8 = 14;
        match self.chunk {
            INIT => TcpFlags::SYN,
            INIT_ACK => TcpFlags::SYN.with(TcpFlags::ACK),
            ABORT => TcpFlags::RST,
            SHUTDOWN | SHUTDOWN_ACK | SHUTDOWN_COMPLETE => TcpFlags::FIN.with(TcpFlags::ACK),
            _ => TcpFlags::ACK,
        }
    }
}

/// Where SCTP has its checksum.
pub(crate) const SCTP_CHECK: usize = offset_of!(SctpView, _check);

const _: () = {
    assert!(size_of::<TcpView>() == TcpHdr::LEN && size_of::<UdpView>() == UdpHdr::LEN);
    assert!(offset_of!(TcpView, check) == offset_of!(TcpHdr, check));
    assert!(offset_of!(TcpView, flags) + 1 == offset_of!(TcpHdr, window));
    assert!(offset_of!(UdpView, check) == offset_of!(UdpHdr, check));
    assert!(offset_of!(SctpView, destination) == offset_of!(TcpView, destination));
};

/// Destination port; the source port stands at 0 in TCP, UDP and SCTP alike.
pub(crate) const DESTINATION_PORT: usize = offset_of!(TcpView, destination);

/// Where the checksum of a transport stands, and its rules.
#[inline(always)]
pub(crate) fn transport_checksum(protocol: Protocol) -> (usize, ChecksumKind) {
    match protocol {
        Protocol::TCP => (offset_of!(TcpView, check), ChecksumKind::Mandatory),
        _ => (offset_of!(UdpView, check), ChecksumKind::ZeroIsAbsent),
    }
}

/// Header of an ICMP error.
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C, packed(2))]
pub(crate) struct Icmp {
    kind: u8,
    code: u8,
    check: u16,
    rest: u32,
}

/// Where an ICMP message has its checksum.
pub(crate) const ICMP_CHECK: usize = offset_of!(Icmp, check);

impl Icmp {
    /// Finished with the checksum over itself and whatever else adds up to `sum`. `rest` are its last four bytes.
    #[inline(always)]
    fn new(kind: u8, code: u8, rest: u32, sum: u64) -> Self {
        let first = u64::from(u16::from_ne_bytes([kind, code]));
        Self { kind, code, check: checksum::of(first + u64::from(rest) + sum), rest }
    }
}

/// What is wrong with a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Problem {
    /// Nobody listens where it goes.
    NobodyListens,
    /// It is longer than this, from its network header on, and cannot be sent on.
    TooBig(u16),
}

/// What a network header says.
pub(crate) struct Network {
    pub(crate) source: Addr,
    pub(crate) destination: Addr,
    pub(crate) protocol: Protocol,
    /// Offset of the transport header from the start of the packet.
    pub(crate) transport: usize,
    /// Which part of a datagram it is.
    pub(crate) part: Part,
    /// Identification of the datagram, if this is a part of it.
    pub(crate) id: u32,
}

/// Which part of a datagram a packet is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// All of it.
    Whole,
    /// The first fragment, which has the transport header.
    First,
    /// Another one, which has not.
    Later,
}

impl Part {
    /// By the fragment's offset, in whatever unit, and whether more follow.
    #[inline(always)]
    const fn of(offset: u16, more: bool) -> Self {
        if offset != 0 {
            Self::Later
        } else if more {
            Self::First
        } else {
            Self::Whole
        }
    }
}

/// A family's header.
pub(crate) trait IpHeader {
    /// What an address change does to the sum over the whole packet.
    const NETWORK_SUM: NetworkSum;
    /// The family's number (`AF_INET`, `AF_INET6`).
    const FAMILY: u8;
    /// Its EtherType.
    const ETHER_TYPE: EtherType;
    /// Bytes of an address.
    const ADDRESS: usize;
    /// How the kernel is told that such a header comes in front of a packet.
    const ENCAPSULATION: u64;
    /// How it is told that one goes.
    const DECAPSULATION: u64;
    /// The family's ICMP.
    const ICMP: Protocol;
    /// Types of ICMP messages that quote the packet that caused them.
    fn is_error(kind: u8) -> bool;
    /// How a change of the quoted packet's address and port changes the sum over the quotation.
    fn quotation_diff(diff: ChecksumDiff) -> u32;
    /// How a change of the error's own address changes its checksum.
    fn outer_diff(diff: ChecksumDiff) -> u32;
    /// The header without options.
    type Header: FromBytes + IntoBytes + Immutable;
    /// What precedes a quoted packet in an ICMP error.
    type Error: IntoBytes + Immutable;
    /// What precedes a packet on its way to the backend's node.
    type Tunnel: FromBytes + IntoBytes + Immutable;

    /// Bytes of the packet that the header begins, itself included.
    fn length(header: &Self::Header) -> usize;
    /// Makes it the header of an answer to the packet: `length` bytes of TCP follow. Returns what the pseudo header of
    /// those adds up to (RFC 9293 3.1, RFC 8200 8.1).
    fn answer(header: &mut Self::Header, length: u16) -> u64;

    /// Says what is wrong with a packet from `to` to `from`. The quoted packet is `length` bytes that add up to `quoted`.
    fn error(problem: Problem, from: Addr, to: Addr, length: u16, quoted: u64) -> Self::Error;

    /// The headers that take a packet, whose own begins with `inner`, from a node to a pod.
    fn tunnel(inner: &Self::Header, node: Addr, pod: Addr, geneve: Geneve, frontend: Addr) -> Self::Tunnel;
    /// Of such headers: where the packet went, Geneve's, and the frontend. `None` if there is something else between or behind.
    fn tunnelled(tunnel: &Self::Tunnel) -> Option<(Addr, Geneve, Addr)>;

    /// Source and destination address in a header that lies in words; `None` if there are too few.
    fn addresses(header: &[u32]) -> Option<(Addr, Addr)>;

    /// Whether the packet is whole, of TCP or UDP, with nothing between this header and the transport's, and may be sent on
    /// once more.
    fn is_plain(header: &Self::Header) -> bool;
    /// How the packet wants to be treated, as routing is asked for it.
    fn class(header: &Self::Header) -> u32;
    /// An address as routing is asked for it.
    fn kernels(address: Addr) -> [u32; 4];
    /// Takes a hop from the packet, which has some.
    fn hop<P: Packet>(packet: &P, at: usize) -> Option<()>;

    /// Reads the header at `at`; `None` if the packet is cut short, or has more extension headers than are worth following.
    fn read<P: Packet>(packet: &P, at: usize) -> Option<Network>;
    /// Writes the source address, and what `diff` does to the header's own checksum.
    fn set_source<P: Packet>(packet: &P, at: usize, new: Addr, diff: u32) -> Option<()>;
    /// Writes the destination address likewise.
    fn set_destination<P: Packet>(packet: &P, at: usize, new: Addr, diff: u32) -> Option<()>;
}
