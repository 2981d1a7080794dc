//! Whole journeys: a request enters and leaves the node, the answer enters and leaves it. Who does the backend see, and
//! whom does the client hear?

use std::{collections::BTreeSet, net::IpAddr};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use proxy_common::{
    drop::DropReason,
    endian::Be16,
    flow::TcpFlags,
    lb::{Translation, Verdict},
    tuple::{Endpoint, Protocol},
};
use proxy_model::{DetectLocal, Options};
use serde_json::{Value, json};

use crate::common::{
    node::{Node, POD_DEVICE, UPLINK, end, text},
    objects::{load_balancer, replace, slice_with},
};

const LOCAL: &str = "10.244.1.7";
const REMOTE: &str = "10.244.2.1";
/// The node's address on the device that its pods are behind, and on the one that everybody else is.
const GATEWAY: &str = "10.244.1.1";
const NODE: &str = "192.0.2.1";

const CLUSTER_IP: &str = "10.96.0.1:80";
const NODE_PORT: &str = "192.0.2.1:30080";
const EXTERNAL_IP: &str = "198.51.100.1:80";
const BALANCER: &str = "198.51.100.2:80";
const OUTSIDE: [&str; 3] = [NODE_PORT, EXTERNAL_IP, BALANCER];
const ALL: [&str; 4] = [CLUSTER_IP, NODE_PORT, EXTERNAL_IP, BALANCER];
const PROTOCOLS: [Protocol; 3] = [Protocol::TCP, Protocol::UDP, Protocol::SCTP];

/// Where a client is, and its address.
#[derive(Clone, Copy, Debug)]
struct Client(u32, &'static str);

const POD: Client = Client(POD_DEVICE, "10.244.1.5");
/// The backend on this node, as a client.
const BACKEND: Client = Client(POD_DEVICE, LOCAL);
const POD_ELSEWHERE: Client = Client(UPLINK, "10.244.3.5");
const EXTERNAL: Client = Client(UPLINK, "203.0.113.9");

fn options() -> Options {
    let detect_local = DetectLocal::cluster_cidr("10.244.0.0/16").unwrap();
    Options { detect_local, ..Options::on_node("node-a") }
}

/// A Service with every kind of address and protocol, and these fields.
fn web(fields: &Value) -> Service {
    let port = |name: &str, protocol: &str| json!({ "name": name, "protocol": protocol, "port": 80, "nodePort": 30080 });
    let mut spec = json!({
        "clusterIP": "10.96.0.1", "type": "LoadBalancer", "healthCheckNodePort": 32000, "externalIPs": ["198.51.100.1"],
        "ports": [port("tcp", "TCP"), port("udp", "UDP"), port("sctp", "SCTP")],
    });
    spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    load_balancer("web", spec, &["198.51.100.2"])
}

/// The backends of that Service, at another port than its own (PROTO-03).
fn backends(addresses: &[&str]) -> EndpointSlice {
    let port = |name: &str, protocol: &str| json!({ "name": name, "port": 8080, "protocol": protocol });
    slice_with("web", addresses, json!([port("tcp", "TCP"), port("udp", "UDP"), port("sctp", "SCTP")]))
}

fn node(options: Options, fields: &Value, addresses: &[&str]) -> Node {
    let mut node = Node::with(options);
    replace(&mut node.model, vec![web(fields)], vec![backends(addresses)]);
    node.model.set_node_addresses([NODE, GATEWAY].map(|ip| ip.parse::<IpAddr>().unwrap()));
    node.settle();
    node
}

/// What the ends of a connection see.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    /// The backend's address.
    backend: String,
    /// The client, as the backend sees it.
    client: Endpoint,
}

fn address(end: Endpoint) -> String {
    end.address.to_ip().to_string()
}

fn rewritten(verdict: Verdict) -> Translation {
    match verdict {
        Verdict::Rewrite(translation) => translation,
        verdict => panic!("{verdict:?}"),
    }
}

