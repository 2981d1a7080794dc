//! From a Service to its service ports.

use std::{collections::BTreeSet, net::IpAddr, num::NonZeroU16, sync::Arc};

use k8s_openapi::api::core::v1::{Service, ServicePort as PortSpec, ServiceSpec};

use crate::{
    change::ObjectName,
    error::Report,
    external::{External, parse_vip},
    name::{Family, ServicePortName, Transport, is_name},
    policy::{BackendSelection, ExternalForwarding, OnRemoval, SessionAffinity, TrafficPolicy},
};

/// A Service with this label belongs to another proxy (SVC-01, SVC-02).
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// One port of a Service in one family: everything Sluice wants to know about it (SVC-10).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServicePort {
    /// Identity.
    pub(crate) name: ServicePortName,
    /// The ClusterIP of the family.
    pub(crate) cluster_ip: IpAddr,
    /// `spec.ports[].port`.
    pub(crate) port: NonZeroU16,
    /// `spec.ports[].nodePort`, if it has one (SP-01).
    pub(crate) node_port: Option<NonZeroU16>,
    /// Which backends the ClusterIP leads to.
    pub(crate) internal: TrafficPolicy,
    /// How it is reached from outside; the same for all ports of the family.
    pub(crate) external: Arc<External>,
    /// Whether clients stay with their backends.
    pub(crate) affinity: SessionAffinity,
    /// What becomes of connections when their backend is gone; only TCP's are ever reset.
    pub(crate) on_removal: OnRemoval,
    /// How clients outside get a backend, if the Service says.
    pub(crate) selection: Option<BackendSelection>,
    /// How their packets get to other nodes, if the Service says.
    pub(crate) forwarding: Option<ExternalForwarding>,
}

/// The service ports of a Service; none if Sluice does not handle it. What is illegal costs its own port or family.
pub(crate) fn parse(object: &ObjectName, service: &Service, report: &mut Report<'_>) -> Vec<ServicePort> {
    let Some(spec) = handled(service) else {
        return Vec::new();
    };
    for (field, text) in [("metadata.namespace", &object.namespace), ("metadata.name", &object.name)] {
        if !is_name(text) {
            report.text(field, text, "is not a name");
            return Vec::new();
        }
    }
    let cluster_ips = cluster_ips(spec, report);
    let internal = TrafficPolicy::parse_internal(spec, report);
    let external = External::parse(service, spec, report);
    // SVC-08: in a family without a ClusterIP, nothing of the Service is served.
    let families = cluster_ips.into_iter().map(|ip| (ip, Arc::new(external.of(Family::of(ip)))));
    let families: Vec<(IpAddr, Arc<External>)> = families.collect();
    let affinity = SessionAffinity::parse(spec, report);
    let on_removal = OnRemoval::parse(&service.metadata, report);
    let selection = BackendSelection::parse(&service.metadata, report);
    let forwarding = ExternalForwarding::parse(&service.metadata, report);
    let mut seen = BTreeSet::new();
    let mut ports = Vec::new();
    for (at, port) in spec.ports.iter().flatten().enumerate() {
        let Some((port_name, transport, number)) = parse_port(at, port, report) else {
            continue;
        };
        if !seen.insert((port_name, transport)) {
            report.text(format!("spec.ports[{at}].name"), port_name, "is there twice");
            continue;
        }
        let node_port = parse_node_port(at, port, report);
        ports.extend(families.iter().map(|(cluster_ip, external)| ServicePort {
            name: ServicePortName {
                service: object.clone(),
                port: port_name.to_owned(),
                transport,
                family: Family::of(*cluster_ip),
            },
            cluster_ip: *cluster_ip,
            port: number,
            node_port,
            internal,
            external: Arc::clone(external),
            affinity,
            on_removal: if transport == Transport::Tcp { on_removal } else { OnRemoval::Keep },
            selection,
            forwarding,
        }));
    }
    ports.shrink_to_fit();
    ports
}

/// The spec of a Service that is ours: not another proxy's, not headless, not an alias (SVC-01, SVC-03, SVC-04).
fn handled(service: &Service) -> Option<&ServiceSpec> {
    let foreign =
        service.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(PROXY_NAME_LABEL));
    let spec = service.spec.as_ref()?;
    let without_vip = matches!(spec.cluster_ip.as_deref(), None | Some("" | "None"));
    let alias = spec.type_.as_deref() == Some("ExternalName");
    (!foreign && !without_vip && !alias).then_some(spec)
}

