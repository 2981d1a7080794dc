//! Headers as they lie in the packet, and the few things that differ between the families.
//!
//! The views are `packed(2)`, which is the truth behind a 14-byte Ethernet header: the compiler then reads
//! halfwords instead of bytes. Their offsets are held against the `network-types` definitions.
#![expect(clippy::cast_possible_truncation, reason = "lengths of packets and headers, far below any limit")]

use core::mem::offset_of;

use network_types::{
    ip::{IpProto, Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
    udp::UdpHdr,
};
use proxy_common::{
    addr::Addr,
    checksum::{self, ChecksumDiff},
    endian::Be16,
    flow::TcpFlags,
    tuple::Protocol,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::packet::{ChecksumKind, NetworkSum, Packet};

/// IPv4 header without options.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed(2))]
pub(crate) struct Ipv4View {
    version_ihl: u8,
    tos: u8,
    total_length: Be16,
    id: Be16,
    fragment: Be16,
    ttl: u8,
    protocol: u8,
    check: u16,
    source: [u16; 2],
    destination: [u16; 2],
}

/// IPv6 header.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed(2))]
pub(crate) struct Ipv6View {
    version_class: u8,
    class_flow: u8,
    flow: u16,
    payload_length: Be16,
    next_header: u8,
    hop_limit: u8,
    source: [u16; 8],
    destination: [u16; 8],
}

/// First bytes of every IPv6 extension header.
#[derive(Clone, Copy, FromBytes)]
#[repr(C, packed(2))]
struct Extension {
    next_header: u8,
    /// In units of 8 bytes, not counting the first 8.
    length: u8,
}

/// IPv6 fragment header.
#[derive(Clone, Copy, FromBytes)]
#[repr(C, packed(2))]
struct FragmentView {
    next_header: u8,
    _reserved: u8,
    position: Be16,
    id: [u16; 2],
}

/// TCP header without options.
#[derive(Clone, Copy, FromBytes)]
#[repr(C, packed(2))]
pub(crate) struct TcpView {
    pub(crate) source: Be16,
    pub(crate) destination: Be16,
    _sequence: [u16; 2],
    _acknowledgement: [u16; 2],
    _data_offset: u8,
    pub(crate) flags: u8,
    _window: u16,
    pub(crate) check: u16,
    _urgent: u16,
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
    assert!(size_of::<Ipv4View>() == Ipv4Hdr::LEN && size_of::<Ipv6View>() == Ipv6Hdr::LEN);
    assert!(size_of::<TcpView>() == TcpHdr::LEN && size_of::<UdpView>() == UdpHdr::LEN);
    assert!(offset_of!(Ipv4View, fragment) == offset_of!(Ipv4Hdr, frags));
    assert!(offset_of!(Ipv4View, protocol) == offset_of!(Ipv4Hdr, proto));
    assert!(offset_of!(Ipv4View, check) == offset_of!(Ipv4Hdr, check));
    assert!(offset_of!(Ipv4View, destination) == offset_of!(Ipv4Hdr, dst_addr));
    assert!(offset_of!(Ipv6View, next_header) == offset_of!(Ipv6Hdr, next_hdr));
    assert!(offset_of!(Ipv6View, destination) == offset_of!(Ipv6Hdr, dst_addr));
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

/// What precedes a quoted IPv4 packet in "port unreachable" (RFC 792): network header and ICMP header.
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C, packed(2))]
pub(crate) struct Ipv4Unreachable {
    network: Ipv4View,
    icmp: Icmp,
}

/// The same for IPv6 (RFC 4443 3.1).
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C, packed(2))]
pub(crate) struct Ipv6Unreachable {
    network: Ipv6View,
    icmp: Icmp,
}

/// Header of an ICMP error.
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C, packed(2))]
pub(crate) struct Icmp {
    kind: u8,
    code: u8,
    check: u16,
    unused: u32,
}

