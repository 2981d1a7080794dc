//! Health checks, triggers and counts: what is told, and when.

use std::{net::IpAddr, time::Duration};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use proxy_model::{
    Change, Event, Family, HealthCheck, Model, NoLocalEndpoints, NodePortAddresses, ObjectName, Options,
    Restored, Trigger,
};
use serde_json::{Value, json};

use crate::common::{
    Memory, model_on,
    objects::{apply, delete, node_in, replace, service_with, slice},
    settle,
};

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// `default/web`, a dual-stack load balancer that keeps traffic on the node and is asked at this port.
fn web(port: u16) -> Service {
    web_with(json!({ "healthCheckNodePort": port }))
}

fn web_with(fields: Value) -> Service {
    let mut spec = json!({
        "type": "LoadBalancer", "externalTrafficPolicy": "Local",
        "clusterIPs": ["10.96.0.1", "fd00::1"], "clusterIP": "10.96.0.1", "ipFamilies": ["IPv4", "IPv6"],
        "ports": [{ "name": "http", "port": 80, "nodePort": 30080 }, { "name": "dns", "port": 53, "protocol": "UDP" }],
    });
    spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let mut service = service_with("web", spec);
    service.metadata.uid = Some("u-1".to_owned());
    service
}

/// A slice of `default/web`. Endpoints are an address, the node, and how they are: ready, draining or stopping.
fn web_slice(name: &str, family: &str, endpoints: &[(&str, &str, &str)], ports: Value) -> EndpointSlice {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(address, node, state)| {
            let (ready, terminating) = match *state {
                "ready" => (true, false),
                "draining" => (false, true),
                "stopping" => (true, true),
                "unready" => (false, false),
                other => panic!("{other}?"),
            };
            json!({
                "addresses": [address], "nodeName": node,
                "conditions": { "ready": ready, "serving": true, "terminating": terminating },
            })
        })
        .collect();
    serde_json::from_value(json!({
        "metadata": {
            "namespace": "default", "name": name, "labels": { "kubernetes.io/service-name": "web" },
        },
        "addressType": family, "endpoints": endpoints, "ports": ports,
    }))
    .unwrap()
}

fn http() -> Value {
    json!([{ "name": "http", "port": 8080, "protocol": "TCP" }])
}

/// What is told of health checks: `family port count`, or `family -`.
fn told(model: &mut Model) -> Vec<String> {
    let changes = model.take_finished().health_checks;
    let text = |check: Option<HealthCheck>| match check {
        Some(check) => {
            assert_eq!(check.uid.as_deref(), Some("u-1"));
            format!("{} {}", check.port, check.local_endpoints)
        }
        None => "-".to_owned(),
    };
    changes
        .into_iter()
        .map(|(name, check)| {
            assert_eq!(name.service.to_string(), "default/web");
            format!("{} {}", name.family.as_str(), text(check))
        })
        .collect()
}

fn started(service: Service, slices: Vec<EndpointSlice>) -> (Model, Memory) {
    let (mut model, mut memory) = (model_on(Restored::default()), Memory::default());
    replace(&mut model, vec![service], slices);
    settle(&mut model, at(0), &mut memory);
    (model, memory)
}

