//! What does not fit is said by name, costs nobody else anything, and gets its place when there is one.

use std::time::Duration;

use proptest::prelude::*;
use proxy_model::{Capacities, Model, Options, Restored};
use serde_json::{Value, json};

use crate::common::{
    Checks, Memory,
    objects::{apply, replace, service, service_with, slice},
    settle,
};

fn addresses(count: u32) -> Vec<String> {
    (0..count).map(|n| std::net::Ipv4Addr::from(0x0b00_0000 + n).to_string()).collect()
}

fn many(service: &str, count: u32) -> k8s_openapi::api::discovery::v1::EndpointSlice {
    let addresses = addresses(count);
    slice(service, &addresses.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Room for little: to fill the real tables, and to look at them after every write, takes a while.
const SMALL: Capacities =
    Capacities { services: 8, backends: 200, slots: 400, frontends: 10, source_ranges: 8 };

fn empty() -> (Model, Memory) {
    (Model::with_capacities(Options::on_node("node-a"), Restored::default(), SMALL), Memory::default())
}

#[test]
fn a_service_that_finds_no_backend_ids_keeps_what_it_has_until_there_are() {
    let (mut model, mut memory) = empty();
    replace(
        &mut model,
        vec![service("big", "10.96.0.1"), service("small", "10.96.0.2")],
        vec![many("big", SMALL.backends - 3), slice("small", &["10.0.0.1"])],
    );
    assert!(settle(&mut model, Duration::ZERO, &mut memory).is_empty());
    apply(&mut model, slice("small", &["10.0.0.2", "10.0.0.3", "10.0.0.4"]));
    assert_eq!(
        settle(&mut model, Duration::from_secs(1), &mut memory),
        ["default/small:http/TCP/IPv4: table BACKENDS has no room for 3 more"]
    );
    let small = |memory: &Memory| memory.render().lines().last().unwrap().to_owned();
    assert_eq!(small(&memory), "10.96.0.2:80/TCP default/small:http/TCP/IPv4 -> 10.0.0.1:8080");
    assert_eq!(model.problems().count(), 1);
    assert!(model.is_unfinished());

    apply(&mut model, many("big", 10));
    assert!(settle(&mut model, Duration::from_secs(2), &mut memory).is_empty());
    settle(&mut model, Duration::from_secs(3), &mut memory);
    assert_eq!(
        small(&memory),
        "10.96.0.2:80/TCP default/small:http/TCP/IPv4 -> 10.0.0.2:8080, 10.0.0.3:8080, 10.0.0.4:8080"
    );
    assert_eq!(model.problems().count(), 0);
    assert!(!model.is_unfinished());
    memory.consistency().unwrap();
}

#[test]
fn updates_faster_than_slots_become_free_wait_for_them() {
    let (mut model, mut memory) = empty();
    let size = SMALL.slots / 5;
    replace(&mut model, vec![service("big", "10.96.0.1")], vec![many("big", size)]);
    let mut problems = Vec::new();
    for step in 0..5 {
        apply(&mut model, many("big", size + step));
        problems.extend(settle(&mut model, Duration::from_millis(step.into()), &mut memory));
    }
    let last = size + 4;
    assert_eq!(problems, [format!("default/big:http/TCP/IPv4: table SLOTS has no room for {last} more")]);
    assert_eq!(memory.live(), last as usize - 1);
    settle(&mut model, Duration::from_secs(2), &mut memory);
    assert_eq!(memory.live(), last as usize);
    memory.consistency().unwrap();
}

#[test]
fn one_service_port_too_many_is_named() {
    let (mut model, mut memory) = empty();
    let ports: Vec<Value> =
        (1..=SMALL.services + 1).map(|n| json!({ "name": format!("p{n:05}"), "port": n })).collect();
    let all = service_with("wide", json!({ "clusterIP": "10.96.0.1", "ports": ports }));
    replace(&mut model, vec![all], vec![]);
    assert_eq!(
        settle(&mut model, Duration::ZERO, &mut memory),
        ["default/wide:p00009/TCP/IPv4: table SERVICE_NAMES has no room for 1 more"]
    );
    assert_eq!(memory.frontends.len(), 8);
}

/// A Service whose load balancer admits so many networks, from the `first` on.
fn restricted(name: &str, vip: &str, first: usize, ranges: usize) -> k8s_openapi::api::core::v1::Service {
    let ranges: Vec<String> = (first..first + ranges).map(|n| format!("10.{n}.0.0/16")).collect();
    let mut service = service_with(
        name,
        json!({
            "type": "LoadBalancer", "clusterIP": vip, "loadBalancerSourceRanges": ranges,
            "ports": [{ "name": "http", "port": 80 }],
        }),
    );
    let ingress = json!({ "loadBalancer": { "ingress": [{ "ip": vip.replace("10.96.0", "192.0.2") }] } });
    service.status = serde_json::from_value(ingress).unwrap();
    service
}

#[test]
fn a_service_with_too_many_source_ranges_waits_for_room_and_others_do_not_notice() {
    let (mut model, mut memory) = empty();
    let half = SMALL.source_ranges as usize / 2;
    replace(
        &mut model,
        vec![restricted("a", "10.96.0.1", 0, half), restricted("b", "10.96.0.2", 0, half + 1)],
        vec![slice("a", &["10.0.0.1"]), slice("b", &["10.0.0.2"])],
    );
    let full = "default/b:http/TCP/IPv4: table SOURCE_RANGES has no room for 5 more";
    assert_eq!(settle(&mut model, Duration::ZERO, &mut memory), [full]);
    assert_eq!((memory.ranges.len(), memory.frontends.len()), (half, 2), "all or nothing");
    assert_eq!(model.unfit_ports().count(), 1);
    // How much does not fit may change; that it does not fit is said once.
    apply(&mut model, restricted("b", "10.96.0.2", 0, half + 2));
    assert_eq!(settle(&mut model, Duration::from_secs(1), &mut memory), [""; 0]);
    assert!(model.is_unfinished());
    apply(&mut model, restricted("a", "10.96.0.1", 0, 2));
    settle(&mut model, Duration::from_secs(2), &mut memory);
    settle(&mut model, Duration::from_secs(3), &mut memory);
    assert_eq!((memory.ranges.len(), memory.frontends.len()), (half + 4, 4));
    assert_eq!(model.unfit_ports().count(), 0);
    assert!(!model.is_unfinished());
    memory.consistency().unwrap();
}

#[test]
fn a_service_with_too_many_addresses_waits_for_room() {
    let (mut model, mut memory) = empty();
    let external: Vec<String> = (0..SMALL.frontends).map(|n| format!("192.0.2.{n}")).collect();
    let ports = json!([{ "name": "http", "port": 80 }]);
    let wide =
        service_with("wide", json!({ "clusterIP": "10.96.0.1", "externalIPs": external, "ports": ports }));
    replace(&mut model, vec![wide, service("small", "10.96.0.2")], vec![]);
    let full = "default/wide:http/TCP/IPv4: table FRONTENDS has no room for 11 more";
    assert_eq!(settle(&mut model, Duration::ZERO, &mut memory), [full]);
    assert_eq!(memory.frontends.len(), 1);
    apply(&mut model, service("wide", "10.96.0.1"));
    settle(&mut model, Duration::from_secs(1), &mut memory);
    assert_eq!(memory.frontends.len(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever Services ask for, no table gets more than it has room for; and once they ask for less, all fit.
    #[test]
    fn no_table_ever_overflows(steps in prop::collection::vec((0u8..6, 0usize..7, 0u32..120), 1..40)) {
        let (mut model, mut memory) = empty();
        // After every step is enough here, and takes far less time.
        memory.checks = Checks::Off;
        replace(&mut model, vec![], vec![]);
        let mut now = Duration::ZERO;
        for (number, ranges, backends) in steps {
            let (name, vip) = (format!("s{number}"), format!("10.96.0.{number}"));
            apply(&mut model, restricted(&name, &vip, ranges, ranges));
            apply(&mut model, many(&name, backends));
            now += Duration::from_millis(400);
            settle(&mut model, now, &mut memory);
            prop_assert!(memory.ranges.len() <= SMALL.source_ranges as usize);
            prop_assert!(memory.frontends.len() <= SMALL.frontends as usize);
            prop_assert!(memory.names.len() <= SMALL.services as usize);
            prop_assert!(memory.consistency().is_ok());
        }
        // What is new is written before what is old goes, so those who want less must not all ask at once.
        for number in 0..6 {
            let name = format!("s{number}");
            apply(&mut model, service(&name, &format!("10.96.0.{number}")));
            apply(&mut model, many(&name, 0));
            for _ in 0..3 {
                now += Duration::from_secs(2);
                settle(&mut model, now, &mut memory);
            }
        }
        prop_assert_eq!(model.unfit_ports().count(), 0);
        prop_assert!(!model.is_unfinished());
    }
}

#[test]
fn a_service_that_does_not_fit_leaves_its_old_address_to_the_next_in_good_order() {
    let (mut model, mut memory) = empty();
    replace(
        &mut model,
        vec![service("a", "10.96.0.1"), service("b", "10.96.0.2"), service("big", "10.96.0.3")],
        vec![many("big", SMALL.backends - 3), slice("a", &["10.0.0.1"])],
    );
    assert!(settle(&mut model, Duration::ZERO, &mut memory).is_empty());
    // A change of `a` stops half way, before the flip.
    apply(&mut model, slice("a", &["10.0.0.1", "10.0.0.2"]));
    model.plan(Duration::ZERO);
    memory.failures = (memory.attempts + 2..memory.attempts + 100).collect();
    assert_eq!(model.commit(Duration::ZERO, &mut memory).len(), 1);
    memory.failures.clear();
    // Then it moves and grows beyond what is free, and `b` gets its address and the last id.
    apply(&mut model, service("a", "10.96.0.9"));
    apply(&mut model, slice("a", &["10.0.0.3", "10.0.0.4"]));
    apply(&mut model, service("b", "10.96.0.1"));
    apply(&mut model, slice("b", &["10.0.0.5"]));
    assert_eq!(
        settle(&mut model, Duration::ZERO, &mut memory),
        ["default/a:http/TCP/IPv4: table BACKENDS has no room for 2 more"]
    );
    let first = |memory: &Memory| memory.render().lines().next().unwrap().to_owned();
    assert_eq!(first(&memory), "10.96.0.1:80/TCP default/b:http/TCP/IPv4 -> 10.0.0.5:8080");
    apply(&mut model, many("big", 10));
    settle(&mut model, Duration::from_secs(1), &mut memory);
    settle(&mut model, Duration::from_secs(2), &mut memory);
    assert!(
        memory.render().contains("10.96.0.9:80/TCP default/a:http/TCP/IPv4 -> 10.0.0.3:8080, 10.0.0.4:8080"),
        "{}",
        first(&memory)
    );
    assert_eq!(memory.live(), 13);
    assert!(!model.is_unfinished());
}

#[test]
fn the_tables_can_be_filled_to_the_last_entry_and_found_again() {
    let (mut model, mut memory) = empty();
    let services: Vec<_> =
        (0..SMALL.services).map(|n| service(&format!("s{n}"), &format!("10.96.0.{n}"))).collect();
    let slices: Vec<_> =
        (0..SMALL.services).map(|n| many(&format!("s{n}"), SMALL.backends / SMALL.services)).collect();
    replace(&mut model, services.clone(), slices.clone());
    assert!(settle(&mut model, Duration::ZERO, &mut memory).is_empty());
    assert_eq!(memory.live(), SMALL.backends as usize);
    assert!(memory.backends.keys().all(|id| *id < SMALL.backends));
    assert!(memory.slots.keys().all(|slot| *slot < SMALL.slots));

    let mut again = Model::with_capacities(Options::on_node("node-a"), memory.restored(), SMALL);
    replace(&mut again, services, slices);
    memory.attempts = 0;
    assert!(settle(&mut again, Duration::ZERO, &mut memory).is_empty());
    assert_eq!(memory.attempts, 0);
}