/// One packet there and one back, with everything on the way checked.
fn journey(
    node: &Node,
    Client(device, client): Client,
    port: u16,
    to: &str,
    protocol: Protocol,
    flags: TcpFlags,
) -> Seen {
    let from = format!("{client}:{port}");
    let in_node = rewritten(node.enter_by(device, &from, to, protocol, flags));
    let backend = text(in_node.end);
    let backend_device = if address(in_node.end) == LOCAL { POD_DEVICE } else { UPLINK };
    let sent_on = text(Endpoint { port: in_node.other_port, ..end(&from) });
    let leaves = node.leave_by(backend_device, &sent_on, &backend, protocol, flags, in_node.masquerade);
    let seen_as = match leaves {
        Verdict::Pass => sent_on.clone(),
        verdict => {
            assert!(in_node.masquerade, "a source rewritten without need: {verdict:?}");
            let translation = rewritten(verdict);
            assert_eq!(
                translation.other_port, in_node.end.port,
                "the backend's port is none of egress's business"
            );
            text(translation.end)
        }
    };
    // The answer.
    let answer = if flags.opens() { TcpFlags::SYN.with(TcpFlags::ACK) } else { flags };
    let answer = if protocol == Protocol::UDP { TcpFlags(0) } else { answer };
    match node.enter_by(backend_device, &backend, &seen_as, protocol, answer) {
        Verdict::Pass => assert_eq!(seen_as, sent_on, "an answer to the node that it keeps for itself"),
        verdict => {
            let back = rewritten(verdict);
            assert_eq!((text(back.end), back.other_port), (sent_on.clone(), in_node.end.port));
        }
    }
    let heard = rewritten(node.leave_by(device, &backend, &sent_on, protocol, answer, false));
    assert_eq!(
        (text(heard.end), heard.other_port),
        (to.to_owned(), end(&from).port),
        "what the client hears"
    );
    Seen { backend: address(in_node.end), client: end(&seen_as) }
}

/// A connection of a few packets: all of them must see the same.
fn connection(node: &Node, client: Client, port: u16, to: &str, protocol: Protocol) -> Seen {
    let first = if protocol == Protocol::UDP { TcpFlags(0) } else { TcpFlags::SYN };
    let next = if protocol == Protocol::UDP { TcpFlags(0) } else { TcpFlags::ACK };
    let seen = journey(node, client, port, to, protocol, first);
    for _ in 0..3 {
        assert_eq!(journey(node, client, port, to, protocol, next), seen, "MASQ-10: the choice stays");
    }
    seen
}

/// Who the backends see over 30 connections, and which they are.
fn seen(node: &Node, client: Client, to: &str) -> BTreeSet<(String, String)> {
    let each = PROTOCOLS.into_iter().flat_map(|protocol| (40_000..40_030).map(move |port| (protocol, port)));
    each.map(|(protocol, port)| {
        let Seen { backend, client } = connection(node, client, port, to, protocol);
        (backend, address(client))
    })
    .collect()
}

fn pairs(expected: &[(&str, &str)]) -> BTreeSet<(String, String)> {
    expected.iter().map(|&(backend, client)| (backend.to_owned(), client.to_owned())).collect()
}

/// The whole table: sources are rewritten where the answer would not come back by itself, and nowhere else. kube-proxy
/// rewrites more of them (MASQ-02, MASQ-04, MASQ-05; DEC-10, DEC-21, DEC-32), for the same reason.
#[test]
fn sources_are_rewritten_only_where_answers_would_go_astray() {
    let (cluster, local) = (json!({}), json!({ "externalTrafficPolicy": "Local" }));
    let both: &[&str] = &["10.244.1.7!", REMOTE];
    let far: &[&str] = &[REMOTE];
    let near: &[&str] = &["10.244.1.7!"];
    for (name, fields, client, to, endpoints, expected) in [
        // ClusterIP: DEC-01, DEC-31 and E2E-004 for pods; DEC-32, MASQ-02 and CIP-01 for what is routed here.
        (
            "a pod keeps its address",
            &cluster,
            POD,
            &[CLUSTER_IP][..],
            both,
            &[(LOCAL, POD.1), (REMOTE, POD.1)][..],
        ),
        (
            "somebody outside keeps it towards this node",
            &cluster,
            EXTERNAL,
            &[CLUSTER_IP],
            both,
            &[(LOCAL, EXTERNAL.1), (REMOTE, NODE)],
        ),
        (
            "a pod of another node comes from outside as far as answers are concerned",
            &cluster,
            POD_ELSEWHERE,
            &[CLUSTER_IP],
            both,
            &[(LOCAL, POD_ELSEWHERE.1), (REMOTE, NODE)],
        ),
        // External addresses under the policy Cluster: DEC-10, MASQ-04, XIP-02, LB-02, NP-14.
        ("a pod keeps it here too", &cluster, POD, &OUTSIDE, both, &[(LOCAL, POD.1), (REMOTE, POD.1)]),
        (
            "somebody outside, through the node",
            &cluster,
            EXTERNAL,
            &OUTSIDE,
            both,
            &[(LOCAL, EXTERNAL.1), (REMOTE, NODE)],
        ),
        // External addresses under the policy Local: DEC-20, DEC-22, DEC-26, MASQ-06, MASQ-07, ETP-02.
        ("a pod's short cut", &local, POD, &OUTSIDE, far, &[(REMOTE, POD.1)]),
        (
            "a pod elsewhere, whose answer must pass here",
            &local,
            POD_ELSEWHERE,
            &OUTSIDE,
            far,
            &[(REMOTE, NODE)],
        ),
        ("somebody outside is seen", &local, EXTERNAL, &OUTSIDE, both, &[(LOCAL, EXTERNAL.1)]),
        // Hairpin: MASQ-08, for every kind of address and policy.
        ("a pod through its own Service", &cluster, BACKEND, &ALL, near, &[(LOCAL, GATEWAY)]),
        ("and under the policy Local", &local, BACKEND, &ALL, near, &[(LOCAL, GATEWAY)]),
        ("but not to others", &cluster, BACKEND, &ALL, far, &[(REMOTE, LOCAL)]),
    ] {
        let node = node(options(), fields, endpoints);
        for to in to {
            assert_eq!(seen(&node, client, to), pairs(expected), "{name}: {client:?} to {to}");
        }
        assert_eq!(*node.drops.borrow(), []);
    }
}

