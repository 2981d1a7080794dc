//! SCTP without a kernel that knows it: handshakes by hand, over raw sockets (RFC 9260).
//!
//! The first two packets of an association are enough to see ports translated and checksums kept right; nothing here
//! makes a kernel load its SCTP module.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use crc::{CRC_32_ISCSI, Crc};
use tokio::{runtime, sync::oneshot};

use super::{
    Answer, PATIENCE,
    raw::{payload, raw_socket},
};
use crate::{
    netns::Namespace,
    topology::{Family, Machine},
};

/// IP protocol number.
const SCTP: i32 = 132;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
/// Parameter of an INIT ACK with bytes that are the server's own business.
const STATE_COOKIE: u16 = 7;
/// Ports, verification tag, checksum.
const COMMON_HEADER: usize = 12;
/// Header and fixed part of INIT and INIT ACK.
const INIT_CHUNK: usize = 20;

/// CRC32c, as SCTP has it since RFC 3309.
const CRC32C: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// An SCTP packet with one chunk, INIT or INIT ACK.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Packet {
    source: u16,
    destination: u16,
    /// What the receiver knows the sender by; 0 in an INIT.
    tag: u32,
    kind: u8,
    /// What the sender wants to be known by.
    initiate_tag: u32,
    cookie: Vec<u8>,
}

impl Packet {
    fn build(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&self.source.to_be_bytes());
        bytes.extend_from_slice(&self.destination.to_be_bytes());
        bytes.extend_from_slice(&self.tag.to_be_bytes());
        bytes.extend_from_slice(&[0; 4]);
        let parameter = if self.cookie.is_empty() { 0 } else { 4 + self.cookie.len() };
        let length = u16::try_from(INIT_CHUNK + parameter).unwrap_or(u16::MAX);
        bytes.extend_from_slice(&[self.kind, 0]);
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&self.initiate_tag.to_be_bytes());
        // Window, streams out and in, first sequence number.
        bytes.extend_from_slice(&[0, 0, 0x80, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
        if parameter > 0 {
            bytes.extend_from_slice(&STATE_COOKIE.to_be_bytes());
            bytes.extend_from_slice(&u16::try_from(parameter).unwrap_or(u16::MAX).to_be_bytes());
            bytes.extend_from_slice(&self.cookie);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        let sum = CRC32C.checksum(&bytes).to_le_bytes();
        bytes[8..COMMON_HEADER].copy_from_slice(&sum);
        bytes
    }

    /// `None` for what is not of this kind; an error for a wrong checksum.
    fn parse(bytes: &[u8]) -> Result<Option<Self>> {
        let Some(sum) = bytes.get(8..COMMON_HEADER) else { return Ok(None) };
        let mut zeroed = bytes.to_vec();
        zeroed[8..COMMON_HEADER].fill(0);
        let right = CRC32C.checksum(&zeroed).to_le_bytes();
        ensure!(sum == right, "a wrong checksum, {sum:02x?} instead of {right:02x?}");
        let short = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
        let long = |at: usize| Some(u32::from(short(at)?) << 16 | u32::from(short(at + 2)?));
        let parse = || {
            let kind = *bytes.get(COMMON_HEADER)?;
            let parameter = COMMON_HEADER + INIT_CHUNK;
            let cookie = match (short(parameter), short(parameter + 2)) {
                (Some(STATE_COOKIE), Some(length)) => {
                    bytes.get(parameter + 4..parameter + usize::from(length))?
                }
                _ => &[],
            };
            Some(Self {
                source: short(0)?,
                destination: short(2)?,
                tag: long(4)?,
                kind,
                initiate_tag: long(COMMON_HEADER + 4)?,
                cookie: cookie.to_vec(),
            })
        };
        Ok(parse().filter(|packet| packet.kind == INIT || packet.kind == INIT_ACK))
    }
}

/// Answers every INIT to a port of a machine, IPv4 and IPv6, with an INIT ACK whose cookie says who answered and from
/// where the INIT seemed to come. Packets with a wrong checksum get no answer.
#[derive(Debug)]
pub struct SctpServer {
    wrong: Arc<AtomicU64>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl SctpServer {
    /// Starts one; it listens when this returns, and until it is dropped.
    ///
    /// # Errors
    ///
    /// If the kernel gives no raw sockets.
    pub fn start(machine: &Machine, port: u16) -> Result<Self> {
        let sockets = Family::ALL.map(|family| raw_socket(&machine.namespace, family, SCTP));
        let [v4, v6] = sockets;
        let (v4, v6) = (v4?, v6?);
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let wrong = Arc::new(AtomicU64::new(0));
        let (name, count) = (machine.name.clone(), Arc::clone(&wrong));
        let thread = thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serve(&name, port, v4, &count) => {}
                    () = serve(&name, port, v6, &count) => {}
                    _ = stopped => {}
                }
            });
        });
        Ok(Self { wrong, stop: Some(stop), thread: Some(thread) })
    }

    /// Packets with a wrong checksum so far.
    #[must_use]
    pub fn wrong_checksums(&self) -> u64 {
        self.wrong.load(Ordering::SeqCst)
    }
}

