//! What gets written, and when, for Services that are reached from outside, and what the node's addresses have to do
//! with it.

use std::{net::IpAddr, time::Duration};

use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use proxy_common::{
    addr::Addr,
    addresses::AddressFlags,
    backend::{Backend, BackendFlags},
    config::Network,
    tables::{Addresses, Backends, Frontends, ServiceNames, Slots, SourceRanges, Table as _},
};
use proxy_model::{DetectLocal, Model, Options, Restored};
use serde_json::{Value, json};

use crate::common::{
    Memory, model_on,
    objects::{apply, delete, load_balancer, replace, slice, slice_with},
    settle,
};

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// `default/web` at 192.0.2.1, for these sources.
fn web(ranges: &[&str]) -> Service {
    let spec = json!({
        "clusterIP": "10.96.0.1", "type": "LoadBalancer", "externalTrafficPolicy": "Local",
        "healthCheckNodePort": 32000,
        "loadBalancerSourceRanges": ranges, "ports": [{ "name": "http", "port": 80, "nodePort": 30080 }],
    });
    load_balancer("web", spec, &["192.0.2.1"])
}

fn node(status: &Value, spec: &Value) -> Node {
    serde_json::from_value(json!({ "metadata": { "name": "node-a" }, "status": status, "spec": spec }))
        .unwrap()
}

fn node_at(ip: &str) -> Node {
    node(&json!({ "addresses": [{ "type": "InternalIP", "address": ip }] }), &json!({}))
}

fn started(ranges: &[&str], endpoints: &[&str]) -> (Model, Memory) {
    let (mut model, mut memory) = (model_on(Restored::default()), Memory::default());
    replace(&mut model, vec![web(ranges)], vec![slice("web", endpoints)]);
    settle(&mut model, at(0), &mut memory);
    (model, memory)
}

/// The tables that a change writes, in order.
fn writes(model: &mut Model, memory: &mut Memory, change: impl FnOnce(&mut Model)) -> Vec<&'static str> {
    memory.log.clear();
    change(model);
    settle(model, at(1), memory);
    memory.log.clone()
}

const ROW: &str = Frontends::NAME;
const RANGE: &str = SourceRanges::NAME;

/// LBSR, SVC-14.
#[test]
fn sources_are_admitted_before_a_frontend_asks_and_until_none_does() {
    let (mut model, mut memory) = started(&[], &["10.0.0.1!"]);
    assert_eq!(memory.ranges.len(), 0);
    let restrict =
        writes(&mut model, &mut memory, |model| apply(model, web(&["10.0.0.0/8", "203.0.113.0/24"])));
    assert_eq!(restrict, [RANGE, RANGE, ROW]);
    // A frontend that is restricted already is not written.
    let replace =
        writes(&mut model, &mut memory, |model| apply(model, web(&["10.0.0.0/8", "172.16.0.0/12"])));
    assert_eq!(replace, [RANGE, RANGE]);
    assert_eq!(memory.ranges.len(), 2);
    let open = writes(&mut model, &mut memory, |model| apply(model, web(&["0.0.0.0/0"])));
    assert_eq!(open, [ROW, RANGE, RANGE]);
    apply(&mut model, web(&["10.0.0.0/8"]));
    settle(&mut model, at(2), &mut memory);
    let gone = writes(&mut model, &mut memory, |model| delete::<Service>(model, "web"));
    let backend_and_last = [Backends::NAME, RANGE, ServiceNames::NAME, Addresses::NAME];
    assert_eq!(gone, [&[ROW; 3][..], &backend_and_last].concat());
    assert_eq!((memory.ranges.len(), memory.names.len()), (0, 0));
}

/// DEC-22, DEC-23, SEL-05.
#[test]
fn each_set_switches_by_itself_with_one_write_per_frontend() {
    let (mut model, mut memory) = started(&[], &["10.0.0.1!", "10.0.0.2"]);
    let runs = |memory: &Memory| {
        let row = memory.frontends.values().find(|row| row.outside.count > 0).unwrap();
        (row.slots, row.outside)
    };
    let before = runs(&memory);
    apply(&mut model, slice("web", &["10.0.0.1!", "10.0.0.3"]));
    settle(&mut model, at(1), &mut memory);
    let after = runs(&memory);
    assert_ne!(after.0, before.0);
    assert_eq!(after.1, before.1);
    // The last local backend goes: one more silence, nothing else.
    apply(&mut model, slice("web", &["10.0.0.1", "10.0.0.3"]));
    let silent = writes(&mut model, &mut memory, |_| {});
    assert_eq!(silent, [Backends::NAME, ROW, ROW]);
}

