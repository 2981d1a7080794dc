//! What is served: two services that are measured, and all the others among which they stand.

use std::net::Ipv4Addr;

use k8s_openapi::{
    api::{
        core::v1::{Service as ServiceObject, ServicePort, ServiceSpec},
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};
use sluice_tests::{
    apiserver::ApiServer,
    bench::client::Transport,
    service::{PORT, TARGET_PORT},
};

/// Of Services and slices.
const NAMESPACE: &str = "default";
/// Endpoints of each service that is not measured.
pub(crate) const ENDPOINTS: u32 = 2;

/// A service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Service {
    /// Name, in one namespace with all others.
    pub(crate) name: String,
    /// What tells it from all others, in names of chains.
    pub(crate) number: u32,
    /// Its cluster IP; the port is [`PORT`].
    pub(crate) vip: Ipv4Addr,
    /// The nodes' port for it.
    pub(crate) node_port: Option<u16>,
    /// What it serves.
    pub(crate) transports: &'static [Transport],
    /// Its pods, which listen on [`TARGET_PORT`].
    pub(crate) endpoints: Vec<Endpoint4>,
}

/// A pod, and the node that it is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint4 {
    pub(crate) address: Ipv4Addr,
    pub(crate) node: String,
}

const BOTH: &[Transport] = &[Transport::Tcp, Transport::Udp];
const TCP: &[Transport] = &[Transport::Tcp];

/// The services of a cluster, in the order in which rules name them: the measured ones in the middle, where they stand on
/// average.
#[derive(Clone, Debug)]
pub(crate) struct Catalogue(pub(crate) Vec<Service>);

impl Catalogue {
    /// So many services; the measured ones have these endpoints.
    pub(crate) fn new(count: u32, same: Endpoint4, other: Endpoint4) -> Self {
        let others = count.saturating_sub(2);
        let mut services: Vec<_> = (0..others).map(|number| Service::other(number, others / 2)).collect();
        let measured = [
            Service::measured("same-node", others / 2, Self::SAME, 30_001, same.clone()),
            Service::measured("other-node", others / 2 + 1, Self::OTHER, 30_002, other),
        ];
        let at = usize::try_from(others / 2).unwrap_or_default();
        services.splice(at..at, measured);
        // Whoever is served last says when all are.
        if let Some(last) = services.last_mut().filter(|last| last.node_port.is_none()) {
            last.endpoints = vec![same];
        }
        Self(services)
    }

    /// Where the service with a pod on the clients' node is.
    pub(crate) const SAME: Ipv4Addr = Ipv4Addr::new(10, 96, 255, 1);
    /// Where the service with a pod on the other node is.
    pub(crate) const OTHER: Ipv4Addr = Ipv4Addr::new(10, 96, 255, 2);

    /// The node's port of a measured service.
    pub(crate) fn node_port(&self, vip: Ipv4Addr) -> Option<u16> {
        self.0.iter().find(|service| service.vip == vip)?.node_port
    }

    /// Where the last service is.
    pub(crate) fn last(&self) -> Option<Ipv4Addr> {
        self.0.last().map(|service| service.vip)
    }

    /// How many endpoints there are.
    pub(crate) fn endpoints(&self) -> usize {
        self.0.iter().map(|service| service.endpoints.len()).sum()
    }
}

impl Service {
    fn measured(name: &str, number: u32, vip: Ipv4Addr, node_port: u16, endpoint: Endpoint4) -> Self {
        Self {
            name: format!("service-{number:05}-{name}"),
            number,
            vip,
            node_port: Some(node_port),
            transports: BOTH,
            endpoints: vec![endpoint],
        }
    }

    /// One that is not measured; the measured ones have two numbers from `gap` on.
    fn other(index: u32, gap: u32) -> Self {
        let number = if index < gap { index } else { index + 2 };
        let endpoint = |n: u32| Endpoint4 {
            address: Ipv4Addr::from(0x0af5_0000 + number * ENDPOINTS + n),
            node: format!("node-{}", n + 1),
        };
        Self {
            name: format!("service-{number:05}"),
            number,
            vip: Ipv4Addr::from(0x0a60_0001 + number),
            node_port: None,
            transports: TCP,
            endpoints: (0..ENDPOINTS).map(endpoint).collect(),
        }
    }

