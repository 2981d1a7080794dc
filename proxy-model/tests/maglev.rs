//! Consistent choices: the model's tables under the decision that the kernel runs, on nodes that heard of the same things in
//! different ways.

use std::collections::BTreeMap;

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use proxy_common::{
    config::NodeFlags,
    drop::DropReason,
    flow::TcpFlags,
    lb::{Translation, Verdict},
    tuple::{FlowKey, Hook, Protocol},
};
use proxy_model::{Capacities, Model, Options, Restored};

use crate::common::{
    model_on,
    node::{Node, UPLINK, end, text},
    objects::{apply, delete, replace, service, slice},
    settle,
};

const SYN: TcpFlags = TcpFlags::SYN;
const TCP: Protocol = Protocol::TCP;
/// An external IP of the service.
const EXTERNAL: &str = "203.0.113.1:80";
const VIP: &str = "10.96.0.1:80";

fn web() -> Service {
    let mut web = service("web", "10.96.0.1");
    let asks = ("sluice.io/backend-selection".to_owned(), "maglev".to_owned());
    web.metadata.annotations = Some([asks].into());
    web.spec.as_mut().unwrap().external_ips = Some(vec!["203.0.113.1".to_owned()]);
    web
}

fn endpoints(numbers: impl IntoIterator<Item = u8>) -> EndpointSlice {
    let ips: Vec<_> = numbers.into_iter().map(|number| format!("10.244.2.{number}")).collect();
    slice("web", &ips.iter().map(String::as_str).collect::<Vec<_>>())
}

/// A node that hears of the service and of its endpoints at once.
fn node(numbers: impl IntoIterator<Item = u8>) -> Node {
    let mut node = Node::new();
    replace(&mut node.model, vec![web()], vec![endpoints(numbers)]);
    node.settle();
    node
}

fn enter(node: &Node, from: &str, to: &str, flags: TcpFlags) -> String {
    match node.enter_by(UPLINK, from, to, TCP, flags) {
        Verdict::Rewrite(Translation { end, .. }) => text(end),
        verdict => panic!("{from} to {to}: {verdict:?}"),
    }
}

fn clients() -> impl Iterator<Item = String> {
    (0..300u16).map(|number| format!("198.51.100.{}:{}", number % 7 + 1, 32_768 + number))
}

/// Where each client's new connection goes.
fn choices(node: &Node) -> BTreeMap<String, String> {
    clients().map(|client| (client.clone(), enter(node, &client, EXTERNAL, SYN))).collect()
}

/// Other services, other ids, other orders: the clients are led alike.
#[test]
fn nodes_that_lead_to_the_same_backends_choose_alike() {
    let expected = choices(&node(1..6));
    let mut other = Node::new();
    replace(
        &mut other.model,
        vec![service("first", "10.96.0.9")],
        vec![slice("first", &["10.244.2.3", "10.244.9.9"])],
    );
    other.settle();
    apply(&mut other.model, endpoints([9, 4]));
    apply(&mut other.model, web());
    other.settle();
    other.wait(10);
    for numbers in [&[9, 4, 2][..], &[5, 2, 4], &[5, 4, 3, 2, 1]] {
        apply(&mut other.model, endpoints(numbers.iter().copied()));
        other.settle();
        other.wait(10);
    }
    assert_eq!(choices(&other), expected);
    // The same again, by nodes that remember nobody.
    assert_eq!(choices(&node((1..6).rev())), expected);
    let spread: std::collections::BTreeSet<_> = expected.values().collect();
    assert_eq!(spread.len(), 5, "{spread:?}");
}

#[test]
fn few_clients_move_beside_those_whose_backend_goes() {
    let (before, after) = (choices(&node(1..9)), choices(&node(2..9)));
    let gone = "10.244.2.1:8080";
    let moved =
        before.iter().filter(|(client, backend)| *backend != gone && after[*client] != **backend).count();
    let lost = before.values().filter(|backend| *backend == gone).count();
    assert!(lost > 20 && !after.values().any(|backend| backend == gone), "{lost}");
    // 2.5 % of the slots, by experience; 300 clients.
    assert!(moved <= 15, "{moved} moved without need");
}

#[test]
fn clients_of_the_cluster_ip_are_led_by_chance() {
    let node = node(1..3);
    let mut reached = std::collections::BTreeSet::new();
    for _ in 0..60 {
        // The same tuple anew, once the flow has expired.
        node.wait(1_000);
        reached.insert(enter(&node, "198.51.100.1:40000", VIP, SYN));
    }
    assert_eq!(reached.len(), 2, "sixty throws of a coin on one side");
}

