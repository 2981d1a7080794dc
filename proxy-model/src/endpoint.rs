//! From an EndpointSlice to what it contributes to its Service.

use std::{net::IpAddr, num::NonZeroU16};

use k8s_openapi::api::discovery::v1::{
    Endpoint as EndpointSpec, EndpointConditions, EndpointPort, EndpointSlice,
};

use crate::{
    address::{parse_ip, unusable},
    change::ObjectName,
    error::Report,
    name::{Family, Transport},
    service::{parse_port_number, parse_transport},
    topology::Hints,
};

/// The slice belongs to a headless Service, which has no VIP to serve (EPS-01).
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// Name of the Service that the slice belongs to (EPS-04).
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// Everything Sluice wants to know about an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slice {
    /// Name of the Service, in the slice's namespace.
    pub(crate) service: String,
    /// Family of its endpoints.
    pub(crate) family: Family,
    /// Its endpoints, in order.
    pub(crate) endpoints: Box<[Endpoint]>,
    /// The ports that every endpoint serves.
    pub(crate) ports: Box<[SlicePort]>,
}

/// An address that may become a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Address.
    pub(crate) ip: IpAddr,
    /// Where it runs.
    pub(crate) location: Location,
    /// How it is.
    pub(crate) conditions: Conditions,
    /// For whom it is meant.
    pub(crate) hints: Hints,
}

impl Endpoint {
    /// Whether it is meant to be used (COND-01, COND-02).
    pub(crate) const fn is_ready(&self) -> bool {
        self.conditions.ready
    }

    /// Whether it is ready, or terminates but would still serve (COND-03).
    pub(crate) const fn is_usable(&self) -> bool {
        let Conditions { ready, serving, terminating } = self.conditions;
        ready || serving && terminating
    }
}

/// Where an endpoint runs, as seen from this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Location {
    /// On this node.
    Local,
    /// Elsewhere, or nobody says where.
    Remote,
}

/// The conditions of an endpoint after defaulting (EPS-17).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Conditions {
    /// Authoritative for normal use (COND-01), also for an endpoint that terminates (COND-02).
    pub(crate) ready: bool,
    /// Could still answer; does not default to the value of `ready` (COND-06).
    pub(crate) serving: bool,
    /// Is on its way out.
    pub(crate) terminating: bool,
}

impl From<Option<&EndpointConditions>> for Conditions {
    fn from(conditions: Option<&EndpointConditions>) -> Self {
        let of = |field: fn(&EndpointConditions) -> Option<bool>| conditions.and_then(field);
        Self {
            ready: of(|c| c.ready).unwrap_or(true),
            serving: of(|c| c.serving).unwrap_or(true),
            terminating: of(|c| c.terminating).unwrap_or(false),
        }
    }
}

/// A port of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SlicePort {
    /// Equal to the name of the Service's port, possibly empty (EPS-06).
    pub(crate) name: String,
    /// Protocol.
    pub(crate) transport: Transport,
    /// Number; may differ between slices of one Service (EPS-07).
    pub(crate) port: NonZeroU16,
}

/// What the slice contributes; `None` if it is not for Sluice (EPS-01, EPS-03, EPS-04).
pub(crate) fn parse(slice: &EndpointSlice, node_name: &str, report: &mut Report<'_>) -> Option<Slice> {
    let label = |key| slice.metadata.labels.as_ref().and_then(|labels| labels.get(key));
    if label(HEADLESS_LABEL).is_some() {
        return None;
    }
    let family = Family::ALL.into_iter().find(|family| family.as_str() == slice.address_type)?;
    let service = label(SERVICE_LABEL).filter(|name| !name.is_empty())?.clone();
    let endpoints = slice
        .endpoints
        .iter()
        .flatten()
        .enumerate()
        .filter_map(|(at, spec)| parse_endpoint(at, spec, family, node_name, report))
        .collect();
    let ports = slice
        .ports
        .iter()
        .flatten()
        .enumerate()
        .filter_map(|(at, spec)| parse_slice_port(at, spec, report))
        .collect();
    Some(Slice { service, family, endpoints, ports })
}

/// Only the first address counts (EPS-09).
fn parse_endpoint(
    at: usize,
    spec: &EndpointSpec,
    family: Family,
    node_name: &str,
    report: &mut Report<'_>,
) -> Option<Endpoint> {
    let text = spec.addresses.first()?;
    let ip = parse_ip(text);
    let complaint = match ip {
        None => Some("is not an IP address"),
        Some(ip) if Family::of(ip) != family => Some("is not of the slice's addressType"),
        Some(ip) => unusable(ip),
    };
    if let Some(reason) = complaint {
        report.text(format!("endpoints[{at}].addresses[0]"), text, reason);
        return None;
    }
    let local = spec.node_name.as_deref() == Some(node_name);
    Some(Endpoint {
        ip: ip?,
        location: if local { Location::Local } else { Location::Remote },
        conditions: spec.conditions.as_ref().into(),
        hints: Hints::parse(spec.hints.as_ref(), node_name),
    })
}

