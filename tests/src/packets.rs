//! Frames, built field by field and with checksums summed by definition: independent of the code under test.

use std::net::{IpAddr, SocketAddr};

use crc::{CRC_32_ISCSI, Crc};
use network_types::{
    eth::{EthHdr, EtherType},
    ip::{IpProto, Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
    udp::UdpHdr,
};

/// FIN, SYN, RST and ACK as they stand in the TCP header.
pub mod flags {
    /// No more data.
    pub const FIN: u8 = 0x01;
    /// Opens a connection.
    pub const SYN: u8 = 0x02;
    /// Resets it.
    pub const RST: u8 = 0x04;
    /// Acknowledges.
    pub const ACK: u8 = 0x10;
}

/// What stands behind the network header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP with these flags.
    Tcp(u8),
    /// UDP.
    Udp,
    /// UDP without a checksum, which IPv4 allows.
    UdpUnchecked,
    /// SCTP, whose first chunk is of this type.
    Sctp(u8),
}

/// Length of SCTP's common header.
const SCTP_HEADER: usize = 12;
/// Length of a chunk's header.
const SCTP_CHUNK: usize = 4;

/// An Ethernet frame with one IPv4 or IPv6 packet.
#[derive(Clone, Debug)]
pub struct Frame {
    /// From.
    pub source: SocketAddr,
    /// To; of the same family.
    pub destination: SocketAddr,
    /// Transport.
    pub transport: Transport,
    /// Bytes behind the transport header.
    pub payload: Vec<u8>,
    /// IPv4 options or IPv6 extension headers, in multiples of 4 or 8 bytes.
    pub options: Options,
}

/// What stands between network and transport header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Options {
    /// Nothing.
    #[default]
    None,
    /// IPv4: four no-operation options (RFC 791). IPv6: a destination options header of padding (RFC 8200).
    Padding,
}

/// Identification of the datagram that [`Frame::fragments`] takes apart.
const DATAGRAM: u32 = 0x0bad_cafe;

impl Frame {
    /// A frame with 64 bytes of payload.
    #[must_use]
    pub fn new(source: SocketAddr, destination: SocketAddr, transport: Transport) -> Self {
        Self { source, destination, transport, payload: (0..64).collect(), options: Options::None }
    }

    /// A TCP segment.
    #[must_use]
    pub fn tcp(source: SocketAddr, destination: SocketAddr, flags: u8) -> Self {
        Self::new(source, destination, Transport::Tcp(flags))
    }

    /// A UDP datagram.
    #[must_use]
    pub fn udp(source: SocketAddr, destination: SocketAddr) -> Self {
        Self::new(source, destination, Transport::Udp)
    }

    /// The same frame from elsewhere.
    #[must_use]
    pub fn from(mut self, source: SocketAddr) -> Self {
        self.source = source;
        self
    }

    /// The same frame to elsewhere.
    #[must_use]
    pub fn to(mut self, destination: SocketAddr) -> Self {
        self.destination = destination;
        self
    }

