//! Which endpoints are in which set, by the names of upstream's cases.

mod told;

use std::{num::NonZeroU16, sync::Arc};

use k8s_openapi::api::core::v1::Node;
use serde_json::json;

use super::*;
use crate::{
    change::Event,
    endpoint::{Conditions, SlicePort},
    external::External,
    name::Family,
    policy::{OnRemoval, SessionAffinity, TrafficPolicy},
    topology::Hints,
};

/// An endpoint in words: its address, `local`, how it is, if not ready, and for which zones it is meant.
fn endpoint(text: &str) -> Endpoint {
    let mut words = text.split(' ');
    let mut endpoint = Endpoint {
        ip: words.next().unwrap().parse().unwrap(),
        location: Location::Remote,
        conditions: Conditions { ready: true, serving: true, terminating: false },
        hints: Hints::default(),
    };
    let Conditions { ready, serving, terminating } = &mut endpoint.conditions;
    for word in words {
        match word {
            "local" => endpoint.location = Location::Local,
            "unready" => *ready = false,
            "stopping" => *terminating = true,
            "draining" => (*ready, *terminating) = (false, true),
            "dead" => (*ready, *serving, *terminating) = (false, false, true),
            zone if zone.starts_with("zone-") => endpoint.hints.zones.push(zone.to_owned()),
            other => panic!("{other}?"),
        }
    }
    endpoint
}

fn slice(endpoints: &[&str]) -> Slice {
    let port = SlicePort {
        name: "http".to_owned(),
        transport: Transport::Tcp,
        port: NonZeroU16::new(8080).unwrap(),
    };
    Slice {
        service: "web".to_owned(),
        family: Family::Ipv4,
        endpoints: endpoints.iter().map(|text| endpoint(text)).collect(),
        ports: [port].into(),
    }
}

/// A node in `zone-a`.
fn node() -> ThisNode {
    let mut this = ThisNode::new("node-a", None);
    let labels = json!({ "topology.kubernetes.io/zone": "zone-a" });
    let node: Node =
        serde_json::from_value(json!({ "metadata": { "name": "node-a", "labels": labels } })).unwrap();
    this.apply(&Event::Apply(node));
    this
}

/// A service port that nobody outside can reach.
fn internal(internal: TrafficPolicy) -> ServicePort {
    ServicePort {
        name: "default/web:http/TCP/IPv4".parse().unwrap(),
        cluster_ip: "10.96.0.1".parse().unwrap(),
        port: NonZeroU16::new(80).unwrap(),
        node_port: None,
        internal,
        external: Arc::default(),
        affinity: SessionAffinity::None,
        on_removal: OnRemoval::Keep,
        selection: None,
        forwarding: None,
    }
}

/// One with a node port.
fn external(internal_policy: TrafficPolicy, policy: TrafficPolicy) -> ServicePort {
    ServicePort {
        node_port: NonZeroU16::new(30_080),
        external: Arc::new(External { policy, ..External::default() }),
        ..internal(internal_policy)
    }
}

/// With all its frontends. What is told about the endpoints is what was done with them.
fn sets_of(port: &ServicePort, slices: &[Slice]) -> Sets {
    let sets = choose(port, &port.frontends(true), slices.iter(), &node(), &Options::default());
    for told in explain(port, &port.frontends(true), slices.iter(), &node(), &Options::default()) {
        let chosen = sets
            .backends
            .iter()
            .find(|(at, _)| (at.ip, at.port.get()) == (told.address.ip(), told.address.port()));
        let has = |set: Set| chosen.is_some_and(|(_, flags)| flags.contains(set.flag()));
        assert_eq!(
            (told.cluster_set.is_ok(), told.local_set.is_ok()),
            (has(Set::Cluster), has(Set::Local)),
            "{told:?}"
        );
    }
    sets
}

/// Who is in a set.
fn members(sets: &Sets, set: Set) -> Vec<String> {
    let members = sets.backends.iter().filter(|(_, flags)| flags.contains(set.flag()));
    members.map(|(address, _)| address.ip.to_string()).collect()
}

