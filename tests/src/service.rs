//! Services as tests describe them, and as Kubernetes objects.

mod member;

use std::{collections::BTreeSet, net::SocketAddr};

use k8s_openapi::{
    api::{
        core::v1::{
            ClientIPConfig, LoadBalancerIngress, LoadBalancerStatus, Service as ServiceObject, ServicePort,
            ServiceSpec, ServiceStatus, SessionAffinityConfig,
        },
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    apimachinery::pkg::util::intstr::IntOrString,
};

pub use member::{Condition, Member};

use crate::{
    topology::{Addresses, Ends, Family, Pod},
    traffic::Protocol,
};

/// The port of a service.
pub const PORT: u16 = 80;
/// The port of its pods: another one, so that a port left untranslated is noticed.
pub const TARGET_PORT: u16 = 8080;

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Name, which endpoints know it by too.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Port of the virtual addresses.
    pub port: u16,
    /// Port of the pods, unless a pod says otherwise.
    pub target: u16,
    /// Port of the nodes.
    pub node_port: Option<u16>,
}

impl Port {
    /// A port that the nodes do not have.
    #[must_use]
    pub fn new(name: &str, protocol: Protocol, port: u16, target: u16) -> Self {
        Self { name: name.to_owned(), protocol, port, target, node_port: None }
    }
}

/// Name and number of each port that an endpoint has.
type Targets = Vec<(String, u16)>;

/// A dual-stack service, with endpoints: on TCP and UDP port [`PORT`], as long as it is not given other ports.
///
/// What has no method of its own is written into the object's `spec` with [`Service::edit`].
#[derive(Clone, Debug)]
pub struct Service {
    /// Name, in the namespace `default`.
    pub name: String,
    /// What is told to whom: service-proxy-name and the like.
    pub labels: Vec<(String, String)>,
    /// The same for its slices.
    pub slice_labels: Vec<(String, String)>,
    triggered_at: Option<String>,
    /// What is asked beyond the API's fields.
    pub annotations: Vec<(String, String)>,
    vips: Addresses,
    ports: Vec<Port>,
    spec: ServiceSpec,
    ingress: Vec<LoadBalancerIngress>,
    members: Vec<Member>,
}

