//! How a Service is reached from outside the cluster: everything but its ClusterIP and its node ports' numbers.

use std::{net::IpAddr, num::NonZeroU16};

use k8s_openapi::api::core::v1::{LoadBalancerIngress, Service, ServiceSpec};

use crate::{
    address::{parse_ip, unusable},
    cidr::{Cidr, NOT_A_NETWORK},
    error::Report,
    name::Family,
    policy::TrafficPolicy,
    service::parse_port_number,
};

/// What all ports of a Service have in common for clients outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct External {
    /// Which backends they reach.
    pub(crate) policy: TrafficPolicy,
    /// `spec.externalIPs` (SP-05).
    pub(crate) external_ips: Vec<IpAddr>,
    /// Addresses of the load balancer that are served here (SP-02).
    pub(crate) load_balancer_ips: Vec<IpAddr>,
    /// Who may use those; empty if everybody may.
    pub(crate) source_ranges: Vec<Cidr>,
    /// Where load balancers ask whether this node has endpoints (SP-10).
    pub(crate) health_check: Option<NonZeroU16>,
}

impl External {
    /// What the Service says, of both families.
    pub(crate) fn parse(service: &Service, spec: &ServiceSpec, report: &mut Report<'_>) -> Self {
        let policy = TrafficPolicy::parse_external(spec, report);
        Self {
            policy,
            external_ips: external_ips(spec, report),
            load_balancer_ips: load_balancer_ips(service, report),
            source_ranges: source_ranges(spec, report),
            health_check: health_check(spec, policy, report),
        }
    }

    /// What of it concerns a family.
    pub(crate) fn of(&self, family: Family) -> Self {
        let of_family =
            |ips: &[IpAddr]| ips.iter().filter(|ip| Family::of(**ip) == family).copied().collect();
        let ranges = self.source_ranges.iter().filter(|range| range.family() == family).copied();
        // LBSR-03 follows from an empty list, LBSR-04 makes one.
        let unrestricted = ranges.clone().any(|range| range.is_everything());
        Self {
            policy: self.policy,
            external_ips: of_family(&self.external_ips),
            load_balancer_ips: of_family(&self.load_balancer_ips),
            source_ranges: if unrestricted { Vec::new() } else { ranges.collect() },
            health_check: self.health_check,
        }
    }

    /// Whether only some sources may use the load balancer's addresses (LBSR-01).
    pub(crate) fn is_restricted(&self) -> bool {
        !self.load_balancer_ips.is_empty() && !self.source_ranges.is_empty()
    }
}

/// Blank entries are skipped in silence: the API lets them through.
fn external_ips(spec: &ServiceSpec, report: &mut Report<'_>) -> Vec<IpAddr> {
    let texts = spec.external_ips.iter().flatten().enumerate().filter(|(_, text)| !text.trim().is_empty());
    in_order(texts.filter_map(|(at, text)| parse_vip(|| format!("spec.externalIPs[{at}]"), text, report)))
}

/// Those that the load balancer delivers packets to untranslated. Behind the others, and behind names, it is the load
/// balancer's business what happens (SP-03, SP-04).
fn load_balancer_ips(service: &Service, report: &mut Report<'_>) -> Vec<IpAddr> {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_deref()).unwrap_or_default();
    let is_vip = |ingress: &LoadBalancerIngress| matches!(ingress.ip_mode.as_deref(), None | Some("VIP"));
    let vips = ingress.iter().enumerate().filter(|(_, ingress)| is_vip(ingress));
    in_order(vips.filter_map(|(at, ingress)| {
        let text = ingress.ip.as_deref().filter(|text| !text.is_empty())?;
        parse_vip(|| format!("status.loadBalancer.ingress[{at}].ip"), text, report)
    }))
}

/// LBSR-02.
fn source_ranges(spec: &ServiceSpec, report: &mut Report<'_>) -> Vec<Cidr> {
    let texts = spec.load_balancer_source_ranges.iter().flatten().enumerate();
    in_order(texts.filter_map(|(at, text)| {
        let range = text.trim().parse().ok();
        if range.is_none() {
            report.text(format!("spec.loadBalancerSourceRanges[{at}]"), text, NOT_A_NETWORK);
        }
        range
    }))
}

/// SP-10. The API server gives such a Service a port; one without is a mistake.
fn health_check(spec: &ServiceSpec, policy: TrafficPolicy, report: &mut Report<'_>) -> Option<NonZeroU16> {
    let needed = spec.type_.as_deref() == Some("LoadBalancer") && policy == TrafficPolicy::Local;
    let number = needed.then(|| spec.health_check_node_port.unwrap_or_default())?;
    parse_port_number(|| "spec.healthCheckNodePort".to_owned(), number, report)
}

/// Each once, in one order, so that another order in the object is no change.
fn in_order<T: Ord>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut items: Vec<T> = items.collect();
    items.sort_unstable();
    items.dedup();
    items
}

