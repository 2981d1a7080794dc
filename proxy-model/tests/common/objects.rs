//! Objects for tests that make many of them.

use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use proxy_model::{Change, Event, Model, ObjectName};
use serde_json::{Value, json};

/// A Service `default/<name>` with one TCP port 80 named `http`.
pub(crate) fn service(name: &str, cluster_ip: &str) -> Service {
    service_with(name, json!({ "clusterIP": cluster_ip, "ports": [{ "name": "http", "port": 80 }] }))
}

/// A Service `default/<name>`.
pub(crate) fn service_with(name: &str, spec: Value) -> Service {
    serde_json::from_value(json!({ "metadata": { "namespace": "default", "name": name }, "spec": spec }))
        .unwrap()
}

/// The same with these addresses of its load balancer.
pub(crate) fn load_balancer(name: &str, spec: Value, ips: &[&str]) -> Service {
    let ingress: Vec<Value> = ips.iter().map(|ip| json!({ "ip": ip })).collect();
    let status = json!({ "loadBalancer": { "ingress": ingress } });
    Service { status: Some(serde_json::from_value(status).unwrap()), ..service_with(name, spec) }
}

/// A slice `default/<service>-1` whose addresses serve `http` at port 8080. Addresses that end in `!` are on node-a.
pub(crate) fn slice(service: &str, addresses: &[&str]) -> EndpointSlice {
    slice_with(service, addresses, json!([{ "name": "http", "port": 8080, "protocol": "TCP" }]))
}

/// The same with other ports.
pub(crate) fn slice_with(service: &str, addresses: &[&str], ports: Value) -> EndpointSlice {
    let endpoints: Vec<_> = addresses
        .iter()
        .map(|address| {
            let node = if address.ends_with('!') { "node-a" } else { "node-b" };
            json!({ "addresses": [address.trim_end_matches('!')], "nodeName": node })
        })
        .collect();
    serde_json::from_value(json!({
        "metadata": {
            "namespace": "default", "name": format!("{service}-1"),
            "labels": { "kubernetes.io/service-name": service },
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": ports,
    }))
    .unwrap()
}

/// A Node in a zone, or in none.
pub(crate) fn node_in(name: &str, zone: Option<&str>) -> Node {
    let labels = zone.map(|zone| json!({ "topology.kubernetes.io/zone": zone })).unwrap_or_default();
    serde_json::from_value(json!({ "metadata": { "name": name, "labels": labels } })).unwrap()
}

/// The objects that changes speak about.
pub(crate) trait Applies {
    fn change(event: Event<Self>) -> Change
    where
        Self: Sized;
}

impl Applies for Service {
    fn change(event: Event<Self>) -> Change {
        Change::Service(event)
    }
}

impl Applies for Node {
    fn change(event: Event<Self>) -> Change {
        Change::Node(event)
    }
}

impl Applies for EndpointSlice {
    fn change(event: Event<Self>) -> Change {
        Change::EndpointSlice(event)
    }
}

/// Applies an object and insists that nothing is wrong with it.
pub(crate) fn apply<K: Applies>(model: &mut Model, object: K) {
    assert_eq!(model.apply(K::change(Event::Apply(object))), []);
}

/// Deletes `default/<name>`.
pub(crate) fn delete<K: Applies>(model: &mut Model, name: &str) {
    let name = ObjectName { namespace: "default".to_owned(), name: name.to_owned() };
    model.apply(K::change(Event::Delete(name)));
}

/// Lists everything anew.
pub(crate) fn replace(model: &mut Model, services: Vec<Service>, slices: Vec<EndpointSlice>) {
    assert_eq!(model.apply(Change::Service(Event::Replace(services))), []);
    assert_eq!(model.apply(Change::EndpointSlice(Event::Replace(slices))), []);
}