    /// The bytes.
    ///
    /// # Panics
    ///
    /// If source and destination are of different families.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let transport = self.transport_bytes();
        let (ether_type, network) = match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                (EtherType::Ipv4, self.ipv4(source.octets(), destination.octets(), transport.len()))
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                (EtherType::Ipv6, self.ipv6(source.octets(), destination.octets(), transport.len()))
            }
            _ => panic!("{} and {} are of different families", self.source, self.destination),
        };
        let mut bytes = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        bytes.extend(u16::from(ether_type).to_ne_bytes());
        debug_assert_eq!(bytes.len(), EthHdr::LEN);
        bytes.extend(network);
        bytes.extend(transport);
        bytes
    }

    /// The ICMP error by which the destination says that nobody listens there (RFC 792, RFC 4443): both MAC addresses
    /// swapped, and this frame's network and transport headers quoted.
    #[must_use]
    pub fn refusal(&self) -> Vec<u8> {
        let (kind, code) = if self.source.is_ipv4() { (3, 3) } else { (1, 4) };
        let mut bytes = icmp_error(self.destination.ip(), self.source.ip(), kind, code, &self.headers());
        let (destination, rest) = bytes.split_at_mut(6);
        destination.swap_with_slice(&mut rest[..6]);
        bytes
    }

    /// The RST by which the destination says that it knows of no such connection (RFC 9293 3.10.7.1), for a TCP segment:
    /// both MAC addresses swapped, and nothing but headers.
    #[must_use]
    pub fn reset(&self) -> Vec<u8> {
        const WINDOW: usize = 14;
        const CHECK: usize = 16;
        let sent = match self.transport {
            Transport::Tcp(flags) => flags,
            _ => 0,
        };
        // As a frame has them.
        let (sequence, acknowledgement): (u32, u32) = (1, 2);
        let controls = u32::from(sent & flags::SYN != 0) + u32::from(sent & flags::FIN != 0);
        let (flags, numbers) = if sent & flags::ACK != 0 {
            (flags::RST, [acknowledgement, 0])
        } else {
            let length = u32::try_from(self.payload.len()).unwrap_or(u32::MAX);
            (flags::RST | flags::ACK, [0, sequence + length + controls])
        };
        let answer = Self {
            source: self.destination,
            destination: self.source,
            transport: Transport::Tcp(flags),
            payload: Vec::new(),
            options: Options::None,
        };
        let mut bytes = answer.bytes();
        let (ether, packet) = bytes.split_at_mut(EthHdr::LEN);
        ether[..2 * 6].rotate_left(6);
        let (network, tcp) = packet.split_at_mut(packet.len() - TcpHdr::LEN);
        tcp[4..12].copy_from_slice(&numbers.map(u32::to_be_bytes).concat());
        tcp[WINDOW..WINDOW + 4].fill(0);
        let addresses = if network.len() == Ipv4Hdr::LEN {
            // No identification: it is never fragmented.
            network[4..6].fill(0);
            network[10..12].fill(0);
            let check = checksum(network);
            network[10..12].copy_from_slice(&check.to_be_bytes());
            &network[12..]
        } else {
            &network[8..]
        };
        let pseudo = [0, IpProto::Tcp as u8, 0, 20];
        let check = checksum(&[addresses, &pseudo, tcp].concat());
        tcp[CHECK..CHECK + 2].copy_from_slice(&check.to_be_bytes());
        bytes
    }

    /// Network and transport header, without Ethernet header and payload.
    #[must_use]
    pub fn headers(&self) -> Vec<u8> {
        let mut bytes = self.bytes();
        let chunk = if matches!(self.transport, Transport::Sctp(_)) { SCTP_CHUNK } else { 0 };
        bytes.truncate(bytes.len() - self.payload.len() - chunk);
        bytes.split_off(EthHdr::LEN)
    }

    /// The frame in two fragments (RFC 791 3.2, RFC 8200 4.5), the first with `length` bytes, in multiples of 8, behind the
    /// network header.
    ///
    /// # Panics
    ///
    /// If the packet has options or is shorter.
    #[must_use]
    pub fn fragments(&self, length: usize) -> [Vec<u8>; 2] {
        assert_eq!(self.options, Options::None);
        let whole = self.bytes();
        let v4 = self.source.is_ipv4();
        let (headers, behind) = whole.split_at(EthHdr::LEN + if v4 { Ipv4Hdr::LEN } else { Ipv6Hdr::LEN });
        let (first, second) = behind.split_at(length);
        [(first, 0, true), (second, length, false)].map(|(part, offset, more)| {
            let mut bytes = headers.to_vec();
            let network = EthHdr::LEN;
            if v4 {
                let position = u16::try_from(offset / 8).unwrap_or(u16::MAX) | u16::from(more) << 13;
                bytes[network + 2..network + 4].copy_from_slice(&be16(Ipv4Hdr::LEN + part.len()));
                bytes[network + 4..network + 6].copy_from_slice(&DATAGRAM.to_be_bytes()[..2]);
                bytes[network + 6..network + 8].copy_from_slice(&position.to_be_bytes());
                bytes[network + 10..network + 12].fill(0);
                let check = checksum(&bytes[network..]);
                bytes[network + 10..network + 12].copy_from_slice(&check.to_be_bytes());
            } else {
                let position = u16::try_from(offset).unwrap_or(u16::MAX) | u16::from(more);
                bytes[network + 4..network + 6].copy_from_slice(&be16(8 + part.len()));
                bytes[network + 6] = IpProto::Ipv6Frag as u8;
                bytes.extend([self.protocol(), 0]);
                bytes.extend(position.to_be_bytes());
                bytes.extend(DATAGRAM.to_be_bytes());
            }
            bytes.extend(part);
            bytes
        })
    }

    fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Tcp(_) => IpProto::Tcp as u8,
            Transport::Udp | Transport::UdpUnchecked => IpProto::Udp as u8,
            Transport::Sctp(_) => IpProto::Sctp as u8,
        }
    }

    fn ipv4(&self, source: [u8; 4], destination: [u8; 4], behind: usize) -> Vec<u8> {
        let options = if self.options == Options::Padding { vec![1; 4] } else { Vec::new() };
        let length = Ipv4Hdr::LEN + options.len();
        let fragment: u16 = 0x4000;
        let mut header = vec![if options.is_empty() { 0x45 } else { 0x46 }, 0];
        header.extend(be16(length + behind));
        header.extend([0x12, 0x34]);
        header.extend(fragment.to_be_bytes());
        header.extend([64, self.protocol(), 0, 0]);
        header.extend(source);
        header.extend(destination);
        header.extend(options);
        let check = checksum(&header);
        header[10..12].copy_from_slice(&check.to_be_bytes());
        header
    }

    fn ipv6(&self, source: [u8; 16], destination: [u8; 16], behind: usize) -> Vec<u8> {
        let extension = if self.options == Options::Padding {
            vec![self.protocol(), 0, 1, 4, 0, 0, 0, 0]
        } else {
            Vec::new()
        };
        let next = if extension.is_empty() { self.protocol() } else { IpProto::Ipv6Opts as u8 };
        let mut header = vec![0x60, 0, 0, 0];
        header.extend(be16(extension.len() + behind));
        header.extend([next, 64]);
        header.extend(source);
        header.extend(destination);
        debug_assert_eq!(header.len(), Ipv6Hdr::LEN);
        header.extend(extension);
        header
    }

    fn transport_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.source.port().to_be_bytes());
        bytes.extend(self.destination.port().to_be_bytes());
        let check_at = match self.transport {
            Transport::Tcp(flags) => {
                bytes.extend([0, 0, 0, 1, 0, 0, 0, 2, 5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
                debug_assert_eq!(bytes.len(), TcpHdr::LEN);
                16
            }
            Transport::Udp | Transport::UdpUnchecked => {
                bytes.extend(be16(UdpHdr::LEN + self.payload.len()));
                bytes.extend([0, 0]);
                6
            }
            Transport::Sctp(chunk) => {
                bytes.extend([0, 0, 0, 1, 0, 0, 0, 0]);
                debug_assert_eq!(bytes.len(), SCTP_HEADER);
                bytes.extend([chunk, 0]);
                bytes.extend(be16(SCTP_CHUNK + self.payload.len()));
                bytes.extend(&self.payload);
                let check = Crc::<u32>::new(&CRC_32_ISCSI).checksum(&bytes);
                bytes[8..12].copy_from_slice(&check.to_le_bytes());
                return bytes;
            }
        };
        bytes.extend(&self.payload);
        if self.transport != Transport::UdpUnchecked {
            let mut covered = Vec::new();
            match (self.source.ip(), self.destination.ip()) {
                (IpAddr::V4(source), IpAddr::V4(destination)) => {
                    covered.extend(source.octets());
                    covered.extend(destination.octets());
                }
                (source, destination) => {
                    for address in [source, destination] {
                        if let IpAddr::V6(address) = address {
                            covered.extend(address.octets());
                        }
                    }
                }
            }
            covered.extend([0, self.protocol()]);
            covered.extend(be16(bytes.len()));
            covered.extend(&bytes);
            let check = checksum(&covered);
            let absent = check == 0 && self.transport == Transport::Udp;
            let check = if absent { 0xffff } else { check };
            bytes[check_at..check_at + 2].copy_from_slice(&check.to_be_bytes());
        }
        bytes
    }
}