/// DEC-30, DEC-33, MASQ-01, MASQ-03.
#[test]
fn masquerade_all_is_about_cluster_ips_and_detection_about_nothing_here() {
    let node_of = |masquerade_all, detect_local| {
        node(Options { masquerade_all, detect_local, ..options() }, &json!({}), &["10.244.1.7!", REMOTE])
    };
    let all = node_of(true, DetectLocal::Off);
    assert_eq!(seen(&all, POD, CLUSTER_IP), pairs(&[(LOCAL, GATEWAY), (REMOTE, NODE)]));
    assert_eq!(seen(&all, EXTERNAL, CLUSTER_IP), pairs(&[(LOCAL, GATEWAY), (REMOTE, NODE)]));
    for to in OUTSIDE {
        assert_eq!(seen(&all, POD, to), pairs(&[(LOCAL, POD.1), (REMOTE, POD.1)]), "{to}");
    }
    let undetected = node_of(false, DetectLocal::Off);
    assert_eq!(seen(&undetected, POD, CLUSTER_IP), pairs(&[(LOCAL, POD.1), (REMOTE, POD.1)]));
    assert_eq!(seen(&undetected, EXTERNAL, CLUSTER_IP), pairs(&[(LOCAL, EXTERNAL.1), (REMOTE, NODE)]));
}

/// MASQ-13: what is not for a Service is not touched, not even between the very ends that a Service connects.
#[test]
fn nothing_else_is_rewritten() {
    let node = node(options(), &json!({}), &[REMOTE]);
    connection(&node, EXTERNAL, 40_000, NODE_PORT, Protocol::TCP);
    for (from, to) in [("10.244.1.5:50000", "10.244.2.1:8080"), ("10.244.1.5:50000", "192.0.2.1:22")] {
        assert_eq!(node.enter(from, to, Protocol::TCP, TcpFlags::SYN), Verdict::Pass);
        assert_eq!(node.leave_by(UPLINK, from, to, Protocol::TCP, TcpFlags::SYN, false), Verdict::Pass);
    }
    // A note from nowhere gives nobody another source.
    let (pod, peer) = ("10.244.1.5:50000", "10.244.2.1:8080");
    for flags in [TcpFlags::SYN, TcpFlags::ACK] {
        assert_eq!(node.leave_by(UPLINK, pod, peer, Protocol::TCP, flags, true), Verdict::Pass);
    }
    // The node's own connection to that backend.
    let (host, backend) = ("192.0.2.1:40000", "10.244.2.1:8080");
    assert_eq!(node.leave_by(UPLINK, host, backend, Protocol::TCP, TcpFlags::SYN, false), Verdict::Pass);
    assert_eq!(node.enter_by(UPLINK, backend, host, Protocol::TCP, TcpFlags::ACK), Verdict::Pass);
}

/// MASQ-09: a port that neither the host's own sockets nor NodePorts use; the client's own if it is one.
#[test]
fn source_ports_stay_out_of_the_hosts_way() {
    let node = node(options(), &json!({}), &[REMOTE]);
    let port =
        |client: u16| connection(&node, EXTERNAL, client, NODE_PORT, Protocol::TCP).client.port.to_host();
    assert_eq!(port(2049), 2049);
    assert_eq!(port(61_000), 61_000);
    for client in [80, 1023, 30_500, 32_768, 45_000, 60_999] {
        let given = port(client);
        assert!(node.settings.source_ports.contains(given), "{client} became {given}");
    }
}

