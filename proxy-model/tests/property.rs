//! Whatever happens to the objects, in whatever order, and whichever writes fail: no packet ever finds a broken
//! service, and in the end only the objects count.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use proptest::prelude::*;
use proxy_model::{Change, Event, Model, ObjectName, Options};
use serde_json::{Value, json};

use crate::common::{Memory, settle};

#[derive(Clone, Debug)]
enum Action {
    Service { name: usize, inside: Inside, outside: Outside },
    NoService { name: usize },
    Slice { name: usize, owner: usize, endpoints: Vec<(u8, u8, u8)>, port: u16 },
    NoSlice { name: usize },
    Node { of: &'static str, zone: Option<&'static str>, ips: Vec<&'static str> },
    Interfaces { ips: Vec<&'static str> },
    Relist,
    Restart,
    Commit { millis: u64 },
    FailWrites { after: usize, count: usize },
}

/// What a Service says about clients inside the cluster.
#[derive(Clone, Debug)]
struct Inside {
    ip: u8,
    ports: u8,
    age: u8,
    affinity: u8,
    local: bool,
}

/// What it says about those outside.
#[derive(Clone, Debug)]
struct Outside {
    kind: &'static str,
    local: bool,
    node_port: u16,
    external_ips: Vec<&'static str>,
    balancer_ips: Vec<&'static str>,
    ranges: Vec<&'static str>,
}

const NAMES: [&str; 3] = ["a", "b", "c"];
/// Addresses that may be of a Service, of a load balancer, or of the node; some are ClusterIPs.
const IPS: [&str; 6] = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "10.96.0.1", "10.96.0.2", "127.0.0.1"];
const RANGES: [&str; 5] = ["192.0.2.0/31", "192.0.2.2/32", "10.0.0.0/8", "0.0.0.0/0", "fd00::/8"];

fn some_of(all: &'static [&'static str]) -> impl Strategy<Value = Vec<&'static str>> {
    prop::collection::vec(prop::sample::select(all), 0..3)
}

fn inside() -> impl Strategy<Value = Inside> {
    (1..4u8, 0..16u8, 0..3u8, 0..3u8, any::<bool>()).prop_map(|(ip, ports, age, affinity, local)| Inside {
        ip,
        ports,
        age,
        affinity,
        local,
    })
}

fn outside() -> impl Strategy<Value = Outside> {
    let kinds = prop::sample::select(&["ClusterIP", "NodePort", "LoadBalancer"][..]);
    let ips = || some_of(&IPS[..5]);
    (kinds, any::<bool>(), 0..4u16, ips(), ips(), some_of(&RANGES)).prop_map(
        |(kind, local, node_port, external_ips, balancer_ips, ranges)| Outside {
            kind,
            local,
            node_port,
            external_ips,
            balancer_ips,
            ranges,
        },
    )
}

fn action() -> impl Strategy<Value = Action> {
    let endpoint = (1..5u8, 0..6u8, 0..10u8);
    let zones = prop::sample::select(&[None, Some("zone-a"), Some("zone-b")][..]);
    prop_oneof![
        6 => (0..3usize, inside(), outside())
            .prop_map(|(name, inside, outside)| Action::Service { name, inside, outside }),
        1 => (0..3usize).prop_map(|name| Action::NoService { name }),
        6 => (0..3usize, 0..3usize, prop::collection::vec(endpoint, 0..4), 1..3u16)
            .prop_map(|(name, owner, endpoints, port)| Action::Slice { name, owner, endpoints, port }),
        1 => (0..3usize).prop_map(|name| Action::NoSlice { name }),
        2 => (prop::sample::select(&["node-a", "node-b"][..]), zones, some_of(&IPS))
            .prop_map(|(of, zone, ips)| Action::Node { of, zone, ips }),
        2 => some_of(&IPS).prop_map(|ips| Action::Interfaces { ips }),
        1 => Just(Action::Relist),
        1 => Just(Action::Restart),
        4 => (0..1500u64).prop_map(|millis| Action::Commit { millis }),
        2 => (0..16usize, 1..4usize).prop_map(|(after, count)| Action::FailWrites { after, count }),
    ]
}

fn options() -> impl Strategy<Value = Options> {
    let accepting = prop::sample::select(&["", "primary", "192.0.2.0/31"][..]);
    (accepting, any::<bool>(), any::<bool>()).prop_map(|(accepting, masquerade_all, external_ips)| Options {
        node_port_addresses: accepting.parse().unwrap(),
        masquerade_all,
        external_ips,
        ..Options::on_node("node-a")
    })
}

fn service(name: usize, inside: &Inside, outside: &Outside) -> Service {
    let all = [("http", 80, "TCP"), ("http", 80, "UDP"), ("admin", 81, "TCP"), ("http", 80, "SCTP")];
    let ports: Vec<Value> = (0..4u16)
        .filter(|bit| inside.ports & 1 << bit != 0)
        .map(|at| {
            let (name, port, protocol) = all[usize::from(at)];
            let node_port = if outside.node_port == 0 { 0 } else { 30_000 + outside.node_port + at / 2 };
            json!({ "name": name, "port": port, "protocol": protocol, "nodePort": node_port })
        })
        .collect();
    let mut metadata = json!({ "namespace": "default", "name": NAMES[name] });
    if inside.age > 0 {
        metadata["creationTimestamp"] = json!(format!("202{}-01-01T00:00:00Z", inside.age));
    }
    let policy = |local| if local { "Local" } else { "Cluster" };
    let mut spec = json!({
        "clusterIP": format!("10.96.0.{}", inside.ip), "ports": ports, "type": outside.kind,
        "internalTrafficPolicy": policy(inside.local), "externalTrafficPolicy": policy(outside.local),
        "externalIPs": outside.external_ips, "loadBalancerSourceRanges": outside.ranges,
    });
    if inside.affinity > 0 {
        spec["sessionAffinity"] = json!("ClientIP");
        spec["sessionAffinityConfig"] = json!({ "clientIP": { "timeoutSeconds": inside.affinity } });
    }
    let ingress: Vec<Value> = outside.balancer_ips.iter().map(|ip| json!({ "ip": ip })).collect();
    let status = json!({ "loadBalancer": { "ingress": ingress } });
    serde_json::from_value(json!({ "metadata": metadata, "spec": spec, "status": status })).unwrap()
}

