//! IPv4 (RFC 791).
#![expect(clippy::cast_possible_truncation, reason = "lengths of packets and headers, far below any limit")]

use core::mem::offset_of;

use aya_ebpf::bindings::{BPF_F_ADJ_ROOM_DECAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4};
use network_types::{
    eth::EtherType,
    ip::{IpProto, Ipv4Hdr},
};
use proxy_common::{
    addr::Addr,
    checksum::{self, ChecksumDiff},
    endian::Be16,
    tuple::Protocol,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Geneve, Icmp, IpHeader, Network, Part, Problem};
use crate::packet::{NetworkSum, Packet};

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

/// What precedes a quoted IPv4 packet in an ICMP error (RFC 792): network header and ICMP header.
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C, packed(2))]
pub(crate) struct Ipv4Error {
    network: Ipv4View,
    icmp: Icmp,
}

/// What precedes an IPv4 packet on its way to the backend's node.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C, packed(2))]
pub(crate) struct Ipv4Tunnel {
    network: Ipv4View,
    geneve: Geneve,
    frontend: [u16; 2],
}

const _: () = {
    assert!(size_of::<Ipv4View>() == Ipv4Hdr::LEN);
    assert!(offset_of!(Ipv4View, fragment) == offset_of!(Ipv4Hdr, frags));
    assert!(offset_of!(Ipv4View, protocol) == offset_of!(Ipv4Hdr, proto));
    assert!(offset_of!(Ipv4View, check) == offset_of!(Ipv4Hdr, check));
    assert!(offset_of!(Ipv4View, destination) == offset_of!(Ipv4Hdr, dst_addr));
};

/// IPv4.
pub(crate) enum Ipv4 {}

impl Ipv4 {
    /// Fragment offset, and the more-fragments flag (RFC 791 3.1).
    const OFFSET: Be16 = Be16::from_host(0x1fff);
    const MORE: Be16 = Be16::from_host(0x2000);

    /// A header without options, in front of `length` bytes.
    #[inline(always)]
    fn header(tos: u8, protocol: Protocol, source: u32, destination: u32, length: u16) -> Ipv4View {
        const DONT_FRAGMENT: Be16 = Be16::from_host(0x4000);
        const TTL: u8 = 64;
        // A packet that the device will take apart may be longer than the field says; the parts get their own.
        let total_length = Be16::from_host((size_of::<Ipv4View>() as u16).wrapping_add(length));
        let first = u64::from(u16::from_ne_bytes([0x45, tos])) + u64::from(total_length.raw());
        let middle = u64::from(DONT_FRAGMENT.raw()) + u64::from(u16::from_ne_bytes([TTL, protocol.0]));
        Ipv4View {
            version_ihl: 0x45,
            tos,
            total_length,
            id: Be16::from_host(0),
            fragment: DONT_FRAGMENT,
            ttl: TTL,
            protocol: protocol.0,
            check: checksum::of(first + middle + u64::from(source) + u64::from(destination)),
            source: zerocopy::transmute!(source),
            destination: zerocopy::transmute!(destination),
        }
    }

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
    const FAMILY: u8 = 2;
    const ETHER_TYPE: EtherType = EtherType::Ipv4;
    const ADDRESS: usize = 4;
    const ENCAPSULATION: u64 = BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 as u64;
    const DECAPSULATION: u64 = BPF_F_ADJ_ROOM_DECAP_L3_IPV4 as u64;
    const ICMP: Protocol = Protocol(IpProto::Icmp as u8);
    type Header = Ipv4View;
    type Error = Ipv4Error;
    type Tunnel = Ipv4Tunnel;

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
    fn length(header: &Ipv4View) -> usize {
        usize::from(header.total_length.to_host())
    }

    #[inline(always)]
    fn answer(header: &mut Ipv4View, length: u16) -> u64 {
        let (source, destination): (u32, u32) =
            (zerocopy::transmute!(header.destination), zerocopy::transmute!(header.source));
        *header = Self::header(0, Protocol::TCP, source, destination, length);
        let protocol = u16::from_ne_bytes([0, header.protocol]);
        let rest = u64::from(protocol) + u64::from(Be16::from_host(length).raw());
        u64::from(source) + u64::from(destination) + rest
    }