/// HC-04; VER-22.
#[test]
fn local_ready_addresses_are_counted_once_over_all_ports() {
    let both = json!([
        { "name": "http", "port": 8080, "protocol": "TCP" }, { "name": "dns", "port": 5353, "protocol": "UDP" },
    ]);
    for (endpoints, count) in [
        (&[][..], 0),
        (&[("10.0.0.1", "node-a", "ready")], 1),
        (&[("10.0.0.1", "node-b", "ready")], 0),
        (&[("10.0.0.1", "node-a", "ready"), ("10.0.0.1", "node-a", "ready")], 1),
        (&[("10.0.0.1", "node-a", "ready"), ("10.0.0.2", "node-a", "ready")], 2),
        (&[("10.0.0.1", "node-a", "unready")], 0),
        (&[("10.0.0.1", "node-a", "draining")], 0),
        // COND-02
        (&[("10.0.0.1", "node-a", "stopping")], 1),
        // EPS-11
        (&[("10.0.0.1", "node-a", "draining"), ("10.0.0.1", "node-a", "ready")], 1),
        (&[("10.0.0.1", "node-a", "ready"), ("10.0.0.1", "node-a", "draining")], 1),
    ] {
        let slice = web_slice("web-1", "IPv4", endpoints, both.clone());
        let (mut model, _) = started(web(32_000), vec![slice]);
        assert_eq!(
            told(&mut model),
            [format!("IPv4 32000 {count}"), "IPv6 32000 0".to_owned()],
            "{endpoints:?}"
        );
        assert_eq!(told(&mut model), [""; 0], "once");
    }
    // Nobody can reach an endpoint without ports. A port that the Service does not have is one.
    let local = [("fd00::7", "node-a", "ready")];
    for (ports, count) in [(json!([]), 0), (json!([{ "name": "other", "port": 1 }]), 1)] {
        let slice = web_slice("web-1", "IPv6", &local, ports);
        let (mut model, _) = started(web(32_000), vec![slice]);
        assert_eq!(told(&mut model), ["IPv4 32000 0".to_owned(), format!("IPv6 32000 {count}")]);
    }
}

/// HC-01, HC-08, HC-09, SP-10.
#[test]
fn checks_follow_services_and_endpoints() {
    let (mut model, mut memory) = started(web(32_000), vec![]);
    assert_eq!(told(&mut model), ["IPv4 32000 0", "IPv6 32000 0"]);
    let mut seconds = 0;
    let mut after = |model: &mut Model| {
        seconds += 10;
        settle(model, at(seconds), &mut memory);
        told(model)
    };
    let with = |fields: Value| {
        let mut all = json!({ "healthCheckNodePort": 32001 });
        all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        web_with(all)
    };
    apply(&mut model, web_slice("web-1", "IPv4", &[("10.0.0.1", "node-a", "ready")], http()));
    assert_eq!(after(&mut model), ["IPv4 32000 1"]);
    apply(&mut model, web(32_000));
    assert_eq!(after(&mut model), [""; 0]);
    apply(&mut model, web(32_001));
    assert_eq!(after(&mut model), ["IPv4 32001 1", "IPv6 32001 0"]);
    delete::<EndpointSlice>(&mut model, "web-1");
    assert_eq!(after(&mut model), ["IPv4 32001 0"]);
    apply(&mut model, with(json!({ "externalTrafficPolicy": "Cluster" })));
    assert_eq!(after(&mut model), ["IPv4 -", "IPv6 -"]);
    apply(&mut model, web(32_001));
    assert_eq!(after(&mut model), ["IPv4 32001 0", "IPv6 32001 0"]);
    // SVC-08
    apply(&mut model, with(json!({ "ipFamilies": ["IPv4"], "clusterIPs": ["10.96.0.1"] })));
    assert_eq!(after(&mut model), ["IPv6 -"]);
    apply(&mut model, with(json!({ "type": "NodePort" })));
    assert_eq!(after(&mut model), ["IPv4 -"]);
    delete::<Service>(&mut model, "web");
    assert_eq!(after(&mut model), [""; 0]);
}

/// HC-08: what is not in the tables yet is not told.
#[test]
fn a_service_that_cannot_be_written_is_held_back_and_no_other() {
    let (mut model, mut memory) = started(web(32_000), vec![]);
    told(&mut model);
    let trigger = "2026-02-03T04:05:06.789Z";
    apply(&mut model, triggered(slice("web", &["10.0.0.1!"]), trigger));
    apply(&mut model, triggered(slice("other", &["10.0.0.9"]), trigger));
    model.plan(at(1));
    // The first write of all: the backend of `web`, or the filter line before it.
    memory.failures.insert(memory.attempts);
    assert_eq!(model.commit(at(1), &mut memory).len(), 1);
    let finished = model.take_finished();
    assert_eq!(finished.health_checks, []);
    assert_eq!(finished.triggers.len(), 1, "only the one of `other`, which is nobody's endpoint yet");
    settle(&mut model, at(2), &mut memory);
    let finished = model.take_finished();
    assert_eq!(finished.health_checks.len(), 1);
    assert_eq!(finished.triggers, [Trigger { family: Family::Ipv4, time: trigger.parse().unwrap() }]);
}