/// Where an ICMP message has its checksum.
pub(crate) const ICMP_CHECK: usize = offset_of!(Icmp, check);

impl Icmp {
    /// Finished with the checksum over itself and whatever else adds up to `sum`.
    #[inline(always)]
    fn new(kind: u8, code: u8, sum: u64) -> Self {
        let first = u64::from(u16::from_ne_bytes([kind, code]));
        Self { kind, code, check: checksum::of(first + sum), unused: 0 }
    }
}

/// The sum of an address, as four words.
#[inline(always)]
fn sum(addr: Addr) -> u64 {
    let [a, b, c, d] = addr.words();
    u64::from(a) + u64::from(b) + u64::from(c) + u64::from(d)
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
    /// The family's ICMP.
    const ICMP: Protocol;
    /// Types of ICMP messages that quote the packet that caused them.
    fn is_error(kind: u8) -> bool;
    /// How a change of the quoted packet's address and port changes the sum over the quotation.
    fn quotation_diff(diff: ChecksumDiff) -> u32;
    /// How a change of the error's own address changes its checksum.
    fn outer_diff(diff: ChecksumDiff) -> u32;
    /// What precedes a quoted packet in an answer that says "port unreachable".
    type Unreachable: IntoBytes + Immutable;

    /// Says that nobody listens at `from`, to `to`. The quoted packet is `length` bytes that add up to `quoted`.
    fn unreachable(from: Addr, to: Addr, length: u16, quoted: u64) -> Self::Unreachable;

    /// Source and destination address in a header that lies in words; `None` if there are too few.
    fn addresses(header: &[u32]) -> Option<(Addr, Addr)>;

    /// Reads the header at `at`; `None` if the packet is cut short, or has more extension headers than are worth following.
    fn read<P: Packet>(packet: &P, at: usize) -> Option<Network>;
    /// Writes the source address, and what `diff` does to the header's own checksum.
    fn set_source<P: Packet>(packet: &P, at: usize, new: Addr, diff: u32) -> Option<()>;
    /// Writes the destination address likewise.
    fn set_destination<P: Packet>(packet: &P, at: usize, new: Addr, diff: u32) -> Option<()>;
}

/// IPv4.
pub(crate) enum Ipv4 {}

impl Ipv4 {
    /// Fragment offset, and the more-fragments flag (RFC 791 3.1).
    const OFFSET: Be16 = Be16::from_host(0x1fff);
    const MORE: Be16 = Be16::from_host(0x2000);

    #[inline(always)]
    fn store<P: Packet>(packet: &P, at: usize, field: usize, new: Addr, diff: u32) -> Option<()> {
        let check = at + offset_of!(Ipv4View, check);
        let wire: [u16; 2] = zerocopy::transmute!(new.v4_wire());
        packet.store(check, checksum::apply(packet.load(check)?, diff))?;
        packet.store(at + field, wire)
    }
}

impl IpHeader for Ipv4 {
    const NETWORK_SUM: NetworkSum = NetworkSum::Compensates;
    const ICMP: Protocol = Protocol(IpProto::Icmp as u8);
    type Unreachable = Ipv4Unreachable;

