//! TCP connections through Services that want them reset when their backend is gone: the model's tables under the decision
//! that the kernel runs.

use k8s_openapi::api::core::v1::Service;
use proxy_common::{drop::DropReason, flow::TcpFlags, lb::Verdict, tuple::Protocol};
use serde_json::json;

use crate::common::{
    node::{Node, rewritten, text},
    objects::{apply, delete, replace, service, slice},
};

const TCP: Protocol = Protocol::TCP;
const SYN: TcpFlags = TcpFlags::SYN;
const ACK: TcpFlags = TcpFlags::ACK;
const SYN_ACK: TcpFlags = TcpFlags::SYN.with(TcpFlags::ACK);
const FIN: TcpFlags = TcpFlags::FIN.with(TcpFlags::ACK);
const RST: TcpFlags = TcpFlags::RST;

const RESET: Verdict = Verdict::Reset(DropReason::BackendGone);
const CLIENT: &str = "10.244.1.5:40000";
const VIP: &str = "10.96.0.1";
const WEB: &str = "10.96.0.1:80";
/// It asks for nothing.
const QUIET: &str = "10.96.0.2:80";

fn web() -> Service {
    let mut web = service("web", VIP);
    let asks = ("sluice.io/reset-on-backend-removal".to_owned(), "true".to_owned());
    web.metadata.annotations = Some([asks].into());
    web
}

fn node() -> Node {
    let mut node = Node::new();
    let slices = vec![slice("web", &["10.244.2.1"]), slice("quiet", &["10.244.2.1"])];
    replace(&mut node.model, vec![web(), service("quiet", "10.96.0.2")], slices);
    node.settle();
    node
}

/// Opens a connection, up to the client's first ACK. Returns the backend.
fn connect(node: &Node, from: &str, to: &str) -> String {
    let backend = node.reach(from, to, TCP, SYN);
    assert_eq!(node.leave(&backend, from, TCP, SYN_ACK), rewritten(to, from));
    assert_eq!(node.reach(from, to, TCP, ACK), backend);
    backend
}

fn lose(node: &mut Node, others: &[&str]) {
    for name in ["web", "quiet"] {
        apply(&mut node.model, slice(name, others));
    }
    node.settle();
}

#[test]
fn whatever_the_client_sends_is_answered_by_a_reset_once_the_backend_is_gone() {
    for others in [&["10.244.2.9"][..], &[]] {
        let mut node = node();
        connect(&node, CLIENT, WEB);
        let quiet = connect(&node, "10.244.1.6:40000", QUIET);
        lose(&mut node, others);
        for flags in [ACK, FIN, SYN_ACK, ACK] {
            assert_eq!(node.enter(CLIENT, WEB, TCP, flags), RESET, "{flags:?}");
        }
        assert_eq!(node.counted().drops, 4);
        // CT-20: who did not ask keeps what it has.
        assert_eq!(node.reach("10.244.1.6:40000", QUIET, TCP, ACK), quiet);
    }
}

#[test]
fn a_client_that_was_reset_may_come_again_from_the_same_port() {
    let mut node = node();
    connect(&node, CLIENT, WEB);
    lose(&mut node, &["10.244.2.9"]);
    assert_eq!(node.enter(CLIENT, WEB, TCP, ACK), RESET);
    assert_eq!(connect(&node, CLIENT, WEB), "10.244.2.9:8080");
    assert_eq!(node.reach(CLIENT, WEB, TCP, ACK), "10.244.2.9:8080");
}

#[test]
fn a_client_that_is_just_connecting_moves_and_is_not_reset() {
    let mut node = node();
    assert_eq!(node.reach(CLIENT, WEB, TCP, SYN), "10.244.2.1:8080");
    lose(&mut node, &["10.244.2.9"]);
    assert_eq!(node.reach(CLIENT, WEB, TCP, SYN), "10.244.2.9:8080");
    // Its handshake was on the way when the backend went.
    lose(&mut node, &["10.244.2.8"]);
    assert_eq!(node.enter(CLIENT, WEB, TCP, ACK), RESET);
}

/// RFC 9293 3.10.7.1: nobody answers a RST. It finds its way to the backend, which may still be there.
#[test]
fn a_reset_and_what_strays_behind_an_ended_connection_are_not_answered() {
    let mut node = node();
    let backend = connect(&node, CLIENT, WEB);
    let other = connect(&node, "10.244.1.6:40000", WEB);
    assert_eq!(node.reach("10.244.1.6:40000", WEB, TCP, FIN), other);
    assert_eq!(node.leave(&other, "10.244.1.6:40000", TCP, FIN), rewritten(WEB, "10.244.1.6:40000"));
    lose(&mut node, &[]);
    assert_eq!(node.reach("10.244.1.6:40000", WEB, TCP, ACK), other, "the last acknowledgement");
    assert_eq!(node.enter(CLIENT, WEB, TCP, ACK), RESET);
    // The backend sends on, and the client, which knows of no connection any more, says so.
    assert_eq!(node.leave(&backend, CLIENT, TCP, ACK), rewritten(WEB, CLIENT));
    assert_eq!(node.reach(CLIENT, WEB, TCP, RST), backend);
}

#[test]
fn a_backend_that_is_not_ready_or_drains_keeps_its_connections_until_it_is_gone() {
    let mut node = node();
    let backend = connect(&node, CLIENT, WEB);
    let mut both = slice("web", &["10.244.2.1", "10.244.2.9"]);
    for (serving, terminating) in [(false, false), (true, true), (false, true)] {
        let conditions = json!({ "ready": false, "serving": serving, "terminating": terminating });
        both.endpoints.as_mut().unwrap()[0].conditions = serde_json::from_value(conditions).unwrap();
        apply(&mut node.model, both.clone());
        node.settle();
        assert_eq!(
            node.reach(CLIENT, WEB, TCP, ACK),
            backend,
            "serving {serving}, terminating {terminating}"
        );
        for port in 50_000..50_010 {
            let other = format!("10.244.1.6:{port}");
            assert_eq!(node.reach(&other, WEB, TCP, SYN), "10.244.2.9:8080");
        }
    }
    lose(&mut node, &["10.244.2.9"]);
    assert_eq!(node.enter(CLIENT, WEB, TCP, ACK), RESET);
}

#[test]
fn what_counts_is_what_the_service_asked_for_when_the_connection_began() {
    let mut node = node();
    connect(&node, CLIENT, WEB);
    apply(&mut node.model, service("web", VIP));
    node.settle();
    let later = connect(&node, "10.244.1.6:40000", WEB);
    delete::<Service>(&mut node.model, "web");
    node.settle();
    assert_eq!(node.enter(CLIENT, WEB, TCP, ACK), RESET);
    assert_eq!(node.reach("10.244.1.6:40000", WEB, TCP, ACK), later);
}

#[test]
fn what_has_expired_is_not_answered() {
    let mut node = node();
    connect(&node, CLIENT, WEB);
    lose(&mut node, &[]);
    node.wait(86_401);
    assert_eq!(node.enter(CLIENT, WEB, TCP, ACK), Verdict::Pass);
}

#[test]
fn a_masqueraded_connection_is_reset_as_well() {
    let mut node = node();
    let itself = "10.244.2.1:40000";
    let Verdict::Rewrite(first) = node.enter(itself, WEB, TCP, SYN) else { panic!("not served") };
    assert!(first.masquerade && text(first.end) == "10.244.2.1:8080");
    lose(&mut node, &["10.244.2.9"]);
    assert_eq!(node.enter(itself, WEB, TCP, ACK), RESET);
}
