//! What gets written, when, and what becomes of writes that fail.

use std::time::Duration;

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use proxy_common::backend::{BackendFlags, BackendId, Generation};
use proxy_model::{Change, Event, Model, Restored};
use serde_json::json;

use crate::common::{
    Memory, model_on,
    objects::{apply, delete, replace, service, service_with, slice},
    settle,
};

const VIP: &str = "10.96.0.1";

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// `default/web` with the given backends, committed at second 0.
fn web(addresses: &[&str]) -> (Model, Memory) {
    let (mut model, mut memory) = (model_on(Restored::default()), Memory::default());
    replace(&mut model, vec![service("web", VIP)], vec![slice("web", addresses)]);
    assert!(settle(&mut model, at(0), &mut memory).is_empty());
    (model, memory)
}

fn id_of(memory: &Memory, address: &str) -> BackendId {
    let live = memory.backends.iter().filter(|(_, row)| row.flags.contains(BackendFlags::LIVE));
    let mut found = live.filter(|(_, row)| row.address.to_string() == address);
    let (&id, _) = found.next().unwrap();
    assert!(found.next().is_none(), "{address} has two backends");
    BackendId(id)
}

/// SYNC-01.
#[test]
fn nothing_is_written_before_both_lists_have_arrived() {
    let (mut model, mut memory) = (model_on(Restored::default()), Memory::default());
    apply(&mut model, service("web", VIP));
    apply(&mut model, slice("web", &["10.0.0.1"]));
    model.apply(Change::Service(Event::Replace(vec![service("web", VIP)])));
    assert!(!model.is_synced());
    settle(&mut model, at(0), &mut memory);
    assert_eq!(memory.attempts, 0);
    model.apply(Change::EndpointSlice(Event::Replace(vec![slice("web", &["10.0.0.1"])])));
    assert!(model.is_synced() && model.is_unfinished());
    settle(&mut model, at(0), &mut memory);
    assert_eq!(memory.render(), "10.96.0.1:80/TCP default/web:http/TCP/IPv4 -> 10.0.0.1:8080\n");
    assert!(!model.is_unfinished());
}

#[test]
fn a_restart_with_the_same_objects_writes_nothing() {
    let (mut model, memory) = web(&["10.0.0.1", "10.0.0.2!"]);
    let mut memory = memory;
    apply(&mut model, slice("web", &["10.0.0.2!", "10.0.0.3"]));
    settle(&mut model, at(5), &mut memory);

    let mut again = model_on(memory.restored());
    replace(&mut again, vec![service("web", VIP)], vec![slice("web", &["10.0.0.3", "10.0.0.2!"])]);
    memory.attempts = 0;
    settle(&mut again, at(0), &mut memory);
    assert_eq!(memory.attempts, 0);
    assert_eq!(again.counts(), model.counts());
    assert!(!again.is_unfinished());
}

#[test]
fn what_was_deleted_during_the_restart_goes_only_after_the_lists() {
    let (_, mut memory) = web(&["10.0.0.1"]);
    let mut model = model_on(memory.restored());
    settle(&mut model, at(0), &mut memory);
    assert_eq!(memory.frontends.len(), 1);
    replace(&mut model, vec![], vec![]);
    settle(&mut model, at(0), &mut memory);
    assert_eq!((memory.frontends.len(), memory.names.len(), memory.live()), (0, 0, 0));
}

#[test]
fn backends_keep_their_ids_while_others_come_and_go() {
    let (mut model, mut memory) = web(&["10.0.0.1", "10.0.0.2"]);
    let kept = id_of(&memory, "10.0.0.2");
    apply(&mut model, slice("web", &["10.0.0.2", "10.0.0.3"]));
    settle(&mut model, at(1), &mut memory);
    assert_eq!(id_of(&memory, "10.0.0.2"), kept);
    assert_eq!(memory.live(), 2);
}