/// At most one ClusterIP per family (SVC-07, upstream `GetClusterIPByFamily`).
fn cluster_ips(spec: &ServiceSpec, report: &mut Report<'_>) -> Vec<IpAddr> {
    let families = spec.ip_families.as_deref().unwrap_or_default();
    if families.is_empty() {
        let single = spec.cluster_ip.as_deref().unwrap_or_default();
        return parse_vip(|| "spec.clusterIP".to_owned(), single, report).into_iter().collect();
    }
    let texts = spec.cluster_ips.as_deref().unwrap_or_default();
    let mut found = Vec::new();
    for (at, name) in families.iter().enumerate() {
        let Some(family) = Family::ALL.into_iter().find(|family| family.as_str() == name) else {
            report.text(format!("spec.ipFamilies[{at}]"), name, "is not IPv4 or IPv6");
            continue;
        };
        let Some(text) = texts.get(at) else {
            continue;
        };
        let field = || format!("spec.clusterIPs[{at}]");
        let Some(ip) = parse_vip(field, text, report) else {
            continue;
        };
        if Family::of(ip) != family {
            report.text(field(), text, "is not of the family that spec.ipFamilies says");
        } else if !found.iter().any(|&other| Family::of(other) == family) {
            found.push(ip);
        }
    }
    found
}

fn parse_port<'a>(
    at: usize,
    port: &'a PortSpec,
    report: &mut Report<'_>,
) -> Option<(&'a str, Transport, NonZeroU16)> {
    let name = port.name.as_deref().unwrap_or_default();
    if !name.is_empty() && !is_name(name) {
        report.text(format!("spec.ports[{at}].name"), name, "is not a name");
        return None;
    }
    let transport =
        parse_transport(|| format!("spec.ports[{at}].protocol"), port.protocol.as_deref(), report)?;
    let number = parse_port_number(|| format!("spec.ports[{at}].port"), port.port, report)?;
    Some((name, transport, number))
}

/// SP-01.
fn parse_node_port(at: usize, port: &PortSpec, report: &mut Report<'_>) -> Option<NonZeroU16> {
    let number = port.node_port.filter(|number| *number != 0)?;
    parse_port_number(|| format!("spec.ports[{at}].nodePort"), number, report)
}

/// A protocol as Services and slices write it; TCP if they do not (EPS-08).
pub(crate) fn parse_transport(
    field: impl FnOnce() -> String,
    text: Option<&str>,
    report: &mut Report<'_>,
) -> Option<Transport> {
    let text = text.filter(|text| !text.is_empty()).unwrap_or("TCP");
    let transport = Transport::ALL.into_iter().find(|known| known.as_str() == text);
    if transport.is_none() {
        report.text(field(), text, "is not TCP, UDP or SCTP");
    }
    transport
}

