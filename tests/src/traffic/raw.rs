//! Packets made by hand.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
};

use anyhow::{Context as _, Result, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use super::PATIENCE;
use crate::{netns::Namespace, topology::Family};

/// `IPPROTO_RAW`: the sender writes the IP header too. Nothing is ever received.
const RAW: i32 = 255;

/// Sends packets exactly as they are given, IP header included, but for what the kernel fills in: IPv4's checksum.
#[derive(Debug)]
pub struct RawSender {
    socket: UdpSocket,
}

impl RawSender {
    /// One that sends from a namespace.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn open(namespace: &Namespace, family: Family) -> Result<Self> {
        Ok(Self { socket: raw_socket(namespace, family, RAW)? })
    }

    /// Sends a packet by the route to `to`.
    ///
    /// # Errors
    ///
    /// If it cannot be sent.
    pub fn send(&self, to: IpAddr, packet: &[u8]) -> Result<()> {
        let sent = self.socket.send_to(packet, (to, 0)).with_context(|| format!("send a packet to {to}"))?;
        ensure!(sent == packet.len(), "{sent} of {} bytes sent", packet.len());
        Ok(())
    }

    /// Sends a packet by the route to `to`, unless the kernel has no room for it just now.
    ///
    /// # Errors
    ///
    /// If it cannot be sent for another reason.
    pub fn try_send(&self, to: IpAddr, packet: &[u8]) -> Result<bool> {
        match self.socket.send_to(packet, (to, 0)) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("send a packet to {to}")),
        }
    }
}

/// A socket for the packets of a protocol. Reading gives the source's address with port 0, and bytes that begin with
/// the IP header for IPv4 and behind it for IPv6: see [`payload`].
///
/// The type is that of UDP sockets because the standard library's reads and writes datagrams of whatever socket it is
/// given.
pub(super) fn raw_socket(namespace: &Namespace, family: Family, protocol: i32) -> Result<UdpSocket> {
    namespace.run(|| {
        let domain = match family {
            Family::V4 => Domain::IPV4,
            Family::V6 => Domain::IPV6,
        };
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(protocol)))
            .with_context(|| format!("a raw socket for protocol {protocol}"))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket.into())
    })
}

/// The part of what [`raw_socket`] receives that belongs to the protocol.
pub(super) fn payload(from: SocketAddr, received: &[u8]) -> io::Result<&[u8]> {
    let header = match received.first() {
        Some(first) if from.is_ipv4() => usize::from(first & 0xf) * 4,
        _ => 0,
    };
    received.get(header..).ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "a packet cut short"))
}

/// The sum of 16-bit words, of which the Internet checksum is the complement (RFC 1071).
pub(super) fn internet_sum<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u16 {
    let mut sum = 0u64;
    for part in parts {
        for word in part.chunks(2) {
            sum += u64::from(u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)]));
        }
    }
    while sum > u64::from(u16::MAX) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_the_rfcs_example_is_right() {
        // RFC 1071, section 3.
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(internet_sum([&bytes[..]]), 0xddf2);
        assert_eq!(internet_sum([&bytes[..2], &bytes[2..]]), 0xddf2);
        assert_eq!(internet_sum([&[0xff][..]]), 0xff00);
    }
}
