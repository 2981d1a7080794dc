//! The sockets of this network namespace, listed and aborted (sock_diag(7), `net/ipv4/inet_diag.c`).

use std::{collections::VecDeque, fmt, io};

use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_sock_diag::{
    SockDiagDestroy, SockDiagMessage,
    constants::{AF_INET, AF_INET6},
    inet::{ExtensionFlags, InetRequest, SocketId},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};
use nix::libc;
use proxy_common::{addr::Addr, endian::Be16, tuple::Endpoint};
use proxy_model::{Family, Transport};

pub use netlink_packet_sock_diag::inet::StateFlags;

/// Bytes of an answer: the kernel fills at most 32 KiB of a dump at a time (`netlink_dump`).
const ANSWER: usize = 1 << 16;

/// Why the kernel's sockets could not be listed or aborted.
#[derive(Debug, thiserror::Error)]
pub enum DiagError {
    /// There is no such netlink socket.
    #[error("cannot talk to the kernel about sockets (NETLINK_SOCK_DIAG)")]
    Socket(#[source] io::Error),
    /// The kernel said no.
    #[error("{transport} sockets of {family}: cannot {action}", transport = .transport.as_str(), family = .family.as_str())]
    Kernel {
        /// What was tried.
        action: &'static str,
        /// On sockets of this protocol.
        transport: Transport,
        /// And this family.
        family: Family,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The kernel's answer makes no sense.
    #[error("cannot understand what the kernel says of sockets")]
    Garbled(#[source] DecodeError),
}

/// Why this kernel cannot abort sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unable {
    /// It was built without that.
    NotBuilt,
    /// It cannot list them either, which comes with a module per protocol.
    NoModule(Transport),
}

impl fmt::Display for Unable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotBuilt => f.write_str("this kernel was built without CONFIG_INET_DIAG_DESTROY"),
            Self::NoModule(transport) => {
                write!(f, "this kernel has no module {}_diag", transport.as_str().to_lowercase())
            }
        }
    }
}

/// A socket that is connected, or was when it was listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connected(SocketId);

impl Connected {
    /// Its number, which no other socket gets before the next boot.
    #[must_use]
    pub const fn cookie(&self) -> u64 {
        u64::from_ne_bytes(self.0.cookie)
    }

    /// Whom it is connected to, as the kernel knows it.
    #[must_use]
    pub fn peer(&self) -> Endpoint {
        Endpoint {
            address: Addr::from(self.0.destination_address),
            port: Be16::from_host(self.0.destination_port),
        }
    }
}

/// What became of a socket that was to be aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aborted {
    /// Its process hears `ECONNABORTED`.
    Now,
    /// It was closed, or connected to somebody else, before that.
    Gone,
}

/// A way to talk to the kernel about sockets.
pub struct Diag {
    socket: Socket,
    sequence: u32,
    /// What has been received and was not looked at yet.
    answers: VecDeque<NetlinkMessage<SockDiagMessage>>,
    /// Room for what is received.
    buffer: Vec<u8>,
}

impl Diag {
    /// Opens one. It is about the network namespace of the calling thread.
    pub fn open() -> Result<Self, DiagError> {
        let socket = Socket::new(NETLINK_SOCK_DIAG)
            .and_then(|socket| socket.connect(&SocketAddr::new(0, 0)).map(|()| socket))
            .map_err(DiagError::Socket)?;
        Ok(Self { socket, sequence: 0, answers: VecDeque::new(), buffer: Vec::with_capacity(ANSWER) })
    }

    /// The sockets in one of these states. For UDP, [`StateFlags::ESTABLISHED`] says connected.
    pub fn list(
        &mut self,
        transport: Transport,
        family: Family,
        states: StateFlags,
    ) -> Result<Vec<Connected>, DiagError> {
        let failed = |source| DiagError::Kernel { action: "list them", transport, family, source };
        let message = SockDiagMessage::InetRequest(request(transport, family, states, nobody(family)));
        self.send(message, NLM_F_DUMP)?;
        let mut found = Vec::new();
        loop {
            match self.receive()? {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                    found.push(Connected(response.header.socket_id));
                }
                NetlinkPayload::Done(done) => return outcome(done.code).map(|()| found).map_err(failed),
                NetlinkPayload::Error(error) => return Err(failed(error.to_io())),
                _ => {}
            }
        }
    }

    /// Aborts a socket: the process hears `ECONNABORTED`, at once if it waits, and the peer of a TCP connection gets a RST
    /// (`udp_abort`, `tcp_abort`).
    pub fn abort(&mut self, transport: Transport, socket: &Connected) -> Result<Aborted, DiagError> {
        let family = Family::of(socket.0.destination_address);
        let message = request(transport, family, StateFlags::all(), socket.0.clone());
        self.send(SockDiagDestroy::new(SockDiagMessage::InetRequest(message)), NLM_F_ACK)?;
        loop {
            if let NetlinkPayload::Error(error) = self.receive()? {
                return match error.raw_code() {
                    0 => Ok(Aborted::Now),
                    code if -code == libc::ENOENT => Ok(Aborted::Gone),
                    _ => Err(DiagError::Kernel {
                        action: "abort one",
                        transport,
                        family,
                        source: error.to_io(),
                    }),
                };
            }
        }
    }

    /// Why this kernel cannot abort sockets of a protocol, if it cannot: asks it to abort one that does not exist.
    pub fn inability(&mut self, transport: Transport) -> Result<Option<Unable>, DiagError> {
        let family = Family::Ipv4;
        match self.abort(transport, &Connected(nobody(family))) {
            Ok(_) => {}
            Err(DiagError::Kernel { source, .. }) if source.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                return Ok(Some(Unable::NotBuilt));
            }
            Err(error) => return Err(error),
        }
        // An absent module and an absent socket are the same to it; a list tells them apart.
        match self.list(transport, family, StateFlags::empty()) {
            Err(DiagError::Kernel { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => {
                Ok(Some(Unable::NoModule(transport)))
            }
            other => other.map(|_| None),
        }
    }

    fn send<M>(&mut self, message: M, flags: u16) -> Result<(), DiagError>
    where
        M: NetlinkSerializable + Into<NetlinkPayload<M>>,
    {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, message.into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(drop).map_err(DiagError::Socket)
    }

    /// The next part of the answer to the latest question.
    fn receive(&mut self) -> Result<NetlinkPayload<SockDiagMessage>, DiagError> {
        loop {
            // What is left of a question that was given up has another number.
            while let Some(message) = self.answers.pop_front() {
                if message.header.sequence_number == self.sequence {
                    return Ok(message.payload);
                }
            }
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(DiagError::Socket(error)),
            }
            self.answers = parse(&self.buffer).map_err(DiagError::Garbled)?;
        }
    }
}