/// An address that clients may send to.
pub(crate) fn parse_vip(
    field: impl FnOnce() -> String,
    text: &str,
    report: &mut Report<'_>,
) -> Option<IpAddr> {
    let ip = parse_ip(text);
    let complaint = match ip {
        None => Some("is not an IP address"),
        Some(ip) => unusable(ip),
    };
    if let Some(reason) = complaint {
        report.text(field(), text, reason);
        return None;
    }
    ip
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{change::ObjectName, error::Kind};

    fn parsed(service: Value) -> (External, Vec<String>) {
        let object = ObjectName { namespace: "default".to_owned(), name: "web".to_owned() };
        let service: Service = serde_json::from_value(service).unwrap();
        let mut report = Report::new(Kind::Service, &object);
        let external = External::parse(&service, service.spec.as_ref().unwrap(), &mut report);
        (external, report.finish().iter().map(ToString::to_string).collect())
    }

    fn texts<T: ToString>(items: &[T]) -> Vec<String> {
        items.iter().map(ToString::to_string).collect()
    }

    /// SP-05, SP-06.
    #[test]
    fn external_ips_are_taken_if_they_can_be_read() {
        let (external, errors) = parsed(json!({ "spec": { "externalIPs": [
            "192.0.2.09", "", "  ", "192.0.2.256", "2001:db8::1", "0.0.0.0", "127.0.0.1", "::ffff:192.0.2.7", "192.0.2.9",
        ]}}));
        assert_eq!(texts(&external.of(Family::Ipv4).external_ips), ["192.0.2.7", "192.0.2.9"]);
        assert_eq!(texts(&external.of(Family::Ipv6).external_ips), ["2001:db8::1"]);
        assert_eq!(
            errors,
            [
                "Service default/web: spec.externalIPs[3]: \"192.0.2.256\" is not an IP address",
                "Service default/web: spec.externalIPs[5]: \"0.0.0.0\" is the unspecified address",
                "Service default/web: spec.externalIPs[6]: \"127.0.0.1\" is a loopback address",
            ]
        );
    }

    /// SP-02 to SP-04, LB-03.
    #[test]
    fn load_balancers_that_translate_by_themselves_are_left_alone() {
        let (external, errors) = parsed(json!({ "spec": {}, "status": { "loadBalancer": { "ingress": [
            { "ip": "192.0.2.1" }, { "ip": "192.0.2.2", "ipMode": "VIP" }, { "ip": "192.0.2.3", "ipMode": "Proxy" },
            { "ip": "192.0.2.4", "ipMode": "Other" }, { "hostname": "lb.example.com" }, { "ip": "" }, { "ip": "2001:db8::1" },
            { "ip": "lb" },
        ]}}}));
        assert_eq!(texts(&external.of(Family::Ipv4).load_balancer_ips), ["192.0.2.1", "192.0.2.2"]);
        assert_eq!(texts(&external.of(Family::Ipv6).load_balancer_ips), ["2001:db8::1"]);
        assert_eq!(
            errors,
            ["Service default/web: status.loadBalancer.ingress[7].ip: \"lb\" is not an IP address"]
        );
    }

    /// SP-10.
    #[test]
    fn health_is_asked_for_where_a_load_balancer_keeps_traffic_on_the_node() {
        for (spec, port) in [
            (json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local" }), Some(30_000)),
            (json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Cluster" }), None),
            (json!({ "type": "LoadBalancer" }), None),
            (json!({ "type": "NodePort", "externalTrafficPolicy": "Local" }), None),
            (json!({ "externalIPs": ["192.0.2.1"], "externalTrafficPolicy": "Local" }), None),
        ] {
            let mut spec = spec;
            spec["healthCheckNodePort"] = json!(30_000);
            let text = spec.to_string();
            let (external, errors) = parsed(json!({ "spec": spec }));
            assert_eq!(external.of(Family::Ipv6).health_check.map(NonZeroU16::get), port, "{text}");
            assert!(errors.is_empty(), "{text}");
        }
        for number in [json!(null), json!(0), json!(65_536)] {
            let (external, errors) = parsed(json!({ "spec": {
                "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": number,
            }}));
            let number = number.as_i64().unwrap_or_default();
            assert_eq!(external.health_check, None);
            let field = "spec.healthCheckNodePort";
            assert_eq!(errors, [format!("Service default/web: {field}: {number} is not a port (1-65535)")]);
        }
    }

    /// LBSR-02 to LBSR-04; VER-23.
    #[test]
    fn source_ranges_restrict_the_families_that_they_are_of() {
        for (ranges, v4, v6) in [
            (json!(null), &[][..], &[][..]),
            (json!([]), &[], &[]),
            (json!([" 10.0.0.0/8 ", "10.0.0.000/008"]), &["10.0.0.0/8"], &[]),
            (json!(["10.0.0.0/8", "0.0.0.0/0"]), &[], &[]),
            (json!(["10.0.0.0/8", "::/0"]), &["10.0.0.0/8"], &[]),
            (json!(["0.0.0.0/1", "128.0.0.0/1"]), &["0.0.0.0/1", "128.0.0.0/1"], &[]),
            (json!(["fd00::/8\t", "10.1.2.3/32"]), &["10.1.2.3/32"], &["fd00::/8"]),
        ] {
            let text = ranges.to_string();
            let (external, errors) = parsed(json!({ "spec": { "loadBalancerSourceRanges": ranges } }));
            let found = Family::ALL.map(|family| texts(&external.of(family).source_ranges));
            assert_eq!(found, [texts(v4), texts(v6)], "{text}");
            assert!(errors.is_empty());
        }
        let ranges = json!(["10.0.0.0", "10.0.0.0/8", ""]);
        let (external, errors) = parsed(json!({ "spec": { "loadBalancerSourceRanges": ranges } }));
        assert_eq!(texts(&external.source_ranges), ["10.0.0.0/8"]);
        let reason = "is not a network, such as 10.0.0.0/8 or fd00::/8";
        assert_eq!(
            errors,
            [
                format!("Service default/web: spec.loadBalancerSourceRanges[0]: \"10.0.0.0\" {reason}"),
                format!("Service default/web: spec.loadBalancerSourceRanges[2]: \"\" {reason}"),
            ]
        );
    }
}
