//! An agent that finds tables which make no sense puts them right.

use std::time::Duration;

use proptest::prelude::*;
use proxy_common::{
    addresses::AddressFlags,
    backend::{Backend, BackendFlags, BackendId},
    endian::Be16,
    frontend::{Frontend, FrontendFlags, FrontendKey, ServiceId, SlotRun},
    ranges::SourceRange,
    tables::{Backends, NAME_BYTES, Slots, Table as _},
    tuple::{Endpoint, Protocol},
};
use proxy_model::{Model, Restored};
use serde_json::json;

use crate::common::{
    Checks, Memory, model_on,
    objects::{load_balancer, replace, service, slice},
    settle,
};

const EXPECTED: &str = "\
0.0.0.0:30080/TCP default/shop:http/TCP/IPv4 -> 10.0.0.1:8080, 10.0.0.3:8080 (local); outside -> 10.0.0.3:8080 (local)
10.96.0.1:80/TCP default/web:http/TCP/IPv4 -> 10.0.0.1:8080, 10.0.0.2:8080 (local)
10.96.0.2:80/TCP default/shop:http/TCP/IPv4 -> 10.0.0.1:8080, 10.0.0.3:8080 (local)
10.96.0.3:80/TCP default/idle:http/TCP/IPv4 -> refuse
192.0.2.1:80/TCP default/shop:http/TCP/IPv4 (from 10.0.0.0/8 203.0.113.0/24) -> 10.0.0.1:8080, 10.0.0.3:8080 (local); outside -> 10.0.0.3:8080 (local)
";