    /// Destination unreachable, time exceeded, parameter problem (RFC 792). A redirect quotes too, but speaks to the
    /// neighbour about its own route.
    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        matches!(kind, 3 | 11 | 12)
    }

    /// The quoted header's checksum makes up for its address.
    #[inline(always)]
    fn quotation_diff(diff: ChecksumDiff) -> u32 {
        diff.payload
    }

    /// There is no pseudo header.
    #[inline(always)]
    fn outer_diff(_: ChecksumDiff) -> u32 {
        0
    }

    #[inline(always)]
    fn unreachable(from: Addr, to: Addr, length: u16, quoted: u64) -> Ipv4Unreachable {
        const DONT_FRAGMENT: Be16 = Be16::from_host(0x4000);
        const UNREACHABLE: u8 = 3;
        const PORT: u8 = 3;
        let total = size_of::<Ipv4Unreachable>() as u16 + length;
        let [_, _, _, source] = from.words();
        let [_, _, _, destination] = to.words();
        let mut network = Ipv4View {
            version_ihl: 0x45,
            // Internetwork control (RFC 1812 4.3.2.5).
            tos: 0xc0,
            total_length: Be16::from_host(total),
            id: Be16::from_host(0),
            fragment: DONT_FRAGMENT,
            ttl: 64,
            protocol: IpProto::Icmp as u8,
            check: 0,
            source: zerocopy::transmute!(source),
            destination: zerocopy::transmute!(destination),
        };
        let first = u64::from(u16::from_ne_bytes([0x45, 0xc0])) + u64::from(network.total_length.raw());
        let middle =
            u64::from(DONT_FRAGMENT.raw()) + u64::from(u16::from_ne_bytes([64, IpProto::Icmp as u8]));
        network.check = checksum::of(first + middle + u64::from(source) + u64::from(destination));
        Ipv4Unreachable { network, icmp: Icmp::new(UNREACHABLE, PORT, quoted) }
    }

    #[inline(always)]
    fn addresses(header: &[u32]) -> Option<(Addr, Addr)> {
        let &[_, _, _, source, destination, ..] = header else {
            return None;
        };
        Some((Addr::from_v4_wire(source.to_ne_bytes()), Addr::from_v4_wire(destination.to_ne_bytes())))
    }

    #[inline(always)]
    fn read<P: Packet>(packet: &P, at: usize) -> Option<Network> {
        let header: Ipv4View = packet.load(at)?;
        if header.version_ihl >> 4 != 4 {
            return None;
        }
        let length = usize::from(header.version_ihl & 0x0f) * 4;
        if length < size_of::<Ipv4View>() {
            return None;
        }
        Some(Network {
            source: Addr::from_v4_wire(zerocopy::transmute!(header.source)),
            destination: Addr::from_v4_wire(zerocopy::transmute!(header.destination)),
            protocol: Protocol(header.protocol),
            transport: at + length,
            part: Part::of(
                header.fragment.raw() & Self::OFFSET.raw(),
                header.fragment.raw() & Self::MORE.raw() != 0,
            ),
            id: u32::from(header.id.raw()),
        })
    }

    #[inline(always)]
    fn set_source<P: Packet>(packet: &P, at: usize, new: Addr, diff: u32) -> Option<()> {
        Self::store(packet, at, offset_of!(Ipv4View, source), new, diff)
    }

    #[inline(always)]
    fn set_destination<P: Packet>(packet: &P, at: usize, new: Addr, diff: u32) -> Option<()> {
        Self::store(packet, at, offset_of!(Ipv4View, destination), new, diff)
    }
}

/// IPv6.
pub(crate) enum Ipv6 {}

impl Ipv6 {
    /// As many as a sane packet has; the verifier walks each number of them to the end.
    const MAX_EXTENSIONS: usize = 2;
    const HOP_BY_HOP: u8 = IpProto::HopOpt as u8;
    const ROUTING: u8 = IpProto::Ipv6Route as u8;
    const DESTINATION_OPTIONS: u8 = IpProto::Ipv6Opts as u8;
    const FRAGMENT: u8 = IpProto::Ipv6Frag as u8;
    /// Fragment offset, and the more-fragments flag (RFC 8200 4.5).
    const OFFSET: Be16 = Be16::from_host(0xfff8);
    const MORE: Be16 = Be16::from_host(0x0001);

    #[inline(always)]
    fn store<P: Packet>(packet: &P, at: usize, new: Addr) -> Option<()> {
        let wire: [u16; 8] = zerocopy::transmute!(new.words());
        packet.store(at, wire)
    }
}

