//! What is asked: who wants to talk to whom.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use proxy_common::tuple::Protocol;

/// Who wants to talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A process in the node's own network.
    Host,
    /// Somebody at an address, from a port if it is given.
    Address(IpAddr, Option<u16>),
}

/// The text names nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "nobody: write an address (10.0.0.1, fd00::1), one with a port (10.0.0.1:4000, [fd00::1]:4000), or `host`"
)]
pub struct ParseSourceError;

impl FromStr for Source {
    type Err = ParseSourceError;

    fn from_str(text: &str) -> Result<Self, ParseSourceError> {
        if text == "host" {
            Ok(Self::Host)
        } else if let Ok(ip) = text.parse::<IpAddr>() {
            Ok(Self::Address(ip.to_canonical(), None))
        } else {
            let end: SocketAddr = text.parse().map_err(|_| ParseSourceError)?;
            Ok(Self::Address(end.ip().to_canonical(), Some(end.port()).filter(|port| *port != 0)))
        }
    }
}

/// Whom somebody wants to talk to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Address and port.
    pub end: SocketAddr,
    /// Protocol.
    pub protocol: Protocol,
}

/// The text names no such thing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseTargetError {
    /// It has no address and port.
    #[error("no address and port, such as 10.96.0.10:80/TCP or [fd00::10]:53/UDP")]
    NoEnd,
    /// There are no such packets.
    #[error("{0} is not TCP, UDP or SCTP")]
    Protocol(String),
    /// Nobody can be reached there.
    #[error("port 0 is nobody's")]
    NoPort,
}

impl FromStr for Target {
    type Err = ParseTargetError;

    fn from_str(text: &str) -> Result<Self, ParseTargetError> {
        let (end, protocol) = text.split_once('/').unwrap_or((text, "TCP"));
        let end: SocketAddr = end.parse().map_err(|_| ParseTargetError::NoEnd)?;
        if end.port() == 0 {
            return Err(ParseTargetError::NoPort);
        }
        let known = [Protocol::TCP, Protocol::UDP, Protocol::SCTP];
        let is_meant =
            |known: &Protocol| known.name().is_some_and(|name| name.eq_ignore_ascii_case(protocol));
        let protocol = known
            .into_iter()
            .find(is_meant)
            .ok_or_else(|| ParseTargetError::Protocol(protocol.to_owned()))?;
        Ok(Self { end: SocketAddr::new(end.ip().to_canonical(), end.port()), protocol })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_addresses_or_the_host() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for (text, expected) in [
            ("host", Source::Host),
            ("10.0.0.1", Source::Address(ip("10.0.0.1"), None)),
            ("10.0.0.1:4000", Source::Address(ip("10.0.0.1"), Some(4000))),
            ("fd00::1", Source::Address(ip("fd00::1"), None)),
            ("[fd00::1]:4000", Source::Address(ip("fd00::1"), Some(4000))),
            ("::ffff:10.0.0.1", Source::Address(ip("10.0.0.1"), None)),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for text in ["", "localhost", "10.0.0", "10.0.0.1:x", "Host"] {
            assert_eq!(text.parse::<Source>(), Err(ParseSourceError), "{text:?}");
        }
    }

    #[test]
    fn destinations_have_a_port_and_a_protocol() {
        let target = |end: &str, protocol| Ok(Target { end: end.parse().unwrap(), protocol });
        for (text, expected) in [
            ("10.96.0.10:80", target("10.96.0.10:80", Protocol::TCP)),
            ("10.96.0.10:80/tcp", target("10.96.0.10:80", Protocol::TCP)),
            ("[fd00::10]:53/UDP", target("[fd00::10]:53", Protocol::UDP)),
            ("10.96.0.10:9/SCTP", target("10.96.0.10:9", Protocol::SCTP)),
            ("10.96.0.10/TCP", Err(ParseTargetError::NoEnd)),
            ("web:80", Err(ParseTargetError::NoEnd)),
            ("10.96.0.10:0", Err(ParseTargetError::NoPort)),
            ("10.96.0.10:80/QUIC", Err(ParseTargetError::Protocol("QUIC".to_owned()))),
        ] {
            assert_eq!(text.parse(), expected, "{text}");
        }
    }
}
