//! What somebody else did to the tables is found and put right, and nothing else is touched.

use std::time::Duration;

use proxy_common::{
    addr::Addr,
    addresses::AddressFlags,
    backend::{Backend, BackendId},
    filter::FilterLine,
    frontend::{Frontend, FrontendKey, ServiceId},
    pod::{CgroupId, POD_NAME_BYTES, PodEntry, PodReasons},
    ranges::SourceRange,
    tables::NAME_BYTES,
    tuple::{Endpoint, Protocol},
};
use proxy_model::{Audit, Change, Event, Model, ObjectName, Restored};
use serde_json::json;

use crate::common::{
    Checks, Memory, model_on,
    objects::{apply, replace, service, service_with, slice},
    settle,
};

const NOW: Duration = Duration::ZERO;
const MANY: usize = 1_000_000;

/// Two Services with everything that has a table, committed.
fn programmed() -> (Model, Memory) {
    let (mut model, mut memory) = (model_on(Restored::default()), Memory::default());
    model.set_node_addresses(["192.0.2.1".parse().unwrap()]);
    let balanced = service_with(
        "balanced",
        json!({
            "type": "LoadBalancer", "clusterIP": "10.96.0.2", "selector": { "app": "balanced" },
            "loadBalancerSourceRanges": ["198.51.100.0/24", "198.51.100.64/26"],
            "ports": [{ "name": "http", "port": 80, "nodePort": 30080 }],
        }),
    );
    let mut balanced = balanced;
    balanced.status =
        serde_json::from_value(json!({ "loadBalancer": { "ingress": [{ "ip": "203.0.113.7" }] } })).unwrap();
    replace(
        &mut model,
        vec![service("web", "10.96.0.1"), balanced],
        vec![slice("web", &["10.0.0.1", "10.0.0.2"]), slice("balanced", &["10.0.0.3"])],
    );
    assert!(settle(&mut model, NOW, &mut memory).is_empty());
    assert!(!memory.ranges.is_empty() && memory.frontends.len() == 4);
    // From here on, the tables are made wrong on purpose.
    memory.checks = Checks::Off;
    memory.log.clear();
    (model, memory)
}

/// A whole audit, `most` entries at a time.
fn audit(model: &Model, memory: &mut Memory, most: usize) -> Audit {
    let mut audit = model.begin_audit(memory).unwrap().unwrap();
    while !audit.is_done() {
        model.go_on(&mut audit, most, memory).unwrap();
    }
    audit
}

fn contents(memory: &Memory) -> String {
    let Memory { frontends, slots, backends, names, addresses, ranges, filter, .. } = memory;
    let mut frontends: Vec<_> = frontends.iter().map(|row| format!("{row:?}")).collect();
    let mut addresses: Vec<_> = addresses.iter().map(|row| format!("{row:?}")).collect();
    let mut ranges: Vec<_> = ranges.iter().map(|row| format!("{row:?}")).collect();
    [&mut frontends, &mut addresses, &mut ranges].into_iter().for_each(|rows| rows.sort());
    format!("{frontends:#?} {slots:?} {backends:?} {names:?} {addresses:#?} {ranges:#?} {filter:?}")
}

#[test]
fn nothing_is_audited_before_anything_was_written() {
    let model = model_on(Restored::default());
    assert!(model.begin_audit(&Memory::default()).unwrap().is_none());
}

#[test]
fn what_is_as_it_was_written_is_left_alone() {
    let (model, mut memory) = programmed();
    let entries = memory.frontends.len()
        + memory.slots.len()
        + memory.backends.len()
        + memory.names.len()
        + memory.addresses.len()
        + memory.ranges.len()
        + memory.filter.len();
    let audit = audit(&model, &mut memory, 3);
    assert_eq!((audit.examined(), audit.repaired()), (entries, &[][..]));
    assert!(memory.log.is_empty());
}