fn triggered(mut slice: EndpointSlice, time: &str) -> EndpointSlice {
    let annotation = ("endpoints.kubernetes.io/last-change-trigger-time".to_owned(), time.to_owned());
    slice.metadata.annotations = Some([annotation].into());
    slice
}

/// MET-32.
#[test]
fn triggers_are_told_once_the_tables_have_changed() {
    let (mut model, mut memory) = (model_on(Restored::default()), Memory::default());
    let first = "2026-02-03T04:05:06Z";
    replace(&mut model, vec![web(32_000)], vec![triggered(slice("web", &["10.0.0.1"]), first)]);
    assert_eq!(model.take_finished().triggers, [], "nothing is in the tables yet");
    let mut times = |model: &mut Model, seconds| {
        settle(model, at(seconds), &mut memory);
        model.take_finished().triggers.iter().map(|trigger| trigger.time.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(times(&mut model, 0), [first]);
    // Nothing that matters changes.
    apply(&mut model, triggered(slice("web", &["10.0.0.1"]), "2026-02-03T05:00:00Z"));
    assert_eq!(times(&mut model, 1), [""; 0]);
    // Every change counts, also of one round.
    let (second, third) = ("2026-02-03T06:00:00.5Z", "2026-02-03T06:00:01Z");
    apply(&mut model, triggered(slice("web", &["10.0.0.2"]), second));
    apply(&mut model, triggered(slice("web", &["10.0.0.3"]), third));
    assert_eq!(times(&mut model, 2), [second, third]);
    // Nobody says when, or not so that it can be read.
    apply(&mut model, slice("web", &["10.0.0.4"]));
    apply(&mut model, triggered(slice("web", &["10.0.0.5"]), "yesterday"));
    assert_eq!(times(&mut model, 3), [""; 0]);
    // A slice that goes takes them along.
    apply(&mut model, triggered(slice("web", &["10.0.0.6"]), third));
    delete::<EndpointSlice>(&mut model, "web-1");
    assert_eq!(times(&mut model, 4), [""; 0]);
}

/// MET-07 to MET-10.
#[test]
fn changes_are_counted_as_they_come_and_until_they_are_planned() {
    let (mut model, mut memory) = (model_on(Restored::default()), Memory::default());
    apply(&mut model, web(32_000));
    apply(&mut model, web(32_001));
    apply(&mut model, slice("web", &["10.0.0.1"]));
    apply(&mut model, slice("web", &["10.0.0.2"]));
    let mut headless = slice("other", &["10.0.0.2"]);
    headless
        .metadata
        .labels
        .get_or_insert_default()
        .insert("service.kubernetes.io/headless".into(), String::new());
    apply(&mut model, headless);
    model.plan(at(0));
    let counts = model.change_counts();
    assert_eq!((counts.services, counts.slices), (2, 2));
    assert_eq!((counts.pending_services, counts.pending_slices), (1, 2));
    assert!(!model.has_changes(), "no plan would do anything about it");
    replace(&mut model, vec![web(32_001)], vec![]);
    assert!(model.has_changes());
    settle(&mut model, at(0), &mut memory);
    assert!(!model.has_changes());
    let counts = model.change_counts();
    assert_eq!((counts.services, counts.slices), (3, 3));
    assert_eq!((counts.pending_services, counts.pending_slices), (0, 0));
    delete::<Service>(&mut model, "web");
    delete::<EndpointSlice>(&mut model, "unknown");
    assert_eq!((model.change_counts().services, model.change_counts().slices), (4, 3));
    assert_eq!(model.change_counts().pending_services, 1);
}

/// MET-11, SEL-06.
#[test]
fn service_ports_that_only_other_nodes_could_serve_are_counted() {
    let count = |model: &Model| model.no_local_endpoints();
    let none = NoLocalEndpoints::default();
    let (mut model, mut memory) = started(web(32_000), vec![]);
    assert_eq!(count(&model), [none; 2], "nobody is anywhere");
    apply(&mut model, slice("web", &["10.0.0.1"]));
    settle(&mut model, at(1), &mut memory);
    assert_eq!(count(&model), [NoLocalEndpoints { internal: 0, external: 1 }, none]);
    let inside = json!({ "healthCheckNodePort": 32000, "internalTrafficPolicy": "Local" });
    apply(&mut model, web_with(inside));
    settle(&mut model, at(2), &mut memory);
    assert_eq!(count(&model), [NoLocalEndpoints { internal: 1, external: 1 }, none]);
    apply(&mut model, slice("web", &["10.0.0.1", "10.0.0.2!"]));
    settle(&mut model, at(3), &mut memory);
    assert_eq!(count(&model), [none; 2]);
    apply(&mut model, slice("web", &["10.0.0.1"]));
    delete::<Service>(&mut model, "web");
    settle(&mut model, at(4), &mut memory);
    assert_eq!(count(&model), [none; 2]);
}

/// HC-02, NP-05, NP-08.
#[test]
fn checks_are_answered_where_node_ports_are() {
    let all =
        ["127.0.0.1", "10.0.0.7", "192.0.2.7", "::1", "fd00::7", "fe80::1"].map(|ip| ip.parse().unwrap());
    let addresses = |accepting: &str, family| {
        let accepting: NodePortAddresses = accepting.parse().unwrap();
        let options = Options { node_port_addresses: accepting, ..Options::on_node("node-a") };
        let mut model = Model::new(options, Restored::default());
        let mut node = node_in("node-a", None);
        node.status = serde_json::from_value(json!({ "addresses": [
            { "type": "InternalIP", "address": "192.0.2.7" }, { "type": "InternalIP", "address": "192.0.2.8" },
        ]}))
        .unwrap();
        assert_eq!(model.apply(Change::Node(Event::Apply(node))), []);
        let found = model.health_check_addresses(family, all)?;
        Some(found.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" "))
    };
    for (accepting, v4, v6) in [
        ("", None, None),
        ("0.0.0.0/0,10.0.0.0/8", None, None),
        ("10.0.0.0/8", Some("10.0.0.7"), None),
        ("172.16.0.0/12", Some(""), None),
        ("10.0.0.0/8,127.0.0.0/8,fd00::/8,fe80::/10", Some("10.0.0.7 127.0.0.1"), Some("fd00::7")),
        ("primary", Some("192.0.2.7"), Some("")),
    ] {
        assert_eq!(addresses(accepting, Family::Ipv4).as_deref(), v4, "{accepting}");
        assert_eq!(addresses(accepting, Family::Ipv6).as_deref(), v6, "{accepting}");
    }
}

#[test]
fn tables_are_as_full_as_they_are() {
    let (model, memory) = started(web(32_000), vec![slice("web", &["10.0.0.1", "10.0.0.2!"])]);
    let used = |name| model.table_entries().into_iter().find(|(table, _)| *table == name).unwrap().1;
    assert_eq!(used("FRONTENDS"), memory.frontends.len());
    assert_eq!(used("SERVICE_NAMES"), memory.names.len());
    assert_eq!(used("ADDRESSES"), memory.addresses.len());
    assert_eq!(used("BACKENDS"), 2);
    assert_eq!(used("SLOTS"), memory.slots.len());
    let named = |name: &str| ObjectName { namespace: "default".to_owned(), name: name.to_owned() };
    assert_eq!(model.service_uid(&named("web")), Some("u-1"));
    assert_eq!(model.service_uid(&named("nobody")), None);
}
