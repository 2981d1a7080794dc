//! Whatever happens to the objects, in whatever order, and whichever writes fail: no packet ever finds a broken
//! service, and in the end only the objects count.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use proptest::prelude::*;
use proxy_model::{Change, Event, Model, ObjectName, Restored};
use serde_json::{Value, json};

use crate::common::{Memory, model_on, objects::node_in, settle};

#[derive(Clone, Debug)]
enum Action {
    Service { name: usize, ip: u8, ports: u8, age: u8, affinity: u8, local: bool },
    NoService { name: usize },
    Slice { name: usize, owner: usize, endpoints: Vec<(u8, u8, u8)>, port: u16 },
    NoSlice { name: usize },
    Zone { of: &'static str, zone: Option<&'static str> },
    Relist,
    Restart,
    Commit { millis: u64 },
    FailWrites { after: usize, count: usize },
}

const NAMES: [&str; 3] = ["a", "b", "c"];

fn action() -> impl Strategy<Value = Action> {
    let endpoint = (1..5u8, 0..6u8, 0..10u8);
    prop_oneof![
        4 => (0..3usize, 1..4u8, 0..8u8, 0..3u8, 0..3u8, any::<bool>())
            .prop_map(|(name, ip, ports, age, affinity, local)| Action::Service { name, ip, ports, age, affinity, local }),
        1 => (0..3usize).prop_map(|name| Action::NoService { name }),
        6 => (0..3usize, 0..3usize, prop::collection::vec(endpoint, 0..4), 1..3u16)
            .prop_map(|(name, owner, endpoints, port)| Action::Slice { name, owner, endpoints, port }),
        1 => (0..3usize).prop_map(|name| Action::NoSlice { name }),
        2 => (prop::sample::select(&["node-a", "node-b"][..]), prop::sample::select(&[None, Some("zone-a"), Some("zone-b")][..]))
            .prop_map(|(of, zone)| Action::Zone { of, zone }),
        1 => Just(Action::Relist),
        1 => Just(Action::Restart),
        4 => (0..1500u64).prop_map(|millis| Action::Commit { millis }),
        2 => (0..12usize, 1..4usize).prop_map(|(after, count)| Action::FailWrites { after, count }),
    ]
}

fn service(name: usize, ip: u8, ports: u8, age: u8, affinity: u8, local: bool) -> Service {
    let all = [("http", 80, "TCP"), ("http", 80, "UDP"), ("admin", 81, "TCP")];
    let ports: Vec<Value> = (0..3)
        .filter(|bit| ports & 1 << bit != 0)
        .map(|at| json!({ "name": all[at].0, "port": all[at].1, "protocol": all[at].2 }))
        .collect();
    let mut metadata = json!({ "namespace": "default", "name": NAMES[name] });
    if age > 0 {
        metadata["creationTimestamp"] = json!(format!("202{age}-01-01T00:00:00Z"));
    }
    let mut spec = json!({ "clusterIP": format!("10.96.0.{ip}"), "ports": ports });
    if local {
        spec["internalTrafficPolicy"] = json!("Local");
    }
    if affinity > 0 {
        spec["sessionAffinity"] = json!("ClientIP");
        spec["sessionAffinityConfig"] = json!({ "clientIP": { "timeoutSeconds": affinity } });
    }
    serde_json::from_value(json!({ "metadata": metadata, "spec": spec })).unwrap()
}

fn slice(name: usize, owner: usize, endpoints: &[(u8, u8, u8)], port: u16) -> EndpointSlice {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(address, condition, hint)| {
            let conditions = match condition {
                0 => json!({ "ready": false }),
                1 => json!({ "ready": false, "serving": true, "terminating": true }),
                _ => json!({ "ready": true }),
            };
            let node = if condition % 2 == 0 { "node-a" } else { "node-b" };
            let hints = match hint {
                0 => Value::Null,
                1 => json!({ "forNodes": [{ "name": "node-a" }] }),
                2 => json!({ "forNodes": [{ "name": node }], "forZones": [{ "name": "zone-a" }] }),
                3 => json!({ "forZones": [{ "name": "zone-a" }, { "name": "zone-b" }] }),
                4..7 => json!({ "forZones": [{ "name": "zone-a" }] }),
                _ => json!({ "forZones": [{ "name": "zone-b" }] }),
            };
            let address = format!("10.0.0.{address}");
            json!({ "addresses": [address], "conditions": conditions, "nodeName": node, "hints": hints })
        })
        .collect();
    let port = 8000 + port;
    serde_json::from_value(json!({
        "metadata": {
            "namespace": "default", "name": format!("slice-{name}"),
            "labels": { "kubernetes.io/service-name": NAMES[owner] },
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{ "name": "http", "port": port }, { "name": "http", "port": port, "protocol": "UDP" }],
    }))
    .unwrap()
}