fn node(name: &str, zone: Option<&str>, ips: &[&str]) -> Node {
    let labels = zone.map(|zone| json!({ "topology.kubernetes.io/zone": zone })).unwrap_or_default();
    let addresses: Vec<Value> = ips.iter().map(|ip| json!({ "type": "InternalIP", "address": ip })).collect();
    serde_json::from_value(json!({
        "metadata": { "name": name, "labels": labels }, "status": { "addresses": addresses },
    }))
    .unwrap()
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
        "ports": [
            { "name": "http", "port": port }, { "name": "http", "port": port, "protocol": "UDP" },
            { "name": "http", "port": port, "protocol": "SCTP" },
        ],
    }))
    .unwrap()
}

fn named(name: &str) -> ObjectName {
    ObjectName { namespace: "default".to_owned(), name: name.to_owned() }
}

/// The objects as the API has them, and the node as it is.
struct Cluster {
    options: Options,
    services: BTreeMap<usize, Service>,
    slices: BTreeMap<usize, EndpointSlice>,
    nodes: BTreeMap<&'static str, Node>,
    interfaces: Option<Vec<IpAddr>>,
}

impl Cluster {
    fn new(options: Options) -> Self {
        Self {
            options,
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            nodes: BTreeMap::new(),
            interfaces: None,
        }
    }

    fn list(&self, model: &mut Model) {
        model.apply(Change::Node(Event::Replace(self.nodes.values().cloned().collect())));
        model.apply(Change::Service(Event::Replace(self.services.values().cloned().collect())));
        model.apply(Change::EndpointSlice(Event::Replace(self.slices.values().cloned().collect())));
    }

    /// An agent that has found these tables and knows everything.
    fn started_on(&self, memory: &Memory) -> Model {
        let mut model = Model::new(self.options.clone(), memory.restored());
        self.list(&mut model);
        if let Some(interfaces) = &self.interfaces {
            model.set_node_addresses(interfaces.iter().copied());
        }
        model
    }

    fn fresh(&self) -> Memory {
        let mut memory = Memory::default();
        settle(&mut self.started_on(&memory), Duration::ZERO, &mut memory);
        memory
    }

    /// Makes a change that is not about writing, and tells the model.
    fn change(&mut self, action: Action, model: &mut Model) {
        match action {
            Action::Service { name, inside, outside } => {
                let service = service(name, &inside, &outside);
                self.services.insert(name, service.clone());
                model.apply(Change::Service(Event::Apply(service)));
            }
            Action::NoService { name } => {
                self.services.remove(&name);
                model.apply(Change::Service(Event::Delete(named(NAMES[name]))));
            }
            Action::Slice { name, owner, endpoints, port } => {
                let slice = slice(name, owner, &endpoints, port);
                self.slices.insert(name, slice.clone());
                model.apply(Change::EndpointSlice(Event::Apply(slice)));
            }
            Action::NoSlice { name } => {
                self.slices.remove(&name);
                model.apply(Change::EndpointSlice(Event::Delete(named(&format!("slice-{name}")))));
            }
            Action::Node { of, zone, ips } => {
                let node = node(of, zone, &ips);
                self.nodes.insert(of, node.clone());
                model.apply(Change::Node(Event::Apply(node)));
            }
            Action::Interfaces { ips } => {
                let ips: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
                model.set_node_addresses(ips.iter().copied());
                self.interfaces = Some(ips);
            }
            Action::Relist | Action::Restart | Action::Commit { .. } | Action::FailWrites { .. } => {
                self.list(model);
            }
        }
    }
}

/// Everything that the tables say.
fn told(memory: &Memory) -> (String, String, usize) {
    (memory.render(), memory.render_addresses(), memory.ranges.len())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn tables_follow_the_objects(options in options(), actions in prop::collection::vec(action(), 1..40)) {
        let mut cluster = Cluster::new(options);
        let mut memory = Memory::default();
        let mut model = cluster.started_on(&memory);
        let mut now = Duration::ZERO;
        for action in actions {
            match action {
                Action::Restart => model = cluster.started_on(&memory),
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
                change => cluster.change(change, &mut model),
            }
        }
        memory.failures.clear();
        settle(&mut model, now, &mut memory);
        prop_assert_eq!(told(&memory), told(&cluster.fresh()));
        prop_assert_eq!(memory.marks(), Ok(()));
        prop_assert!(!model.is_unfinished());
        let counts = model.counts();
        prop_assert_eq!(memory.live(), counts.backends);
        prop_assert_eq!(memory.names.len(), counts.service_ports);
        // Nothing is left to do for an agent that starts now.
        let mut again = cluster.started_on(&memory);
        let attempts = memory.attempts;
        settle(&mut again, now, &mut memory);
        prop_assert_eq!(memory.attempts, attempts);
    }
}