#[test]
fn session_affinity_comes_first() {
    let mut sticky = web();
    let spec = sticky.spec.as_mut().unwrap();
    spec.session_affinity = Some("ClientIP".to_owned());
    let mut node = Node::new();
    replace(&mut node.model, vec![sticky], vec![endpoints(1..6)]);
    node.settle();
    let hashed = choices(&self::node(1..6));
    let first = enter(&node, "198.51.100.1:40000", EXTERNAL, SYN);
    assert_eq!(
        first,
        enter(&self::node(1..6), "198.51.100.1:40000", EXTERNAL, SYN),
        "who is new is led by the table"
    );
    for client in clients().filter(|client| client.starts_with("198.51.100.1:")) {
        assert_eq!(enter(&node, &client, EXTERNAL, SYN), first);
    }
    assert!(hashed.iter().any(|(client, backend)| client.starts_with("198.51.100.1:") && *backend != first));
}

/// Everybody outside has the node's own backends, and of these the one that the table of just these has.
#[test]
fn a_policy_that_keeps_traffic_here_has_a_table_of_its_own() {
    let with = |local: &[u8]| {
        let mut kept = web();
        kept.spec.as_mut().unwrap().external_traffic_policy = Some("Local".to_owned());
        let mut all = endpoints(1..9);
        for (endpoint, number) in all.endpoints.iter_mut().flatten().zip(1u8..) {
            let place = if local.contains(&number) { "node-a" } else { "node-b" };
            endpoint.node_name = Some(place.to_owned());
        }
        let mut node = Node::new();
        replace(&mut node.model, vec![kept], vec![all]);
        node.settle();
        choices(&node)
    };
    assert_eq!(with(&[2, 5, 7]), choices(&node([2, 5, 7])));
}

/// A restarted agent goes on with the tables that are there, and writes nothing.
#[test]
fn a_restart_writes_no_table_anew() {
    let mut node = node(1..6);
    let expected = choices(&node);
    node.memory.log.clear();
    node.model = model_on(node.memory.restored());
    replace(&mut node.model, vec![web()], vec![endpoints(1..6)]);
    node.settle();
    assert_eq!(node.memory.log, [""; 0]);
    assert_eq!(choices(&self::node(1..6)), expected);
}

#[test]
fn a_service_whose_table_finds_no_room_is_named_and_hurts_nobody() {
    let capacities = Capacities { slots: 100, ..Capacities::default() };
    let mut node = Node::new();
    node.model = Model::with_capacities(Options::on_node("node-a"), Restored::default(), capacities);
    replace(
        &mut node.model,
        vec![web(), service("quiet", "10.96.0.2")],
        vec![endpoints(1..3), slice("quiet", &["10.244.2.1"])],
    );
    let now = node.clock();
    let problems = settle(&mut node.model, now, &mut node.memory);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(
        problems[0].contains("default/web") && problems[0].contains("SLOTS") && problems[0].contains("1021"),
        "{problems:?}"
    );
    assert_eq!(node.reach("10.244.1.5:40000", "10.96.0.2:80", TCP, SYN), "10.244.2.1:8080");
    // One backend needs no table, so there is room again.
    apply(&mut node.model, endpoints([1]));
    node.settle();
    assert_eq!(enter(&node, "198.51.100.1:40000", EXTERNAL, SYN), "10.244.2.1:8080");
    delete::<Service>(&mut node.model, "web");
    node.settle();
}

const ACK: TcpFlags = TcpFlags::ACK;
const CLIENT: &str = "198.51.100.1:40000";

/// A node that takes connections up.
fn taking_up(numbers: impl IntoIterator<Item = u8>) -> Node {
    let mut node = node(numbers);
    assert!(node.model.leads_by_hash());
    node.settings.flags = NodeFlags::TAKE_UP;
    node
}

/// By a node that has never heard of it, and by one that has forgotten it.
#[test]
fn a_connection_that_is_not_known_goes_on_where_its_hash_leads() {
    let node = taking_up(1..6);
    for client in clients() {
        let backend = enter(&node, &client, EXTERNAL, SYN);
        for flags in [ACK, ACK.with(TcpFlags::FIN), TcpFlags::RST] {
            let other = taking_up((1..6).rev());
            assert_eq!(enter(&other, &client, EXTERNAL, flags), backend, "{flags:?}");
            assert_eq!(enter(&other, &client, EXTERNAL, ACK), backend);
        }
    }
}

/// A flood of stray segments keeps no room for a day.
#[test]
fn what_is_taken_up_is_forgotten_soon_unless_it_goes_on() {
    for (more, lasts) in [(0, false), (1, true)] {
        let node = taking_up(1..6);
        let backend = enter(&node, CLIENT, EXTERNAL, ACK);
        (0..more).for_each(|_| assert_eq!(enter(&node, CLIENT, EXTERNAL, ACK), backend));
        node.wait(61);
        node.sweep();
        let state = node.state_of(CLIENT, EXTERNAL);
        assert_eq!(state.is_some(), lasts, "{more} more segments: {state:?}");
    }
}

