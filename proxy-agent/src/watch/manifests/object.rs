//! The four kinds as manifests may hold them, completed and filtered as the API server would do it.

use std::{fmt, net::IpAddr};

use k8s_openapi::{
    api::{
        core::v1::{Node, Pod, Service, ServiceSpec},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use proxy_model::{Change, Event, ObjectName};

use super::super::{HEADLESS, SERVICE_PROXY_NAME};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Service,
    EndpointSlice,
    Node,
    Pod,
}

/// What makes two manifests the same object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) kind: Kind,
    pub(super) name: ObjectName,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, name } = self;
        let kind = match kind {
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::Node => "Node",
            Kind::Pod => "Pod",
        };
        write!(f, "{kind} {name}")
    }
}

impl Key {
    pub(super) fn delete(&self) -> Change {
        let name = self.name.clone();
        match self.kind {
            Kind::Service => Change::Service(Event::Delete(name)),
            Kind::EndpointSlice => Change::EndpointSlice(Event::Delete(name)),
            Kind::Node => Change::Node(Event::Delete(name)),
            Kind::Pod => Change::Pod(Event::Delete(name)),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Object {
    Service(Box<Service>),
    EndpointSlice(Box<EndpointSlice>),
    Node(Box<Node>),
    Pod(Box<Pod>),
}

impl Object {
    pub(super) fn key(&self) -> Key {
        let (kind, meta) = match self {
            Self::Service(service) => (Kind::Service, &service.metadata),
            Self::EndpointSlice(slice) => (Kind::EndpointSlice, &slice.metadata),
            Self::Node(node) => (Kind::Node, &node.metadata),
            Self::Pod(pod) => (Kind::Pod, &pod.metadata),
        };
        let name = ObjectName {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        };
        Key { kind, name }
    }

    pub(super) fn apply(&self) -> Change {
        match self {
            Self::Service(service) => Change::Service(Event::Apply((**service).clone())),
            Self::EndpointSlice(slice) => Change::EndpointSlice(Event::Apply((**slice).clone())),
            Self::Node(node) => Change::Node(Event::Apply((**node).clone())),
            Self::Pod(pod) => Change::Pod(Event::Apply((**pod).clone())),
        }
    }

    /// Whether the selectors that are sent to an API server would let it through, but for those that name this node: other
    /// nodes and their pods are nothing to whom they are told.
    pub(super) fn is_selected(&self) -> bool {
        let has =
            |meta: &ObjectMeta, label| meta.labels.as_ref().is_some_and(|labels| labels.contains_key(label));
        match self {
            Self::Service(service) => !has(&service.metadata, SERVICE_PROXY_NAME) && !is_headless(service),
            Self::EndpointSlice(slice) => !has(&slice.metadata, HEADLESS),
            Self::Node(_) | Self::Pod(_) => true,
        }
    }

    /// Fills in what the API server would, as far as it decides where packets go.
    ///
    /// Addresses and node ports are not given out: what a manifest does not say, nobody else knows either.
    pub(super) fn complete(&mut self) {
        match self {
            Self::Service(service) => {
                namespaced(&mut service.metadata);
                if let Some(spec) = &mut service.spec {
                    complete_spec(spec);
                }
            }
            Self::EndpointSlice(slice) => {
                namespaced(&mut slice.metadata);
                for port in slice.ports.iter_mut().flatten() {
                    port.name.get_or_insert_default();
                    port.protocol.get_or_insert_with(|| TCP.to_owned());
                }
            }
            Self::Node(node) => node.metadata.namespace = None,
            Self::Pod(pod) => namespaced(&mut pod.metadata),
        }
    }
}

fn complete_spec(spec: &mut ServiceSpec) {
    for port in spec.ports.iter_mut().flatten() {
        port.protocol.get_or_insert_with(|| TCP.to_owned());
    }
    let addresses = spec.cluster_ips.get_or_insert_default();
    match &spec.cluster_ip {
        Some(address) if addresses.is_empty() && !address.is_empty() => addresses.push(address.clone()),
        None => spec.cluster_ip = addresses.first().cloned(),
        Some(_) => {}
    }
    if spec.ip_families.as_ref().is_none_or(Vec::is_empty) {
        // All or none: families go with addresses by their position.
        let families = addresses.iter().map(|address| family(address).map(str::to_owned)).collect();
        spec.ip_families = families;
    }
}

fn namespaced(meta: &mut ObjectMeta) {
    if meta.namespace.as_deref().is_none_or(str::is_empty) {
        meta.namespace = Some("default".to_owned());
    }
}

fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

fn family(address: &str) -> Option<&'static str> {
    match address.parse().ok()? {
        IpAddr::V4(_) => Some("IPv4"),
        IpAddr::V6(_) => Some("IPv6"),
    }
}

const TCP: &str = "TCP";

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(spec: &Value) -> Object {
        let service = json!({"metadata": {"name": "a"}, "spec": spec, "apiVersion": "v1", "kind": "Service"});
        let mut object = Object::Service(serde_json::from_value(service).unwrap());
        object.complete();
        object
    }

    fn spec(spec: &Value) -> Value {
        let Object::Service(service) = service(spec) else { unreachable!() };
        serde_json::to_value(service.spec).unwrap()
    }

    #[test]
    fn families_and_addresses_are_derived_from_each_other() {
        assert_eq!(
            spec(&json!({"clusterIP": "10.0.0.1"})),
            json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ipFamilies": ["IPv4"]})
        );
        assert_eq!(
            spec(&json!({"clusterIPs": ["fd00::1", "10.0.0.1"]})),
            json!({"clusterIP": "fd00::1", "clusterIPs": ["fd00::1", "10.0.0.1"], "ipFamilies": ["IPv6", "IPv4"]})
        );
    }

    #[test]
    fn given_families_are_kept() {
        let given = json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ipFamilies": ["IPv6"]});
        assert_eq!(spec(&given), given);
    }

    #[test]
    fn address_that_is_none_has_no_family() {
        let spec = spec(&json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "x"]}));
        assert_eq!(spec.get("ipFamilies"), None);
    }

    #[test]
    fn headless_services_are_not_selected() {
        assert!(!service(&json!({"clusterIP": "None"})).is_selected());
        assert!(!service(&json!({"clusterIPs": ["None"]})).is_selected());
        assert!(service(&json!({})).is_selected());
    }

    #[test]
    fn labels_deselect_by_their_presence() {
        let labelled = |label: &str| ObjectMeta {
            labels: Some([(label.to_owned(), String::new())].into()),
            ..ObjectMeta::default()
        };
        let service = |label| {
            Object::Service(Box::new(Service { metadata: labelled(label), ..Service::default() }))
                .is_selected()
        };
        let slice = |label| {
            let slice = EndpointSlice { metadata: labelled(label), ..EndpointSlice::default() };
            Object::EndpointSlice(Box::new(slice)).is_selected()
        };
        assert_eq!([service(SERVICE_PROXY_NAME), service(HEADLESS)], [false, true]);
        assert_eq!([slice(SERVICE_PROXY_NAME), slice(HEADLESS)], [true, false]);
    }
}
