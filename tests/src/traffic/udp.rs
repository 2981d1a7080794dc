//! UDP clients.

use std::net::{SocketAddr, UdpSocket};

use anyhow::{Context as _, Result, bail, ensure};

use super::{PATIENCE, open_at_port};
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
        Self::bound_here((family.unspecified(), 0).into())
    }

    fn bound_here(local: SocketAddr) -> Result<Self> {
        let socket = open_at_port(|| UdpSocket::bind(local));
        let socket = socket.with_context(|| format!("bind a UDP socket to {local}"))?;
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
        self.send(to, number.to_string().as_bytes())
    }

    /// Sends a number and waits for the answer to it.
    ///
    /// # Errors
    ///
    /// If none comes, or one to another question: nothing may be repeated or overtaken here.
    pub fn ask(&self, to: SocketAddr, number: u64) -> Result<Answer> {
        self.exchange(to, number.to_string().as_bytes()).with_context(|| format!("question {number}"))
    }

    /// Sends bytes and waits for the answer with the same bytes.
    ///
    /// # Errors
    ///
    /// As for [`UdpClient::ask`].
    pub fn exchange(&self, to: SocketAddr, bytes: &[u8]) -> Result<Answer> {
        self.send(to, bytes)?;
        self.answer(to, bytes)
    }

    /// Waits for the answer to `bytes`, which have been sent to `to` some other way.
    ///
    /// # Errors
    ///
    /// As for [`UdpClient::ask`].
    pub fn answer(&self, to: SocketAddr, bytes: &[u8]) -> Result<Answer> {
        let mut buffer = vec![0; 1 << 16];
        let received = self.socket.recv_from(&mut buffer);
        let (length, from) = received.with_context(|| format!("wait for an answer from {to}"))?;
        let mut words = buffer[..length].splitn(3, |&byte| byte == b' ');
        let (Some(backend), Some(seen_as), Some(echo)) = (words.next(), words.next(), words.next()) else {
            bail!("an answer of three words, not {length} bytes");
        };
        if echo != bytes {
            let (sent, came) = (String::from_utf8_lossy(bytes), String::from_utf8_lossy(echo));
            bail!("the answer is to something else: sent {sent:.100?}, {came:.100?} came back");
        }
        let text = |word: &[u8]| std::str::from_utf8(word).map(str::to_owned);
        Ok(Answer { backend: text(backend)?, seen_as: text(seen_as)?.parse()?, from })
    }

    fn send(&self, to: SocketAddr, bytes: &[u8]) -> Result<()> {
        let sent = self.socket.send_to(bytes, to).with_context(|| format!("send to {to}"))?;
        ensure!(sent == bytes.len(), "{sent} of {} bytes sent to {to}", bytes.len());
        Ok(())
    }
}
