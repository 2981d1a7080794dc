//! From bytes to the facts that a decision needs.

use network_types::{eth::EthHdr, ip::Ipv6Hdr, tcp::TcpHdr};
use proxy_common::{
    flow::TcpFlags,
    lb,
    tuple::{Endpoint, FlowKey, Hook, Protocol},
};

use crate::{
    packet::Packet,
    wire::{IpHeader, TcpView, UdpView},
};

/// Bytes that must lie in the linear part to parse an ordinary packet of either family.
pub(crate) const HEADERS: usize = EthHdr::LEN + Ipv6Hdr::LEN + TcpHdr::LEN;

/// What a packet is.
pub(crate) enum Content {
    /// One that Sluice could balance.
    Transport(Parsed),
    /// ICMP, with the offset of its header: perhaps an error about one that was balanced.
    Icmp(usize),
}

/// A packet that Sluice could balance.
pub(crate) struct Parsed {
    /// Its tuple and flags.
    pub(crate) packet: lb::Packet,
    /// Offset of the network header.
    pub(crate) network: usize,
    /// Offset of the transport header.
    pub(crate) transport: usize,
}

/// Reads network and transport header; `None` for what Sluice does not touch.
#[inline(always)]
pub(crate) fn parse<P: Packet, I: IpHeader>(packet: &P, at: usize, hook: Hook) -> Option<Content> {
    let network = I::read(packet, at)?;
    let (source_port, destination_port, flags) = match network.protocol {
        Protocol::TCP => {
            let tcp: TcpView = packet.load(network.transport)?;
            (tcp.source, tcp.destination, TcpFlags(tcp.flags))
        }
        Protocol::UDP => {
            let udp: UdpView = packet.load(network.transport)?;
            (udp.source, udp.destination, TcpFlags::default())
        }
        protocol if protocol == I::ICMP => return Some(Content::Icmp(network.transport)),
        _ => return None,
    };
    let source = Endpoint { address: network.source, port: source_port };
    let destination = Endpoint { address: network.destination, port: destination_port };
    let key = FlowKey::new(source, destination, network.protocol, hook);
    let packet = lb::Packet { key, flags, length: packet.length() };
    Some(Content::Transport(Parsed { packet, network: at, transport: network.transport }))
}