/// SVC-10, SVC-11, EPS-05.
#[test]
fn an_update_that_changes_nothing_relevant_writes_nothing() {
    let (mut model, mut memory) = web(&["10.0.0.1", "10.0.0.2"]);
    memory.attempts = 0;
    let mut other = slice("web", &["10.0.0.2", "10.0.0.1"]);
    other
        .metadata
        .labels
        .get_or_insert_default()
        .insert("endpointslice.kubernetes.io/managed-by".into(), "me".into());
    for endpoint in other.endpoints.iter_mut().flatten() {
        endpoint.hostname = Some("web-0".to_owned());
        endpoint.zone = Some("zone-a".to_owned());
    }
    apply(&mut model, other);
    let mut labelled = service_with(
        "web",
        json!({
            "clusterIP": VIP, "selector": { "app": "web" }, "publishNotReadyAddresses": true,
            "trafficDistribution": "PreferClose", "ipFamilyPolicy": "SingleStack", "healthCheckNodePort": 30999,
            "loadBalancerIP": "192.0.2.1", "loadBalancerClass": "example.com/lb", "allocateLoadBalancerNodePorts": false,
            "ports": [{ "name": "http", "port": 80, "targetPort": "web", "appProtocol": "h2c" }],
        }),
    );
    labelled.metadata.labels = Some([("team".to_owned(), "a".to_owned())].into());
    let annotations =
        ["service.beta.kubernetes.io/load-balancer-source-ranges", "service.kubernetes.io/topology-mode"];
    labelled.metadata.annotations =
        Some(annotations.map(|name| (name.to_owned(), "10.0.0.0/8".to_owned())).into());
    let ingress = json!({ "loadBalancer": { "ingress": [{ "hostname": "lb", "ports": [] }] } });
    labelled.status = serde_json::from_value(ingress).unwrap();
    apply(&mut model, labelled);
    settle(&mut model, at(1), &mut memory);
    assert_eq!(memory.attempts, 0);
}

#[test]
fn a_backend_that_leaves_keeps_its_record_but_not_its_life() {
    let (mut model, mut memory) = web(&["10.0.0.1", "10.0.0.2"]);
    let id = id_of(&memory, "10.0.0.1");
    let before = memory.backends[&id.0];
    apply(&mut model, slice("web", &["10.0.0.2"]));
    settle(&mut model, at(1), &mut memory);
    let after = memory.backends[&id.0];
    assert_eq!(
        (after.end(), after.generation, after.service),
        (before.end(), before.generation, before.service)
    );
    assert!(!after.flags.contains(BackendFlags::LIVE));
}

#[test]
fn an_id_rests_before_it_names_another_backend_of_the_next_generation() {
    let (mut model, mut memory) = web(&["10.0.0.1"]);
    let id = id_of(&memory, "10.0.0.1");
    apply(&mut model, slice("web", &["10.0.0.2"]));
    settle(&mut model, at(1), &mut memory);
    assert_ne!(id_of(&memory, "10.0.0.2"), id);
    apply(&mut model, slice("web", &["10.0.0.3"]));
    settle(&mut model, at(2), &mut memory);
    assert_eq!(id_of(&memory, "10.0.0.3"), id);
    assert_eq!(memory.backends[&id.0].generation, Generation(1));
}

#[test]
fn slots_in_use_by_a_program_are_not_overwritten_at_once() {
    let (mut model, mut memory) = web(&["10.0.0.1", "10.0.0.2"]);
    let run = |memory: &Memory| memory.frontends.values().next().unwrap().slots.base;
    let first = run(&memory);
    let content = memory.slots.clone();
    for (address, millis) in [("10.0.0.3", 100), ("10.0.0.4", 200), ("10.0.0.5", 300)] {
        apply(&mut model, slice("web", &["10.0.0.1", address]));
        settle(&mut model, Duration::from_millis(millis), &mut memory);
        assert!(content.iter().all(|(slot, id)| memory.slots[slot] == *id));
    }
    apply(&mut model, slice("web", &["10.0.0.1", "10.0.0.6"]));
    settle(&mut model, at(2), &mut memory);
    assert_eq!(run(&memory), first);
}