const ADDRESSES: &str = "\
10.96.0.1 {\"cluster-ip\"}
10.96.0.2 {\"cluster-ip\"}
10.96.0.3 {\"cluster-ip\"}
192.0.2.9 {\"node\", \"node-ports\"}
";

fn started_on(restored: Restored) -> Model {
    let mut model = model_on(restored);
    let shop = json!({
        "clusterIP": "10.96.0.2", "type": "LoadBalancer", "externalTrafficPolicy": "Local",
        "healthCheckNodePort": 32000,
        "loadBalancerSourceRanges": ["10.0.0.0/8", "203.0.113.0/24"],
        "ports": [{ "name": "http", "port": 80, "nodePort": 30080 }],
    });
    replace(
        &mut model,
        vec![
            service("web", "10.96.0.1"),
            load_balancer("shop", shop, &["192.0.2.1"]),
            service("idle", "10.96.0.3"),
        ],
        vec![slice("web", &["10.0.0.1", "10.0.0.2!"]), slice("shop", &["10.0.0.1", "10.0.0.3!"])],
    );
    model.set_node_addresses(["192.0.2.9", "127.0.0.1"].map(|ip| ip.parse().unwrap()));
    model
}

fn good() -> Memory {
    let mut memory = Memory::default();
    settle(&mut started_on(Restored::default()), Duration::ZERO, &mut memory);
    assert_eq!((memory.render().as_str(), memory.render_addresses().as_str()), (EXPECTED, ADDRESSES));
    memory
}

/// Starts on these tables, settles, and insists that nothing of the garbage is left.
fn repaired(mut memory: Memory) -> Memory {
    memory.checks = Checks::Off;
    let mut model = started_on(memory.restored());
    settle(&mut model, Duration::ZERO, &mut memory);
    memory.consistency().unwrap();
    memory.marks().unwrap();
    assert_eq!((memory.render().as_str(), memory.render_addresses().as_str()), (EXPECTED, ADDRESSES));
    assert_eq!((memory.live(), memory.names.len(), memory.ranges.len()), (4, 3, 2));
    assert!(!model.is_unfinished());
    assert_eq!(model.problems().count(), 0);
    memory.attempts = 0;
    settle(&mut started_on(memory.restored()), Duration::ZERO, &mut memory);
    assert_eq!(memory.attempts, 0, "the second restart has nothing to repair");
    memory
}

fn key(address: [u8; 4]) -> FrontendKey {
    let end = Endpoint { address: std::net::IpAddr::from(address).into(), port: Be16::from_host(80) };
    FrontendKey::new(end, Protocol::TCP)
}

#[test]
fn frontends_of_a_service_without_a_name_are_deleted() {
    let mut memory = good();
    let row =
        Frontend { service: ServiceId(700), slots: SlotRun { base: 5, count: 2 }, ..Frontend::default() };
    memory.frontends.insert(key([10, 96, 9, 9]), row);
    repaired(memory);
}

#[test]
fn frontends_whose_runs_overlap_get_runs_of_their_own() {
    let mut memory = good();
    let web = memory.frontends[&key([10, 96, 0, 1])];
    let shop = memory.frontends.get_mut(&key([10, 96, 0, 2])).unwrap();
    shop.slots.base = web.slots.base + 1;
    repaired(memory);
}

#[test]
fn the_sets_inside_and_outside_may_not_share_slots() {
    let mut memory = good();
    let shop = memory.frontends.get_mut(&key([192, 0, 2, 1])).unwrap();
    shop.outside = shop.slots;
    repaired(memory);
}

#[test]
fn runs_beyond_the_table_are_replaced() {
    for (base, count) in
        [(Slots::CAPACITY - 1, 2), (u32::MAX, 1), (u32::MAX, u32::MAX), (0, u32::MAX), (7, 0)]
    {
        let mut memory = good();
        let web = memory.frontends.get_mut(&key([10, 96, 0, 1])).unwrap();
        web.slots = SlotRun { base, count };
        repaired(memory);
    }
}

#[test]
fn backends_of_a_service_that_does_not_exist_are_retired() {
    let mut memory = good();
    let stray = Backend {
        service: ServiceId(700),
        flags: BackendFlags::LIVE,
        port: Be16::from_host(80),
        ..Backend::default()
    };
    memory.backends.insert(50, stray);
    memory.backends.insert(Backends::CAPACITY + 1, Backend { flags: BackendFlags::default(), ..stray });
    let memory = repaired(memory);
    assert_eq!(memory.backends[&50], Backend { flags: BackendFlags::default(), ..stray });
}

#[test]
fn names_that_nobody_wrote_are_deleted() {
    let mut memory = good();
    memory.names.insert(ServiceId(8), [0xff; NAME_BYTES]);
    memory.names.insert(ServiceId(9), memory.names[&ServiceId(0)]);
    memory.names.insert(
        ServiceId(u32::MAX),
        *b"default/gone/TCP/IPv4".first_chunk::<21>().map(padded).as_ref().unwrap(),
    );
    repaired(memory);
}

fn padded(text: &[u8; 21]) -> [u8; NAME_BYTES] {
    let mut row = [0; NAME_BYTES];
    row[..text.len()].copy_from_slice(text);
    row
}

#[test]
fn source_ranges_of_nobody_and_of_somebody_else_are_deleted() {
    let mut memory = good();
    let everybody = |service| SourceRange::new(ServiceId(service), std::net::IpAddr::from([0; 4]).into(), 0);
    for service in 0..5 {
        memory.ranges.insert(everybody(service), 1);
    }
    memory.ranges.insert(everybody(u32::MAX), 7);
    repaired(memory);
}

#[test]
fn addresses_that_are_something_else_by_now_are_put_right() {
    let mut memory = good();
    let all = AddressFlags::CLUSTER_IP.with(AddressFlags::NODE).with(AddressFlags::NODE_PORTS);
    for address in ["10.96.0.1", "10.96.9.9", "192.0.2.9", "127.0.0.1", "::1"] {
        memory.addresses.insert(address.parse::<std::net::IpAddr>().unwrap().into(), all);
    }
    memory.addresses.insert(std::net::IpAddr::from([192, 0, 2, 10]).into(), AddressFlags(0x100));
    repaired(memory);
}

#[test]
fn a_service_without_its_name_is_built_anew() {
    let mut memory = good();
    memory.names.clear();
    repaired(memory);
}

#[test]
fn a_generation_never_goes_back() {
    let mut memory = good();
    for backend in memory.backends.values_mut() {
        backend.generation.0 += 9;
        backend.flags = BackendFlags::default();
    }
    let memory = repaired(memory);
    assert!(memory.backends.values().all(|backend| backend.generation.0 >= 9));
    assert!(
        memory
            .backends
            .values()
            .filter(|row| row.flags != BackendFlags::default())
            .all(|row| row.generation.0 == 10)
    );
}

#[derive(Clone, Debug)]
enum Damage {
    Frontend { at: usize, service: u32, flags: u32, slots: (u32, u32), outside: (u32, u32) },
    Slot { at: u32, id: u32 },
    Backend { id: u32, service: u32, flags: u16, address: u8, port: u16 },
    NoBackend { id: u32 },
    NoName { id: u32 },
    Range { service: u32, length: u32 },
    NoRanges,
    Address { address: u8, flags: u32 },
    NoFilter,
}

fn damage() -> impl Strategy<Value = Damage> {
    let run = || (0..10u32, 0..5u32);
    prop_oneof![
        (0..7usize, 0..5u32, 0..64u32, run(), run()).prop_map(|(at, service, flags, slots, outside)| {
            Damage::Frontend { at, service, flags, slots, outside }
        }),
        (0..10u32, 0..6u32).prop_map(|(at, id)| Damage::Slot { at, id }),
        (0..6u32, 0..5u32, 0..16u16, 0..4u8, prop_oneof![Just(8080u16), Just(0)]).prop_map(
            |(id, service, flags, address, port)| Damage::Backend { id, service, flags, address, port }
        ),
        (0..6u32).prop_map(|id| Damage::NoBackend { id }),
        (0..4u32).prop_map(|id| Damage::NoName { id }),
        (0..5u32, 0..33u32).prop_map(|(service, length)| Damage::Range { service, length }),
        Just(Damage::NoRanges),
        (0..4u8, 0..8u32).prop_map(|(address, flags)| Damage::Address { address, flags }),
        Just(Damage::NoFilter),
    ]
}

/// The frontends that damage is done to: some that are wanted, some that are not.
fn damaged_key(at: usize) -> FrontendKey {
    match u8::try_from(at).unwrap() {
        4 => key([192, 0, 2, 1]),
        port @ 5.. => {
            let end =
                Endpoint { address: key([0; 4]).address, port: Be16::from_host(30_075 + u16::from(port)) };
            FrontendKey::node_port(end, Protocol::TCP)
        }
        host => key([10, 96, 0, host]),
    }
}

fn inflict(memory: &mut Memory, damage: Damage) {
    let run = |(base, count)| SlotRun { base, count };
    match damage {
        Damage::Frontend { at, service, flags, slots, outside } => {
            let row = Frontend {
                service: ServiceId(service),
                flags: FrontendFlags(flags),
                affinity: 0,
                slots: run(slots),
                outside: run(outside),
            };
            memory.frontends.insert(damaged_key(at), row);
        }
        Damage::Slot { at, id } => {
            memory.slots.insert(at, BackendId(id));
        }
        Damage::Backend { id, service, flags, address, port } => {
            let row = memory.backends.entry(id).or_default();
            row.address = std::net::IpAddr::from([10, 0, 0, address]).into();
            row.port = Be16::from_host(port);
            row.service = ServiceId(service);
            row.flags = BackendFlags(flags);
        }
        Damage::NoBackend { id } => {
            memory.backends.remove(&id);
        }
        Damage::NoName { id } => {
            memory.names.remove(&ServiceId(id));
        }
        Damage::Range { service, length } => {
            let everywhere = std::net::IpAddr::from([0; 4]).into();
            memory.ranges.insert(SourceRange::new(ServiceId(service), everywhere, length), length);
        }
        Damage::NoRanges => memory.ranges.clear(),
        Damage::Address { address, flags } => {
            let address = std::net::IpAddr::from([10, 96, 0, address]).into();
            memory.addresses.insert(address, AddressFlags(flags));
        }
        Damage::NoFilter => memory.filter.clear(),
    }
}

proptest! {
    #[test]
    fn any_damage_is_repaired(damages in prop::collection::vec(damage(), 1..8)) {
        let mut memory = good();
        for damage in damages {
            inflict(&mut memory, damage);
        }
        repaired(memory);
    }
}

#[test]
fn leftover_backends_live_until_no_frontend_leads_to_them() {
    for failing in 0..40 {
        let mut memory = good();
        memory.names.clear();
        memory.checks = Checks::Off;
        let mut model = started_on(memory.restored());
        model.plan(Duration::ZERO);
        memory.failures = [memory.attempts + failing].into();
        let failed = model.commit(Duration::ZERO, &mut memory).len();
        assert!(failed > 0 || !model.is_unfinished());
        assert!(!memory.render().contains("gone"), "write {failing} failed:\n{}", memory.render());
        memory.failures.clear();
        settle(&mut model, Duration::ZERO, &mut memory);
        assert_eq!(memory.render(), EXPECTED);
    }
}