#[test]
fn every_single_failed_write_is_made_up_for() {
    let steps: [(&[&str], &[&str]); 5] = [
        (&["10.0.0.0/8"], &["10.0.0.1!", "10.0.0.2"]),
        (&["10.0.0.0/8", "172.16.0.0/12"], &["10.0.0.2"]),
        (&[], &["10.0.0.2!"]),
        (&["203.0.113.0/24"], &[]),
        (&["203.0.113.0/24"], &["10.0.0.4!"]),
    ];
    for failing in 0..70 {
        let (mut model, mut memory) = (model_on(Restored::default()), Memory::default());
        memory.failures.insert(failing);
        replace(&mut model, vec![], vec![]);
        for (step, (ranges, endpoints)) in steps.iter().enumerate() {
            let now = at(10 * step as u64);
            apply(&mut model, web(ranges));
            apply(&mut model, slice("web", endpoints));
            model.set_node_addresses(ips(&[["192.0.2.9", "192.0.2.10"][step % 2]]));
            for _ in 0..2 {
                model.plan(now);
                let failed = !model.commit(now, &mut memory).is_empty();
                assert_eq!(model.is_unfinished(), failed, "write {failing} failed");
                if step == 1 {
                    delete::<Service>(&mut model, "web");
                }
            }
            assert!(model.commit(now, &mut memory).is_empty());
        }
        let (mut other, mut expected) = started(&["203.0.113.0/24"], &["10.0.0.4!"]);
        other.set_node_addresses(ips(&["192.0.2.9"]));
        settle(&mut other, at(0), &mut expected);
        assert_eq!(memory.render(), expected.render(), "write {failing} failed");
        assert_eq!(memory.render_addresses(), expected.render_addresses(), "write {failing} failed");
        assert_eq!((memory.live(), memory.ranges.len()), (1, 1), "write {failing} failed");
    }
}

/// `default/dns` with one UDP port.
fn dns(endpoints: &[(&str, Value)]) -> (Service, EndpointSlice) {
    let spec =
        json!({ "clusterIP": "10.96.0.53", "ports": [{ "name": "dns", "port": 53, "protocol": "UDP" }] });
    let addresses: Vec<&str> = endpoints.iter().map(|(address, _)| *address).collect();
    let port = json!([{ "name": "dns", "port": 5353, "protocol": "UDP" }]);
    let mut slice = slice_with("dns", &addresses, port);
    for (endpoint, (_, conditions)) in slice.endpoints.iter_mut().flatten().zip(endpoints) {
        endpoint.conditions = serde_json::from_value(conditions.clone()).unwrap();
    }
    (load_balancer("dns", spec, &[]), slice)
}