impl Drop for SctpServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic in there has been printed; the clients have noticed.
            drop(thread.join());
        }
    }
}

async fn serve(name: &str, port: u16, socket: UdpSocket, wrong: &AtomicU64) {
    let ready = socket.set_nonblocking(true).and_then(|()| tokio::net::UdpSocket::from_std(socket));
    // Without a socket nothing is answered, which clients notice.
    let Ok(socket) = ready else { return };
    let mut buffer = [0; 2048];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
        let Ok(bytes) = payload(from, &buffer[..length]) else { continue };
        match Packet::parse(bytes) {
            Ok(Some(init)) if init.kind == INIT && init.destination == port => {
                let seen_as = SocketAddr::new(from.ip(), init.source);
                let answer = Packet {
                    source: port,
                    destination: init.source,
                    tag: init.initiate_tag,
                    kind: INIT_ACK,
                    initiate_tag: 1,
                    cookie: format!("{name} {seen_as}").into_bytes(),
                };
                drop(socket.send_to(&answer.build(), SocketAddr::new(from.ip(), 0)).await);
            }
            Ok(_) => {}
            Err(_) => {
                wrong.fetch_add(1, Ordering::SeqCst);
            }
        }
    }
}

/// Begins associations, by hand.
#[derive(Debug)]
pub struct SctpClient {
    socket: UdpSocket,
    port: u16,
}

impl SctpClient {
    /// One with a port of its own choice: nobody keeps a list of those taken.
    ///
    /// # Errors
    ///
    /// If the kernel gives no raw socket.
    pub fn new(namespace: &Namespace, family: Family, port: u16) -> Result<Self> {
        Ok(Self { socket: raw_socket(namespace, family, SCTP)?, port })
    }

    /// Sends an INIT.
    ///
    /// # Errors
    ///
    /// If it cannot be sent.
    pub fn tell(&self, to: SocketAddr, tag: u32) -> Result<()> {
        let init = Packet {
            source: self.port,
            destination: to.port(),
            tag: 0,
            kind: INIT,
            initiate_tag: tag,
            cookie: Vec::new(),
        };
        let sent = self.socket.send_to(&init.build(), (to.ip(), 0));
        sent.map(drop).with_context(|| format!("send an INIT to {to}"))
    }

    /// Sends an INIT and waits for the INIT ACK to it.
    ///
    /// # Errors
    ///
    /// If none comes, or one with a wrong checksum.
    pub fn ask(&self, to: SocketAddr, tag: u32) -> Result<Answer> {
        self.tell(to, tag)?;
        let start = Instant::now();
        let mut buffer = [0; 2048];
        while start.elapsed() < PATIENCE {
            let received = self.socket.recv_from(&mut buffer);
            let (length, from) = received.with_context(|| format!("wait for an INIT ACK from {to}"))?;
            let packet = Packet::parse(payload(from, &buffer[..length])?)
                .with_context(|| format!("in the answer from {to}"))?;
            // A raw socket sees everybody's packets.
            if let Some(ack) =
                packet.filter(|ack| ack.kind == INIT_ACK && ack.destination == self.port && ack.tag == tag)
            {
                return answer(from.ip(), &ack);
            }
        }
        Err(anyhow!("no INIT ACK from {to}"))
    }
}

fn answer(from: IpAddr, ack: &Packet) -> Result<Answer> {
    let text = std::str::from_utf8(&ack.cookie)?;
    let (backend, seen_as) = text.split_once(' ').context("a cookie of two words")?;
    let from = SocketAddr::new(from, ack.source);
    Ok(Answer { backend: backend.to_owned(), seen_as: seen_as.parse()?, from })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_parse_as_what_was_built_and_a_changed_port_is_noticed() {
        let packet = Packet {
            source: 1000,
            destination: 80,
            tag: 0x0102_0304,
            kind: INIT_ACK,
            initiate_tag: 7,
            cookie: b"near 10.244.1.2:1000".to_vec(),
        };
        let mut bytes = packet.build();
        assert_eq!(Packet::parse(&bytes).unwrap(), Some(packet));
        bytes[1] ^= 1;
        assert!(Packet::parse(&bytes).is_err());
    }
}
