//! What whoever listens is told, to the byte; and that nobody else is.

use std::time::Duration;

use anyhow::{Result, ensure};
use aya::maps::{Map, MapData, RingBuf};
use nix::time::{ClockId, clock_gettime};
use proxy_agent::datapath::{ArrayTable, EventStream, PerCpuTable};
use proxy_common::{
    drop::DropReason,
    event::{Event, EventKind, EventKinds, Lease},
    frontend::ServiceId,
    tables::{EventLease, Events, LostEvents, Table as _},
    tuple::Protocol,
};
use sluice_tests::{
    kernel::{Action, Kernel, end},
    packets::flags,
};

use super::bed::{Case, WEB, for_each};

/// Somebody who listens until then, in seconds from now.
fn listen(kernel: &Kernel, wants: EventKinds, seconds: i64) -> Result<()> {
    let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?).as_nanos();
    let until = i64::try_from(now)? + seconds * 1_000_000_000;
    let lease = Lease { until: u64::try_from(until)?, wants, reserved: 0 };
    Ok(ArrayTable::<EventLease>::open(kernel.pins())?.put(0, &lease)?)
}

/// What has been told since the last time.
fn told(kernel: &Kernel) -> Result<Vec<Event>> {
    let map = MapData::from_pin(kernel.pins().map::<Events>())?;
    let mut ring = RingBuf::try_from(Map::from_map_data(map)?)?;
    let mut events = Vec::new();
    while let Some(record) = ring.next() {
        events
            .push(zerocopy::FromBytes::read_from_bytes(&record).map_err(|_| anyhow::anyhow!("{record:?}"))?);
    }
    Ok(events)
}

const BOTH: EventKinds = EventKinds::FLOWS.with(EventKinds::DROPS);

/// A new flow, packets of it, and a drop.
fn traffic(case: &mut Case) -> Result<usize> {
    case.serve(2)?;
    let out = case.ingress(&case.first())?;
    let chosen = case.chosen(&out)?;
    case.egress(&case.frame(case.backends[chosen], case.client, flags::SYN | flags::ACK))?;
    case.ingress(&case.frame(case.client, case.vip, flags::ACK))?;
    case.serve(0)?;
    let mut other = case.client;
    other.set_port(other.port() + 1);
    let refused = case.ingress(&case.frame(other, case.vip, flags::SYN))?;
    ensure!(refused.action == Action::Redirect, "{refused:?}");
    Ok(chosen)
}

#[test]
fn whoever_listens_hears_of_each_new_flow_and_each_drop_once() {
    for_each(|case| {
        listen(&case.kernel, BOTH, 60)?;
        let before = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
        let chosen = traffic(case)?;
        let events = told(&case.kernel)?;
        let [flow, drop] = events[..] else {
            anyhow::bail!("{events:#?}");
        };
        let age = |event: &Event| Duration::from_nanos(event.time).checked_sub(before);
        ensure!(age(&flow).is_some() && age(&drop) >= age(&flow), "{events:#?}");
        let backend = end(case.backends[chosen]);
        let expected = Event {
            time: flow.time,
            key: case.request_key(),
            backend: backend.address,
            backend_port: backend.port,
            kind: EventKind::FLOW,
            service: WEB,
            origin: 1,
            ..Event::default()
        };
        ensure!(flow == expected, "{flow:#?}");
        let mut key = case.request_key();
        key.source_port = proxy_common::endian::Be16::from_host(case.client.port() + 1);
        let expected = Event {
            time: drop.time,
            key,
            kind: EventKind::DROP,
            reason: DropReason::NoBackend as u8,
            service: ServiceId::NONE,
            origin: 1,
            ..Event::default()
        };
        ensure!(drop == expected, "{drop:#?}");
        Ok(())
    });
}

#[test]
fn only_what_is_asked_for_is_told_and_nothing_after_the_lease() {
    for_each(|case| {
        traffic(case)?;
        ensure!(told(&case.kernel)?.is_empty(), "nobody has ever listened");
        for (wants, seconds, expected) in [
            (EventKinds::FLOWS, 60, &[EventKind::FLOW][..]),
            (EventKinds::DROPS, 60, &[EventKind::DROP]),
            (EventKinds::default(), 60, &[]),
            (BOTH, -1, &[]),
        ] {
            listen(&case.kernel, wants, seconds)?;
            // Each time from another port, so that the flow is new.
            case.client.set_port(case.client.port() + 2);
            traffic(case)?;
            let kinds: Vec<_> = told(&case.kernel)?.iter().map(|event| event.kind).collect();
            ensure!(kinds == expected, "{wants:?} for {seconds} s: {kinds:?}");
        }
        Ok(())
    });
}

#[test]
fn events_that_nobody_takes_are_counted_and_stop_nothing() {
    for_each(|case| {
        if case.protocol != Protocol::TCP {
            return Ok(());
        }
        case.serve(0)?;
        listen(&case.kernel, BOTH, 600)?;
        let room = Events::CAPACITY as usize / (size_of::<Event>() + 8);
        let more = 100;
        for number in 0..room + more {
            case.client.set_port(u16::try_from(1024 + number)?);
            let out = case.ingress(&case.first())?;
            ensure!(out.action == Action::Redirect, "{out:?}");
        }
        let lost: u64 = PerCpuTable::<LostEvents>::open(case.kernel.pins())?.get(0)?.iter().sum();
        let heard = told(&case.kernel)?.len();
        ensure!(
            heard + usize::try_from(lost)? == room + more,
            "{heard} heard, {lost} lost, of {}",
            room + more
        );
        ensure!(lost >= more as u64, "{lost} lost");
        Ok(())
    });
}

#[test]
fn one_listens_at_a_time_and_hears_nothing_from_before() {
    for_each(|case| {
        listen(&case.kernel, BOTH, 60)?;
        traffic(case)?;
        let mut stream = EventStream::open(case.kernel.pins(), BOTH)?;
        let second = EventStream::open(case.kernel.pins(), BOTH).err().map(|error| error.to_string());
        ensure!(second.as_ref().is_some_and(|error| error.contains("another")), "{second:?}");
        case.client.set_port(case.client.port() + 2);
        traffic(case)?;
        let mut kinds = Vec::new();
        ensure!(stream.hear(|event| kinds.push(event.kind))? == 0, "events were lost");
        ensure!(kinds == [EventKind::FLOW, EventKind::DROP], "{kinds:?}");
        drop(stream);
        let lease = ArrayTable::<EventLease>::open(case.kernel.pins())?.get(0)?;
        ensure!(lease == Some(Lease::default()), "{lease:?}");
        drop(EventStream::open(case.kernel.pins(), BOTH)?);
        Ok(())
    });
}
