//! What a Service asks of all its ports, up to the verdict on a packet.

use std::collections::BTreeSet;

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use proxy_common::{
    drop::DropReason,
    flow::TcpFlags,
    lb::Verdict,
    tables::{Frontends, Table as _},
    tuple::Protocol,
};
use proxy_model::{Change, Event, ObjectName};
use serde_json::{Value, json};

use crate::common::{
    node::Node,
    objects::{apply, node_in, replace, service_with, slice_with},
};

const TCP: Protocol = Protocol::TCP;
const UDP: Protocol = Protocol::UDP;
const SYN: TcpFlags = TcpFlags::SYN;
const WEB: &str = "10.96.0.1:80";
const ADMIN: &str = "10.96.0.1:81";
const DNS: &str = "10.96.0.1:53";

/// `default/web` with three ports and these fields.
fn web(fields: &Value) -> Service {
    let mut spec = json!({ "clusterIP": "10.96.0.1", "ports": [
        { "name": "http", "port": 80 }, { "name": "admin", "port": 81 },
        { "name": "dns", "port": 53, "protocol": "UDP" },
    ]});
    spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    service_with("web", spec)
}

/// Its backends, each at the ports 8080, 8081 and 5353.
fn backends(addresses: &[&str]) -> EndpointSlice {
    slice_with(
        "web",
        addresses,
        json!([
            { "name": "http", "port": 8080 }, { "name": "admin", "port": 8081 },
            { "name": "dns", "port": 5353, "protocol": "UDP" },
        ]),
    )
}

fn node(fields: &Value, addresses: &[&str]) -> Node {
    let mut node = Node::new();
    replace(&mut node.model, vec![web(fields)], vec![backends(addresses)]);
    node.settle();
    node
}

const FOUR: [&str; 4] = ["10.244.2.1", "10.244.2.2", "10.244.2.3", "10.244.2.4"];

fn sticky(seconds: u32) -> Value {
    json!({ "sessionAffinity": "ClientIP", "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": seconds } } })
}

/// The backends that 20 new connections of a client reach, each from a port of its own.
fn reached(node: &Node, client: &str, ports: u16, to: &str, protocol: Protocol) -> BTreeSet<String> {
    (ports..ports + 20).map(|port| node.reach(&format!("{client}:{port}"), to, protocol, SYN)).collect()
}

fn only(reached: BTreeSet<String>) -> String {
    assert_eq!(reached.len(), 1, "{reached:?}");
    reached.into_iter().next().unwrap()
}

fn writes(node: &mut Node, change: impl FnOnce(&mut Node)) -> Vec<&'static str> {
    node.memory.log.clear();
    change(node);
    node.settle();
    node.memory.log.clone()
}

#[test]
fn a_client_with_affinity_reaches_one_backend_from_all_its_ports() {
    let node = node(&sticky(60), &FOUR);
    let first = only(reached(&node, "10.244.1.5", 40_000, WEB, TCP));
    assert_eq!(only(reached(&node, "10.244.1.5", 50_000, WEB, TCP)), first);
    let all: BTreeSet<String> =
        (1..=40).map(|client| only(reached(&node, &format!("10.244.3.{client}"), 1000, WEB, TCP))).collect();
    assert_eq!(all.len(), FOUR.len(), "different clients, different backends: {all:?}");
}

#[test]
fn without_affinity_every_connection_is_a_new_choice() {
    let node = node(&json!({}), &FOUR);
    assert_eq!(reached(&node, "10.244.1.5", 40_000, WEB, TCP).len(), FOUR.len());
}

#[test]
fn affinity_ends_so_long_after_the_last_new_connection() {
    let node = node(&sticky(60), &FOUR);
    let first = node.reach("10.244.1.5:1", WEB, TCP, SYN);
    for port in 2..12 {
        node.wait(60);
        assert_eq!(node.reach(&format!("10.244.1.5:{port}"), WEB, TCP, SYN), first);
    }
    let after: BTreeSet<String> = (20..60)
        .map(|port| {
            node.wait(61);
            node.reach(&format!("10.244.1.5:{port}"), WEB, TCP, SYN)
        })
        .collect();
    assert_eq!(after.len(), FOUR.len(), "{after:?}");
}