/// A frame with an ICMP error that quotes the beginning of an IP packet.
///
/// # Panics
///
/// If source and destination are of different families.
#[must_use]
pub fn icmp_error(source: IpAddr, destination: IpAddr, kind: u8, code: u8, quoted: &[u8]) -> Vec<u8> {
    let mut icmp = vec![kind, code, 0, 0, 0, 0, 0, 0];
    icmp.extend(quoted);
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = vec![0x45, 0xc0];
            header.extend(be16(Ipv4Hdr::LEN + icmp.len()));
            header.extend([0, 0, 0x40, 0, 64, IpProto::Icmp as u8, 0, 0]);
            header.extend(source.octets());
            header.extend(destination.octets());
            let check = checksum(&header);
            header[10..12].copy_from_slice(&check.to_be_bytes());
            let check = checksum(&icmp);
            icmp[2..4].copy_from_slice(&check.to_be_bytes());
            frame.extend(u16::from(EtherType::Ipv4).to_ne_bytes());
            frame.extend(header);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut addresses = source.octets().to_vec();
            addresses.extend(destination.octets());
            let mut covered = addresses.clone();
            covered.extend(be16(icmp.len()));
            covered.extend([0, IpProto::Ipv6Icmp as u8]);
            covered.extend(&icmp);
            let check = checksum(&covered);
            icmp[2..4].copy_from_slice(&check.to_be_bytes());
            frame.extend(u16::from(EtherType::Ipv6).to_ne_bytes());
            frame.extend([0x60, 0, 0, 0]);
            frame.extend(be16(icmp.len()));
            frame.extend([IpProto::Ipv6Icmp as u8, 64]);
            frame.extend(addresses);
        }
        _ => panic!("{source} and {destination} are of different families"),
    }
    frame.extend(icmp);
    frame
}

/// A length as it stands in a header; frames here are short.
fn be16(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes()
}

/// The Internet checksum by definition (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from)).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}
