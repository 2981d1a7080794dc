//! Clusters of some size.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use k8s_openapi::{
    api::{
        core::v1::{Node, NodeAddress, NodeStatus, Service, ServicePort, ServiceSpec},
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use proxy_common::{
    addr::Addr,
    endian::Be16,
    frontend::FrontendKey,
    tuple::{Endpoint as End, Protocol},
};
use serde::{Serialize, Serializer};
use sluice_tests::apiserver::ApiServer;

/// The node that the agent is on.
pub(crate) const NODE: &str = "node-a";
const NAMESPACE: &str = "default";
const PORT: u16 = 80;
/// What a slice holds, as the controller makes them.
pub(crate) const SLICE: u32 = 100;

/// How large a cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) services: u32,
    /// Of each Service.
    pub(crate) endpoints: u32,
}

impl Size {
    pub(crate) const fn new(services: u32, endpoints: u32) -> Self {
        Self { services, endpoints }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.services, self.endpoints)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("{text:?} is not two positive numbers with an x between them, as in 1000x10");
        let (services, endpoints) = text.split_once('x').ok_or_else(wrong)?;
        let number = |text: &str| text.parse().ok().filter(|&number| number > 0);
        match (number(services), number(endpoints)) {
            (Some(services), Some(endpoints)) => Ok(Self { services, endpoints }),
            _ => Err(wrong()),
        }
    }
}

/// Has the server hold a cluster of that size.
pub(crate) fn fill(server: &ApiServer, size: Size) {
    let address = NodeAddress { address: "127.0.0.1".to_owned(), type_: "InternalIP".to_owned() };
    server.apply(&Node {
        metadata: ObjectMeta { name: Some(NODE.to_owned()), ..ObjectMeta::default() },
        status: Some(NodeStatus { addresses: Some(vec![address]), ..NodeStatus::default() }),
        ..Node::default()
    });
    for number in 0..size.services {
        server.apply(&service(number));
        for part in 0..size.endpoints.div_ceil(SLICE) {
            server.apply(&slice(size, number, part, true));
        }
    }
}

fn service(number: u32) -> Service {
    let address = vip(number).to_string();
    let port = ServicePort {
        name: Some("http".to_owned()),
        port: PORT.into(),
        protocol: Some("TCP".to_owned()),
        ..ServicePort::default()
    };
    Service {
        metadata: meta(format!("service-{number}")),
        spec: Some(ServiceSpec {
            cluster_ip: Some(address.clone()),
            cluster_ips: Some(vec![address]),
            ip_families: Some(vec!["IPv4".to_owned()]),
            ports: Some(vec![port]),
            selector: Some([("app".to_owned(), format!("app-{number}"))].into()),
            type_: Some("ClusterIP".to_owned()),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// A part of a Service's endpoints; whether the first of them is ready is what changes.
pub(crate) fn slice(size: Size, number: u32, part: u32, first_is_ready: bool) -> EndpointSlice {
    let from = part * SLICE;
    let endpoints = (from..size.endpoints.min(from + SLICE)).map(|index| {
        let ready = first_is_ready || index != from;
        Endpoint {
            addresses: vec![pod(number * size.endpoints + index).to_string()],
            conditions: Some(EndpointConditions {
                ready: Some(ready),
                serving: Some(ready),
                terminating: Some(false),
            }),
            node_name: Some(format!("node-{}", index % 100)),
            zone: Some("zone-a".to_owned()),
            ..Endpoint::default()
        }
    });
    let name = format!("service-{number}");
    let mut metadata = meta(format!("{name}-{part}"));
    metadata.labels = Some([("kubernetes.io/service-name".to_owned(), name)].into());
    EndpointSlice {
        address_type: "IPv4".to_owned(),
        endpoints: Some(endpoints.collect()),
        metadata,
        ports: Some(vec![EndpointPort {
            name: Some("http".to_owned()),
            port: Some(8080),
            protocol: Some("TCP".to_owned()),
            ..EndpointPort::default()
        }]),
    }
}

/// What the tables know a Service by.
pub(crate) fn frontend(number: u32) -> FrontendKey {
    let address = Addr::from_v4_wire(vip(number).octets());
    FrontendKey::new(End { address, port: Be16::from_host(PORT) }, Protocol::TCP)
}

fn vip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a60_0001 + number)
}

fn pod(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a80_0001 + number)
}

fn meta(name: String) -> ObjectMeta {
    ObjectMeta { name: Some(name), namespace: Some(NAMESPACE.to_owned()), ..ObjectMeta::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_they_are_written() {
        assert_eq!("100x10".parse(), Ok(Size::new(100, 10)));
        assert_eq!(Size::new(100, 10).to_string(), "100x10");
        for wrong in ["", "x", "0x1", "1x0", "10", "10xten"] {
            assert!(wrong.parse::<Size>().unwrap_err().contains("as in 1000x10"), "{wrong}");
        }
    }

    #[test]
    fn endpoints_have_addresses_of_their_own_and_one_of_a_slice_changes() {
        let size = Size::new(3, 250);
        let mut addresses = std::collections::BTreeSet::new();
        for number in 0..size.services {
            for part in 0..3 {
                for endpoint in slice(size, number, part, true).endpoints.unwrap() {
                    assert!(addresses.insert(endpoint.addresses[0].clone()));
                }
            }
        }
        assert_eq!(addresses.len(), 750);
        let [ready, not] = [true, false].map(|ready| slice(size, 1, 2, ready).endpoints.unwrap());
        assert_eq!(ready.iter().zip(&not).filter(|(one, other)| one != other).count(), 1);
        assert_eq!(ready.len(), 50);
    }
}