#[test]
fn affinity_moves_when_the_backend_leaves_and_does_not_come_back_with_it() {
    let mut node = node(&sticky(60), &FOUR[..2]);
    let first = only(reached(&node, "10.244.1.5", 1000, WEB, TCP));
    let (gone, other) = if first == "10.244.2.1:8080" { (FOUR[0], FOUR[1]) } else { (FOUR[1], FOUR[0]) };
    apply(&mut node.model, backends(&[other]));
    node.settle();
    let second = only(reached(&node, "10.244.1.5", 2000, WEB, TCP));
    assert_eq!(second, format!("{other}:8080"));
    apply(&mut node.model, backends(&[other, gone]));
    node.settle();
    assert_eq!(only(reached(&node, "10.244.1.5", 3000, WEB, TCP)), second);
}

#[test]
fn a_mapping_does_not_survive_the_absence_of_its_backend() {
    let mut node = node(&sticky(80_000), &FOUR);
    let clients: Vec<String> = (1..=20).map(|n| format!("10.244.1.{n}:1000")).collect();
    let before: Vec<String> = clients.iter().map(|client| node.reach(client, WEB, TCP, SYN)).collect();
    apply(&mut node.model, backends(&[]));
    node.settle();
    node.wait(5);
    apply(&mut node.model, backends(&FOUR));
    node.settle();
    let again = |client: &String| client.replace(":1000", ":2000");
    let after: Vec<String> = clients.iter().map(|client| node.reach(&again(client), WEB, TCP, SYN)).collect();
    assert_ne!(before, after);
}

#[test]
fn each_port_remembers_for_itself() {
    let node = node(&sticky(60), &FOUR);
    let apart = (1..=40).any(|n| {
        let client = format!("10.244.1.{n}");
        let hosts: BTreeSet<String> = [(WEB, TCP), (ADMIN, TCP), (DNS, UDP)]
            .into_iter()
            .map(|(to, protocol)| only(reached(&node, &client, 1000, to, protocol)))
            .map(|end| end.split(':').next().unwrap().to_owned())
            .collect();
        hosts.len() == 3
    });
    assert!(apart, "no client reached three pods through three ports");
}

#[test]
fn affinity_can_be_switched_with_one_write_per_frontend() {
    let mut node = node(&json!({}), &FOUR);
    let slots = node.memory.slots.clone();
    let one_each = [Frontends::NAME; 3];
    assert_eq!(writes(&mut node, |node| apply(&mut node.model, web(&sticky(60)))), one_each);
    let first = only(reached(&node, "10.244.1.5", 1000, WEB, TCP));
    assert_eq!(writes(&mut node, |node| apply(&mut node.model, web(&sticky(600)))), one_each);
    assert_eq!(only(reached(&node, "10.244.1.5", 2000, WEB, TCP)), first);
    assert_eq!(writes(&mut node, |node| apply(&mut node.model, web(&json!({})))), one_each);
    assert_eq!(reached(&node, "10.244.1.5", 3000, WEB, TCP).len(), FOUR.len());
    assert_eq!(node.memory.slots, slots);
}

fn local() -> Value {
    json!({ "internalTrafficPolicy": "Local" })
}

#[test]
fn under_the_policy_local_nobody_reaches_another_node() {
    let node = node(&local(), &["10.244.2.1", "10.244.1.7!", "10.244.1.8!"]);
    // A pod, the host, and somebody who routes through it (ITP-01).
    for client in ["10.244.1.5", "192.168.0.1", "203.0.113.9"] {
        let all: BTreeSet<_> = ["10.244.1.7:8080", "10.244.1.8:8080"].map(str::to_owned).into();
        assert_eq!(reached(&node, client, 1000, WEB, TCP), all);
    }
}

