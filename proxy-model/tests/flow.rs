//! From YAML to the verdict on a packet: the model's tables under the decision that the kernel runs.

use std::collections::HashMap;

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use proxy_common::{
    drop::DropReason,
    filter::AddressRoles,
    flow::TcpFlags,
    lb::Verdict,
    tuple::{Endpoint, Protocol},
};
use proxy_model::{Change, Event, Model};

use crate::common::{
    model_on,
    node::{Node, end, rewritten, text},
    objects::{apply, delete},
};

const TCP: Protocol = Protocol::TCP;
const UDP: Protocol = Protocol::UDP;
const SYN: TcpFlags = TcpFlags::SYN;
const ACK: TcpFlags = TcpFlags::ACK;
const SYN_ACK: TcpFlags = TcpFlags::SYN.with(TcpFlags::ACK);
const FIN: TcpFlags = TcpFlags::FIN.with(TcpFlags::ACK);
const NONE: TcpFlags = TcpFlags(0);

const CLIENT: &str = "10.244.1.5:40000";
const WEB: &str = "10.96.0.1:80";
const DNS: &str = "10.96.0.1:53";
/// Another service with the same backends.
const OTHER: &str = "10.96.0.2:80";

const OBJECTS: &str = r#"
apiVersion: v1
kind: Service
metadata: { namespace: default, name: web }
spec:
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1, "fd00:10::1"]
  ipFamilies: [IPv4, IPv6]
  ports:
  - { name: http, port: 80 }
  - { name: dns, port: 53, protocol: UDP }
---
apiVersion: v1
kind: Service
metadata: { namespace: default, name: alias }
spec: { clusterIP: 10.96.0.2, ports: [{ name: http, port: 80 }] }
---
apiVersion: v1
kind: Service
metadata: { namespace: default, name: idle }
spec: { clusterIP: 10.96.0.3, ports: [{ name: http, port: 80 }] }
"#;

/// A slice of `service` at these addresses, serving TCP 8080 and UDP 5353.
fn slice(name: &str, service: &str, family: &str, addresses: &[&str]) -> EndpointSlice {
    let endpoints: String = addresses.iter().map(|ip| format!("- {{ addresses: [\"{ip}\"] }}\n")).collect();
    let endpoints = if addresses.is_empty() { " []\n".to_owned() } else { format!("\n{endpoints}") };
    serde_saphyr::from_str(&format!(
        "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{ namespace: default, name: {name}, labels: {{ kubernetes.io/service-name: {service} }} }}
addressType: {family}
ports:
- {{ name: http, port: 8080, protocol: TCP }}
- {{ name: dns, port: 5353, protocol: UDP }}
endpoints:{endpoints}"
    ))
    .unwrap()
}

fn list(model: &mut Model) {
    let services = OBJECTS.split("---").map(|text| serde_saphyr::from_str::<Service>(text).unwrap());
    assert_eq!(model.apply(Change::Service(Event::Replace(services.collect()))), []);
    let slices = vec![
        slice("web-4", "web", "IPv4", &["10.244.2.1", "10.244.2.2"]),
        slice("web-6", "web", "IPv6", &["fd00:244::1", "fd00:244::2"]),
        slice("alias-4", "alias", "IPv4", &["10.244.2.1"]),
    ];
    assert_eq!(model.apply(Change::EndpointSlice(Event::Replace(slices))), []);
}

fn node() -> Node {
    let mut node = Node::new();
    list(&mut node.model);
    node.settle();
    node
}

fn web_has(node: &mut Node, addresses: &[&str]) {
    apply(&mut node.model, slice("web-4", "web", "IPv4", addresses));
    node.settle();
}

/// Opens a TCP connection from `from` to `to`, up to the client's first ACK. Returns the backend.
fn connect(node: &Node, from: &str, to: &str) -> String {
    let backend = node.reach(from, to, TCP, SYN);
    assert_eq!(node.leave(&backend, from, TCP, SYN_ACK), rewritten(to, from));
    assert_eq!(node.reach(from, to, TCP, ACK), backend);
    backend
}

/// Closes it from both sides.
fn close(node: &Node, from: &str, to: &str, backend: &str) {
    assert_eq!(node.reach(from, to, TCP, FIN), backend);
    assert_eq!(node.leave(backend, from, TCP, FIN), rewritten(to, from));
    assert_eq!(node.reach(from, to, TCP, ACK), backend);
}

