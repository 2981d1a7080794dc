//! Requests to the kernel in the protocols that kube-proxy's rules are made by: nf_tables, ipset, IPVS.

use std::{collections::VecDeque, convert::Infallible, io};

use netlink_packet_core::{
    DefaultNla, Emitable as _, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkDeserializable,
    NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable, NlasIterator,
};
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt::SndBufForce};

use crate::diag;

/// A request, or a part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Body {
    kind: u16,
    flags: u16,
    bytes: Vec<u8>,
}

impl Body {
    /// A request of this kind, whose attributes come after `head`.
    pub(super) fn new(kind: u16, head: &[u8]) -> Self {
        Self { kind, flags: 0, bytes: head.to_vec() }
    }

    /// With flags beside those that every request has.
    pub(super) const fn flagged(mut self, flags: u16) -> Self {
        self.flags = flags;
        self
    }

    /// With another attribute.
    pub(super) fn with(mut self, kind: u16, value: &[u8]) -> Self {
        let attribute = DefaultNla::new(kind, value.to_vec());
        let start = self.bytes.len();
        self.bytes.resize(start + attribute.buffer_len(), 0);
        if let Some(room) = self.bytes.get_mut(start..) {
            attribute.emit(room);
        }
        self
    }

    /// With another attribute, which is a name.
    pub(super) fn with_name(self, kind: u16, name: &str) -> Self {
        self.with(kind, &[name.as_bytes(), &[0]].concat())
    }

    /// What it consists of.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What comes before the attributes.
    pub(super) fn head<const N: usize>(&self) -> Option<&[u8; N]> {
        self.bytes.first_chunk()
    }

    /// The attributes, after a head of so many bytes.
    pub(super) fn attributes(&self, head: usize) -> impl Iterator<Item = (u16, &[u8])> {
        attributes(self.bytes.get(head..).unwrap_or_default())
    }
}

/// Attributes: of a message, or nested in another.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes).map_while(Result::ok).map(|attribute| {
        let value = 4..usize::from(attribute.length());
        (attribute.kind(), attribute.into_inner().get(value).unwrap_or_default())
    })
}

/// The value of one attribute among others.
pub(super) fn inside(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(kind, value)| (kind == wanted).then_some(value))
}

/// The value of an attribute that is a name.
pub(super) fn name(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

impl NetlinkSerializable for Body {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.bytes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.bytes);
    }
}

impl NetlinkDeserializable for Body {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        Ok(Self { kind: header.message_type, flags: header.flags, bytes: payload.to_vec() })
    }
}

/// A way to talk to the kernel in one of netlink's protocols. It is about the network namespace of the thread that opens it.
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
    /// What has been received and was not looked at yet.
    answers: VecDeque<NetlinkMessage<Body>>,
    buffer: Vec<u8>,
}

/// Bytes of a part of an answer: the kernel fills at most 32 KiB of a list at a time (`netlink_dump`).
const ANSWER: usize = 1 << 16;

/// How often a list that changed while it was read is read.
const READINGS: usize = 10;

