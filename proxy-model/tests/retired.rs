//! Of which protocols backends were retired, for whoever has sockets leave them.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use proxy_model::{Restored, Transport};
use serde_json::json;

use crate::common::{
    Memory, model_on,
    objects::{apply, delete, replace, service_with, slice_with},
    settle,
};

const VIP: &str = "10.96.0.1";

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn web_with_dns() -> Service {
    service_with(
        "web",
        json!({ "clusterIP": VIP, "ports": [{ "name": "http", "port": 80 }, { "name": "dns", "port": 53, "protocol": "UDP" }] }),
    )
}

fn web_with_dns_at(addresses: &[&str]) -> EndpointSlice {
    slice_with(
        "web",
        addresses,
        json!([{ "name": "http", "port": 8080 }, { "name": "dns", "port": 5353, "protocol": "UDP" }]),
    )
}

/// CT-08, CT-20.
#[test]
fn protocols_whose_sockets_must_leave_a_backend_are_told_once() {
    let (mut model, mut memory) = (model_on(Restored::default()), Memory::default());
    replace(&mut model, vec![web_with_dns()], vec![web_with_dns_at(&["10.0.0.1", "10.0.0.2"])]);
    assert!(model.take_retired().is_empty());
    settle(&mut model, at(0), &mut memory);
    assert_eq!(
        model.take_retired(),
        Transport::ALL.into(),
        "nobody knows what an earlier run has left undone"
    );
    assert!(model.take_retired().is_empty());

    apply(&mut model, web_with_dns_at(&["10.0.0.1", "10.0.0.2", "10.0.0.3"]));
    settle(&mut model, at(1), &mut memory);
    assert!(model.take_retired().is_empty(), "nothing was retired");

    apply(&mut model, web_with_dns_at(&["10.0.0.1", "10.0.0.3"]));
    settle(&mut model, at(2), &mut memory);
    assert_eq!(model.take_retired(), [Transport::Udp].into());

    // Terminating endpoints that serve keep their flows (CT-11); what serves no more does not.
    let mut slice = web_with_dns_at(&["10.0.0.1", "10.0.0.3"]);
    for (serving, expected) in [(true, BTreeSet::new()), (false, BTreeSet::from([Transport::Udp]))] {
        let endpoint = slice.endpoints.as_mut().and_then(|all| all.first_mut()).unwrap();
        let conditions = json!({ "ready": false, "serving": serving, "terminating": true });
        endpoint.conditions = serde_json::from_value(conditions).unwrap();
        apply(&mut model, slice.clone());
        settle(&mut model, at(3), &mut memory);
        assert_eq!(model.take_retired(), expected, "serving: {serving}");
    }

    delete::<Service>(&mut model, "web");
    settle(&mut model, at(4), &mut memory);
    assert_eq!(model.take_retired(), [Transport::Udp].into());
}

#[test]
fn a_backend_counts_as_retired_when_that_is_written() {
    let (mut model, mut memory) = (model_on(Restored::default()), Memory::default());
    replace(&mut model, vec![web_with_dns()], vec![web_with_dns_at(&["10.0.0.1"])]);
    settle(&mut model, at(0), &mut memory);
    assert!(!model.take_retired().is_empty());
    apply(&mut model, web_with_dns_at(&[]));
    model.plan(at(1));
    memory.failures = (memory.attempts..memory.attempts + 100).collect();
    assert!(!model.commit(at(1), &mut memory).is_empty());
    assert!(model.take_retired().is_empty());
    memory.failures.clear();
    settle(&mut model, at(2), &mut memory);
    assert_eq!(model.take_retired(), [Transport::Udp].into());
}

/// TCP keeps its backend (CT-20), unless the Service asks for something else. What counts is what it asked for when
/// connections began.
#[test]
fn tcp_is_told_of_services_that_ask_for_resets_only() {
    let (mut model, mut memory) = (model_on(Restored::default()), Memory::default());
    let at_addresses =
        |addresses: &[&str]| slice_with("web", addresses, json!([{ "name": "http", "port": 8080 }]));
    let mut asking =
        service_with("web", json!({ "clusterIP": VIP, "ports": [{ "name": "http", "port": 80 }] }));
    let silent = asking.clone();
    asking.metadata.annotations =
        Some([("sluice.io/reset-on-backend-removal".to_owned(), "true".to_owned())].into());
    replace(&mut model, vec![silent.clone()], vec![at_addresses(&["10.0.0.1", "10.0.0.2", "10.0.0.3"])]);
    settle(&mut model, at(0), &mut memory);
    assert!(!model.take_retired().is_empty() && !model.resets());

    apply(&mut model, at_addresses(&["10.0.0.2", "10.0.0.3"]));
    settle(&mut model, at(1), &mut memory);
    assert!(model.take_retired().is_empty() && !model.resets());

    apply(&mut model, asking);
    settle(&mut model, at(2), &mut memory);
    assert!(model.take_retired().is_empty() && model.resets());
    apply(&mut model, at_addresses(&["10.0.0.2"]));
    settle(&mut model, at(3), &mut memory);
    assert_eq!(model.take_retired(), [Transport::Tcp].into());

    // A restarted agent knows by the kernel's tables what the connections that it finds were promised.
    let mut model = model_on(memory.restored());
    replace(&mut model, vec![silent], vec![at_addresses(&["10.0.0.2"])]);
    settle(&mut model, at(4), &mut memory);
    assert!(!model.take_retired().is_empty() && model.resets());
    delete::<Service>(&mut model, "web");
    settle(&mut model, at(5), &mut memory);
    assert_eq!(model.take_retired(), [Transport::Tcp].into());
}