/// Without a name or a number, a port is for others (EPS-08).
fn parse_slice_port(at: usize, spec: &EndpointPort, report: &mut Report<'_>) -> Option<SlicePort> {
    let name = spec.name.clone()?;
    let number = spec.port.filter(|&number| number != 0)?;
    let transport = parse_transport(|| format!("ports[{at}].protocol"), spec.protocol.as_deref(), report)?;
    let port = parse_port_number(|| format!("ports[{at}].port"), number, report)?;
    Some(SlicePort { name, transport, port })
}

/// The owner of a slice in `namespace`.
pub(crate) fn owner(namespace: &str, slice: &Slice) -> ObjectName {
    ObjectName { namespace: namespace.to_owned(), name: slice.service.clone() }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::error::Kind;

    fn parsed(change: Value) -> (Option<Slice>, Vec<String>) {
        let object = ObjectName { namespace: "default".to_owned(), name: "web-1".to_owned() };
        let mut slice = json!({
            "addressType": "IPv4",
            "metadata": { "labels": { "kubernetes.io/service-name": "web" } },
            "endpoints": [{ "addresses": ["10.0.0.1"] }],
            "ports": [{ "name": "", "port": 8080 }],
        });
        for (key, value) in change.as_object().unwrap() {
            slice[key] = value.clone();
        }
        let slice: EndpointSlice = serde_json::from_value(slice).unwrap();
        let mut report = Report::new(Kind::EndpointSlice, &object);
        let parsed = parse(&slice, "node-a", &mut report);
        (parsed, report.finish().iter().map(ToString::to_string).collect())
    }

    /// EPS-17, COND-06.
    #[test]
    fn conditions_default_to_ready_and_serving() {
        let conditions = |value: Value| Conditions::from(Some(&serde_json::from_value(value).unwrap()));
        let ready = Conditions { ready: true, serving: true, terminating: false };
        assert_eq!(Conditions::from(None), ready);
        assert_eq!(conditions(json!({})), ready);
        // COND-06
        assert_eq!(
            conditions(json!({ "ready": false, "terminating": true })),
            Conditions { ready: false, serving: true, terminating: true }
        );
    }

    /// EPS-09, EPS-16.
    #[test]
    fn local_means_exactly_this_node() {
        let (slice, errors) = parsed(json!({ "endpoints": [
            { "addresses": ["10.0.0.1"], "nodeName": "node-a" },
            { "addresses": ["10.0.0.2"], "nodeName": "Node-A" },
            { "addresses": ["10.0.0.3", "10.0.0.4"] },
            { "addresses": [] },
        ]}));
        let locations: Vec<_> =
            slice.unwrap().endpoints.iter().map(|e| (e.ip.to_string(), e.location)).collect();
        assert_eq!(
            locations,
            [
                ("10.0.0.1".to_owned(), Location::Local),
                ("10.0.0.2".to_owned(), Location::Remote),
                ("10.0.0.3".to_owned(), Location::Remote),
            ]
        );
        assert!(errors.is_empty());
    }

    /// EPS-01, EPS-03, EPS-04.
    #[test]
    fn slices_for_others_are_ignored_in_silence() {
        for change in [
            json!({ "addressType": "FQDN", "endpoints": [{ "addresses": ["example.com"] }] }),
            json!({ "addressType": "IPv5" }),
            json!({ "metadata": {} }),
            json!({ "metadata": { "labels": { "kubernetes.io/service-name": "" } } }),
            json!({ "metadata": { "labels": {
                "kubernetes.io/service-name": "web", "service.kubernetes.io/headless": "",
            } } }),
        ] {
            let text = change.to_string();
            assert_eq!(parsed(change), (None, vec![]), "{text}");
        }
    }

    /// EPS-08, SP-06.
    #[test]
    fn what_is_illegal_costs_only_itself() {
        let (slice, errors) = parsed(json!({
            "endpoints": [
                { "addresses": ["10.0.0.999"] }, { "addresses": ["fd00::1"] }, { "addresses": ["127.0.0.1"] },
                { "addresses": ["10.0.0.07"] },
            ],
            "ports": [
                { "name": "a", "port": -1 }, { "name": "b", "port": 80, "protocol": "QUIC" }, { "name": "c" },
                { "name": "d", "port": 0 }, { "port": 80 }, { "name": "e", "port": 80, "protocol": "UDP" },
            ],
        }));
        let slice = slice.unwrap();
        assert_eq!(slice.endpoints.iter().map(|e| e.ip.to_string()).collect::<Vec<_>>(), ["10.0.0.7"]);
        assert_eq!(slice.ports.iter().map(|port| port.name.as_str()).collect::<Vec<_>>(), ["e"]);
        assert_eq!(
            errors,
            [
                "EndpointSlice default/web-1: endpoints[0].addresses[0]: \"10.0.0.999\" is not an IP address",
                "EndpointSlice default/web-1: endpoints[1].addresses[0]: \"fd00::1\" is not of the slice's addressType",
                "EndpointSlice default/web-1: endpoints[2].addresses[0]: \"127.0.0.1\" is a loopback address",
                "EndpointSlice default/web-1: ports[0].port: -1 is not a port (1-65535)",
                "EndpointSlice default/web-1: ports[1].protocol: \"QUIC\" is not TCP, UDP or SCTP",
            ]
        );
    }
}
