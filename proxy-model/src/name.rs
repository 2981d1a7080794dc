//! What a service port is called, and how that name survives a restart of the agent.

use std::{fmt, net::IpAddr, str::FromStr};

use proxy_common::{
    tables::{NAME_BYTES, ServiceNames, Table},
    tuple::Protocol,
};

use crate::change::ObjectName;

/// A transport protocol that Sluice balances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// Transmission Control Protocol.
    Tcp,
    /// User Datagram Protocol.
    Udp,
    /// Stream Control Transmission Protocol (PROTO-01).
    Sctp,
}

impl Transport {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// The protocol number as packets carry it.
    #[must_use]
    pub const fn protocol(self) -> Protocol {
        match self {
            Self::Tcp => Protocol::TCP,
            Self::Udp => Protocol::UDP,
            Self::Sctp => Protocol::SCTP,
        }
    }

    /// The name that Kubernetes uses.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

/// An address family. Services and EndpointSlices are processed per family (SVC-07, EPS-03).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// Internet Protocol version 4.
    Ipv4,
    /// Internet Protocol version 6.
    Ipv6,
}

impl Family {
    /// Both families.
    pub const ALL: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    /// The family of an address. IPv4-mapped text has become IPv4 before it gets here (SP-06).
    #[must_use]
    pub const fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::Ipv4,
            IpAddr::V6(_) => Self::Ipv6,
        }
    }

    /// The name that Kubernetes uses in `ipFamilies` and `addressType`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        }
    }
}

/// Identity of a service port in one family: what a [`ServiceId`](proxy_common::frontend::ServiceId) stands for.
///
/// Shown and stored as `namespace/service:port/TCP/IPv4`; an unnamed port leaves out the colon. None of the parts can
/// contain the separators, because parsing of Services refuses names that are not made of letters, digits, `-`
/// and `.`; so the text parses back to the same name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePortName {
    /// Namespace and name of the Service.
    pub service: ObjectName,
    /// `spec.ports[].name`; empty for the only port of a Service that left it out.
    pub port: String,
    /// Protocol: `dns` over TCP and `dns` over UDP are two service ports.
    pub transport: Transport,
    /// Family of the VIPs and backends.
    pub family: Family,
}

impl ServicePortName {
    /// The name that sorts before all others of the Service.
    pub(crate) fn first_of(service: &ObjectName) -> Self {
        let service = service.clone();
        Self { service, port: String::new(), transport: Transport::Tcp, family: Family::Ipv4 }
    }

    /// As the value of the service name table, padded with zeros; `None` if it does not fit.
    #[must_use]
    pub fn to_row(&self) -> Option<<ServiceNames as Table>::Value> {
        let text = self.to_string();
        let mut row = [0; NAME_BYTES];
        row.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
        Some(row)
    }

    /// From a value of the service name table; `None` for anything that [`ServicePortName::to_row`] does not write.
    #[must_use]
    pub fn from_row(row: &<ServiceNames as Table>::Value) -> Option<Self> {
        let end = row.iter().position(|&byte| byte == 0).unwrap_or(row.len());
        let (text, padding) = row.split_at(end);
        if padding.iter().any(|&byte| byte != 0) {
            return None;
        }
        str::from_utf8(text).ok()?.parse().ok()
    }
}

impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, port, transport, family } = self;
        write!(f, "{service}")?;
        if !port.is_empty() {
            write!(f, ":{port}")?;
        }
        write!(f, "/{}/{}", transport.as_str(), family.as_str())
    }
}

/// The text is not the name of a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not of the form namespace/service:port/TCP/IPv4")]
pub struct ParseNameError;

impl FromStr for ServicePortName {
    type Err = ParseNameError;

    fn from_str(text: &str) -> Result<Self, ParseNameError> {
        let parts: Vec<&str> = text.split('/').collect();
        let [namespace, middle, transport, family] = parts[..] else {
            return Err(ParseNameError);
        };
        let transport = Transport::ALL.into_iter().find(|known| known.as_str() == transport);
        let transport = transport.ok_or(ParseNameError)?;
        let family = Family::ALL.into_iter().find(|known| known.as_str() == family).ok_or(ParseNameError)?;
        let (service, port) = match middle.split_once(':') {
            Some((service, port)) if is_name(port) => (service, port),
            Some(_) => return Err(ParseNameError),
            None => (middle, ""),
        };
        if !is_name(namespace) || !is_name(service) {
            return Err(ParseNameError);
        }
        let service = ObjectName { namespace: namespace.to_owned(), name: service.to_owned() };
        Ok(Self { service, port: port.to_owned(), transport, family })
    }
}

/// Whether Kubernetes could have accepted `text` as the name of a namespace, a Service or a port. Looser than its
/// validation (RFC 1123 label), strict enough to keep separators and zeros out.
pub(crate) fn is_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_the_table() {
        for text in [
            "default/web:http/TCP/IPv4",
            "default/web/TCP/IPv4",
            "kube-system/dns:dns-udp/UDP/IPv6",
            "core/amf:n2/SCTP/IPv4",
        ] {
            let name: ServicePortName = text.parse().unwrap();
            assert_eq!(name.to_string(), text);
            assert_eq!(ServicePortName::from_row(&name.to_row().unwrap()), Some(name));
        }
    }

    #[test]
    fn foreign_text_is_not_a_name() {
        for text in [
            "",
            "default/web",
            "default/web:/TCP/IPv4",
            "/web/TCP/IPv4",
            "a/b/c/TCP/IPv4",
            "a/b/DCCP/IPv4",
            "a/b/TCP/4",
        ] {
            assert_eq!(text.parse::<ServicePortName>(), Err(ParseNameError), "{text:?}");
        }
        let mut row = "a/b/TCP/IPv4".parse::<ServicePortName>().unwrap().to_row().unwrap();
        row[NAME_BYTES - 1] = b'x';
        assert_eq!(ServicePortName::from_row(&row), None);
        assert_eq!(ServicePortName::from_row(&[0xff; NAME_BYTES]), None);
    }
}