/// Many clients with the same port, one backend: every answer finds its way, until there are no ports left; and ports of
/// connections that are over serve again.
#[test]
fn source_ports_run_out_and_come_back() {
    let mut node = node(options(), &json!({}), &[REMOTE]);
    // Sixteen ports: 1024 to 1039.
    node.settings.source_ports =
        proxy_common::config::SourcePorts::outside([(1040, 65_535), (30_000, 32_767)]);
    let enter = |n: u8, flags| {
        let from = format!("203.0.113.{n}:40000");
        let verdict = node.enter_by(UPLINK, &from, NODE_PORT, Protocol::TCP, flags);
        node.leave_by(UPLINK, &from, "10.244.2.1:8080", Protocol::TCP, flags, rewritten(verdict).masquerade)
    };
    let mut given = BTreeSet::new();
    let mut refused = 0;
    for n in 1..=40 {
        match enter(n, TcpFlags::SYN) {
            Verdict::Rewrite(translation) => assert!(given.insert(translation.end.port.to_host()), "twice"),
            verdict => {
                assert_eq!(verdict, Verdict::Drop(DropReason::NoSourcePort));
                refused += 1;
            }
        }
    }
    // 64 random probes among 16 ports leave one unfound with a probability of 2 %, so perhaps not all are given.
    assert!((14..=16).contains(&given.len()), "{given:?}");
    assert_eq!(given.len() + refused, 40);
    // They all end.
    for n in 1..=40 {
        if let Verdict::Rewrite(translation) = enter(n, TcpFlags::RST) {
            assert!(given.contains(&translation.end.port.to_host()));
        }
    }
    assert!(matches!(enter(50, TcpFlags::SYN), Verdict::Rewrite(_)), "a port of a connection that is over");
}

/// A device that has no address of the family to give.
#[test]
fn without_a_source_address_nothing_is_sent() {
    let mut node = node(options(), &json!({}), &[REMOTE]);
    node.devices.get_mut(&UPLINK).unwrap().source_v4 = Default::default();
    let verdict = node.enter_by(UPLINK, "203.0.113.9:40000", NODE_PORT, Protocol::UDP, TcpFlags(0));
    let leaves = node.leave_by(
        UPLINK,
        "203.0.113.9:40000",
        "10.244.2.1:8080",
        Protocol::UDP,
        TcpFlags(0),
        rewritten(verdict).masquerade,
    );
    assert_eq!(leaves, Verdict::Drop(DropReason::NoSourceAddress));
}

/// NAT-05 together with rewritten sources: two clients' ports and two addresses of one Service, one backend.
#[test]
fn connections_that_would_look_the_same_are_told_apart() {
    let node = node(options(), &json!({}), &[REMOTE]);
    let mut clients = BTreeSet::new();
    for to in ALL {
        for client in [EXTERNAL, Client(UPLINK, "203.0.113.10"), POD] {
            let Seen { client, .. } = connection(&node, client, 40_000, to, Protocol::TCP);
            assert!(clients.insert(text(client)), "{} is two clients", text(client));
        }
    }
}

/// AFF-04, AFF-06: one mapping for all addresses of a service port, used only where its backend may serve.
#[test]
fn clients_keep_their_backend_across_addresses_and_not_across_policies() {
    let fields = json!({ "sessionAffinity": "ClientIP", "externalTrafficPolicy": "Local" });
    let node = node(options(), &fields, &["10.244.1.7!", "10.244.1.8!", REMOTE]);
    // A client outside: ClusterIP leads to any backend, the others to local ones.
    let mut port = 1024;
    let mut reached = |to: &str| {
        port += 1;
        let from = format!("203.0.113.9:{port}");
        address(rewritten(node.enter_by(UPLINK, &from, to, Protocol::TCP, TcpFlags::SYN)).end)
    };
    for _ in 0..20 {
        let familiar = reached(CLUSTER_IP);
        assert_eq!(reached(CLUSTER_IP), familiar);
        let outside = reached(NODE_PORT);
        if familiar == REMOTE {
            assert_ne!(outside, REMOTE, "policy comes first");
        } else {
            assert_eq!(outside, familiar);
        }
        assert_eq!(reached(BALANCER), outside);
        assert_eq!(reached(CLUSTER_IP), outside, "the latest choice is remembered");
    }
}

/// A port of the Service in network byte order, for whoever compares.
#[test]
fn backends_answer_from_their_own_port() {
    let node = node(options(), &json!({}), &["10.244.1.7!"]);
    let translation = rewritten(node.enter("10.244.1.5:40000", CLUSTER_IP, Protocol::TCP, TcpFlags::SYN));
    assert_eq!(translation.end.port, Be16::from_host(8080), "PROTO-03");
    assert_eq!(translation.other_port, Be16::from_host(40_000));
    assert!(!translation.masquerade);
}