/// Neither what runs nor what is refused anyway asks for a token; what is beyond the limit leaves nothing.
#[test]
fn flows_beyond_the_limit_are_dropped_and_nothing_else_is() {
    let mut node = node();
    node.settings.new_flows = 20;
    let backend = connect(&node, CLIENT, WEB);
    // A tenth of a second's flows and one more, less the one that runs.
    for port in [50_000, 50_001] {
        node.reach(&format!("10.244.1.5:{port}"), DNS, UDP, NONE);
    }
    let refused = Verdict::Drop(DropReason::NewFlowLimit);
    assert_eq!(node.enter("10.244.1.5:50002", DNS, UDP, NONE), refused);
    assert_eq!(node.enter("10.244.1.5:50002", WEB, TCP, SYN), refused);
    assert_eq!((node.entries(), node.counted().drops), (6, 2));
    assert_eq!(node.reach(CLIENT, WEB, TCP, ACK), backend);
    assert_eq!(node.leave(&backend, CLIENT, TCP, ACK), rewritten(WEB, CLIENT));
    assert_eq!(node.enter("10.244.1.5:50003", "192.0.2.77:80", TCP, SYN), Verdict::Pass);
    assert_eq!(
        node.enter("10.244.1.5:50004", "10.96.0.3:80", TCP, SYN),
        Verdict::Refuse(DropReason::NoBackend)
    );
    node.wait(1);
    node.reach("10.244.1.5:50002", DNS, UDP, NONE);
}

/// Two CPUs get the same packet, or two with one tuple.
#[test]
fn of_two_choices_for_one_tuple_the_first_stands() {
    let node = node();
    for port in 40_000..40_032 {
        let client = format!("10.244.1.5:{port}");
        let first = node.reach(&client, DNS, UDP, NONE);
        node.race();
        assert_eq!(node.reach(&client, DNS, UDP, NONE), first, "{client}");
        assert_eq!(node.leave(&first, &client, UDP, NONE), rewritten(DNS, &client));
        assert_eq!(node.entries(), 2, "{client}");
        node.wait(3_600);
        node.sweep();
    }
}

#[test]
fn a_pod_reaches_either_backend_about_as_often_and_sees_the_vip_answer() {
    let node = node();
    let v4 = ("10.244.1.5", WEB, ["10.244.2.1:8080", "10.244.2.2:8080"]);
    let v6 = ("[fd00:244::99]", "[fd00:10::1]:80", ["[fd00:244::1]:8080", "[fd00:244::2]:8080"]);
    for (client, vip, backends) in [v4, v6] {
        let mut hits = HashMap::new();
        for port in 10_000..11_000 {
            let client = format!("{client}:{port}");
            *hits.entry(connect(&node, &client, vip)).or_insert(0) += 1;
        }
        let hits = backends.map(|backend| hits.remove(backend).unwrap_or(0));
        // Standard deviation of a fair choice: 16.
        assert!(
            hits.iter().all(|hits| (420..=580).contains(hits)) && hits.iter().sum::<i32>() == 1000,
            "{hits:?}"
        );
    }
    let counted = node.counted();
    assert_eq!((counted.connections, counted.packets, counted.reply_packets), (2000, 4000, 2000));
    assert_eq!(counted.drops, 0);
}

#[test]
fn what_is_not_a_service_passes() {
    let node = node();
    for (to, protocol) in [("10.96.0.9:80", TCP), ("10.244.2.1:8080", TCP), ("10.244.2.1:8080", UDP)] {
        assert_eq!(node.enter(CLIENT, to, protocol, SYN), Verdict::Pass, "{to}");
    }
    assert_eq!(node.enter(CLIENT, WEB, TCP, ACK), Verdict::Pass, "the middle of somebody else's connection");
    assert_eq!(node.leave("10.244.2.1:8080", CLIENT, TCP, SYN_ACK), Verdict::Pass);
}

#[test]
fn a_service_without_backends_refuses() {
    let node = node();
    assert_eq!(node.enter(CLIENT, "10.96.0.3:80", TCP, SYN), Verdict::Refuse(DropReason::NoBackend));
    assert_eq!(node.counted().drops, 1);
}