fn named(name: &str) -> ObjectName {
    ObjectName { namespace: "default".to_owned(), name: name.to_owned() }
}

/// The objects as the API has them.
#[derive(Default)]
struct Cluster {
    services: BTreeMap<usize, Service>,
    slices: BTreeMap<usize, EndpointSlice>,
    nodes: BTreeMap<&'static str, Node>,
}

impl Cluster {
    fn list(&self, model: &mut Model) {
        model.apply(Change::Node(Event::Replace(self.nodes.values().cloned().collect())));
        model.apply(Change::Service(Event::Replace(self.services.values().cloned().collect())));
        model.apply(Change::EndpointSlice(Event::Replace(self.slices.values().cloned().collect())));
    }

    fn fresh(&self) -> Memory {
        let (mut model, mut memory) = (model_on(Restored::default()), Memory::default());
        self.list(&mut model);
        settle(&mut model, Duration::ZERO, &mut memory);
        memory
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn tables_follow_the_objects(actions in prop::collection::vec(action(), 1..40)) {
        let (mut model, mut memory) = (model_on(Restored::default()), Memory::default());
        let mut cluster = Cluster::default();
        let mut now = Duration::ZERO;
        cluster.list(&mut model);
        for action in actions {
            match action {
                Action::Service { name, ip, ports, age, affinity, local } => {
                    let service = service(name, ip, ports, age, affinity, local);
                    cluster.services.insert(name, service.clone());
                    model.apply(Change::Service(Event::Apply(service)));
                }
                Action::NoService { name } => {
                    cluster.services.remove(&name);
                    model.apply(Change::Service(Event::Delete(named(NAMES[name]))));
                }
                Action::Slice { name, owner, endpoints, port } => {
                    let slice = slice(name, owner, &endpoints, port);
                    cluster.slices.insert(name, slice.clone());
                    model.apply(Change::EndpointSlice(Event::Apply(slice)));
                }
                Action::NoSlice { name } => {
                    cluster.slices.remove(&name);
                    model.apply(Change::EndpointSlice(Event::Delete(named(&format!("slice-{name}")))));
                }
                Action::Zone { of, zone } => {
                    let node = node_in(of, zone);
                    cluster.nodes.insert(of, node.clone());
                    model.apply(Change::Node(Event::Apply(node)));
                }
                Action::Relist => cluster.list(&mut model),
                Action::Restart => {
                    model = model_on(memory.restored());
                    cluster.list(&mut model);
                }
                Action::Commit { millis } => {
                    now += Duration::from_millis(millis);
                    model.plan(now);
                    let failed = !model.commit(now, &mut memory).is_empty();
                    prop_assert!(!failed || model.is_unfinished());
                }
                Action::FailWrites { after, count } => {
                    let first = memory.attempts + after;
                    memory.failures.extend(first..first + count);
                }
            }
        }
        memory.failures.clear();
        settle(&mut model, now, &mut memory);
        prop_assert_eq!(memory.render(), cluster.fresh().render());
        prop_assert!(!model.is_unfinished());
        let counts = model.counts();
        prop_assert_eq!(memory.live(), counts.backends);
        prop_assert_eq!(memory.names.len(), counts.service_ports);
        // Nothing is left to do for an agent that starts now.
        let mut again = model_on(memory.restored());
        cluster.list(&mut again);
        let attempts = memory.attempts;
        settle(&mut again, now, &mut memory);
        prop_assert_eq!(memory.attempts, attempts);
    }
}