    #[inline(always)]
    fn error(problem: Problem, from: Addr, to: Addr, length: u16, quoted: u64) -> Ipv4Error {
        const UNREACHABLE: u8 = 3;
        const PORT: u8 = 3;
        const FRAGMENTATION_NEEDED: u8 = 4;
        // RFC 1812 4.3.2.5.
        const INTERNETWORK_CONTROL: u8 = 0xc0;
        let (code, rest) = match problem {
            Problem::NobodyListens => (PORT, 0),
            // RFC 1191 4.
            Problem::TooBig(mtu) => (FRAGMENTATION_NEEDED, u32::from(mtu).to_be()),
        };
        let ([_, _, _, source], [_, _, _, destination]) = (from.words(), to.words());
        let length = size_of::<Icmp>() as u16 + length;
        Ipv4Error {
            network: Self::header(INTERNETWORK_CONTROL, Self::ICMP, source, destination, length),
            icmp: Icmp::new(UNREACHABLE, code, rest, quoted),
        }
    }

    #[inline(always)]
    fn tunnel(inner: &Ipv4View, node: Addr, pod: Addr, geneve: Geneve, frontend: Addr) -> Ipv4Tunnel {
        // Congestion is told by a drop: whoever takes the header off does not look (RFC 6040 4.1, compatibility mode).
        const CONGESTION: u8 = 0x03;
        let ([_, _, _, source], [_, _, _, destination]) = (node.words(), pod.words());
        let length = geneve.length();
        Ipv4Tunnel {
            network: Self::header(inner.tos & !CONGESTION, Protocol::UDP, source, destination, length),
            geneve,
            frontend: zerocopy::transmute!(frontend.v4_wire()),
        }
    }

    #[inline(always)]
    fn tunnelled(tunnel: &Ipv4Tunnel) -> Option<(Addr, Geneve, Addr)> {
        let Ipv4Tunnel { network, geneve, frontend } = *tunnel;
        let plain = network.version_ihl == 0x45 && network.protocol == Protocol::UDP.0;
        let pod = Addr::from_v4_wire(zerocopy::transmute!(network.destination));
        plain.then_some((pod, geneve, Addr::from_v4_wire(zerocopy::transmute!(frontend))))
    }

    #[inline(always)]
    fn addresses(header: &[u32]) -> Option<(Addr, Addr)> {
        let &[_, _, _, source, destination, ..] = header else {
            return None;
        };
        Some((Addr::from_v4_wire(source.to_ne_bytes()), Addr::from_v4_wire(destination.to_ne_bytes())))
    }

    #[inline(always)]
    fn is_plain(header: &Ipv4View) -> bool {
        header.version_ihl == 0x45
            && header.fragment.raw() & (Self::OFFSET.raw() | Self::MORE.raw()) == 0
            && matches!(Protocol(header.protocol), Protocol::TCP | Protocol::UDP)
            && header.ttl > 1
    }

    #[inline(always)]
    fn class(header: &Ipv4View) -> u32 {
        u32::from_ne_bytes([header.tos, 0, 0, 0])
    }

    #[inline(always)]
    fn kernels(address: Addr) -> [u32; 4] {
        let [_, _, _, address] = address.words();
        [address, 0, 0, 0]
    }

    #[inline(always)]
    fn hop<P: Packet>(packet: &P, at: usize) -> Option<()> {
        let (hops, check) = (at + offset_of!(Ipv4View, ttl), at + offset_of!(Ipv4View, check));
        let [ttl, protocol]: [u8; 2] = packet.load(hops)?;
        let (old, new) = ([ttl, protocol], [ttl.wrapping_sub(1), protocol]);
        let diff = u32::from(!u16::from_ne_bytes(old)) + u32::from(u16::from_ne_bytes(new));
        packet.store(check, checksum::apply(packet.load(check)?, diff))?;
        packet.store(hops, new)
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