/// Its client says it again; what belongs to a process is not even counted.
#[test]
fn beyond_the_limit_on_new_flows_nothing_is_taken_up() {
    let mut node = taking_up(1..6);
    node.settings.new_flows = 1;
    enter(&node, CLIENT, EXTERNAL, ACK);
    let enter_from = |node: &Node, client| node.enter_by(UPLINK, client, EXTERNAL, TCP, ACK);
    let other = "198.51.100.2:40000";
    assert_eq!(enter_from(&node, other), Verdict::Drop(DropReason::NewFlowLimit));
    assert_eq!((node.entries(), node.counted().drops), (2, 1));
    node.model.set_node_addresses(["203.0.113.1".parse().unwrap()]);
    node.settle();
    node.connected.push(FlowKey::new(end(other), end(EXTERNAL), TCP, Hook::INGRESS));
    assert_eq!(enter_from(&node, other), Verdict::Pass);
    assert_eq!(node.counted().drops, 1);
}

#[test]
fn what_belongs_to_somebody_else_is_left_alone() {
    let pass = |node: &Node, to: &str, flags| {
        let verdict = node.enter_by(UPLINK, CLIENT, to, TCP, flags);
        assert_eq!(verdict, Verdict::Pass, "{to} {flags:?}");
    };
    // As long as netfilter may have connections of services.
    pass(&node(1..6), EXTERNAL, ACK);
    let mut node = taking_up(1..6);
    // Where chance led it, nothing says where it was; and a handshake that others began is theirs.
    pass(&node, VIP, ACK);
    pass(&node, EXTERNAL, SYN.with(ACK));
    pass(&node, EXTERNAL, TcpFlags::default());
    // What would be refused if it began.
    pass(&taking_up([]), EXTERNAL, ACK);
    assert_eq!(node.counted().drops, 0);
    // A process has it since before the service came.
    node.model.set_node_addresses(["203.0.113.1".parse().unwrap()]);
    node.settle();
    node.connected.push(FlowKey::new(end(CLIENT), end(EXTERNAL), TCP, Hook::INGRESS));
    pass(&node, EXTERNAL, ACK);
    node.connected.clear();
    assert_ne!(enter(&node, CLIENT, EXTERNAL, ACK), "");
}

/// What strays behind an old connection must not catch one that its client has made to the backend itself.
#[test]
fn an_entry_that_is_void_or_over_takes_nothing_up() {
    let node = taking_up(1..6);
    let backend = enter(&node, CLIENT, EXTERNAL, SYN);
    let leave = |flags| node.leave_by(UPLINK, &backend, CLIENT, TCP, flags, false);
    assert!(matches!(leave(SYN.with(ACK)), Verdict::Rewrite(_)));
    enter(&node, CLIENT, EXTERNAL, TcpFlags::RST);
    assert_eq!(leave(SYN.with(ACK)), Verdict::Pass, "the direct connection");
    assert_eq!(node.enter_by(UPLINK, CLIENT, EXTERNAL, TCP, ACK), Verdict::Pass);
}

#[test]
fn packets_of_old_connections_do_not_prolong_session_affinity() {
    let mut sticky = web();
    let spec = sticky.spec.as_mut().unwrap();
    spec.session_affinity = Some("ClientIP".to_owned());
    let mut node = Node::new();
    replace(&mut node.model, vec![sticky], vec![endpoints(1..6)]);
    node.settle();
    node.settings.flags = NodeFlags::TAKE_UP;
    let expected = choices(&self::node(1..6));
    for client in clients() {
        assert_eq!(enter(&node, &client, EXTERNAL, ACK), expected[&client], "nobody was led by affinity yet");
    }
}

/// The node's own address stands in for a client's towards a backend elsewhere, from the port that the client has.
#[test]
fn a_rewritten_source_goes_on_from_the_same_port() {
    let mut node = taking_up(1..6);
    node.model.set_node_addresses(["192.0.2.1".parse().unwrap()]);
    node.settle();
    node.settings.flags = NodeFlags::TAKE_UP;
    let from = "198.51.100.1:20000";
    let Verdict::Rewrite(first) = node.enter_by(UPLINK, from, EXTERNAL, TCP, ACK) else {
        panic!("not taken up")
    };
    assert!(first.masquerade);
    let backend = text(first.end);
    let Verdict::Rewrite(new) = node.leave_by(UPLINK, from, &backend, TCP, ACK, true) else { panic!("lost") };
    assert_eq!(text(new.end), "192.0.2.1:20000");
    assert_eq!(enter(&node, &backend, "192.0.2.1:20000", ACK), from);
}