#[test]
fn under_the_policy_local_silence_says_that_others_have_backends() {
    let mut node = node(&local(), &["10.244.2.1"]);
    let drop = Verdict::Drop(DropReason::NoLocalBackend);
    for client in ["10.244.1.5:1", "192.168.0.1:1", "203.0.113.9:1"] {
        assert_eq!(node.enter(client, WEB, TCP, SYN), drop);
        assert_eq!(node.enter(client, DNS, UDP, SYN), drop);
    }
    apply(&mut node.model, backends(&[]));
    node.settle();
    assert_eq!(node.enter("10.244.1.5:1", WEB, TCP, SYN), Verdict::Refuse(DropReason::NoBackend));
    apply(&mut node.model, backends(&["10.244.1.7!"]));
    node.settle();
    assert_eq!(node.reach("10.244.1.5:1", WEB, TCP, SYN), "10.244.1.7:8080");
}

/// ITP-02.
#[test]
fn host_network_endpoints_are_local_too() {
    let node = node(&local(), &["192.168.0.1!", "192.168.0.2"]);
    assert_eq!(only(reached(&node, "192.168.0.1", 1000, WEB, TCP)), "192.168.0.1:8080");
}

#[test]
fn between_silence_and_refusal_lies_one_write_per_frontend() {
    let mut node = node(&local(), &["10.244.2.1"]);
    let one_each = [Frontends::NAME; 3];
    assert_eq!(writes(&mut node, |node| apply(&mut node.model, backends(&[]))), one_each);
    assert_eq!(writes(&mut node, |node| apply(&mut node.model, backends(&["10.244.2.2"]))), one_each);
}

/// A slice of `default/web` whose addresses are for `zone-a` and `zone-b` in turn.
fn zoned(addresses: &[&str]) -> EndpointSlice {
    let mut slice = backends(addresses);
    for (endpoint, zone) in slice.endpoints.iter_mut().flatten().zip(["zone-a", "zone-b"].iter().cycle()) {
        endpoint.hints = serde_json::from_value(json!({ "forZones": [{ "name": zone }] })).unwrap();
    }
    slice
}

#[test]
fn clients_stay_in_the_zone() {
    let mut node = node(&json!({}), &FOUR);
    apply(&mut node.model, zoned(&FOUR));
    assert_eq!(writes(&mut node, |node| apply(&mut node.model, node_in("node-b", Some("zone-b")))), [""; 0]);
    assert_eq!(reached(&node, "10.244.1.5", 1000, WEB, TCP).len(), 4);
    apply(&mut node.model, node_in("node-a", Some("zone-b")));
    node.settle();
    let there: BTreeSet<_> = ["10.244.2.2:8080", "10.244.2.4:8080"].map(str::to_owned).into();
    assert_eq!(reached(&node, "10.244.1.5", 2000, WEB, TCP), there);
}

#[test]
fn a_zone_is_not_waited_for_and_outlives_its_node_object() {
    let mut node = node(&json!({}), &FOUR);
    apply(&mut node.model, zoned(&FOUR));
    apply(&mut node.model, node_in("node-a", Some("zone-a")));
    node.settle();
    let name = ObjectName { namespace: String::new(), name: "node-a".to_owned() };
    let gone = Change::Node(Event::Delete(name));
    assert_eq!(writes(&mut node, |node| assert_eq!(node.model.apply(gone), [])), [""; 0]);
    let none = Change::Node(Event::Replace(vec![]));
    assert_eq!(writes(&mut node, |node| assert_eq!(node.model.apply(none), [])), [""; 0]);
    apply(&mut node.model, zoned(&FOUR[1..]));
    node.settle();
    assert_eq!(reached(&node, "10.244.1.5", 1000, WEB, TCP).len(), 2);
}

#[test]
fn a_change_of_hints_or_zone_that_changes_no_backend_writes_nothing() {
    let mut node = node(&json!({}), &FOUR);
    apply(&mut node.model, node_in("node-a", Some("zone-c")));
    assert_eq!(writes(&mut node, |node| apply(&mut node.model, zoned(&FOUR))), [""; 0]);
    assert_eq!(writes(&mut node, |node| apply(&mut node.model, node_in("node-a", None))), [""; 0]);
}
