//! An agent that finds tables which make no sense puts them right.

use std::time::Duration;

use proptest::prelude::*;
use proxy_common::{
    backend::{Backend, BackendFlags, BackendId},
    endian::Be16,
    frontend::{Frontend, FrontendKey, ServiceId},
    tables::{Backends, NAME_BYTES, Slots, Table as _},
    tuple::{Endpoint, Protocol},
};
use proxy_model::{Model, Restored};

use crate::common::{
    Checks, Memory,
    objects::{replace, service, slice},
    settle,
};

const EXPECTED: &str = "\
10.96.0.1:80/TCP default/web:http/TCP/IPv4 -> 10.0.0.1:8080, 10.0.0.2:8080 (local)
10.96.0.2:80/TCP default/shop:http/TCP/IPv4 -> 10.0.0.1:8080, 10.0.0.3:8080
10.96.0.3:80/TCP default/idle:http/TCP/IPv4 -> refuse
";

fn started_on(restored: Restored) -> Model {
    let mut model = Model::new("node-a", restored);
    replace(
        &mut model,
        vec![service("web", "10.96.0.1"), service("shop", "10.96.0.2"), service("idle", "10.96.0.3")],
        vec![slice("web", &["10.0.0.1", "10.0.0.2!"]), slice("shop", &["10.0.0.1", "10.0.0.3"])],
    );
    model
}

fn good() -> Memory {
    let mut memory = Memory::default();
    settle(&mut started_on(Restored::default()), Duration::ZERO, &mut memory);
    assert_eq!(memory.render(), EXPECTED);
    memory
}

/// Starts on these tables, settles, and insists that nothing of the garbage is left.
fn repaired(mut memory: Memory) -> Memory {
    memory.checks = Checks::Off;
    let mut model = started_on(memory.restored());
    settle(&mut model, Duration::ZERO, &mut memory);
    memory.consistency().unwrap();
    assert_eq!(memory.render(), EXPECTED);
    assert_eq!((memory.live(), memory.names.len()), (4, 3));
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
    let row = Frontend { service: ServiceId(700), slot_base: 5, slot_count: 2, ..Frontend::default() };
    memory.frontends.insert(key([10, 96, 9, 9]), row);
    repaired(memory);
}

#[test]
fn frontends_whose_runs_overlap_get_runs_of_their_own() {
    let mut memory = good();
    let web = memory.frontends[&key([10, 96, 0, 1])];
    let shop = memory.frontends.get_mut(&key([10, 96, 0, 2])).unwrap();
    shop.slot_base = web.slot_base + 1;
    repaired(memory);
}

#[test]
fn runs_beyond_the_table_are_replaced() {
    for (base, count) in
        [(Slots::CAPACITY - 1, 2), (u32::MAX, 1), (u32::MAX, u32::MAX), (0, u32::MAX), (7, 0)]
    {
        let mut memory = good();
        let web = memory.frontends.get_mut(&key([10, 96, 0, 1])).unwrap();
        (web.slot_base, web.slot_count) = (base, count);
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
    Frontend { at: usize, service: u32, base: u32, count: u32 },
    Slot { at: u32, id: u32 },
    Backend { id: u32, service: u32, flags: u16, address: u8, port: u16 },
    NoBackend { id: u32 },
    NoName { id: u32 },
    NoFilter,
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        (0..4usize, 0..5u32, 0..8u32, 0..5u32).prop_map(|(at, service, base, count)| Damage::Frontend {
            at,
            service,
            base,
            count
        }),
        (0..8u32, 0..6u32).prop_map(|(at, id)| Damage::Slot { at, id }),
        (0..6u32, 0..5u32, 0..4u16, 0..4u8, prop_oneof![Just(8080u16), Just(0)]).prop_map(
            |(id, service, flags, address, port)| Damage::Backend { id, service, flags, address, port }
        ),
        (0..6u32).prop_map(|id| Damage::NoBackend { id }),
        (0..4u32).prop_map(|id| Damage::NoName { id }),
        Just(Damage::NoFilter),
    ]
}

fn inflict(memory: &mut Memory, damage: Damage) {
    match damage {
        Damage::Frontend { at, service, base, count } => {
            let key = key([10, 96, 0, u8::try_from(at).unwrap()]);
            let row = Frontend {
                service: ServiceId(service),
                slot_base: base,
                slot_count: count,
                ..Frontend::default()
            };
            memory.frontends.insert(key, row);
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