/// SVC-13, EPS-14.
#[test]
fn a_service_that_comes_back_in_the_same_breath_is_not_touched() {
    let (mut model, mut memory) = web(&["10.0.0.1"]);
    memory.attempts = 0;
    delete::<Service>(&mut model, "web");
    delete::<EndpointSlice>(&mut model, "web-1");
    apply(&mut model, slice("web", &["10.0.0.1"]));
    apply(&mut model, service("web", VIP));
    settle(&mut model, at(1), &mut memory);
    assert_eq!(memory.attempts, 0);
}

#[test]
fn counters_are_zeroed_for_each_new_service_and_never_while_it_counts() {
    let (mut model, mut memory) = web(&["10.0.0.1"]);
    apply(&mut model, slice("web", &["10.0.0.2"]));
    settle(&mut model, at(1), &mut memory);
    assert_eq!(memory.resets.len(), 1);
    delete::<Service>(&mut model, "web");
    settle(&mut model, at(2), &mut memory);
    apply(&mut model, service("web", VIP));
    settle(&mut model, at(4), &mut memory);
    assert_eq!(memory.resets.len(), 2);
    assert_eq!(memory.resets[0], memory.resets[1]);
}

#[test]
fn every_single_failed_write_is_made_up_for_and_harms_no_other_service() {
    let steps: [&[&str]; 4] = [&["10.0.0.1", "10.0.0.2!"], &["10.0.0.2!", "10.0.0.3"], &[], &["10.0.0.4"]];
    for failing in 0..60 {
        let (mut model, mut memory) = (model_on(Restored::default()), Memory::default());
        memory.failures.insert(failing);
        replace(&mut model, vec![service("other", "10.96.0.9")], vec![slice("other", &["10.9.0.1"])]);
        for (step, addresses) in steps.iter().enumerate() {
            let now = at(10 * step as u64);
            apply(&mut model, service("web", VIP));
            apply(&mut model, slice("web", addresses));
            model.plan(now);
            let failed = !model.commit(now, &mut memory).is_empty();
            assert_eq!(model.is_unfinished(), failed);
            if step == 1 {
                // A change on top of a commit that may have stopped half way.
                delete::<Service>(&mut model, "web");
            }
            model.plan(now);
            let failed = !model.commit(now, &mut memory).is_empty();
            assert_eq!(model.is_unfinished(), failed);
            assert!(model.commit(now, &mut memory).is_empty());
            assert!(!model.is_unfinished());
        }
        assert_eq!(
            memory.render(),
            "10.96.0.1:80/TCP default/web:http/TCP/IPv4 -> 10.0.0.4:8080\n\
             10.96.0.9:80/TCP default/other:http/TCP/IPv4 -> 10.9.0.1:8080\n",
            "write {failing} failed"
        );
        assert_eq!(memory.live(), 2, "write {failing} failed");
    }
}

#[test]
fn a_failed_flip_keeps_the_old_set_alive() {
    let (mut model, mut memory) = web(&["10.0.0.1"]);
    let before = memory.render();
    apply(&mut model, slice("web", &["10.0.0.2"]));
    model.plan(at(1));
    // Filter, backend, slot; then the frontend.
    memory.failures = (memory.attempts..memory.attempts + 100).filter(|n| n - memory.attempts >= 3).collect();
    let errors = model.commit(at(1), &mut memory);
    assert_eq!(
        errors.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["FRONTENDS: default/web:http/TCP/IPv4: write refused"]
    );
    assert_eq!(memory.render(), before);
    memory.failures.clear();
    settle(&mut model, at(2), &mut memory);
    assert_eq!((memory.render(), memory.live()), (before.replace("10.0.0.1:", "10.0.0.2:"), 1));
}
