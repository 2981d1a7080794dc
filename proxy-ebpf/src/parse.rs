//! From bytes to the facts that a decision needs.

use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
    udp::UdpHdr,
};
use proxy_common::{
    flow::TcpFlags,
    fragment::{FragmentKey, Ports},
    lb,
    tuple::{Endpoint, FlowKey, Hook, Protocol},
};

use crate::{
    packet::Packet,
    wire::{IpHeader, Network, Part, SctpView, TcpView, UdpView},
};

/// Bytes that must lie in the linear part to parse an ordinary packet of either family.
pub(crate) const HEADERS: usize = EthHdr::LEN + Ipv6Hdr::LEN + TcpHdr::LEN;

/// Bytes that must lie there to parse this packet: fewer than [`HEADERS`] for TCP over IPv4 without options.
#[inline(always)]
pub(crate) fn needed<P: Packet, const LINK: usize>(packet: &P, is_ipv4: bool) -> usize {
    /// Version 4, five words (RFC 791 3.1).
    const PLAIN: u8 = 0x45;
    /// Where the protocol stands.
    const PROTOCOL: usize = 9;
    if !is_ipv4 {
        return HEADERS;
    }
    let Some(header) = packet.load::<[u8; Ipv4Hdr::LEN]>(LINK) else {
        return HEADERS;
    };
    if header[0] ^ PLAIN | header[PROTOCOL] ^ Protocol::TCP.0 != 0 {
        return HEADERS;
    }
    LINK + Ipv4Hdr::LEN + TcpHdr::LEN
}

/// What a packet is.
pub(crate) enum Content {
    /// One that Sluice could balance.
    Transport(Parsed),
    /// Of a protocol without ports.
    Other,
}

/// A packet that Sluice could balance.
pub(crate) struct Parsed {
    /// Its tuple and flags.
    pub(crate) packet: lb::Packet,
    /// Offset of the network header.
    pub(crate) network: usize,
    /// Offset of the transport header.
    pub(crate) transport: usize,
    /// Which part of a datagram it is. The ports of a later one are not known yet.
    pub(crate) part: Part,
    /// Identification of the datagram, if it is a part.
    pub(crate) id: u32,
}

impl Parsed {
    /// What the fragments of its datagram have in common.
    #[inline(always)]
    pub(crate) const fn datagram(&self) -> FragmentKey {
        let FlowKey { source, destination, protocol, hook, .. } = self.packet.key;
        FragmentKey { source, destination, id: self.id, protocol, hook, reserved: [0; 2] }
    }

    /// Bytes of the longest packet, network header included, that this one, of TCP or UDP, is taken apart into where it leaves;
    /// `segment` is what each of them carries, 0 if it is not taken apart.
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "lengths of packets and headers, far below any limit"
    )]
    pub(crate) fn longest<P: Packet>(&self, packet: &P, segment: u32) -> Option<u32> {
        if segment == 0 {
            return Some(self.packet.length.wrapping_sub(self.network as u32));
        }
        let header = if self.packet.key.protocol == Protocol::TCP {
            packet.load::<TcpView>(self.transport)?.length()
        } else {
            UdpHdr::LEN
        };
        Some((self.transport.wrapping_sub(self.network).wrapping_add(header) as u32).wrapping_add(segment))
    }
}

/// Reads network and transport header; `None` for what Sluice does not touch.
#[inline(always)]
pub(crate) fn parse<P: Packet, I: IpHeader>(packet: &P, at: usize, hook: Hook) -> Option<Content> {
    transport(packet, I::read(packet, at)?, at, hook)
}

/// Reads the transport header behind a network header, which begins at `at`.
#[inline(always)]
pub(crate) fn transport<P: Packet>(packet: &P, network: Network, at: usize, hook: Hook) -> Option<Content> {
    let (ports, flags) = match network.protocol {
        // Its checksum covers all of a datagram, of which a fragment does not show the length. SCTP divides messages itself.
        Protocol::SCTP if network.part != Part::Whole => return None,
        Protocol::TCP | Protocol::UDP if network.part == Part::Later => {
            (Ports::default(), TcpFlags::default())
        }
        Protocol::TCP => {
            let tcp: TcpView = packet.load(network.transport)?;
            (Ports { source: tcp.source, destination: tcp.destination }, TcpFlags(tcp.flags))
        }
        Protocol::UDP => {
            let udp: UdpView = packet.load(network.transport)?;
            (Ports { source: udp.source, destination: udp.destination }, TcpFlags::default())
        }
        Protocol::SCTP => {
            let sctp: SctpView = packet.load(network.transport)?;
            (Ports { source: sctp.source, destination: sctp.destination }, sctp.flags())
        }
        _ => return Some(Content::Other),
    };
    let source = Endpoint { address: network.source, port: ports.source };
    let destination = Endpoint { address: network.destination, port: ports.destination };
    let key = FlowKey::new(source, destination, network.protocol, hook);
    let packet = lb::Packet { key, flags, length: packet.length(), device: packet.device() };
    let Network { transport, part, id, .. } = network;
    Some(Content::Transport(Parsed { packet, network: at, transport, part, id }))
}
