//! From a Service that is reached from outside to the verdict on a packet, by where the packet comes from.

use std::{collections::BTreeSet, net::IpAddr};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use proxy_common::{drop::DropReason, flow::TcpFlags, lb::Verdict, tuple::Protocol};
use proxy_model::{DetectLocal, Options};
use serde_json::{Value, json};

use crate::common::{
    node::{Node, POD_DEVICE, UPLINK, text},
    objects::{apply, load_balancer, replace, slice, slice_with},
};

const LOCAL: &str = "10.244.1.7";
const REMOTE: &str = "10.244.2.1";

const CLUSTER_IP: &str = "10.96.0.1:80";
const NODE_PORT: &str = "192.0.2.1:30080";
const EXTERNAL_IP: &str = "198.51.100.1:80";
const BALANCER: &str = "198.51.100.2:80";
const OUTSIDE: [&str; 3] = [NODE_PORT, EXTERNAL_IP, BALANCER];

/// Where a client is, and its address.
#[derive(Clone, Copy, Debug)]
struct Client(u32, &'static str);

const POD: Client = Client(POD_DEVICE, "10.244.1.5");
/// The node itself, or a pod in its network namespace.
const HOST: Client = Client(POD_DEVICE, "192.0.2.1");
const EXTERNAL: Client = Client(UPLINK, "203.0.113.9");

fn options() -> Options {
    let detect_local = DetectLocal::cluster_cidr("10.244.0.0/16").unwrap();
    Options { detect_local, ..Options::on_node("node-a") }
}

/// A Service with every kind of address, and these fields.
fn web(fields: &Value) -> Service {
    let mut spec = json!({
        "clusterIP": "10.96.0.1", "type": "LoadBalancer", "healthCheckNodePort": 32000, "externalIPs": ["198.51.100.1"],
        "ports": [{ "name": "http", "port": 80, "nodePort": 30080 }],
    });
    spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    load_balancer("web", spec, &["198.51.100.2"])
}

/// Backends in words: `local` and `remote`, with `-draining` behind it or not.
fn backends(words: &str) -> EndpointSlice {
    let address = |word: &str| if word.starts_with("local") { "10.244.1.7!" } else { REMOTE };
    let addresses = words.split_whitespace().map(address);
    let mut slice = slice("web", &addresses.collect::<Vec<_>>());
    for (endpoint, word) in slice.endpoints.iter_mut().flatten().zip(words.split_whitespace()) {
        if word.ends_with("-draining") {
            let conditions = json!({ "ready": false, "serving": true, "terminating": true });
            endpoint.conditions = serde_json::from_value(conditions).unwrap();
        }
    }
    slice
}

fn node(options: Options, fields: &Value, endpoints: &str) -> Node {
    let mut node = Node::with(options);
    replace(&mut node.model, vec![web(fields)], vec![backends(endpoints)]);
    node.model
        .set_node_addresses(["192.0.2.1", "10.244.1.1", "127.0.0.1"].map(|ip| ip.parse::<IpAddr>().unwrap()));
    node.settle();
    node
}

/// What becomes of 30 new connections: the backends that they reach, in words, or the verdict.
fn outcome(node: &Node, Client(device, client): Client, to: &str) -> String {
    let verdicts: BTreeSet<String> = (1000..1030)
        .map(|port| {
            match node.enter_by(device, &format!("{client}:{port}"), to, Protocol::TCP, TcpFlags::SYN) {
                Verdict::Rewrite(translation) => match text(translation.end).split_once(':') {
                    Some((LOCAL, "8080")) => "local".to_owned(),
                    Some((REMOTE, "8080")) => "remote".to_owned(),
                    other => format!("{other:?}?"),
                },
                Verdict::Pass => "pass".to_owned(),
                Verdict::Refuse(DropReason::NoBackend) => "refuse".to_owned(),
                Verdict::Drop(reason) => format!("drop {}", reason.as_str()),
                verdict @ (Verdict::Refuse(_) | Verdict::Reset(_)) => format!("{verdict:?}?"),
            }
        })
        .collect();
    verdicts.into_iter().collect::<Vec<_>>().join(" ")
}

const SILENCE: &str = "drop no_local_backend";
const NOT_ADMITTED: &str = "drop not_in_source_ranges";

/// DEC-10, DEC-11, XIP-02, LB-02, NP-14.
#[test]
fn under_the_policy_cluster_everybody_reaches_everything() {
    for (endpoints, expected) in
        [("local remote", "local remote"), ("remote", "remote"), ("local-draining", "local"), ("", "refuse")]
    {
        let node = node(options(), &json!({}), endpoints);
        for to in OUTSIDE.into_iter().chain([CLUSTER_IP, "10.244.1.1:30080"]) {
            for client in [POD, HOST, EXTERNAL] {
                assert_eq!(outcome(&node, client, to), expected, "{client:?} to {to} with {endpoints:?}");
            }
        }
    }
}

/// DEC-20 to DEC-28, ETP-02 to ETP-05, NOEP-03, NOEP-04.
#[test]
fn under_the_external_policy_local_only_those_outside_stay_on_the_node() {
    for (endpoints, inside, outside) in [
        ("local remote", "local remote", "local"),
        ("remote", "remote", SILENCE),
        ("local-draining remote", "remote", "local"),
        ("local-draining remote-draining", "local remote", "local"),
        ("remote-draining", "remote", SILENCE),
        ("", "refuse", "refuse"),
    ] {
        let node = node(options(), &json!({ "externalTrafficPolicy": "Local" }), endpoints);
        for to in OUTSIDE {
            assert_eq!(outcome(&node, POD, to), inside, "{to} with {endpoints:?}");
            assert_eq!(outcome(&node, HOST, to), inside, "{to} with {endpoints:?}");
            assert_eq!(outcome(&node, EXTERNAL, to), outside, "{to} with {endpoints:?}");
        }
        for client in [POD, HOST, EXTERNAL] {
            assert_eq!(outcome(&node, client, CLUSTER_IP), inside, "{client:?} with {endpoints:?}");
        }
    }
}

/// DEC-25, DLOC-05.
#[test]
fn without_a_detector_pods_are_outside_and_the_node_is_not() {
    let node = node(Options::on_node("node-a"), &json!({ "externalTrafficPolicy": "Local" }), "remote");
    for to in OUTSIDE {
        assert_eq!(outcome(&node, POD, to), SILENCE);
        assert_eq!(outcome(&node, EXTERNAL, to), SILENCE);
        assert_eq!(outcome(&node, HOST, to), "remote");
    }
}

/// DEC-03, DEC-04, ITP-03, ITP-04.
#[test]
fn the_policies_do_not_mix() {
    let internal = json!({ "internalTrafficPolicy": "Local" });
    let both = json!({ "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local" });
    for (fields, cluster_ip, inside, outside) in
        [(&internal, SILENCE, "remote", "remote"), (&both, SILENCE, "remote", SILENCE)]
    {
        let node = node(options(), fields, "remote");
        for client in [POD, HOST, EXTERNAL] {
            assert_eq!(outcome(&node, client, CLUSTER_IP), cluster_ip);
        }
        for to in OUTSIDE {
            assert_eq!(outcome(&node, POD, to), inside);
            assert_eq!(outcome(&node, EXTERNAL, to), outside);
        }
    }
}

/// LBSR-01, LBSR-06, LBSR-08, LBSR-09, NP-04: pods and the node must be listed like everybody else.
#[test]
fn source_ranges_guard_the_load_balancer_alone() {
    let listed = json!({ "loadBalancerSourceRanges": ["203.0.113.0/24"] });
    for (endpoints, expected) in [("local", "local"), ("", "refuse")] {
        let node = node(options(), &listed, endpoints);
        assert_eq!(outcome(&node, EXTERNAL, BALANCER), expected);
        for client in [POD, HOST, Client(UPLINK, "203.0.114.9")] {
            assert_eq!(outcome(&node, client, BALANCER), NOT_ADMITTED, "{client:?}");
            for to in [CLUSTER_IP, NODE_PORT, EXTERNAL_IP] {
                assert_eq!(outcome(&node, client, to), expected, "{client:?} to {to}");
            }
        }
    }
    let local = json!({
        "loadBalancerSourceRanges": ["203.0.113.0/24", "10.244.0.0/16"], "externalTrafficPolicy": "Local",
    });
    let node = node(options(), &local, "remote");
    assert_eq!(outcome(&node, EXTERNAL, BALANCER), SILENCE);
    assert_eq!(outcome(&node, POD, BALANCER), "remote");
    assert_eq!(outcome(&node, Client(UPLINK, "203.0.114.9"), BALANCER), NOT_ADMITTED);
}

/// LBSR-04, LBSR-07.
#[test]
fn who_carries_the_load_balancers_address_comes_in_where_the_node_does() {
    let carrier = Client(UPLINK, "198.51.100.2");
    let mut node = node(options(), &json!({ "loadBalancerSourceRanges": ["192.0.2.0/24"] }), "remote");
    assert_eq!(outcome(&node, carrier, BALANCER), NOT_ADMITTED);
    let this = json!({
        "metadata": { "name": "node-a" }, "status": { "addresses": [{ "type": "InternalIP", "address": "192.0.2.1" }] },
    });
    apply(&mut node.model, serde_json::from_value::<k8s_openapi::api::core::v1::Node>(this).unwrap());
    node.settle();
    assert_eq!(outcome(&node, carrier, BALANCER), "remote");
    let halves = json!({ "loadBalancerSourceRanges": ["0.0.0.0/1", "128.0.0.0/1"] });
    apply(&mut node.model, web(&halves));
    node.settle();
    for client in [POD, HOST, EXTERNAL] {
        assert_eq!(outcome(&node, client, BALANCER), "remote");
    }
}

/// LBSR-05.
#[test]
fn a_connection_outlives_the_range_that_admitted_it() {
    let mut node = node(options(), &json!({ "loadBalancerSourceRanges": ["203.0.113.0/24"] }), "remote");
    let enter =
        |node: &Node, flags| node.enter_by(UPLINK, "203.0.113.9:40000", BALANCER, Protocol::TCP, flags);
    assert!(matches!(enter(&node, TcpFlags::SYN), Verdict::Rewrite(_)));
    apply(&mut node.model, web(&json!({ "loadBalancerSourceRanges": ["172.16.0.0/12"] })));
    node.settle();
    assert!(matches!(enter(&node, TcpFlags::ACK), Verdict::Rewrite(_)));
    assert_eq!(outcome(&node, EXTERNAL, BALANCER), NOT_ADMITTED);
}

/// NP-01, NP-05, NP-06, NP-11, DEC-27, LB-05.
#[test]
fn only_the_nodes_own_addresses_have_node_ports() {
    let every = node(options(), &json!({}), "local");
    let options = Options { node_port_addresses: "192.0.2.0/24".parse().unwrap(), ..options() };
    let some = node(options, &json!({}), "local");
    for (to, of_every, of_some) in [
        ("192.0.2.1:30080", "local", "local"),
        ("10.244.1.1:30080", "local", "pass"),
        ("192.0.2.2:30080", "pass", "pass"),
        ("127.0.0.1:30080", "pass", "pass"),
        ("192.0.2.1:30081", "pass", "pass"),
        ("198.51.100.1:30080", "pass", "pass"),
        ("198.51.100.2:81", "pass", "pass"),
    ] {
        for client in [POD, EXTERNAL] {
            assert_eq!(outcome(&every, client, to), of_every, "{to}");
            assert_eq!(outcome(&some, client, to), of_some, "{to}");
        }
    }
}

/// NP-02: the address of one Service and the NodePort of another.
#[test]
fn an_address_of_its_own_comes_before_the_node_port() {
    let mut node = node(options(), &json!({}), "local");
    let spec = json!({
        "clusterIP": "10.96.0.2", "externalIPs": ["192.0.2.1"], "ports": [{ "name": "http", "port": 30080 }],
    });
    apply(&mut node.model, load_balancer("other", spec, &[]));
    node.settle();
    assert_eq!(outcome(&node, EXTERNAL, NODE_PORT), "refuse");
    assert_eq!(outcome(&node, EXTERNAL, "10.244.1.1:30080"), "local");
}

/// XIP-03, LB-03, NP-15: what goes is gone for new connections.
#[test]
fn what_is_no_longer_served_passes() {
    let without = Options { external_ips: false, ..options() };
    assert_eq!(outcome(&node(without, &json!({}), "local"), EXTERNAL, EXTERNAL_IP), "pass");
    let mut node = node(options(), &json!({}), "local");
    let spec = json!({ "clusterIP": "10.96.0.1", "ports": [{ "name": "http", "port": 80 }] });
    apply(&mut node.model, load_balancer("web", spec, &[]));
    node.settle();
    for to in OUTSIDE {
        let Client(device, client) = EXTERNAL;
        let verdict = node.enter_by(device, &format!("{client}:9"), to, Protocol::TCP, TcpFlags::SYN);
        assert_eq!(verdict, Verdict::Pass, "{to}");
    }
    assert_eq!(outcome(&node, POD, CLUSTER_IP), "local");
}

/// CT-08, CT-11: it moves once the backend no longer serves; new flows have moved before.
#[test]
fn a_udp_flow_stays_with_a_backend_that_terminates_but_serves() {
    let spec = json!({
        "clusterIP": "10.96.0.53", "ports": [{ "name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30053 }],
    });
    let dns = |conditions: Value| {
        let mut slice =
            slice_with("dns", &[LOCAL, REMOTE], json!([{ "name": "dns", "port": 53, "protocol": "UDP" }]));
        slice.endpoints.as_mut().unwrap()[0].conditions = serde_json::from_value(conditions).unwrap();
        slice
    };
    let mut node = Node::with(options());
    replace(&mut node.model, vec![load_balancer("dns", spec, &[])], vec![dns(json!({}))]);
    node.model.set_node_addresses(["192.0.2.1".parse::<IpAddr>().unwrap()]);
    node.settle();
    let reached = |node: &Node, to: &str, port: u16| {
        let from = format!("10.244.1.5:{port}");
        node.reach(&from, to, Protocol::UDP, TcpFlags(0))
    };
    let (local, remote) = (format!("{LOCAL}:53"), format!("{REMOTE}:53"));
    for to in ["10.96.0.53:53", "192.0.2.1:30053"] {
        apply(&mut node.model, dns(json!({})));
        node.settle();
        let port = (1000..).find(|&port| reached(&node, to, port) == local).unwrap();
        apply(&mut node.model, dns(json!({ "ready": false, "serving": true, "terminating": true })));
        node.settle();
        assert_eq!(reached(&node, to, port), local);
        assert!((2000..2030).all(|port| reached(&node, to, port) == remote));
        apply(&mut node.model, dns(json!({ "ready": false, "serving": false, "terminating": true })));
        node.settle();
        assert_eq!(reached(&node, to, port), remote);
    }
}
