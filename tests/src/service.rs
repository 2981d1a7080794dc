//! Services as tests describe them, and as Kubernetes objects.

use std::{collections::BTreeSet, net::SocketAddr};

use k8s_openapi::{
    api::{
        core::v1::{ObjectReference, Service as ServiceObject, ServicePort, ServiceSpec},
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    apimachinery::pkg::util::intstr::IntOrString,
};

use crate::{
    topology::{Addresses, Family, Pod},
    traffic::Protocol,
};

/// The port of a service.
pub const PORT: u16 = 80;
/// The port of its pods: another one, so that a port left untranslated is noticed.
pub const TARGET_PORT: u16 = 8080;

/// A dual-stack service on TCP and UDP port [`PORT`], with endpoints.
#[derive(Clone, Debug)]
pub struct Service {
    /// Name, in the namespace `default`.
    pub name: String,
    vips: Addresses,
    endpoints: Vec<Member>,
}

/// A pod in a service.
#[derive(Clone, Debug)]
struct Member {
    pod: String,
    node: String,
    addresses: Addresses,
}

impl Service {
    /// A service at the virtual addresses number `vip`, without endpoints.
    #[must_use]
    pub fn new(name: &str, vip: u8) -> Self {
        Self { name: name.to_owned(), vips: Addresses::vip(vip), endpoints: Vec::new() }
    }

    /// With another endpoint.
    #[must_use]
    pub fn with(mut self, pod: &Pod) -> Self {
        let (pod, node, addresses) = (pod.name().to_owned(), pod.node.clone(), pod.machine.addresses);
        self.endpoints.push(Member { pod, node, addresses });
        self
    }

    /// Without the endpoint of that name.
    #[must_use]
    pub fn without(mut self, pod: &str) -> Self {
        self.endpoints.retain(|endpoint| endpoint.pod != pod);
        self
    }

    /// Where clients find it.
    #[must_use]
    pub fn frontend(&self, family: Family) -> SocketAddr {
        SocketAddr::new(self.vips.of(family), PORT)
    }

    /// Where its connections may end.
    #[must_use]
    pub fn backends(&self, family: Family) -> BTreeSet<SocketAddr> {
        let address = |member: &Member| SocketAddr::new(member.addresses.of(family), TARGET_PORT);
        self.endpoints.iter().map(address).collect()
    }

    /// Names of the pods in it.
    #[must_use]
    pub fn pods(&self) -> Vec<&str> {
        self.endpoints.iter().map(|member| member.pod.as_str()).collect()
    }

    /// The Service object.
    #[must_use]
    pub fn object(&self) -> ServiceObject {
        let vips = vec![self.vips.v4.to_string(), self.vips.v6.to_string()];
        let port = |protocol: Protocol| ServicePort {
            name: Some(port_name(protocol)),
            protocol: Some(protocol.as_str().to_owned()),
            port: PORT.into(),
            target_port: Some(IntOrString::Int(TARGET_PORT.into())),
            ..ServicePort::default()
        };
        ServiceObject {
            metadata: self.metadata(self.name.clone()),
            spec: Some(ServiceSpec {
                type_: Some("ClusterIP".to_owned()),
                cluster_ip: vips.first().cloned(),
                cluster_ips: Some(vips),
                ip_families: Some(vec!["IPv4".to_owned(), "IPv6".to_owned()]),
                ip_family_policy: Some("RequireDualStack".to_owned()),
                ports: Some(Protocol::ALL.map(port).into()),
                ..ServiceSpec::default()
            }),
            status: None,
        }
    }

    /// Its EndpointSlice objects, one per family.
    #[must_use]
    pub fn slices(&self) -> [EndpointSlice; 2] {
        Family::ALL.map(|family| {
            let family_name = family.to_string();
            let mut metadata = self.metadata(format!("{}-{}", self.name, family_name.to_lowercase()));
            let label = ("kubernetes.io/service-name".to_owned(), self.name.clone());
            metadata.labels = Some([label].into());
            let port = |protocol: Protocol| EndpointPort {
                name: Some(port_name(protocol)),
                protocol: Some(protocol.as_str().to_owned()),
                port: Some(TARGET_PORT.into()),
                app_protocol: None,
            };
            EndpointSlice {
                metadata,
                address_type: family_name,
                endpoints: Some(self.endpoints.iter().map(|member| member.object(family)).collect()),
                ports: Some(Protocol::ALL.map(port).into()),
            }
        })
    }

    fn metadata(&self, name: String) -> ObjectMeta {
        ObjectMeta { name: Some(name), namespace: Some("default".to_owned()), ..ObjectMeta::default() }
    }
}

impl Member {
    fn object(&self, family: Family) -> Endpoint {
        Endpoint {
            addresses: vec![self.addresses.of(family).to_string()],
            conditions: Some(EndpointConditions {
                ready: Some(true),
                serving: Some(true),
                terminating: Some(false),
            }),
            node_name: Some(self.node.clone()),
            target_ref: Some(ObjectReference {
                kind: Some("Pod".to_owned()),
                namespace: Some("default".to_owned()),
                name: Some(self.pod.clone()),
                ..ObjectReference::default()
            }),
            ..Endpoint::default()
        }
    }
}

fn port_name(protocol: Protocol) -> String {
    protocol.as_str().to_lowercase()
}