fn target(policy: TrafficPolicy, slices: &[Slice]) -> Sets {
    sets_of(&internal(policy), slices)
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

/// The cluster set under the policy Cluster.
fn chosen(slices: &[Slice]) -> Vec<String> {
    let sets = target(TrafficPolicy::Cluster, slices);
    assert_eq!((members(&sets, Set::Local), sets.only_elsewhere), (vec![], false));
    members(&sets, Set::Cluster)
}

/// SEL-02, SEL-08, COND-01, COND-02.
#[test]
fn ready_endpoints_suppress_the_terminating() {
    let slices = [slice(&["10.0.0.1 draining", "10.0.0.2", "10.0.0.3 stopping"])];
    assert_eq!(chosen(&slices), ["10.0.0.2", "10.0.0.3"]);
}

/// SEL-03, COND-03 to COND-05.
#[test]
fn those_that_terminate_and_serve_are_the_last_resort() {
    let slices = [slice(&["10.0.0.1 draining", "10.0.0.2 dead", "10.0.0.3 unready"])];
    assert_eq!(chosen(&slices), ["10.0.0.1"]);
    assert_eq!(chosen(&[slice(&["10.0.0.3 unready", "10.0.0.2 dead"])]), [""; 0]);
}

/// EPS-11.
#[test]
fn ready_beats_terminating_for_the_same_address_in_either_order() {
    let (a, b) = (slice(&["10.0.0.1"]), slice(&["10.0.0.1 draining"]));
    assert_eq!(chosen(&[a.clone(), b.clone()]), ["10.0.0.1"]);
    assert_eq!(chosen(&[b, a]), ["10.0.0.1"]);
}

/// EPS-11.
#[test]
fn the_last_record_that_does_not_terminate_wins_and_the_first_that_does() {
    assert_eq!(chosen(&[slice(&["10.0.0.1", "10.0.0.1 unready"])]), [""; 0]);
    assert_eq!(chosen(&[slice(&["10.0.0.1 unready", "10.0.0.1"])]), ["10.0.0.1"]);
    assert_eq!(chosen(&[slice(&["10.0.0.1 dead", "10.0.0.1 draining"])]), [""; 0]);
}

/// The cases of `TestCategorizeEndpoints` that are about conditions, by their names; the last three are ours.
#[test]
fn hints_and_conditions() {
    for (name, endpoints, backends) in [
        (
            "unready endpoint",
            &["10.1.2.3 zone-a", "10.1.2.4 zone-b", "10.1.2.5 zone-c", "10.1.2.6 zone-a unready"][..],
            &["10.1.2.3"][..],
        ),
        (
            "only unready endpoints in same zone (should not filter)",
            &["10.1.2.3 zone-a unready", "10.1.2.4 zone-b", "10.1.2.5 zone-c", "10.1.2.6 zone-a unready"],
            &["10.1.2.4", "10.1.2.5"],
        ),
        ("Cluster traffic policy, endpoints not Ready", &["10.0.0.0 unready", "10.0.0.1 unready"], &[]),
        (
            "Cluster traffic policy, some endpoints are Ready",
            &["10.0.0.0 unready", "10.0.0.1"],
            &["10.0.0.1"],
        ),
        (
            "Cluster traffic policy, all endpoints are terminating",
            &["10.0.0.0 local draining", "10.0.0.1 draining"],
            &["10.0.0.0", "10.0.0.1"],
        ),
        (
            "all endpoints are terminating, hints are ignored",
            &["10.0.0.0 draining zone-a", "10.0.0.1 draining zone-b"],
            &["10.0.0.0", "10.0.0.1"],
        ),
        (
            "a terminating endpoint without hints does not matter",
            &["10.0.0.0 zone-a", "10.0.0.1 draining", "10.0.0.2 zone-b"],
            &["10.0.0.0"],
        ),
        (
            "a terminating endpoint that is ready does",
            &["10.0.0.0 zone-a", "10.0.0.1 stopping", "10.0.0.2 zone-b"],
            &["10.0.0.0", "10.0.0.1", "10.0.0.2"],
        ),
    ] {
        assert_eq!(chosen(&[slice(endpoints)]), owned(backends), "{name}");
    }
}

/// The cases of `TestCategorizeEndpoints` that set the internal policy alone, by their names; the last five are
/// ours.
#[test]
fn the_policy_local_never_leaves_the_node() {
    let (drop, refuse) = (true, false);
    for (name, endpoints, backends, silent) in [
        ("internalTrafficPolicy: Local, with empty endpoints", &[][..], &[][..], refuse),
        ("internalTrafficPolicy: Local, but all endpoints are remote", &["10.0.0.0", "10.0.0.1"], &[], drop),
        (
            "internalTrafficPolicy: Local, all endpoints are local",
            &["10.0.0.0 local", "10.0.0.1 local"],
            &["10.0.0.0", "10.0.0.1"],
            refuse,
        ),
        (
            "internalTrafficPolicy: Local, some endpoints are local",
            &["10.0.0.0 local", "10.0.0.1"],
            &["10.0.0.0"],
            refuse,
        ),
        (
            "no cluster endpoints for iTP:Local internal-only service",
            &["10.0.0.0", "10.0.0.1 local"],
            &["10.0.0.1"],
            refuse,
        ),
        (
            "internalTrafficPolicy: Local, topology ignored for Local endpoints",
            &["10.1.2.3 local zone-a", "10.1.2.4 local zone-b", "10.1.2.5 zone-c", "10.1.2.6 zone-a"],
            &["10.1.2.3", "10.1.2.4"],
            refuse,
        ),
        ("local ones terminate", &["10.0.0.0", "10.0.0.1 local draining"], &["10.0.0.1"], refuse),
        (
            "local ones terminate, but not all",
            &["10.0.0.0 local", "10.0.0.1 local draining"],
            &["10.0.0.0"],
            refuse,
        ),
        ("remote ones terminate", &["10.0.0.0 draining", "10.0.0.1 local dead"], &[], drop),
        ("local ones cannot be used", &["10.0.0.0", "10.0.0.1 local unready"], &[], drop),
        ("none can be used", &["10.0.0.0 unready", "10.0.0.1 local dead"], &[], refuse),
    ] {
        let sets = target(TrafficPolicy::Local, &[slice(endpoints)]);
        assert_eq!((members(&sets, Set::Local), sets.only_elsewhere), (owned(backends), silent), "{name}");
        assert_eq!(members(&sets, Set::Cluster), owned(&[]), "{name}");
    }
}

/// The cases of `TestCategorizeEndpoints` that set the external policy, by their names; the last three are ours
/// (ETP-04, ETP-05, SEL-05).
#[test]
fn clients_outside_have_a_set_of_their_own() {
    use TrafficPolicy::{Cluster, Local};
    let two = &["10.0.0.0 local", "10.0.0.1"][..];
    for (name, port, endpoints, cluster, local, silent) in [
        (
            "iTP: Local, eTP: Cluster, some endpoints local",
            external(Local, Cluster),
            two,
            &["10.0.0.0", "10.0.0.1"][..],
            &["10.0.0.0"][..],
            false,
        ),
        (
            "iTP: Cluster, eTP: Local, some endpoints local",
            external(Cluster, Local),
            two,
            &["10.0.0.0", "10.0.0.1"],
            &["10.0.0.0"],
            false,
        ),
        (
            "iTP: Local, eTP: Local, some endpoints local",
            external(Local, Local),
            two,
            &["10.0.0.0", "10.0.0.1"],
            &["10.0.0.0"],
            false,
        ),
        (
            "iTP: Local, eTP: Local, all endpoints remote",
            external(Local, Local),
            &["10.0.0.0", "10.0.0.1"],
            &["10.0.0.0", "10.0.0.1"],
            &[],
            true,
        ),
        (
            "iTP: Local, eTP: Local, all endpoints remote and terminating",
            external(Local, Local),
            &["10.0.0.0 draining", "10.0.0.1 draining"],
            &["10.0.0.0", "10.0.0.1"],
            &[],
            true,
        ),
        (
            "iTP: Cluster, eTP: Local, with terminating endpoints",
            external(Cluster, Local),
            &["10.0.0.0", "10.0.0.1 local dead", "10.0.0.2 local draining", "10.0.0.3 draining"],
            &["10.0.0.0"],
            &["10.0.0.2"],
            false,
        ),
        (
            "no cluster endpoints for iTP:Local internal-only service",
            internal(Local),
            two,
            &[],
            &["10.0.0.0"],
            false,
        ),
        (
            "hints leave the local set alone",
            external(Cluster, Local),
            &["10.0.0.0 local zone-b", "10.0.0.1 zone-a"],
            &["10.0.0.1"],
            &["10.0.0.0"],
            false,
        ),
        (
            "nobody can be used",
            external(Cluster, Local),
            &["10.0.0.0 local unready", "10.0.0.1 dead"],
            &[],
            &[],
            false,
        ),
        ("nobody is there", external(Local, Local), &[], &[], &[], false),
    ] {
        let sets = sets_of(&port, &[slice(endpoints)]);
        let found = (members(&sets, Set::Cluster), members(&sets, Set::Local), sets.only_elsewhere);
        assert_eq!(found, (owned(cluster), owned(local), silent), "{name}");
    }
}

/// "externalTrafficPolicy ignored if not externally-accessible" of `TestCategorizeEndpoints`; SP-09, XIP-03.
#[test]
fn the_external_policy_needs_something_external() {
    let sets = |port: &ServicePort| sets_of(port, &[slice(&["10.0.0.0 local", "10.0.0.1"])]);
    let policy = TrafficPolicy::Local;
    let nothing = External { policy, ..External::default() };
    let port = ServicePort { external: Arc::new(nothing.clone()), ..internal(TrafficPolicy::Cluster) };
    assert_eq!(members(&sets(&port), Set::Local), owned(&[]));
    let vip = vec!["192.0.2.1".parse().unwrap()];
    for external in [
        External { external_ips: vip.clone(), ..nothing.clone() },
        External { load_balancer_ips: vip, ..nothing },
    ] {
        let port = ServicePort { external: Arc::new(external), ..internal(TrafficPolicy::Cluster) };
        assert_eq!(members(&sets(&port), Set::Local), ["10.0.0.0"]);
    }
}

/// SEL-07.
#[test]
fn who_is_in_both_sets_is_one_backend() {
    let port = external(TrafficPolicy::Local, TrafficPolicy::Local);
    let sets = sets_of(&port, &[slice(&["10.0.0.0 local", "10.0.0.1"])]);
    let flags: Vec<BackendFlags> = sets.backends.values().copied().collect();
    let live = BackendFlags::LIVE.with(BackendFlags::CLUSTER_SET);
    assert_eq!(flags, [live.with(BackendFlags::LOCAL).with(BackendFlags::LOCAL_SET), live]);
}

/// CT-03, CT-11.
#[test]
fn who_serves_keeps_the_flows_it_has_unless_they_are_tcp() {
    let slices = [slice(&["10.0.0.0", "10.0.0.1 draining", "10.0.0.2 unready", "10.0.0.3 dead"])];
    for (transport, expected) in [
        ("TCP", &["10.0.0.0"][..]),
        ("UDP", &["10.0.0.0", "10.0.0.1", "10.0.0.2"]),
        ("SCTP", &["10.0.0.0", "10.0.0.1", "10.0.0.2"]),
    ] {
        let name: ServicePortName = format!("default/web:http/{transport}/IPv4").parse().unwrap();
        let mut slices = slices.clone();
        slices[0].ports[0].transport = name.transport;
        let port = ServicePort { name, ..internal(TrafficPolicy::Cluster) };
        let sets = sets_of(&port, &slices);
        assert_eq!(sets.backends.keys().map(|address| address.ip.to_string()).collect::<Vec<_>>(), expected);
        assert_eq!(members(&sets, Set::Cluster), ["10.0.0.0"]);
    }
}
