//! UDP clients.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use anyhow::{Context as _, Result, ensure};

use super::PATIENCE;
use crate::{netns::Namespace, topology::Family};

/// A socket that asks servers who they are.
#[derive(Debug)]
pub struct UdpClient {
    socket: UdpSocket,
}

/// What a server said, and how it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Name of the machine that answered.
    pub backend: String,
    /// Where that machine saw the question come from.
    pub seen_as: SocketAddr,
    /// The sender of the answer, as the client sees it.
    pub from: SocketAddr,
}

impl UdpClient {
    /// An unconnected socket, on a port of its own for as long as it lives.
    ///
    /// # Errors
    ///
    /// If there is no port left.
    pub fn bind(namespace: &Namespace, family: Family) -> Result<Self> {
        namespace.run(|| Self::bind_here(family))
    }

    /// As [`UdpClient::bind`], `count` times.
    ///
    /// # Errors
    ///
    /// If there are not that many ports.
    pub fn bind_many(namespace: &Namespace, family: Family, count: usize) -> Result<Vec<Self>> {
        namespace.run(|| (0..count).map(|_| Self::bind_here(family)).collect())
    }

    /// As [`UdpClient::bind`], but to a given address.
    ///
    /// # Errors
    ///
    /// If the address is not the namespace's own, or the port is taken.
    pub fn bind_to(namespace: &Namespace, local: SocketAddr) -> Result<Self> {
        namespace.run(|| Self::bound_here(local))
    }

    fn bind_here(family: Family) -> Result<Self> {
        let any: IpAddr = match family {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        Self::bound_here((any, 0).into())
    }

    fn bound_here(local: SocketAddr) -> Result<Self> {
        let socket = UdpSocket::bind(local).with_context(|| format!("bind a UDP socket to {local}"))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { socket })
    }

    /// This end.
    ///
    /// # Errors
    ///
    /// If the kernel does not say.
    pub fn local(&self) -> Result<SocketAddr> {
        self.socket.local_addr().context("getsockname")
    }

    /// Sends a number.
    ///
    /// # Errors
    ///
    /// If it cannot be sent.
    pub fn tell(&self, to: SocketAddr, number: u64) -> Result<()> {
        let sent = self.socket.send_to(number.to_string().as_bytes(), to);
        sent.map(drop).with_context(|| format!("send to {to}"))
    }

    /// Sends a number and waits for the answer to it.
    ///
    /// # Errors
    ///
    /// If none comes, or one to another question: nothing may be repeated or overtaken here.
    pub fn ask(&self, to: SocketAddr, number: u64) -> Result<Answer> {
        self.tell(to, number)?;
        let mut buffer = [0; 512];
        let (length, from) = self
            .socket
            .recv_from(&mut buffer)
            .with_context(|| format!("wait for answer {number} from {to}"))?;
        let text = std::str::from_utf8(&buffer[..length])?;
        let mut words = text.split(' ');
        let (Some(backend), Some(seen_as), Some(echo)) = (words.next(), words.next(), words.next()) else {
            anyhow::bail!("an answer of three words, not {text:?}");
        };
        ensure!(echo == number.to_string(), "asked {number}, the answer is to {echo}");
        Ok(Answer { backend: backend.to_owned(), seen_as: seen_as.parse()?, from })
    }
}