/// The messages of a datagram.
pub(crate) fn parse<M: NetlinkDeserializable>(
    mut bytes: &[u8],
) -> Result<VecDeque<NetlinkMessage<M>>, DecodeError> {
    let mut messages = VecDeque::new();
    while !bytes.is_empty() {
        let message = NetlinkMessage::deserialize(bytes)?;
        // Each begins at a multiple of four (`NLMSG_ALIGN`).
        let length =
            usize::try_from(message.header.length).map_or(bytes.len(), |length| length.next_multiple_of(4));
        bytes = bytes.get(length..).unwrap_or_default();
        messages.push_back(message);
    }
    Ok(messages)
}

fn request(transport: Transport, family: Family, states: StateFlags, socket_id: SocketId) -> InetRequest {
    let family = match family {
        Family::Ipv4 => AF_INET,
        Family::Ipv6 => AF_INET6,
    };
    let protocol = transport.protocol().0;
    InetRequest { family, protocol, extensions: ExtensionFlags::empty(), states, socket_id }
}

/// No socket has this identity.
fn nobody(family: Family) -> SocketId {
    match family {
        Family::Ipv4 => SocketId::new_v4(),
        Family::Ipv6 => SocketId::new_v6(),
    }
}

/// What a message says that ends a list.
fn outcome(code: i32) -> io::Result<()> {
    if code < 0 { Err(io::Error::from_raw_os_error(-code)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv6Addr, SocketAddr as End, UdpSocket};

    use netlink_packet_sock_diag::inet::{InetResponse, InetResponseHeader, nlas::Nla};

    use super::*;

    /// The sockets of this process's namespace that are connected to `end`.
    fn connected(diag: &mut Diag, family: Family, end: End) -> Vec<Connected> {
        let peer = Endpoint { address: Addr::from(end.ip()), port: Be16::from_host(end.port()) };
        let mut all = diag.list(Transport::Udp, family, StateFlags::ESTABLISHED).unwrap();
        all.retain(|socket| socket.peer() == peer);
        all
    }

    #[test]
    fn connected_sockets_are_listed_by_their_family() {
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        let end = peer.local_addr().unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let Ok(mut diag) = Diag::open() else { return };
        if diag.inability(Transport::Udp).is_ok_and(|unable| matches!(unable, Some(Unable::NoModule(_)))) {
            return;
        }
        assert_eq!(connected(&mut diag, Family::Ipv4, end), []);
        client.connect(end).unwrap();
        assert_eq!(connected(&mut diag, Family::Ipv4, end).len(), 1);
        assert_eq!(connected(&mut diag, Family::Ipv6, end), []);

        // One that talks IPv4 over IPv6 is of its own family, with an address that means the same.
        let Ok(mapped) = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)) else { return };
        let IpAddr::V4(ip) = end.ip() else { unreachable!() };
        mapped.connect((ip.to_ipv6_mapped(), end.port())).unwrap();
        assert_eq!(connected(&mut diag, Family::Ipv6, end).len(), 1);
    }

    #[test]
    fn what_comes_in_one_datagram_is_taken_apart() {
        let message = |sequence| {
            let socket_id = SocketId { destination_port: 53, ..nobody(Family::Ipv6) };
            let response = InetResponseHeader {
                family: AF_INET6,
                state: 1,
                timer: None,
                socket_id,
                recv_queue: 0,
                send_queue: 0,
                uid: 0,
                inode: 0,
            };
            let response = InetResponse { header: response, nlas: [Nla::Shutdown(3)].into_iter().collect() };
            let mut header = NetlinkHeader::default();
            header.sequence_number = sequence;
            let payload = NetlinkPayload::from(SockDiagMessage::InetResponse(Box::new(response)));
            let mut message = NetlinkMessage::new(header, payload);
            message.finalize();
            let mut bytes = vec![0; message.buffer_len().next_multiple_of(4)];
            message.serialize(&mut bytes);
            bytes
        };
        let numbers = |bytes: &[u8]| -> Result<Vec<u32>, DecodeError> {
            parse::<SockDiagMessage>(bytes)
                .map(|all| all.iter().map(|message| message.header.sequence_number).collect())
        };
        let two = [message(1), message(2)].concat();
        assert_eq!(numbers(&two).unwrap(), [1, 2]);
        assert!(numbers(&[]).unwrap().is_empty());
        assert!(numbers(&two[..two.len() - 4]).is_err());
    }

    #[test]
    fn inabilities_are_told() {
        assert!(Unable::NotBuilt.to_string().contains("CONFIG_INET_DIAG_DESTROY"));
        assert!(Unable::NoModule(Transport::Udp).to_string().contains("udp_diag"));
    }
}