impl Service {
    /// A service at the virtual addresses number `vip`, without endpoints.
    #[must_use]
    pub fn new(name: &str, vip: u8) -> Self {
        let vips = Addresses::vip(vip);
        let addresses = vec![vips.v4.to_string(), vips.v6.to_string()];
        let spec = ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            cluster_ip: addresses.first().cloned(),
            cluster_ips: Some(addresses),
            ip_families: Some(vec!["IPv4".to_owned(), "IPv6".to_owned()]),
            ip_family_policy: Some("RequireDualStack".to_owned()),
            ..ServiceSpec::default()
        };
        let port = |protocol: Protocol| Port::new(&port_name(protocol), protocol, PORT, TARGET_PORT);
        Self {
            name: name.to_owned(),
            labels: Vec::new(),
            annotations: Vec::new(),
            slice_labels: Vec::new(),
            triggered_at: None,
            vips,
            ports: Protocol::ALL.map(port).into(),
            spec,
            ingress: Vec::new(),
            members: Vec::new(),
        }
    }

    /// With another endpoint.
    #[must_use]
    pub fn with(self, pod: &Pod) -> Self {
        self.with_member(Member::of(pod))
    }

    /// With another endpoint that is not an ordinary ready pod.
    #[must_use]
    pub fn with_member(mut self, member: Member) -> Self {
        self.members.push(member);
        self
    }

    /// With the endpoint of that name in another condition.
    #[must_use]
    pub fn with_condition(mut self, pod: &str, condition: Condition) -> Self {
        self.members.iter_mut().filter(|member| member.name == pod).for_each(|m| m.condition = condition);
        self
    }

    /// Without the endpoint of that name.
    #[must_use]
    pub fn without(mut self, pod: &str) -> Self {
        self.members.retain(|member| member.name != pod);
        self
    }

    /// With other ports.
    #[must_use]
    pub fn with_ports(mut self, ports: impl Into<Vec<Port>>) -> Self {
        self.ports = ports.into();
        self
    }

    /// With that port of the nodes for each of its own, whatever the protocol.
    #[must_use]
    pub fn with_node_port(mut self, node_port: u16) -> Self {
        self.ports.iter_mut().for_each(|port| port.node_port = Some(node_port));
        self.edit(|spec| {
            if spec.type_.as_deref() == Some("ClusterIP") {
                spec.type_ = Some("NodePort".to_owned());
            }
        })
    }

    /// With external IPs.
    #[must_use]
    pub fn with_external_ips(self, addresses: Addresses) -> Self {
        let ips = vec![addresses.v4.to_string(), addresses.v6.to_string()];
        self.edit(|spec| spec.external_ips = Some(ips))
    }

    /// With addresses of a load balancer, in a mode: `VIP` or `Proxy`.
    #[must_use]
    pub fn with_load_balancer(mut self, addresses: Addresses, mode: &str) -> Self {
        self.ingress = Family::ALL
            .map(|family| LoadBalancerIngress {
                ip: Some(addresses.of(family).to_string()),
                ip_mode: Some(mode.to_owned()),
                ..LoadBalancerIngress::default()
            })
            .into();
        self.edit(|spec| spec.type_ = Some("LoadBalancer".to_owned()))
    }

    /// For these clients only, as far as they come to the load balancer's addresses.
    #[must_use]
    pub fn with_source_ranges(self, ranges: &[&str]) -> Self {
        let ranges = ranges.iter().map(|&range| range.to_owned()).collect();
        self.edit(|spec| spec.load_balancer_source_ranges = Some(ranges))
    }

    /// With `externalTrafficPolicy: Local`.
    #[must_use]
    pub fn local_for_outside(self) -> Self {
        self.edit(|spec| spec.external_traffic_policy = Some("Local".to_owned()))
    }

    /// With `externalTrafficPolicy: Local` and a load balancer that asks at this port who has endpoints.
    #[must_use]
    pub fn with_health_check(self, port: u16) -> Self {
        self.local_for_outside().edit(|spec| {
            spec.type_ = Some("LoadBalancer".to_owned());
            spec.health_check_node_port = Some(port.into());
        })
    }

    /// With `internalTrafficPolicy: Local`.
    #[must_use]
    pub fn local_for_inside(self) -> Self {
        self.edit(|spec| spec.internal_traffic_policy = Some("Local".to_owned()))
    }

    /// With `sessionAffinity: ClientIP`.
    #[must_use]
    pub fn with_affinity(self, seconds: u16) -> Self {
        let client_ip = Some(ClientIPConfig { timeout_seconds: Some(seconds.into()) });
        self.edit(|spec| {
            spec.session_affinity = Some("ClientIP".to_owned());
            spec.session_affinity_config = Some(SessionAffinityConfig { client_ip });
        })
    }

    /// As an alias of a name in DNS, which no proxy has to do with.
    #[must_use]
    pub fn as_external_name(self) -> Self {
        self.edit(|spec| {
            *spec = ServiceSpec {
                type_: Some("ExternalName".to_owned()),
                external_name: Some("example.com".to_owned()),
                ..ServiceSpec::default()
            };
        })
    }

    /// Labelled.
    #[must_use]
    pub fn labelled(mut self, key: &str, value: &str) -> Self {
        self.labels.push((key.to_owned(), value.to_owned()));
        self
    }

    /// With its slices written for a change that happened at this time (RFC 3339).
    #[must_use]
    pub fn triggered_at(mut self, time: &str) -> Self {
        self.triggered_at = Some(time.to_owned());
        self
    }

    /// Annotated.
    #[must_use]
    pub fn annotated(mut self, key: &str, value: &str) -> Self {
        self.annotations.push((key.to_owned(), value.to_owned()));
        self
    }

    /// With its slices labelled.
    #[must_use]
    pub fn with_slices_labelled(mut self, key: &str, value: &str) -> Self {
        self.slice_labels.push((key.to_owned(), value.to_owned()));
        self
    }

    /// With changes to the object's `spec`, all but its ports.
    #[must_use]
    pub fn edit(mut self, change: impl FnOnce(&mut ServiceSpec)) -> Self {
        change(&mut self.spec);
        self
    }

    /// Where clients find it: its virtual addresses and first port.
    #[must_use]
    pub fn vip(&self) -> Ends {
        self.vips.at(self.ports.first().map_or(PORT, |port| port.port))
    }

    /// Where clients find it.
    #[must_use]
    pub fn frontend(&self, family: Family) -> SocketAddr {
        self.vip().of(family)
    }

    /// Its ports.
    #[must_use]
    pub fn ports(&self) -> &[Port] {
        &self.ports
    }

    /// The frontends of its virtual addresses.
    pub fn frontends(&self) -> impl Iterator<Item = (SocketAddr, Protocol)> {
        Family::ALL
            .into_iter()
            .flat_map(|family| self.ports.iter().map(move |port| (family, port)))
            .map(|(family, port)| (self.vips.at(port.port).of(family), port.protocol))
    }

    /// Where its connections may end, if all its endpoints are ready and none is excluded.
    #[must_use]
    pub fn backends(&self, family: Family) -> BTreeSet<SocketAddr> {
        let target = self.ports.first().map_or(TARGET_PORT, |port| port.target);
        self.members.iter().map(|member| member.addresses.at(target).of(family)).collect()
    }

    /// Names of the pods in it.
    #[must_use]
    pub fn pods(&self) -> Vec<&str> {
        self.members.iter().map(|member| member.name.as_str()).collect()
    }

    /// The Service object.
    #[must_use]
    pub fn object(&self) -> ServiceObject {
        let port = |port: &Port| ServicePort {
            name: Some(port.name.clone()),
            protocol: Some(port.protocol.as_str().to_owned()),
            port: port.port.into(),
            target_port: Some(IntOrString::Int(port.target.into())),
            node_port: port.node_port.map(i32::from),
            ..ServicePort::default()
        };
        let ports = Some(self.ports.iter().map(port).collect());
        let balancer = LoadBalancerStatus { ingress: Some(self.ingress.clone()) };
        ServiceObject {
            metadata: ObjectMeta {
                annotations: (!self.annotations.is_empty())
                    .then(|| self.annotations.iter().cloned().collect()),
                ..self.metadata(self.name.clone(), &self.labels)
            },
            spec: Some(ServiceSpec { ports, ..self.spec.clone() }),
            status: (!self.ingress.is_empty())
                .then(|| ServiceStatus { load_balancer: Some(balancer), ..ServiceStatus::default() }),
        }
    }

    /// Its EndpointSlice objects of a family: at least one, and one for each set of target ports.
    #[must_use]
    pub fn slices(&self, family: Family) -> Vec<EndpointSlice> {
        let mut by_targets: Vec<(Targets, Vec<&Member>)> = vec![(self.targets(None), Vec::new())];
        for member in &self.members {
            let targets = self.targets(Some(member));
            match by_targets.iter_mut().find(|(known, _)| *known == targets) {
                Some((_, members)) => members.push(member),
                None => by_targets.push((targets, vec![member])),
            }
        }
        let slice = |(number, (targets, members)): (usize, (Targets, Vec<&Member>))| {
            let name = format!("{}-{}-{number}", self.name, family.to_string().to_lowercase());
            let owner = ("kubernetes.io/service-name".to_owned(), self.name.clone());
            let labels: Vec<_> = [owner].into_iter().chain(self.slice_labels.iter().cloned()).collect();
            let protocol = |name: &str| self.ports.iter().find(|port| port.name == name).map(|p| p.protocol);
            let ports =
                targets.iter().map(|(name, number)| member::slice_port(name, protocol(name), *number));
            let mut metadata = self.metadata(name, &labels);
            let trigger = self.triggered_at.clone();
            metadata.annotations = trigger
                .map(|time| [("endpoints.kubernetes.io/last-change-trigger-time".to_owned(), time)].into());
            EndpointSlice {
                metadata,
                address_type: family.to_string(),
                endpoints: Some(members.iter().map(|member| member.object(family)).collect()),
                ports: Some(ports.collect()),
            }
        };
        by_targets.into_iter().enumerate().map(slice).collect()
    }

    /// Name and number of each port that an endpoint has.
    fn targets(&self, member: Option<&Member>) -> Targets {
        let own = member.and_then(|member| member.targets.as_ref());
        let all = self.ports.iter().map(|port| (port.name.clone(), port.target));
        own.cloned().unwrap_or_else(|| all.collect())
    }

    fn metadata(&self, name: String, labels: &[(String, String)]) -> ObjectMeta {
        ObjectMeta {
            name: Some(name),
            namespace: Some("default".to_owned()),
            labels: (!labels.is_empty()).then(|| labels.iter().cloned().collect()),
            ..ObjectMeta::default()
        }
    }
}

fn port_name(protocol: Protocol) -> String {
    protocol.as_str().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_with_ports_of_their_own_get_slices_of_their_own() {
        let at = |n: u8| Member::at(&format!("pod-{n}"), "node-1", Addresses::of_pod(1, n));
        let service = Service::new("echo", 1)
            .with_member(at(2))
            .with_member(at(3).with_targets(&[("tcp", 9090)]))
            .with_member(at(4).with_targets(&[("tcp", 9090)]));
        let slices = service.slices(Family::V4);
        let sizes = slices.iter().map(|slice| slice.endpoints.as_deref().map(<[_]>::len));
        assert_eq!(sizes.collect::<Vec<_>>(), [Some(1), Some(2)]);
        let ports = slices.iter().flat_map(|slice| slice.ports.iter().flatten()).map(|port| port.port);
        assert_eq!(ports.collect::<Vec<_>>(), [Some(8080), Some(8080), Some(9090)]);
        assert_eq!(Service::new("empty", 2).slices(Family::V6).len(), 1);
    }
}