/// A port number.
pub(crate) fn parse_port_number(
    field: impl FnOnce() -> String,
    number: i32,
    report: &mut Report<'_>,
) -> Option<NonZeroU16> {
    let port = u16::try_from(number).ok().and_then(NonZeroU16::new);
    if port.is_none() {
        report.number(field(), number, "is not a port (1-65535)");
    }
    port
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::error::Kind;

    fn parsed(spec: Value) -> (Vec<String>, Vec<String>) {
        let object = ObjectName { namespace: "default".to_owned(), name: "web".to_owned() };
        let service: Service = serde_json::from_value(json!({ "spec": spec })).unwrap();
        let mut report = Report::new(Kind::Service, &object);
        let ports = parse(&object, &service, &mut report)
            .iter()
            .map(|port| format!("{} = {}:{}", port.name, port.cluster_ip, port.port))
            .collect();
        (ports, report.finish().iter().map(ToString::to_string).collect())
    }

    #[test]
    fn each_family_takes_the_cluster_ip_at_its_position() {
        let (ports, errors) = parsed(json!({
            "clusterIP": "fd00::10", "clusterIPs": ["fd00::10", "10.96.0.010"], "ipFamilies": ["IPv6", "IPv4"],
            "ports": [{ "name": "http", "port": 80 }],
        }));
        assert_eq!(
            ports,
            ["default/web:http/TCP/IPv6 = fd00::10:80", "default/web:http/TCP/IPv4 = 10.96.0.10:80"]
        );
        assert!(errors.is_empty());
    }

    #[test]
    fn without_families_the_single_cluster_ip_counts() {
        let (ports, _) = parsed(json!({
            "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"], "ports": [{ "port": 443 }],
        }));
        assert_eq!(ports, ["default/web/TCP/IPv4 = 10.96.0.1:443"]);
    }

    /// SP-01, PROTO-01, SVC-08.
    #[test]
    fn every_protocol_has_ports_and_node_ports() {
        let spec = json!({ "clusterIP": "10.96.0.1", "ports": [
            { "name": "a", "port": 80, "nodePort": 30080 }, { "name": "b", "port": 80, "protocol": "UDP", "nodePort": 0 },
            { "name": "c", "port": 80, "protocol": "SCTP", "nodePort": 65536 },
        ]});
        let object = ObjectName { namespace: "default".to_owned(), name: "web".to_owned() };
        let service: Service = serde_json::from_value(json!({ "spec": spec })).unwrap();
        let mut report = Report::new(Kind::Service, &object);
        let ports = parse(&object, &service, &mut report);
        let found: Vec<_> =
            ports.iter().map(|port| (port.name.to_string(), port.node_port.map(NonZeroU16::get))).collect();
        let expected = [("a/TCP", Some(30_080)), ("b/UDP", None), ("c/SCTP", None)];
        assert_eq!(found, expected.map(|(name, port)| (format!("default/web:{name}/IPv4"), port)));
        let errors: Vec<_> = report.finish().iter().map(ToString::to_string).collect();
        assert_eq!(errors, ["Service default/web: spec.ports[2].nodePort: 65536 is not a port (1-65535)"]);
    }

    #[test]
    fn services_without_a_vip_have_no_ports() {
        for spec in [
            json!({ "clusterIP": "None", "ports": [{ "port": 80 }] }),
            json!({ "clusterIP": "", "ports": [{ "port": 80 }] }),
            json!({ "ports": [{ "port": 80 }] }),
            json!({ "clusterIP": "10.96.0.1", "type": "ExternalName", "ports": [{ "port": 80 }] }),
            json!({ "clusterIP": "10.96.0.1" }),
            json!({ "clusterIP": "fd00::1", "clusterIPs": ["fd00::1"], "ipFamilies": ["IPv4", "IPv6"] }),
        ] {
            let text = spec.to_string();
            assert_eq!(parsed(spec).0, [""; 0], "{text}");
        }
    }

    #[test]
    fn what_is_illegal_costs_only_itself() {
        let (ports, errors) = parsed(json!({
            "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "10.96.0.2"], "ipFamilies": ["IPv4", "IPv6"],
            "ports": [
                { "name": "a", "port": 80 },
                { "name": "b", "port": 70000 },
                { "name": "c", "port": 0 },
                { "name": "d", "port": 81, "protocol": "tcp" },
                { "name": "e/f", "port": 82 },
                { "name": "a", "port": 83 },
                { "name": "a", "port": 80, "protocol": "UDP" },
            ],
        }));
        assert_eq!(ports, ["default/web:a/TCP/IPv4 = 10.96.0.1:80", "default/web:a/UDP/IPv4 = 10.96.0.1:80"]);
        assert_eq!(
            errors,
            [
                "Service default/web: spec.clusterIPs[1]: \"10.96.0.2\" is not of the family that spec.ipFamilies says",
                "Service default/web: spec.ports[1].port: 70000 is not a port (1-65535)",
                "Service default/web: spec.ports[2].port: 0 is not a port (1-65535)",
                "Service default/web: spec.ports[3].protocol: \"tcp\" is not TCP, UDP or SCTP",
                "Service default/web: spec.ports[4].name: \"e/f\" is not a name",
                "Service default/web: spec.ports[5].name: \"a\" is there twice",
            ]
        );
    }

    #[test]
    fn an_unusable_cluster_ip_is_reported_once() {
        for (ip, reason) in [
            ("10.96.0.1000", "is not an IP address"),
            ("0.0.0.0", "is the unspecified address"),
            ("224.0.0.1", "is not the address of one host"),
        ] {
            let (ports, errors) = parsed(json!({ "clusterIP": ip, "ports": [{ "port": 80 }] }));
            assert_eq!(ports, [""; 0]);
            assert_eq!(errors, [format!("Service default/web: spec.clusterIP: \"{ip}\" {reason}")]);
        }
    }
}