/// CT-03, CT-11.
#[test]
fn udp_backends_that_serve_outlive_their_sets_but_get_no_id_for_it() {
    let ready = json!({});
    let draining = json!({ "ready": false, "serving": true, "terminating": true });
    let unready = json!({ "ready": false, "serving": true });
    let dead = json!({ "ready": false, "serving": false, "terminating": true });
    let (mut model, mut memory) = (model_on(Restored::default()), Memory::default());
    let (service, slice) = dns(&[("10.0.0.1", ready.clone()), ("10.0.0.2", ready.clone())]);
    replace(&mut model, vec![service.clone()], vec![slice]);
    settle(&mut model, at(0), &mut memory);
    let state = |memory: &Memory| -> Vec<(String, BackendFlags)> {
        let live = |row: &&Backend| row.flags.contains(BackendFlags::LIVE);
        let mut rows: Vec<_> =
            memory.backends.values().filter(live).map(|row| (row.address.to_string(), row.flags)).collect();
        rows.sort_by_key(|(address, _)| address.clone());
        rows
    };
    let member = BackendFlags::LIVE.with(BackendFlags::CLUSTER_SET);
    let is = |rows: &[(&str, BackendFlags)]| -> Vec<(String, BackendFlags)> {
        rows.iter().map(|(address, flags)| ((*address).to_owned(), *flags)).collect()
    };
    assert_eq!(state(&memory), is(&[("10.0.0.1", member), ("10.0.0.2", member)]));
    let keeps = is(&[("10.0.0.1", BackendFlags::LIVE), ("10.0.0.2", member)]);
    for (second, conditions) in [(1, draining.clone()), (2, unready)] {
        apply(
            &mut model,
            dns(&[("10.0.0.1", conditions), ("10.0.0.2", ready.clone()), ("10.0.0.3", draining.clone())]).1,
        );
        settle(&mut model, at(second), &mut memory);
        assert_eq!(state(&memory), keeps);
        assert_eq!(memory.render(), "10.96.0.53:53/UDP default/dns:dns/UDP/IPv4 -> 10.0.0.2:5353\n");
    }
    let ids = memory.backends.clone();
    // A restart knows who it was.
    let mut again = model_on(memory.restored());
    let slice = dns(&[("10.0.0.1", draining), ("10.0.0.2", ready.clone())]).1;
    replace(&mut again, vec![service], vec![slice]);
    settle(&mut again, at(3), &mut memory);
    assert_eq!(memory.backends, ids);
    // Back in the set under the same id, then out for good.
    apply(&mut again, dns(&[("10.0.0.1", ready.clone()), ("10.0.0.2", ready.clone())]).1);
    settle(&mut again, at(4), &mut memory);
    assert_eq!(state(&memory), is(&[("10.0.0.1", member), ("10.0.0.2", member)]));
    assert_eq!(memory.backends.len(), 2);
    apply(&mut again, dns(&[("10.0.0.1", dead), ("10.0.0.2", ready)]).1);
    settle(&mut again, at(5), &mut memory);
    assert_eq!(state(&memory), is(&[("10.0.0.2", member)]));
}

/// COND-04: of TCP, the tables never knew more than the set.
#[test]
fn tcp_backends_go_with_their_set() {
    let (mut model, mut memory) = started(&[], &["10.0.0.1!", "10.0.0.2!"]);
    let mut draining = slice("web", &["10.0.0.1!", "10.0.0.2!"]);
    let conditions = json!({ "ready": false, "serving": true, "terminating": true });
    draining.endpoints.as_mut().unwrap()[0].conditions = serde_json::from_value(conditions).unwrap();
    apply(&mut model, draining);
    settle(&mut model, at(1), &mut memory);
    assert_eq!(memory.live(), 1);
}

/// NP-07.
#[test]
fn the_node_gets_another_address_without_a_look_at_services() {
    let (mut model, mut memory) = started(&[], &["10.0.0.1!"]);
    let set = |addresses: &'static [&'static str]| {
        move |model: &mut Model| model.set_node_addresses(ips(addresses))
    };
    let only = |log: Vec<&str>| log.iter().all(|table| [Addresses::NAME, "ADDRESS_FILTER"].contains(table));
    assert!(only(writes(&mut model, &mut memory, set(&["192.0.2.9", "127.0.0.1", "::1", "fe80::1"]))));
    let flags =
        |memory: &Memory, ip: &str| memory.addresses.get(&Addr::from(ip.parse::<IpAddr>().unwrap())).copied();
    let accepts = Some(AddressFlags::NODE.with(AddressFlags::NODE_PORTS));
    assert_eq!((flags(&memory, "192.0.2.9"), flags(&memory, "fe80::1")), (accepts, accepts));
    assert_eq!((flags(&memory, "127.0.0.1"), flags(&memory, "::1")), (None, None));
    let same = set(&["::ffff:192.0.2.9", "fe80::1", "192.0.2.9"]);
    assert_eq!(writes(&mut model, &mut memory, same), [""; 0]);
    assert_eq!(writes(&mut model, &mut memory, set(&["fe80::1"])), [Addresses::NAME]);
    assert_eq!(flags(&memory, "192.0.2.9"), None);
}