    /// One that comes and goes.
    pub(crate) fn passing(endpoint: Endpoint4) -> Self {
        Self {
            name: "passing".to_owned(),
            number: 99_999,
            vip: Ipv4Addr::new(10, 96, 255, 3),
            node_port: None,
            transports: TCP,
            endpoints: vec![endpoint],
        }
    }

    /// The same without endpoints.
    pub(crate) fn emptied(&self) -> Self {
        Self { endpoints: Vec::new(), ..self.clone() }
    }

    /// Has an API server hold it.
    pub(crate) fn publish(&self, server: &ApiServer) {
        server.apply(&self.object());
        server.apply(&self.slice());
    }

    /// Has an API server know nothing of it.
    pub(crate) fn withdraw(&self, server: &ApiServer) {
        server.delete::<ServiceObject>(NAMESPACE, &self.name);
        server.delete::<EndpointSlice>(NAMESPACE, &self.name);
    }

    fn object(&self) -> ServiceObject {
        let port = |transport: &Transport| ServicePort {
            name: Some(protocol(*transport).to_lowercase()),
            protocol: Some(protocol(*transport).to_owned()),
            port: PORT.into(),
            target_port: Some(IntOrString::Int(TARGET_PORT.into())),
            node_port: self.node_port.map(i32::from),
            ..ServicePort::default()
        };
        let kind = if self.node_port.is_some() { "NodePort" } else { "ClusterIP" };
        ServiceObject {
            metadata: self.metadata(),
            spec: Some(ServiceSpec {
                type_: Some(kind.to_owned()),
                cluster_ip: Some(self.vip.to_string()),
                cluster_ips: Some(vec![self.vip.to_string()]),
                ip_families: Some(vec!["IPv4".to_owned()]),
                ports: Some(self.transports.iter().map(port).collect()),
                selector: Some([("app".to_owned(), self.name.clone())].into()),
                ..ServiceSpec::default()
            }),
            status: None,
        }
    }

    fn slice(&self) -> EndpointSlice {
        let endpoint = |endpoint: &Endpoint4| Endpoint {
            addresses: vec![endpoint.address.to_string()],
            conditions: Some(EndpointConditions {
                ready: Some(true),
                serving: Some(true),
                terminating: Some(false),
            }),
            node_name: Some(endpoint.node.clone()),
            ..Endpoint::default()
        };
        let port = |transport: &Transport| EndpointPort {
            name: Some(protocol(*transport).to_lowercase()),
            protocol: Some(protocol(*transport).to_owned()),
            port: Some(TARGET_PORT.into()),
            ..EndpointPort::default()
        };
        let mut metadata = self.metadata();
        metadata.labels = Some([("kubernetes.io/service-name".to_owned(), self.name.clone())].into());
        EndpointSlice {
            address_type: "IPv4".to_owned(),
            endpoints: Some(self.endpoints.iter().map(endpoint).collect()),
            metadata,
            ports: Some(self.transports.iter().map(port).collect()),
        }
    }

    fn metadata(&self) -> ObjectMeta {
        ObjectMeta {
            name: Some(self.name.clone()),
            namespace: Some(NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        }
    }
}

/// A protocol as Kubernetes writes it.
const fn protocol(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "TCP",
        Transport::Udp => "UDP",
    }
}

/// A protocol as rules write it.
pub(crate) const fn word(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn measured_services_stand_in_the_middle_and_all_are_different() {
        let end = |n| Endpoint4 { address: Ipv4Addr::new(10, 244, n, 2), node: format!("node-{n}") };
        for count in [2, 10, 1001] {
            let Catalogue(services) = Catalogue::new(count, end(1), end(2));
            assert_eq!(services.len(), usize::try_from(count).unwrap());
            let at = services.iter().position(|service| service.vip == Catalogue::SAME).unwrap();
            assert_eq!(at, usize::try_from((count - 2) / 2).unwrap());
            let names: BTreeSet<_> = services.iter().map(|service| &service.name).collect();
            let numbers: BTreeSet<_> = services.iter().map(|service| service.number).collect();
            let vips: BTreeSet<_> = services.iter().map(|service| service.vip).collect();
            assert_eq!([names.len(), numbers.len(), vips.len()], [services.len(); 3]);
            // Whoever lists them by name meets them in this order.
            assert!(services.iter().map(|service| &service.name).is_sorted());
        }
    }
}
