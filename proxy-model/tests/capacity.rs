//! What does not fit is said by name, costs nobody else anything, and gets its place when there is one.

use std::time::Duration;

use proxy_model::{Capacities, Model, Options, Restored};
use serde_json::{Value, json};

use crate::common::{
    Memory,
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
const SMALL: Capacities = Capacities { services: 8, backends: 200, slots: 400 };

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
        ["default/small:http/TCP/IPv4: no room for 3 more backends"]
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
    assert_eq!(problems, [format!("default/big:http/TCP/IPv4: no room for a run of {last} slots")]);
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
        ["default/wide:p00009/TCP/IPv4: no service id is free"]
    );
    assert_eq!(memory.frontends.len(), 8);
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
        ["default/a:http/TCP/IPv4: no room for 2 more backends"]
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