#[test]
fn what_was_known_of_the_node_stays_until_somebody_knows_better() {
    let primary = Options { node_port_addresses: "primary".parse().unwrap(), ..Options::on_node("node-a") };
    let mut memory = Memory::default();
    let mut model = Model::new(primary.clone(), memory.restored());
    replace(&mut model, vec![], vec![]);
    apply(&mut model, node_at("192.0.2.9"));
    model.set_node_addresses(ips(&["192.0.2.9", "192.0.2.10"]));
    settle(&mut model, at(0), &mut memory);
    let before = memory.render_addresses();
    assert_eq!(before, "192.0.2.9 {\"node\", \"node-ports\"}\n192.0.2.10 {\"node\"}\n");

    let mut again = Model::new(primary, memory.restored());
    replace(&mut again, vec![], vec![]);
    settle(&mut again, at(0), &mut memory);
    assert_eq!(memory.render_addresses(), before);
    again.set_node_addresses(ips(&["192.0.2.9", "192.0.2.11"]));
    settle(&mut again, at(0), &mut memory);
    assert_eq!(memory.render_addresses(), "192.0.2.9 {\"node\", \"node-ports\"}\n192.0.2.11 {\"node\"}\n");
    apply(&mut again, node_at("192.0.2.11"));
    settle(&mut again, at(0), &mut memory);
    assert_eq!(memory.render_addresses(), "192.0.2.9 {\"node\"}\n192.0.2.11 {\"node\", \"node-ports\"}\n");
}

/// LBSR-07, and nothing for a Service that it does not concern.
#[test]
fn a_node_with_another_address_concerns_restricted_services_only() {
    let (mut model, mut memory) = started(&[], &["10.0.0.1!"]);
    assert_eq!(writes(&mut model, &mut memory, |model| apply(model, node_at("203.0.113.9"))), [""; 0]);
    apply(&mut model, web(&["203.0.113.0/24"]));
    settle(&mut model, at(1), &mut memory);
    assert_eq!(memory.ranges.len(), 2);
    assert_eq!(writes(&mut model, &mut memory, |model| apply(model, node_at("10.1.1.1"))), [RANGE]);
    assert_eq!(writes(&mut model, &mut memory, |model| apply(model, node_at("203.0.113.9"))), [RANGE]);
}

#[test]
fn a_change_of_one_service_writes_nothing_of_another() {
    let (mut model, mut memory) = started(&["10.0.0.0/8"], &["10.0.0.1!"]);
    let spec = json!({
        "clusterIP": "10.96.0.2", "type": "NodePort", "ports": [{ "name": "http", "port": 80, "nodePort": 30081 }],
    });
    apply(&mut model, load_balancer("shop", spec, &[]));
    settle(&mut model, at(0), &mut memory);
    let mut log = writes(&mut model, &mut memory, |model| apply(model, slice("shop", &["10.0.0.9"])));
    log.retain(|table| *table != "ADDRESS_FILTER");
    assert_eq!(log, [Backends::NAME, Slots::NAME, ROW, ROW]);
}

/// DLOC-01, DLOC-02, DLOC-05, DLOC-07.
#[test]
fn pods_are_told_by_the_first_network_of_each_family() {
    let network = |text: &str, length| Network::new(text.parse::<IpAddr>().unwrap().into(), length);
    let networks = |detect_local, nodes: &[Node]| {
        let options = Options { detect_local, ..Options::on_node("node-a") };
        let mut model = Model::new(options, Restored::default());
        nodes.iter().for_each(|node| apply(&mut model, node.clone()));
        model.pod_networks()
    };
    let none = [Network::NONE; 2];
    let first = node(&json!({}), &json!({ "podCIDRs": ["fd00:1::/64", "10.244.1.0/24", "10.244.2.0/24"] }));
    let second = node(&json!({}), &json!({ "podCIDRs": ["10.244.3.0/24"] }));
    for detect_local in [DetectLocal::Off, DetectLocal::ByDevice, DetectLocal::cluster_cidr("").unwrap()] {
        assert_eq!(networks(detect_local, std::slice::from_ref(&first)), none);
    }
    assert_eq!(
        networks(DetectLocal::cluster_cidr("fd00:10::/48,10.244.0.0/16").unwrap(), &[]),
        [network("10.244.0.0", 16), network("fd00:10::", 48)]
    );
    assert_eq!(
        networks(DetectLocal::cluster_cidr("10.244.0.0/16").unwrap(), &[]),
        [network("10.244.0.0", 16), Network::NONE]
    );
    assert_eq!(networks(DetectLocal::NodeCidr, &[]), none);
    let own = [network("10.244.1.0", 24), network("fd00:1::", 64)];
    assert_eq!(networks(DetectLocal::NodeCidr, std::slice::from_ref(&first)), own);
    let followed = [network("10.244.3.0", 24), Network::NONE];
    assert_eq!(networks(DetectLocal::NodeCidr, &[first, second]), followed);
}
