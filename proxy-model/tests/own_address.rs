//! ClusterIPs that the node has itself: the decision, when somebody listens there and when nobody does.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use proxy_common::{
    addr::Addr,
    addresses::AddressFlags,
    config::SocketFlags,
    drop::DropReason,
    flow::TcpFlags,
    lb::{Translation, Verdict, Wish, without_ports},
    pod::PodReasons,
    tuple::Protocol,
};
use serde_json::json;

use crate::common::{
    node::{Node, end, text},
    objects::{load_balancer, replace, slice},
};

const TCP: Protocol = Protocol::TCP;
const UDP: Protocol = Protocol::UDP;
const SYN: TcpFlags = TcpFlags::SYN;
const ACK: TcpFlags = TcpFlags::ACK;
const FIN: TcpFlags = TcpFlags::FIN.with(TcpFlags::ACK);
const RST: TcpFlags = TcpFlags::RST;
const NONE: TcpFlags = TcpFlags(0);

const CLIENT: &str = "10.244.1.5:40000";
const DNS: &str = "10.96.0.10:53";
const BACKEND: &str = "10.244.2.7";

fn dns() -> Service {
    let spec = json!({
        "clusterIP": "10.96.0.10", "type": "LoadBalancer", "externalIPs": ["192.0.2.20"],
        "ports": [
            { "name": "dns-tcp", "port": 53, "nodePort": 30053 },
            { "name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30053 },
            { "name": "dns-sctp", "port": 53, "protocol": "SCTP", "nodePort": 30053 },
        ],
    });
    load_balancer("dns", spec, &["192.0.2.30"])
}

/// A node that has the service's ClusterIP, its external IP and its load balancer's address.
fn node() -> Node {
    let mut node = Node::new();
    let mut slice = slice("dns", &[BACKEND]);
    slice.ports = serde_json::from_value(json!([
        { "name": "dns-tcp", "port": 5353, "protocol": "TCP" },
        { "name": "dns", "port": 5353, "protocol": "UDP" },
        { "name": "dns-sctp", "port": 5353, "protocol": "SCTP" },
    ]))
    .unwrap();
    replace(&mut node.model, vec![dns()], vec![slice]);
    let own = ["192.0.2.1", "10.96.0.10", "192.0.2.20", "192.0.2.30"];
    node.model.set_node_addresses(own.map(|ip| ip.parse::<IpAddr>().unwrap()));
    node.settings.sockets.flags = SocketFlags::HOST;
    node.settings.sockets.pods = PodReasons::ALL_BUT_OPTED_OUT;
    node.settle();
    node
}

/// Where a packet of the client goes; `None` if it is left to the stack.
fn goes(node: &Node, to: &str, protocol: Protocol, flags: TcpFlags) -> Option<String> {
    match node.enter(CLIENT, to, protocol, flags) {
        Verdict::Pass => None,
        Verdict::Rewrite(Translation { end, .. }) => Some(text(end)),
        verdict => panic!("{protocol:?} to {to}: {verdict:?}"),
    }
}

fn served() -> Option<String> {
    Some(format!("{BACKEND}:5353"))
}

fn listen(node: &mut Node, to: &str, protocol: Protocol) {
    node.listeners.push((end(to), protocol));
}

#[test]
fn a_process_comes_first_while_it_listens_and_by_its_protocol_only() {
    let mut node = node();
    for (protocol, other) in [(TCP, UDP), (UDP, TCP)] {
        listen(&mut node, DNS, protocol);
        assert_eq!(goes(&node, DNS, protocol, SYN), None, "{protocol:?}");
        assert_eq!(goes(&node, DNS, other, SYN), served(), "beside {protocol:?}");
        node.listeners.clear();
        assert_eq!(goes(&node, DNS, protocol, SYN), served(), "{protocol:?}, gone");
        // There is no asking for sockets of SCTP.
        assert_eq!(goes(&node, DNS, Protocol::SCTP, SYN), served());
        node.wait(10_000);
    }
}

/// CT-20.
#[test]
fn a_connection_keeps_its_backend_and_one_that_is_over_leaves_nothing_behind() {
    let mut node = node();
    assert_eq!(goes(&node, DNS, TCP, SYN), served());
    listen(&mut node, DNS, TCP);
    // The client repeats itself, and goes on.
    assert_eq!(goes(&node, DNS, TCP, SYN), served());
    assert_eq!(goes(&node, DNS, TCP, ACK), served());
    for end in [FIN, RST] {
        assert_eq!(goes(&node, DNS, TCP, end), served());
    }
    // The next connection from the same port is another one, with all of its packets.
    assert_ne!(node.leave(&format!("{BACKEND}:5353"), CLIENT, TCP, RST), Verdict::Pass);
    for flags in [SYN, ACK, FIN] {
        assert_eq!(goes(&node, DNS, TCP, flags), None, "{flags:?}");
    }
    node.listeners.clear();
    assert_eq!(goes(&node, DNS, TCP, SYN), served());
}

/// Whether the service is still there or not.
#[test]
fn a_connection_that_has_lost_its_backend_before_it_began_goes_to_the_process() {
    for services in [vec![dns()], vec![]] {
        let mut node = node();
        assert_eq!(goes(&node, DNS, TCP, SYN), served());
        listen(&mut node, DNS, TCP);
        replace(&mut node.model, services, vec![]);
        node.settle();
        for flags in [SYN, ACK] {
            assert_eq!(goes(&node, DNS, TCP, flags), None, "{flags:?}");
        }
    }
}

/// CT-08: as datagrams leave a backend that is gone.
#[test]
fn datagrams_come_and_go_with_the_process() {
    let mut node = node();
    for _ in 0..2 {
        assert_eq!(goes(&node, DNS, UDP, NONE), served());
        listen(&mut node, DNS, UDP);
        assert_eq!(goes(&node, DNS, UDP, NONE), None);
        node.listeners.clear();
    }
}

/// kube-proxy's rules come before local delivery for external addresses, which nobody but the node's own processes shares.
#[test]
fn external_addresses_are_the_services_whoever_listens() {
    let mut node = node();
    for to in ["192.0.2.20:53", "192.0.2.30:53", "192.0.2.1:30053"] {
        for protocol in [TCP, UDP] {
            listen(&mut node, to, protocol);
            assert_eq!(goes(&node, to, protocol, SYN), served(), "{protocol:?} to {to}");
        }
    }
}

/// NP-06 is for the node's other addresses.
#[test]
fn a_cluster_ip_has_no_node_ports_and_its_other_ports_are_the_nodes() {
    let mut node = node();
    let flags = |node: &Node, ip: &str| node.memory.addresses[&Addr::from(ip.parse::<IpAddr>().unwrap())];
    let own = AddressFlags::NODE.with(AddressFlags::NODE_PORTS);
    assert_eq!(flags(&node, "10.96.0.10"), AddressFlags::CLUSTER_IP.with(AddressFlags::NODE));
    assert_eq!(flags(&node, "192.0.2.20"), own);
    for (port, protocol) in [(30053, TCP), (30053, UDP), (54, TCP), (54, UDP), (54, Protocol::SCTP)] {
        assert_eq!(goes(&node, &format!("10.96.0.10:{port}"), protocol, SYN), None, "{protocol:?} {port}");
    }
    let (client, address) = (end(CLIENT).address, end(DNS).address);
    assert_eq!(without_ports(&node, &client, &address), Verdict::Pass);
    assert_eq!(node.wish(1, "10.96.0.10:54", TCP, true), Wish::Granted);

    // The node loses the address.
    node.model.set_node_addresses(["192.0.2.1".parse::<IpAddr>().unwrap()]);
    node.settle();
    assert_eq!(node.enter(CLIENT, "10.96.0.10:54", TCP, SYN), Verdict::Refuse(DropReason::UnknownPort));
    assert_eq!(without_ports(&node, &client, &address), Verdict::Refuse(DropReason::UnknownPort));
    assert_eq!(node.wish(1, "10.96.0.10:54", TCP, true), Wish::Refused(DropReason::UnknownPort));

    // The service goes: the address is like the node's others.
    node.model.set_node_addresses(["10.96.0.10".parse::<IpAddr>().unwrap()]);
    replace(&mut node.model, vec![], vec![]);
    node.settle();
    assert_eq!(flags(&node, "10.96.0.10"), own);
}

/// From a pod's network it cannot be seen who listens on the node; the pod's packets tell.
#[test]
fn sockets_of_the_node_give_way_and_those_of_pods_leave_it_to_packets() {
    let mut node = node();
    let backend = Wish::Instead(end(&format!("{BACKEND}:5353")));
    for protocol in [TCP, UDP] {
        for _ in 0..2 {
            assert_eq!(node.wish(1, DNS, protocol, true), backend, "{protocol:?}");
            listen(&mut node, DNS, protocol);
            assert_eq!(node.wish(1, DNS, protocol, true), Wish::Granted, "{protocol:?}");
            node.listeners.clear();
        }
        assert_eq!(node.wish(2, DNS, protocol, false), Wish::Granted, "{protocol:?} of a pod");
    }
    // At other addresses, a pod's socket decides.
    node.model.set_node_addresses([]);
    node.settle();
    assert_eq!(node.wish(2, DNS, TCP, false), backend);
}