#[test]
fn udp_moves_with_the_next_datagram_when_its_backend_is_gone() {
    let mut node = node();
    let first = node.reach(CLIENT, DNS, UDP, NONE);
    assert_eq!(node.leave(&first, CLIENT, UDP, NONE), rewritten(DNS, CLIENT));
    let other = if first == "10.244.2.1:5353" { "10.244.2.2" } else { "10.244.2.1" };
    web_has(&mut node, &[other]);
    let second = node.reach(CLIENT, DNS, UDP, NONE);
    assert_eq!(second, format!("{other}:5353"));
    assert_eq!(node.leave(&second, CLIENT, UDP, NONE), rewritten(DNS, CLIENT));
    web_has(&mut node, &[]);
    assert_eq!(node.enter(CLIENT, DNS, UDP, NONE), Verdict::Refuse(DropReason::NoBackend));
}

#[test]
fn udp_does_not_follow_an_id_to_another_service() {
    let mut node = node();
    web_has(&mut node, &["10.244.2.1"]);
    assert_eq!(node.reach(CLIENT, DNS, UDP, NONE), "10.244.2.1:5353");
    web_has(&mut node, &[]);
    node.wait(2);
    // Enough new backends to take every id that has become free.
    apply(
        &mut node.model,
        slice("alias-4", "alias", "IPv4", &["10.244.3.1", "10.244.3.2", "10.244.3.3", "10.244.3.4"]),
    );
    node.settle();
    assert_eq!(node.enter(CLIENT, DNS, UDP, NONE), Verdict::Refuse(DropReason::NoBackend));
    web_has(&mut node, &["10.244.2.2"]);
    assert_eq!(node.reach(CLIENT, DNS, UDP, NONE), "10.244.2.2:5353");
}

#[test]
fn an_established_connection_keeps_its_backend_to_the_end() {
    let mut node = node();
    let backend = connect(&node, CLIENT, WEB);
    web_has(&mut node, &["10.244.2.9"]);
    node.wait(30);
    node.settle();
    assert_eq!(node.reach(CLIENT, WEB, TCP, ACK), backend);
    assert_eq!(node.leave(&backend, CLIENT, TCP, ACK), rewritten(WEB, CLIENT));
    delete::<Service>(&mut node.model, "web");
    node.settle();
    close(&node, CLIENT, WEB, &backend);
    assert_eq!(node.enter("10.244.1.6:40000", WEB, TCP, SYN), Verdict::Pass);
}

#[test]
fn a_repeated_syn_moves_to_a_backend_that_lives() {
    let mut node = node();
    let first = node.reach(CLIENT, WEB, TCP, SYN);
    assert_eq!(node.reach(CLIENT, WEB, TCP, SYN), first);
    web_has(&mut node, &["10.244.2.9"]);
    assert_eq!(node.reach(CLIENT, WEB, TCP, SYN), "10.244.2.9:8080");
}

#[test]
fn a_silent_flow_expires_without_anybody_sweeping() {
    let node = node();
    let backend = node.reach(CLIENT, DNS, UDP, NONE);
    node.wait(30);
    assert_eq!(node.reach(CLIENT, DNS, UDP, NONE), backend);
    assert_eq!(node.counted().connections, 1);
    node.wait(31);
    node.reach(CLIENT, DNS, UDP, NONE);
    assert_eq!(node.counted().connections, 2);

    let backend = connect(&node, CLIENT, WEB);
    node.wait(86_401);
    assert_eq!(node.enter(CLIENT, WEB, TCP, ACK), Verdict::Pass);
    assert_eq!(node.leave(&backend, CLIENT, TCP, ACK), Verdict::Pass);
}

#[test]
fn a_flow_that_only_the_backend_uses_is_alive() {
    let node = node();
    let backend = node.reach(CLIENT, DNS, UDP, NONE);
    for _ in 0..5 {
        node.wait(29);
        assert_eq!(node.leave(&backend, CLIENT, UDP, NONE), rewritten(DNS, CLIENT));
    }
    assert_eq!(node.reach(CLIENT, DNS, UDP, NONE), backend);
    assert_eq!(node.counted().connections, 1);
}

