//! From a Service to its service ports.

use std::{collections::BTreeSet, net::IpAddr, num::NonZeroU16};

use k8s_openapi::api::core::v1::{Service, ServicePort as PortSpec, ServiceSpec};
use proxy_common::{endian::Be16, frontend::FrontendKey, tuple::Endpoint};

use crate::{
    address::{parse_ip, unusable},
    change::ObjectName,
    error::Report,
    name::{Family, ServicePortName, Transport, is_name},
    policy::{SessionAffinity, TrafficPolicy},
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
    /// Which backends the ClusterIP leads to.
    pub(crate) internal: TrafficPolicy,
    /// Whether clients stay with their backends.
    pub(crate) affinity: SessionAffinity,
}

impl ServicePort {
    /// What clients address to reach it.
    pub(crate) fn frontends(&self) -> Vec<FrontendKey> {
        let end = Endpoint { address: self.cluster_ip.into(), port: Be16::from_host(self.port.get()) };
        vec![FrontendKey::new(end, self.name.transport.protocol())]
    }
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
    let affinity = SessionAffinity::parse(spec, report);
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
        ports.extend(cluster_ips.iter().map(|&cluster_ip| ServicePort {
            name: ServicePortName {
                service: object.clone(),
                port: port_name.to_owned(),
                transport,
                family: Family::of(cluster_ip),
            },
            cluster_ip,
            port: number,
            internal,
            affinity,
        }));
    }
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
        return parse_vip("spec.clusterIP".to_owned(), single, report).into_iter().collect();
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
        let field = format!("spec.clusterIPs[{at}]");
        let Some(ip) = parse_vip(field.clone(), text, report) else {
            continue;
        };
        if Family::of(ip) != family {
            report.text(field, text, "is not of the family that spec.ipFamilies says");
        } else if !found.iter().any(|&other| Family::of(other) == family) {
            found.push(ip);
        }
    }
    found
}

fn parse_vip(field: String, text: &str, report: &mut Report<'_>) -> Option<IpAddr> {
    let Some(ip) = parse_ip(text) else {
        report.text(field, text, "is not an IP address");
        return None;
    };
    if let Some(reason) = unusable(ip) {
        report.text(field, text, reason);
        return None;
    }
    Some(ip)
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

/// A protocol as Services and slices write it; TCP if they do not (EPS-08). `None` without complaint for SCTP.
pub(crate) fn parse_transport(
    field: impl FnOnce() -> String,
    text: Option<&str>,
    report: &mut Report<'_>,
) -> Option<Transport> {
    match text {
        None | Some("" | "TCP") => Some(Transport::Tcp),
        Some("UDP") => Some(Transport::Udp),
        Some("SCTP") => None,
        Some(other) => {
            report.text(field(), other, "is not TCP, UDP or SCTP");
            None
        }
    }
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

    #[test]
    fn services_without_a_vip_have_no_ports() {
        for spec in [
            json!({ "clusterIP": "None", "ports": [{ "port": 80 }] }),
            json!({ "clusterIP": "", "ports": [{ "port": 80 }] }),
            json!({ "ports": [{ "port": 80 }] }),
            json!({ "clusterIP": "10.96.0.1", "type": "ExternalName", "ports": [{ "port": 80 }] }),
            json!({ "clusterIP": "10.96.0.1" }),
            json!({ "clusterIP": "10.96.0.1", "ports": [{ "port": 80, "protocol": "SCTP" }] }),
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
