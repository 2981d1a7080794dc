//! IPv6 (RFC 8200).
#![expect(clippy::cast_possible_truncation, reason = "lengths of packets and headers, far below any limit")]

use core::mem::offset_of;

use aya_ebpf::bindings::{BPF_F_ADJ_ROOM_DECAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6};
use network_types::{
    eth::EtherType,
    ip::{IpProto, Ipv6Hdr},
};
use proxy_common::{addr::Addr, checksum::ChecksumDiff, endian::Be16, tuple::Protocol};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Geneve, Icmp, IpHeader, Network, Part, Problem};
use crate::packet::{NetworkSum, Packet};

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

/// The same for IPv6 (RFC 4443 3.1).
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C, packed(2))]
pub(crate) struct Ipv6Error {
    network: Ipv6View,
    icmp: Icmp,
}

/// What precedes an IPv6 packet on its way to the backend's node.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C, packed(2))]
pub(crate) struct Ipv6Tunnel {
    network: Ipv6View,
    geneve: Geneve,
    frontend: [u16; 8],
}

const _: () = {
    assert!(size_of::<Ipv6View>() == Ipv6Hdr::LEN);
    assert!(offset_of!(Ipv6View, next_header) == offset_of!(Ipv6Hdr, next_hdr));
    assert!(offset_of!(Ipv6View, destination) == offset_of!(Ipv6Hdr, dst_addr));
};

/// The sum of an address, as four words.
#[inline(always)]
fn sum(addr: Addr) -> u64 {
    let [a, b, c, d] = addr.words();
    u64::from(a) + u64::from(b) + u64::from(c) + u64::from(d)
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

    /// A header in front of `length` bytes.
    #[inline(always)]
    fn header(protocol: Protocol, source: Addr, destination: Addr, length: u16) -> Ipv6View {
        Ipv6View {
            version_class: 0x60,
            class_flow: 0,
            flow: 0,
            payload_length: Be16::from_host(length),
            next_header: protocol.0,
            hop_limit: 64,
            source: zerocopy::transmute!(source.words()),
            destination: zerocopy::transmute!(destination.words()),
        }
    }

    /// What the pseudo header of so many bytes adds up to.
    #[inline(always)]
    fn pseudo_sum(protocol: Protocol, source: Addr, destination: Addr, length: u16) -> u64 {
        let rest = u64::from(Be16::from_host(length).raw()) + u64::from(u16::from_ne_bytes([0, protocol.0]));
        sum(source) + sum(destination) + rest
    }

    #[inline(always)]
    fn store<P: Packet>(packet: &P, at: usize, new: Addr) -> Option<()> {
        let wire: [u16; 8] = zerocopy::transmute!(new.words());
        packet.store(at, wire)
    }
}

impl IpHeader for Ipv6 {
    const NETWORK_SUM: NetworkSum = NetworkSum::Absent;
    const FAMILY: u8 = 10;
    const ETHER_TYPE: EtherType = EtherType::Ipv6;
    const ADDRESS: usize = 16;
    const ENCAPSULATION: u64 = BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 as u64;
    const DECAPSULATION: u64 = BPF_F_ADJ_ROOM_DECAP_L3_IPV6 as u64;
    const ICMP: Protocol = Protocol(IpProto::Ipv6Icmp as u8);
    type Header = Ipv6View;
    type Error = Ipv6Error;
    type Tunnel = Ipv6Tunnel;

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
    fn length(header: &Ipv6View) -> usize {
        size_of::<Ipv6View>() + usize::from(header.payload_length.to_host())
    }

    #[inline(always)]
    fn answer(header: &mut Ipv6View, length: u16) -> u64 {
        let source = Addr::from_v6_words(zerocopy::transmute!(header.destination));
        let destination = Addr::from_v6_words(zerocopy::transmute!(header.source));
        *header = Self::header(Protocol::TCP, source, destination, length);
        Self::pseudo_sum(Protocol::TCP, source, destination, length)
    }

    #[inline(always)]
    fn error(problem: Problem, from: Addr, to: Addr, length: u16, quoted: u64) -> Ipv6Error {
        const UNREACHABLE: u8 = 1;
        const PORT: u8 = 4;
        const PACKET_TOO_BIG: u8 = 2;
        let (kind, code, rest) = match problem {
            Problem::NobodyListens => (UNREACHABLE, PORT, 0),
            // RFC 4443 3.2.
            Problem::TooBig(mtu) => (PACKET_TOO_BIG, 0, u32::from(mtu).to_be()),
        };
        let length = size_of::<Icmp>() as u16 + length;
        let pseudo = Self::pseudo_sum(Self::ICMP, from, to, length);
        Ipv6Error {
            network: Self::header(Self::ICMP, from, to, length),
            icmp: Icmp::new(kind, code, rest, quoted + pseudo),
        }
    }

    #[inline(always)]
    fn tunnel(inner: &Ipv6View, node: Addr, pod: Addr, geneve: Geneve, frontend: Addr) -> Ipv6Tunnel {
        // The upper nibble is the version; the lowest two bits of the class are congestion's, as in IPv4.
        const CONGESTION: u8 = 0x30;
        let mut network = Self::header(Protocol::UDP, node, pod, geneve.length());
        network.version_class = inner.version_class;
        network.class_flow = inner.class_flow & 0xf0 & !CONGESTION;
        Ipv6Tunnel { network, geneve, frontend: zerocopy::transmute!(frontend.words()) }
    }

    #[inline(always)]
    fn tunnelled(tunnel: &Ipv6Tunnel) -> Option<(Addr, Geneve, Addr)> {
        let Ipv6Tunnel { network, geneve, frontend } = *tunnel;
        let plain = network.version_class >> 4 == 6 && network.next_header == Protocol::UDP.0;
        let pod = Addr::from_v6_words(zerocopy::transmute!(network.destination));
        plain.then_some((pod, geneve, Addr::from_v6_words(zerocopy::transmute!(frontend))))
    }

    #[inline(always)]
    fn addresses(header: &[u32]) -> Option<(Addr, Addr)> {
        let &[_, _, a, b, c, d, e, f, g, h, ..] = header else {
            return None;
        };
        Some((Addr::from_v6_words([a, b, c, d]), Addr::from_v6_words([e, f, g, h])))
    }

    #[inline(always)]
    fn is_plain(header: &Ipv6View) -> bool {
        header.version_class >> 4 == 6
            && matches!(Protocol(header.next_header), Protocol::TCP | Protocol::UDP)
            && header.hop_limit > 1
    }

    #[inline(always)]
    fn class(header: &Ipv6View) -> u32 {
        let [a, b] = header.flow.to_ne_bytes();
        u32::from_ne_bytes([header.version_class & 0x0f, header.class_flow, a, b])
    }

    #[inline(always)]
    fn kernels(address: Addr) -> [u32; 4] {
        address.words()
    }

    #[inline(always)]
    fn hop<P: Packet>(packet: &P, at: usize) -> Option<()> {
        let hops = at + offset_of!(Ipv6View, hop_limit);
        let limit: u8 = packet.load(hops)?;
        packet.store(hops, limit.wrapping_sub(1))
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
