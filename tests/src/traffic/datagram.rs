//! UDP datagrams and TCP segments in packets made by hand.

use std::net::{IpAddr, SocketAddr};

use super::raw::internet_sum;

const TCP: u8 = 6;
const UDP: u8 = 17;
const FRAGMENT_HEADER: u8 = 44;
const HOPS: u8 = 64;

/// A UDP datagram.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// Who sends it.
    pub source: SocketAddr,
    /// To whom; of the same family.
    pub destination: SocketAddr,
    /// What it says.
    pub payload: &'a [u8],
}

impl Datagram<'_> {
    /// The packet that carries it whole.
    #[must_use]
    pub fn packet(&self) -> Vec<u8> {
        let transport = self.transport();
        let mut packet = ip_header(self.source, self.destination, transport.len(), UDP, 0, 0);
        packet.extend_from_slice(&transport);
        packet
    }

    /// The fragments that carry `size` bytes of it each, in order, the last one less. `size` is a multiple of 8; `id`
    /// tells its fragments from those of other datagrams.
    #[must_use]
    pub fn fragments(&self, id: u16, size: usize) -> Vec<Vec<u8>> {
        let transport = self.transport();
        let parts = transport.chunks(size);
        let last = parts.len() - 1;
        let fragment = |(number, part): (usize, &[u8])| {
            let offset = u16::try_from(number * size).unwrap_or(u16::MAX);
            let more = number < last;
            let mut packet = if self.source.is_ipv4() {
                ip_header(
                    self.source,
                    self.destination,
                    part.len(),
                    UDP,
                    id,
                    (offset / 8) | (u16::from(more) << 13),
                )
            } else {
                let mut packet =
                    ip_header(self.source, self.destination, part.len() + 8, FRAGMENT_HEADER, 0, 0);
                packet.extend_from_slice(&[UDP, 0]);
                packet.extend_from_slice(&(offset | u16::from(more)).to_be_bytes());
                packet.extend_from_slice(&u32::from(id).to_be_bytes());
                packet
            };
            packet.extend_from_slice(part);
            packet
        };
        parts.enumerate().map(fragment).collect()
    }

    /// UDP header and payload.
    fn transport(&self) -> Vec<u8> {
        let length = u16::try_from(self.payload.len() + 8).unwrap_or(u16::MAX);
        let mut bytes = Vec::with_capacity(length.into());
        bytes.extend_from_slice(&self.source.port().to_be_bytes());
        bytes.extend_from_slice(&self.destination.port().to_be_bytes());
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&[0, 0]);
        bytes.extend_from_slice(self.payload);
        let sum = checksum(self.source, self.destination, UDP, &bytes);
        // A sum of 0 says that there is none (RFC 768).
        let sum = if sum == 0 { u16::MAX } else { sum };
        bytes[6..8].copy_from_slice(&sum.to_be_bytes());
        bytes
    }
}

/// A TCP segment in the middle of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// Who sends it.
    pub source: SocketAddr,
    /// To whom; of the same family.
    pub destination: SocketAddr,
    /// Number of its first byte.
    pub sequence: u32,
    /// Number of the next byte that the sender waits for.
    pub acknowledgement: u32,
    /// What it carries.
    pub payload: &'a [u8],
}

impl Segment<'_> {
    /// The packet that carries it.
    #[must_use]
    pub fn packet(&self) -> Vec<u8> {
        /// PSH and ACK.
        const FLAGS: u8 = 0x18;
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&self.source.port().to_be_bytes());
        bytes.extend_from_slice(&self.destination.port().to_be_bytes());
        bytes.extend_from_slice(&self.sequence.to_be_bytes());
        bytes.extend_from_slice(&self.acknowledgement.to_be_bytes());
        // Five words of header; window; checksum; no urgent data.
        bytes.extend_from_slice(&[5 << 4, FLAGS, 0x10, 0, 0, 0, 0, 0]);
        bytes.extend_from_slice(self.payload);
        let sum = checksum(self.source, self.destination, TCP, &bytes);
        bytes[16..18].copy_from_slice(&sum.to_be_bytes());
        let mut packet = ip_header(self.source, self.destination, bytes.len(), TCP, 0, 0);
        packet.extend_from_slice(&bytes);
        packet
    }
}

/// The checksum of a transport header and its payload, whose own field is zero (RFC 9293, 3.1).
fn checksum(source: SocketAddr, destination: SocketAddr, protocol: u8, bytes: &[u8]) -> u16 {
    let addresses = [octets(source.ip()), octets(destination.ip())].concat();
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes();
    !internet_sum([&addresses[..], &[0, protocol], &length[..], bytes])
}

fn ip_header(
    source: SocketAddr,
    destination: SocketAddr,
    length: usize,
    next: u8,
    id: u16,
    fragment: u16,
) -> Vec<u8> {
    let mut header = Vec::with_capacity(40 + length);
    let v4 = source.is_ipv4();
    let total = u16::try_from(if v4 { length + 20 } else { length }).unwrap_or(u16::MAX);
    if v4 {
        header.extend_from_slice(&[0x45, 0]);
        header.extend_from_slice(&total.to_be_bytes());
        header.extend_from_slice(&id.to_be_bytes());
        header.extend_from_slice(&fragment.to_be_bytes());
        // The kernel fills the checksum in.
        header.extend_from_slice(&[HOPS, next, 0, 0]);
    } else {
        header.extend_from_slice(&[0x60, 0, 0, 0]);
        header.extend_from_slice(&total.to_be_bytes());
        header.extend_from_slice(&[next, HOPS]);
    }
    header.extend(octets(source.ip()));
    header.extend(octets(destination.ip()));
    header
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_cover_the_datagram_and_their_headers_say_where() {
        for (source, destination, header) in
            [("10.0.0.1:1000", "10.0.0.2:53", 20), ("[fd00::1]:1000", "[fd00::2]:53", 48)]
        {
            let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
            let payload = [7; 100];
            let datagram = Datagram { source, destination, payload: &payload };
            let whole = datagram.packet();
            let fragments = datagram.fragments(5, 48);
            let lengths: Vec<_> = fragments.iter().map(|packet| packet.len() - header).collect();
            assert_eq!(lengths, [48, 48, 12]);
            let joined: Vec<u8> = fragments.iter().flat_map(|packet| packet[header..].to_vec()).collect();
            assert_eq!(joined, whole[whole.len() - 108..]);
            let at = if source.is_ipv4() { 6 } else { 42 };
            let words = fragments.iter().map(|packet| u16::from_be_bytes([packet[at], packet[at + 1]]));
            let expected = if source.is_ipv4() { [0x2000, 0x2006, 12] } else { [1, 49, 96] };
            assert_eq!(words.collect::<Vec<_>>(), expected);
        }
    }
}
