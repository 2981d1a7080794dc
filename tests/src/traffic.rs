//! Real traffic: servers that say who they are, clients that say where they ended up.
//!
//! Servers greet: the first thing a connection carries is the name of the pod that took it and the address it was
//! seen from, so a client knows both without trusting the path. All waits have the one bound [`PATIENCE`]; nothing
//! is asserted about speed.

mod bulk;
mod chatter;
mod datagram;
pub mod http;
mod ping;
mod pump;
mod raw;
mod sctp;
mod server;
mod spread;
mod steady;
mod tcp;
mod udp;

use std::{fmt, io, time::Duration};

use anyhow::Result;

pub use bulk::Direction;
pub use chatter::Chatter;
pub use datagram::{Datagram, Segment};
pub use ping::{Pong, ping};
pub use pump::Pump;
pub use raw::RawSender;
pub use sctp::{SctpClient, SctpServer};
pub use server::Server;
pub use spread::Spread;
pub use steady::{Passed, Steady, repeat_only_what_is_lost};
pub use tcp::{Connection, Source, connect_raw};
pub use udp::{Answer, UdpClient};

use crate::wait::wait_until;

/// How long anything may take before it counts as failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Opens a socket at a port that an earlier one of this process has just given up. A program that a test beside this one
/// starts holds copies of all sockets, until it has become that program: the port may be taken a moment longer.
///
/// # Errors
///
/// If opening fails, or the port does not become free.
fn open_at_port<T>(mut open: impl FnMut() -> io::Result<T>) -> Result<T> {
    wait_until("the port is free", || match open() {
        Ok(socket) => Ok(Some(socket)),
        Err(error) if matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable) => {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    })
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP. This kernel need not know it: see [`SctpServer`].
    Sctp,
}

impl Protocol {
    /// Those that every kernel has sockets for.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    /// The name that Kubernetes objects use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Bytes of the greeting: fixed, so that reading it takes nothing of what follows.
const GREETING: usize = 128;

/// What a client may ask for on a connection, after the greeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Request {
    /// Everything that follows comes back.
    Echo = b'e',
    /// A length and that many bytes follow; their digest comes back.
    Upload = b'u',
    /// A length follows; that many bytes and their digest come back.
    Download = b'd',
    /// The server closes first, and so keeps the connection's tuple in TIME_WAIT.
    Close = b'c',
}

impl Request {
    fn parse(byte: u8) -> Option<Self> {
        [Self::Echo, Self::Upload, Self::Download, Self::Close].into_iter().find(|kind| *kind as u8 == byte)
    }
}
