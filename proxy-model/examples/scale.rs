//! How long the model takes on clusters of some size: `cargo run --release -p proxy-model --example scale`.
//!
//! Tables are hash maps in memory, so what is measured is the model. Cold is everything from parsed JSON to
//! the last write; a change replaces one endpoint of one Service, and counts until it is written.
#![expect(clippy::unwrap_used, reason = "an example that cannot go on has failed")]

use std::{
    collections::HashMap,
    convert::Infallible,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use proxy_common::{
    frontend::ServiceId,
    tables::{AddressFilter, Addresses, Backends, Frontends, Pods, ServiceNames, Slots, SourceRanges, Table},
};
use proxy_model::{Change, Event, HashTableIo, Io, Model, Options, Restored, TableIo};
use serde_json::{Value, json};

/// Every so many Services, one is reached from outside as well.
const EXTERNAL: usize = 10;
/// What a slice holds, as the controller makes them.
const SLICE: usize = 100;
const CHANGES: usize = 5_000;

fn main() {
    println!(
        "{:>9} {:>9} {:>10} {:>9} {:>9} {:>9} {:>9} | {:>9} {:>9} {:>9} {:>7} {:>12}",
        "services",
        "endpoints",
        "frontends",
        "apply",
        "plan",
        "commit",
        "cold",
        "median",
        "p99",
        "max",
        "writes",
        "new address"
    );
    for (services, endpoints) in [(10_000, 2), (1_000, 250)] {
        measure(services, endpoints);
    }
}

fn measure(services: usize, endpoints: usize) {
    let objects: Vec<Service> = (0..services).map(service).collect();
    let slices: Vec<EndpointSlice> = (0..services)
        .flat_map(|n| (0..endpoints.div_ceil(SLICE)).map(move |part| slice(n, part, endpoints, 0)))
        .collect();
    let mut model = Model::new(Options::on_node("node-a"), Restored::default());
    model.set_node_addresses([Ipv4Addr::new(192, 0, 2, 9).into()]);
    let mut tables = Ram::default();

    let start = Instant::now();
    assert!(model.apply(Change::Service(Event::Replace(objects))).is_empty());
    assert!(model.apply(Change::EndpointSlice(Event::Replace(slices))).is_empty());
    let applied = start.elapsed();
    assert!(model.plan(Duration::ZERO).is_empty());
    let planned = start.elapsed();
    assert!(model.commit(Duration::ZERO, &mut tables).is_empty());
    let cold = start.elapsed();
    assert_eq!(model.counts().backends, services * endpoints);

    let before = tables.writes;
    let mut times: Vec<Duration> = (1..=CHANGES)
        .map(|change| {
            let object = slice(change * 7 % services, 0, endpoints, change);
            let now = Duration::from_millis(100 * change as u64);
            let start = Instant::now();
            assert!(model.apply(Change::EndpointSlice(Event::Apply(object))).is_empty());
            assert!(model.plan(now).is_empty());
            assert!(model.commit(now, &mut tables).is_empty());
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    let writes = (tables.writes - before) / CHANGES;

    let now = Duration::from_millis(100 * CHANGES as u64);
    let start = Instant::now();
    model.set_node_addresses([10, 11].map(|host| Ipv4Addr::new(192, 0, 2, host).into()));
    assert!(model.plan(now).is_empty());
    assert!(model.commit(now, &mut tables).is_empty());
    let readdressed = start.elapsed();

    println!(
        "{services:>9} {endpoints:>9} {:>10} {:>9} {:>9} {:>9} {:>9} | {:>9} {:>9} {:>9} {writes:>7} {:>12}",
        model.counts().frontends,
        shown(applied),
        shown(planned - applied),
        shown(cold - planned),
        shown(cold),
        shown(times[CHANGES / 2]),
        shown(times[CHANGES * 99 / 100]),
        shown(times[CHANGES - 1]),
        shown(readdressed),
    );
}

fn shown(time: Duration) -> String {
    format!("{:.3} ms", time.as_secs_f64() * 1e3)
}

fn service(n: usize) -> Service {
    let mut spec = json!({ "clusterIP": ip(0x0a60_0000, n), "ports": [{ "name": "http", "port": 80 }] });
    let mut status = Value::Null;
    if n.is_multiple_of(EXTERNAL) {
        spec["type"] = json!("LoadBalancer");
        spec["externalTrafficPolicy"] = json!("Local");
        spec["loadBalancerSourceRanges"] = json!(["10.0.0.0/8", "203.0.113.0/24"]);
        spec["ports"][0]["nodePort"] = json!(20_000 + n);
        spec["healthCheckNodePort"] = json!(40_000 + n);
        status = json!({ "loadBalancer": { "ingress": [{ "ip": ip(0xc612_0000, n) }] } });
    }
    let metadata = json!({ "namespace": "default", "name": format!("service-{n}") });
    serde_json::from_value(json!({ "metadata": metadata, "spec": spec, "status": status })).unwrap()
}

/// One of a Service's slices. Its first endpoint has an address of its own in each `version`.
fn slice(n: usize, part: usize, endpoints: usize, version: usize) -> EndpointSlice {
    let first = part * SLICE;
    let endpoints: Vec<Value> = (first..endpoints.min(first + SLICE))
        .map(|at| {
            let address = match (at, version) {
                (0, 1..) => ip(0x0b00_0000, version),
                _ => ip(0x0c00_0000, n * endpoints + at),
            };
            let node = if at % 50 == 1 { "node-a" } else { "node-b" };
            json!({ "addresses": [address], "nodeName": node, "conditions": { "ready": true } })
        })
        .collect();
    serde_json::from_value(json!({
        "metadata": {
            "namespace": "default", "name": format!("service-{n}-{part}"),
            "labels": { "kubernetes.io/service-name": format!("service-{n}") },
        },
        "addressType": "IPv4", "endpoints": endpoints, "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
    }))
    .unwrap()
}

fn ip(base: u32, n: usize) -> String {
    Ipv4Addr::from(base + u32::try_from(n).unwrap() + 1).to_string()
}

/// The tables.
#[derive(Default)]
struct Ram {
    frontends: Map<Frontends>,
    names: Map<ServiceNames>,
    addresses: Map<Addresses>,
    ranges: Map<SourceRanges>,
    slots: Map<Slots>,
    backends: Map<Backends>,
    filter: Map<AddressFilter>,
    pods: Map<Pods>,
    writes: usize,
}

type Map<T> = HashMap<<T as Table>::Key, <T as Table>::Value>;

impl Io for Ram {
    type Error = Infallible;

    fn reset_traffic(&mut self, _: ServiceId) -> Result<(), Infallible> {
        Ok(())
    }
}

macro_rules! in_memory {
    ($($table:ty => $field:ident),*) => {$(
        impl TableIo<$table> for Ram {
            fn get(&self, key: &<$table as Table>::Key) -> Result<Option<<$table as Table>::Value>, Infallible> {
                Ok(self.$field.get(key).copied())
            }

            fn put(
                &mut self,
                key: &<$table as Table>::Key,
                value: &<$table as Table>::Value,
            ) -> Result<(), Infallible> {
                self.writes += 1;
                self.$field.insert(*key, *value);
                Ok(())
            }
        }

        impl HashTableIo<$table> for Ram {
            fn keys(&self) -> Result<Vec<<$table as Table>::Key>, Infallible> {
                Ok(self.$field.keys().copied().collect())
            }

            fn delete(&mut self, key: &<$table as Table>::Key) -> Result<(), Infallible> {
                self.writes += 1;
                self.$field.remove(key);
                Ok(())
            }
        }
    )*};
}

in_memory!(
    Frontends => frontends, ServiceNames => names, Addresses => addresses, SourceRanges => ranges, Slots => slots,
    Backends => backends, AddressFilter => filter, Pods => pods
);
