//! Whose flows, or whose events, are of interest: by service, and by the ends.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use clap::{Args, ValueEnum};
use proxy_common::{
    frontend::ServiceId,
    tuple::{Endpoint, Protocol},
};
use proxy_model::Cidr;

use super::{
    ShowError,
    names::{Names, ServiceFilter},
    socket,
};

/// Between whom.
#[derive(Clone, Debug, Default, Args)]
pub struct EndFilterArgs {
    /// Only those of this Service, or of this port of it
    #[arg(long, value_name = "NS/NAME[:PORT]")]
    pub service: Option<ServiceFilter>,
    /// Only those of this client, or of the clients in this network
    #[arg(long, value_name = "IP[:PORT]|CIDR")]
    pub client: Option<EndFilter>,
    /// Only those through this frontend
    #[arg(long, value_name = "IP[:PORT]|CIDR")]
    pub frontend: Option<EndFilter>,
    /// Only those to this backend
    #[arg(long, value_name = "IP[:PORT]|CIDR")]
    pub backend: Option<EndFilter>,
    /// Only those of this protocol
    #[arg(long, value_enum, ignore_case = true)]
    pub protocol: Option<ProtocolName>,
}

impl EndFilterArgs {
    /// With the ids that services have at present.
    pub(super) fn resolve(&self, names: &Names) -> Result<Ends, ShowError> {
        Ok(Ends { services: names.chosen(self.service.as_ref())?, args: self.clone() })
    }
}

/// Between whom, as the tables know it.
#[derive(Clone, Debug, Default)]
pub(super) struct Ends {
    services: Option<HashSet<ServiceId>>,
    args: EndFilterArgs,
}

impl Ends {
    /// Between a client, whatever its port, and a frontend.
    pub(super) fn between(client: IpAddr, frontend: SocketAddr, protocol: Protocol) -> Self {
        let host = |ip: IpAddr| Cidr::host(ip.to_canonical());
        let protocols = [ProtocolName::Tcp, ProtocolName::Udp, ProtocolName::Sctp];
        let args = EndFilterArgs {
            client: Some(EndFilter { network: host(client), port: None }),
            frontend: Some(EndFilter { network: host(frontend.ip()), port: Some(frontend.port()) }),
            protocol: protocols.into_iter().find(|name| name.protocol() == protocol),
            ..EndFilterArgs::default()
        };
        Self { services: None, args }
    }

    /// Whether something of a service port between these ends is meant. What has no such end is not, if one is asked for.
    pub(super) fn admit(
        &self,
        service: Option<ServiceId>,
        client: Option<Endpoint>,
        frontend: Option<Endpoint>,
        backend: Option<Endpoint>,
        protocol: Protocol,
    ) -> bool {
        let among = |filter: &Option<EndFilter>, end: Option<Endpoint>| {
            filter.is_none_or(|filter| end.is_some_and(|end| filter.admits(socket(end))))
        };
        let is_of =
            |services: &HashSet<ServiceId>| service.is_some_and(|service| services.contains(&service));
        self.services.as_ref().is_none_or(is_of)
            && among(&self.args.client, client)
            && among(&self.args.frontend, frontend)
            && among(&self.args.backend, backend)
            && self.args.protocol.is_none_or(|name| name.protocol() == protocol)
    }
}

/// Some ends of flows: an address, one port of it, or a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndFilter {
    network: Cidr,
    port: Option<u16>,
}

/// The text names no ends of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("neither an address (10.0.0.1, 10.0.0.1:80, fd00::1, [fd00::1]:80) nor a network (10.0.0.0/8)")]
pub struct ParseEndError;

impl FromStr for EndFilter {
    type Err = ParseEndError;

    fn from_str(text: &str) -> Result<Self, ParseEndError> {
        let host = |ip: IpAddr| Cidr::host(ip.to_canonical());
        if let Ok(ip) = text.parse() {
            Ok(Self { network: host(ip), port: None })
        } else if let Ok(end) = text.parse::<SocketAddr>() {
            Ok(Self { network: host(end.ip()), port: Some(end.port()) })
        } else {
            Ok(Self { network: text.parse().map_err(|_| ParseEndError)?, port: None })
        }
    }
}

impl EndFilter {
    /// Whether an end is one of them.
    #[must_use]
    pub fn admits(&self, end: SocketAddr) -> bool {
        self.network.contains(end.ip()) && self.port.is_none_or(|port| port == end.port())
    }
}

/// A protocol that is balanced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProtocolName {
    /// Transmission Control Protocol.
    Tcp,
    /// User Datagram Protocol.
    Udp,
    /// Stream Control Transmission Protocol.
    Sctp,
}

impl ProtocolName {
    /// Its number.
    #[must_use]
    pub const fn protocol(self) -> Protocol {
        match self {
            Self::Tcp => Protocol::TCP,
            Self::Udp => Protocol::UDP,
            Self::Sctp => Protocol::SCTP,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_by_address_port_or_network() {
        for (text, end, expected) in [
            ("10.0.0.1", "10.0.0.1:80", true),
            ("10.0.0.1", "10.0.0.2:80", false),
            ("10.0.0.1:80", "10.0.0.1:80", true),
            ("10.0.0.1:80", "10.0.0.1:81", false),
            ("10.0.0.0/8", "10.9.9.9:1", true),
            ("10.0.0.0/8", "[fd00::1]:1", false),
            ("fd00::1", "[fd00::1]:7", true),
            ("[fd00::1]:7", "[fd00::1]:8", false),
            ("fd00::/8", "[fd00::1]:7", true),
            ("::ffff:10.0.0.1", "10.0.0.1:80", true),
        ] {
            let filter: EndFilter = text.parse().unwrap();
            assert_eq!(filter.admits(end.parse().unwrap()), expected, "{text} {end}");
        }
        for text in ["", "web", "10.0.0.1:", "10.0.0.0/33", "10.0.0.1/"] {
            assert_eq!(text.parse::<EndFilter>(), Err(ParseEndError), "{text:?}");
        }
    }
}
