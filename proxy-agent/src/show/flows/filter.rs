//! Which flows are of interest.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use clap::{Args, ValueEnum};
use proxy_common::{
    flow::FlowState,
    frontend::ServiceId,
    tuple::{Endpoint, Protocol},
};
use proxy_model::Cidr;

use super::FlowRow;
use crate::show::{ServiceFilter, ShowError, names::Names, socket};

/// Which flows are shown.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Which flows")]
pub struct FlowFilterArgs {
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
    /// Only those in one of these states
    #[arg(long, value_enum, value_name = "STATE,...", value_delimiter = ',')]
    pub state: Vec<StateName>,
    /// Those too that are over and only take up room until the agent's next sweep
    #[arg(long)]
    pub expired: bool,
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

/// How far a flow has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateName(FlowState);

impl ValueEnum for StateName {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: [StateName; FlowState::COUNT] = [
            StateName(FlowState::UNREPLIED),
            StateName(FlowState::REPLIED),
            StateName(FlowState::SYN_SENT),
            StateName(FlowState::SYN_RECEIVED),
            StateName(FlowState::ESTABLISHED),
            StateName(FlowState::CLIENT_CLOSED),
            StateName(FlowState::BACKEND_CLOSED),
            StateName(FlowState::TIME_WAIT),
            StateName(FlowState::RESET),
            StateName(FlowState::VOID),
        ];
        &ALL
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(clap::builder::PossibleValue::new(self.0.as_str()))
    }
}

impl FlowFilterArgs {
    /// With the ids that services have at present.
    pub(in crate::show) fn resolve(&self, names: &Names) -> Result<FlowFilter, ShowError> {
        Ok(FlowFilter { services: names.chosen(self.service.as_ref())?, args: self.clone() })
    }
}

/// Which flows are shown, as the tables know them.
#[derive(Clone, Debug, Default)]
pub struct FlowFilter {
    services: Option<HashSet<ServiceId>>,
    args: FlowFilterArgs,
}

impl FlowFilter {
    /// Those between two ends that are not over.
    pub(in crate::show) fn between(client: IpAddr, frontend: SocketAddr, protocol: Protocol) -> Self {
        let host = |ip: IpAddr| Cidr::host(ip.to_canonical());
        let protocols = [ProtocolName::Tcp, ProtocolName::Udp, ProtocolName::Sctp];
        let args = FlowFilterArgs {
            client: Some(EndFilter { network: host(client), port: None }),
            frontend: Some(EndFilter { network: host(frontend.ip()), port: Some(frontend.port()) }),
            protocol: protocols.into_iter().find(|name| name.protocol() == protocol),
            state: StateName::value_variants().iter().filter(|state| !state.0.is_over()).copied().collect(),
            ..FlowFilterArgs::default()
        };
        Self { services: None, args }
    }

    /// Whether flows of a service port between these ends may be shown: all that one direction tells.
    pub(super) fn admits(
        &self,
        service: ServiceId,
        client: Endpoint,
        frontend: Endpoint,
        backend: Endpoint,
        protocol: Protocol,
    ) -> bool {
        let among = |filter: &Option<EndFilter>, end| filter.is_none_or(|filter| filter.admits(socket(end)));
        self.services.as_ref().is_none_or(|services| services.contains(&service))
            && among(&self.args.client, client)
            && among(&self.args.frontend, frontend)
            && among(&self.args.backend, backend)
            && self.args.protocol.is_none_or(|name| name.protocol() == protocol)
    }

    /// Whether a flow is shown that [`FlowFilter::admits`].
    pub(super) fn admits_row(&self, row: &FlowRow) -> bool {
        let states = &self.args.state;
        let wanted = states.is_empty() || states.iter().any(|state| state.0.as_str() == row.state);
        // Nobody asks for what is over, unless by name.
        let is_void = row.state == FlowState::VOID.as_str() && states.is_empty();
        wanted && (self.args.expired || row.expires_in_seconds.is_some() && !is_void)
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

    #[test]
    fn every_state_can_be_asked_for_by_its_name() {
        let names: Vec<_> = StateName::value_variants().iter().map(|state| state.0.as_str()).collect();
        let all: Vec<_> = (0..).map(FlowState).take(FlowState::COUNT).map(FlowState::as_str).collect();
        assert_eq!(names, all);
    }
}