#[test]
fn what_was_changed_deleted_or_added_is_put_right() {
    for most in [1, 2, MANY] {
        let (model, mut memory) = programmed();
        let before = contents(&memory);

        let stranger = FrontendKey::new(
            Endpoint { address: Addr::from_v4_wire([9, 9, 9, 9]), ..Endpoint::default() },
            Protocol::UDP,
        );
        let lost = *memory.frontends.keys().next().unwrap();
        memory.frontends.remove(&lost);
        let changed = *memory.frontends.keys().next().unwrap();
        memory.frontends.insert(changed, Frontend::default());
        memory.frontends.insert(stranger, Frontend::default());
        memory.backends.values_mut().next().unwrap().address = Addr::from_v4_wire([6, 6, 6, 6]);
        *memory.backends.values_mut().last().unwrap() = Backend::default();
        *memory.slots.values_mut().next().unwrap() = BackendId(77);
        memory.names.insert(ServiceId(4000), [b'x'; NAME_BYTES]);
        memory.names.pop_first();
        memory.addresses.clear();
        memory.addresses.insert(Addr::from_v4_wire([8, 8, 8, 8]), AddressFlags::NODE);
        let range = *memory.ranges.keys().next().unwrap();
        memory.ranges.remove(&range);
        memory.ranges.insert(SourceRange::new(ServiceId(1), Addr::from_v4_wire([7, 0, 0, 0]), 8), 1);
        *memory.filter.values_mut().next().unwrap() = FilterLine::default();
        memory.pods.insert(CgroupId(7), PodEntry { reason: PodReasons::NONE, name: [0; POD_NAME_BYTES] });

        let audit = audit(&model, &mut memory, most);
        assert_eq!(contents(&memory), before);
        let repaired: usize = audit.repaired().iter().map(|(_, count)| count).sum();
        assert_eq!(repaired, memory.log.len(), "{:?}", audit.repaired());
        assert_eq!(audit.repaired().first(), Some(&("ADDRESS_FILTER", 1)));
        assert!(audit.repaired().ends_with(&[("FRONTENDS", 3), ("PODS", 1)]), "{:?}", audit.repaired());
        assert!(memory.pods.is_empty());
    }
}

/// A commit between two parts of an audit may take entries away that the audit was to look at.
#[test]
fn changes_during_an_audit_are_not_undone() {
    let (mut model, mut memory) = programmed();
    let mut audit = model.begin_audit(&memory).unwrap().unwrap();
    model.go_on(&mut audit, 2, &mut memory).unwrap();
    apply(&mut model, slice("web", &["10.0.0.9"]));
    model.apply(Change::Service(Event::Delete(ObjectName {
        namespace: "default".to_owned(),
        name: "balanced".to_owned(),
    })));
    settle(&mut model, NOW, &mut memory);
    let before = contents(&memory);
    model.go_on(&mut audit, MANY, &mut memory).unwrap();
    assert!(audit.is_done() && audit.repaired().is_empty(), "{:?}", audit.repaired());
    assert_eq!(contents(&memory), before);
}

#[test]
fn an_entry_that_waits_for_its_write_is_left_to_that() {
    let (mut model, mut memory) = programmed();
    apply(&mut model, slice("web", &["10.0.0.1", "10.0.0.2", "10.0.0.4"]));
    model.plan(NOW);
    memory.failures = (memory.attempts..memory.attempts + 100).collect();
    assert!(!model.commit(NOW, &mut memory).is_empty());
    memory.failures.clear();
    let before = contents(&memory);
    assert!(audit(&model, &mut memory, MANY).repaired().is_empty());
    assert_eq!(contents(&memory), before);
    assert!(model.commit(NOW, &mut memory).is_empty());
}

#[test]
fn what_cannot_be_put_right_is_said_and_met_again() {
    let (model, mut memory) = programmed();
    let good = contents(&memory);
    memory.backends.values_mut().for_each(|backend| *backend = Backend::default());
    let count = memory.backends.len();
    memory.failures = [memory.attempts].into();
    let mut first = model.begin_audit(&memory).unwrap().unwrap();
    let error = model.go_on(&mut first, MANY, &mut memory).unwrap_err();
    assert_eq!(error.table, "BACKENDS");
    assert_eq!(audit(&model, &mut memory, MANY).repaired(), [("BACKENDS", count)]);
    assert_eq!(contents(&memory), good);
}