impl IpHeader for Ipv6 {
    const NETWORK_SUM: NetworkSum = NetworkSum::Absent;
    const ICMP: Protocol = Protocol(IpProto::Ipv6Icmp as u8);
    type Unreachable = Ipv6Unreachable;

    /// Types below 128 are errors (RFC 4443 2.1).
    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        kind < 128
    }

    #[inline(always)]
    fn quotation_diff(diff: ChecksumDiff) -> u32 {
        diff.total()
    }

    #[inline(always)]
    fn outer_diff(diff: ChecksumDiff) -> u32 {
        diff.pseudo
    }

    #[inline(always)]
    fn unreachable(from: Addr, to: Addr, length: u16, quoted: u64) -> Ipv6Unreachable {
        const UNREACHABLE: u8 = 1;
        const PORT: u8 = 4;
        let payload = Be16::from_host(size_of::<Icmp>() as u16 + length);
        let next_header = IpProto::Ipv6Icmp as u8;
        let network = Ipv6View {
            version_class: 0x60,
            class_flow: 0,
            flow: 0,
            payload_length: payload,
            next_header,
            hop_limit: 64,
            source: zerocopy::transmute!(from.words()),
            destination: zerocopy::transmute!(to.words()),
        };
        let pseudo = u64::from(payload.raw()) + u64::from(u16::from_ne_bytes([0, next_header]));
        Ipv6Unreachable { network, icmp: Icmp::new(UNREACHABLE, PORT, quoted + pseudo + sum(from) + sum(to)) }
    }

    #[inline(always)]
    fn addresses(header: &[u32]) -> Option<(Addr, Addr)> {
        let &[_, _, a, b, c, d, e, f, g, h, ..] = header else {
            return None;
        };
        Some((Addr::from_v6_words([a, b, c, d]), Addr::from_v6_words([e, f, g, h])))
    }

    #[inline(always)]
    fn read<P: Packet>(packet: &P, at: usize) -> Option<Network> {
        let header: Ipv6View = packet.load(at)?;
        if header.version_class >> 4 != 6 {
            return None;
        }
        let mut protocol = header.next_header;
        let mut transport = at + size_of::<Ipv6View>();
        let (mut part, mut id) = (Part::Whole, 0);
        for _ in 0..Self::MAX_EXTENSIONS {
            match protocol {
                Self::HOP_BY_HOP | Self::ROUTING | Self::DESTINATION_OPTIONS => {
                    let extension: Extension = packet.load(transport)?;
                    protocol = extension.next_header;
                    transport += (usize::from(extension.length) + 1) * 8;
                }
                Self::FRAGMENT => {
                    let fragment: FragmentView = packet.load(transport)?;
                    protocol = fragment.next_header;
                    transport += size_of::<FragmentView>();
                    let position = fragment.position.raw();
                    part = Part::of(position & Self::OFFSET.raw(), position & Self::MORE.raw() != 0);
                    id = zerocopy::transmute!(fragment.id);
                    // What follows stands in the first fragment only.
                    break;
                }
                _ => break,
            }
        }
        if matches!(protocol, Self::HOP_BY_HOP | Self::ROUTING | Self::DESTINATION_OPTIONS)
            && part == Part::Whole
        {
            return None;
        }
        Some(Network {
            source: Addr::from_v6_words(zerocopy::transmute!(header.source)),
            destination: Addr::from_v6_words(zerocopy::transmute!(header.destination)),
            protocol: Protocol(protocol),
            transport,
            part,
            id,
        })
    }

    #[inline(always)]
    fn set_source<P: Packet>(packet: &P, at: usize, new: Addr, _diff: u32) -> Option<()> {
        Self::store(packet, at + offset_of!(Ipv6View, source), new)
    }

    #[inline(always)]
    fn set_destination<P: Packet>(packet: &P, at: usize, new: Addr, _diff: u32) -> Option<()> {
        Self::store(packet, at + offset_of!(Ipv6View, destination), new)
    }
}