impl Netlink {
    /// Opens one.
    pub(super) fn open(protocol: isize) -> io::Result<Self> {
        let socket = Socket::new(protocol)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0, answers: VecDeque::new(), buffer: Vec::with_capacity(ANSWER) })
    }

    /// What `take` makes of everything that the kernel lists.
    pub(super) fn list<T>(
        &mut self,
        request: &Body,
        take: impl Fn(&Body) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        for _ in 0..READINGS {
            if let Some(found) = self.list_once(request, &take)? {
                return Ok(found);
            }
        }
        Err(io::Error::other("it changes faster than it can be read"))
    }

    /// `None` if it changed while it was read.
    fn list_once<T>(
        &mut self,
        request: &Body,
        take: impl Fn(&Body) -> Option<T>,
    ) -> io::Result<Option<Vec<T>>> {
        let bytes = self.message(request.clone(), NLM_F_DUMP);
        self.socket.send(&bytes, 0)?;
        let mut found = Some(Vec::new());
        loop {
            let answer = self.receive(self.sequence)?;
            if answer.header.flags & NLM_F_DUMP_INTR != 0 {
                found = None;
            }
            match answer.payload {
                NetlinkPayload::InnerMessage(body) => {
                    if let (Some(found), Some(item)) = (&mut found, take(&body)) {
                        found.push(item);
                    }
                }
                NetlinkPayload::Done(done) if done.code < 0 => {
                    return Err(io::Error::from_raw_os_error(-done.code));
                }
                NetlinkPayload::Done(_) => return Ok(found),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
        }
    }

    /// Has the kernel do something. Returns what it answers besides that it is done.
    pub(super) fn call(&mut self, request: Body) -> io::Result<Vec<Body>> {
        let bytes = self.message(request, NLM_F_ACK);
        self.socket.send(&bytes, 0)?;
        let mut answers = Vec::new();
        loop {
            match self.receive(self.sequence)?.payload {
                NetlinkPayload::InnerMessage(body) => answers.push(body),
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
        }
    }

    /// Has the kernel do all of these or none, between `begin` and `end`. With an error comes the number of the request that
    /// it is about, if it is about one.
    pub(super) fn transact(
        &mut self,
        (begin, end): (Body, Body),
        requests: Vec<Body>,
    ) -> Result<(), (Option<usize>, io::Error)> {
        let count = requests.len();
        let mut bytes = self.message(begin, 0);
        let first = self.sequence;
        for (number, request) in requests.into_iter().enumerate() {
            // The kernel tells of every request that failed; that there was none is told with the last.
            let flags = if number + 1 == count { NLM_F_ACK } else { 0 };
            bytes.extend(self.message(request, flags));
        }
        let last = self.sequence;
        bytes.extend(self.message(end, 0));
        let whole = |error| (None, error);
        // What is sent at once must fit into the buffer, whatever the limit of the system is.
        setsockopt(&self.socket, SndBufForce, &(2 * bytes.len() + ANSWER))
            .map_err(|error| whole(error.into()))?;
        self.socket.send(&bytes, 0).map_err(whole)?;
        let mut failed = None;
        loop {
            let answer = self.receive_of(first..=last).map_err(whole)?;
            let number = answer.header.sequence_number;
            let NetlinkPayload::Error(error) = answer.payload else { continue };
            if error.code.is_some() && failed.is_none() {
                let request = number.checked_sub(first + 1).and_then(|number| usize::try_from(number).ok());
                failed = Some((request, error.to_io()));
            }
            // Of what fails as a whole, the first message is told.
            if number == last || number == first {
                return failed.map_or(Ok(()), Err);
            }
        }
    }

    /// A request in bytes, with a number of its own.
    fn message(&mut self, request: Body, flags: u16) -> Vec<u8> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | request.flags | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len().next_multiple_of(4)];
        message.serialize(&mut bytes);
        bytes
    }

    fn receive(&mut self, sequence: u32) -> io::Result<NetlinkMessage<Body>> {
        self.receive_of(sequence..=sequence)
    }

    /// The next part of an answer to one of these requests.
    fn receive_of(&mut self, requests: std::ops::RangeInclusive<u32>) -> io::Result<NetlinkMessage<Body>> {
        loop {
            while let Some(message) = self.answers.pop_front() {
                if requests.contains(&message.header.sequence_number) {
                    return Ok(message);
                }
            }
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            self.answers = diag::parse(&self.buffer).map_err(io::Error::other)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let body = Body::new(7, &[2, 0, 0, 0]).with_name(1, "nat").with(3, &5u64.to_be_bytes());
        assert_eq!(body.bytes.len() % 4, 0);
        assert_eq!(body.head::<4>(), Some(&[2, 0, 0, 0]));
        let read: Vec<_> = body.attributes(4).collect();
        assert_eq!(read, [(1, &b"nat\0"[..]), (3, &5u64.to_be_bytes())]);
        assert_eq!(name(read[0].1), "nat");
        // What is cut off ends the attributes.
        assert_eq!(attributes(&body.bytes[4..17]).count(), 1);
        assert_eq!(Body::new(7, &[]).attributes(4).count(), 0);
    }
}
