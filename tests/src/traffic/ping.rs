//! ICMP echo.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};

use super::{
    PATIENCE,
    raw::{internet_sum, payload, raw_socket},
};
use crate::{netns::Namespace, topology::Family};

/// What a ping gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pong {
    /// An answer, from this address.
    Reply(IpAddr),
    /// The report that the destination cannot be reached, with its code.
    Unreachable(u8),
}

/// The identifier of echo requests: there is one ping at a time in a namespace.
const ID: [u8; 2] = *b"SL";

/// Protocol number, type of a request, type of an answer, type of "unreachable", bytes of an IP header.
const fn numbers(family: Family) -> (i32, u8, u8, u8, usize) {
    match family {
        Family::V4 => (1, 8, 0, 3, 20),
        Family::V6 => (58, 128, 129, 1, 40),
    }
}

/// Sends an echo request and waits for what becomes of it.
///
/// # Errors
///
/// If nothing does.
pub fn ping(from: &Namespace, to: IpAddr) -> Result<Pong> {
    let family = Family::of(to);
    let (protocol, request, reply, unreachable, ip_header) = numbers(family);
    let socket = raw_socket(from, family, protocol)?;
    let mut packet = [request, 0, 0, 0, ID[0], ID[1], 0, 1];
    if family == Family::V4 {
        let sum = !internet_sum([&packet[..]]);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    socket.send_to(&packet, (to, 0)).with_context(|| format!("ping {to}"))?;
    let start = Instant::now();
    let mut buffer = [0; 2048];
    // Everybody's ICMP arrives here, neighbour discovery too.
    while let Some(left) = PATIENCE.checked_sub(start.elapsed()) {
        socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let Ok((length, sender)) = socket.recv_from(&mut buffer) else { break };
        let message = payload(sender, &buffer[..length])?;
        let quoted = message.get(8 + ip_header..).unwrap_or_default();
        match message {
            [kind, _, _, _, id @ ..] if *kind == reply && id.starts_with(&ID) => {
                return Ok(Pong::Reply(sender.ip()));
            }
            [kind, code, ..] if *kind == unreachable && quoted.get(4..6) == Some(&ID) => {
                return Ok(Pong::Unreachable(*code));
            }
            _ => {}
        }
    }
    Err(anyhow!("no answer to a ping of {to}"))
}