/// CIP-03, as nftables mode has it.
#[test]
fn what_a_cluster_ip_does_not_serve_is_refused() {
    let node = node();
    for (to, protocol, flags) in [("10.96.0.1:81", TCP, SYN), ("10.96.0.1:80", UDP, NONE)] {
        let refused = Verdict::Refuse(DropReason::UnknownPort);
        assert_eq!(node.enter(CLIENT, to, protocol, flags), refused, "{to}");
    }
    assert_eq!(node.enter(CLIENT, "10.96.0.1:81", TCP, ACK), Verdict::Pass, "somebody else's connection");
}

/// NAT-05.
#[test]
fn one_client_port_through_two_vips_to_one_backend_is_told_apart() {
    let mut node = node();
    web_has(&mut node, &["10.244.2.1"]);
    let backend = connect(&node, CLIENT, WEB);
    let Verdict::Rewrite(other) = node.enter(CLIENT, OTHER, TCP, SYN) else { panic!("refused") };
    assert_eq!(text(other.end), backend);
    assert_ne!(other.other_port, end(CLIENT).port);
    // What the backend answers tells the two apart, and the client sees its own port either way.
    let seen_as = text(Endpoint { port: other.other_port, ..end(CLIENT) });
    assert_eq!(node.leave(&backend, &seen_as, TCP, SYN_ACK), rewritten(OTHER, CLIENT));
    assert_eq!(node.leave(&backend, CLIENT, TCP, ACK), rewritten(WEB, CLIENT));
    // Closed on both sides, and the client comes again from the same port.
    close(&node, CLIENT, WEB, &backend);
    assert_eq!(node.reach(CLIENT, OTHER, TCP, FIN), backend);
    assert_eq!(node.leave(&backend, &seen_as, TCP, FIN), rewritten(OTHER, CLIENT));
    assert_eq!(connect(&node, CLIENT, OTHER), backend, "from its own port, which nothing else has now");
}

#[test]
fn a_client_port_that_is_used_again_opens_a_new_connection() {
    let mut node = node();
    let backend = connect(&node, CLIENT, WEB);
    close(&node, CLIENT, WEB, &backend);
    web_has(&mut node, &["10.244.2.9"]);
    assert_eq!(connect(&node, CLIENT, WEB), "10.244.2.9:8080");
    assert_eq!(node.counted().connections, 2);
}

#[test]
fn a_pod_dialled_directly_after_a_close_is_not_translated() {
    let node = node();
    let backend = connect(&node, CLIENT, WEB);
    close(&node, CLIENT, WEB, &backend);
    assert_eq!(node.enter(CLIENT, &backend, TCP, SYN), Verdict::Pass);
    assert_eq!(node.leave(&backend, CLIENT, TCP, SYN_ACK), Verdict::Pass);
    assert_eq!(node.leave(&backend, CLIENT, TCP, ACK), Verdict::Pass);
}

#[test]
fn flows_outlive_the_agent() {
    let mut node = node();
    let backend = connect(&node, CLIENT, WEB);
    let resolver = node.reach(CLIENT, DNS, UDP, NONE);
    node.model = model_on(node.memory.restored());
    list(&mut node.model);
    node.settle();
    assert_eq!(node.reach(CLIENT, WEB, TCP, ACK), backend);
    assert_eq!(node.reach(CLIENT, DNS, UDP, NONE), resolver);
    assert_eq!(node.counted().connections, 2);
}

#[test]
fn filter_bits_live_as_long_as_rows_or_flows_need_them() {
    let mut node = node();
    let backend = connect(&node, CLIENT, WEB);
    delete::<Service>(&mut node.model, "web");
    delete::<Service>(&mut node.model, "alias");
    delete::<Service>(&mut node.model, "idle");
    node.settle();
    for (days, verdict) in [(0, rewritten(WEB, CLIENT)), (2, Verdict::Pass)] {
        node.wait(10 + days * 86_400);
        node.sweep();
        let needed = node.roles_of_flows();
        node.model.retain_filter(node.clock(), |position| needed.get(&position).copied().unwrap_or_default());
        node.settle();
        assert_eq!(node.leave(&backend, CLIENT, TCP, ACK), verdict);
    }
    assert!(
        node.memory.filter.values().all(|line| line.roles.iter().all(|roles| *roles == AddressRoles::NONE))
    );
}
