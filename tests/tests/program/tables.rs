//! Tables that are read as a whole.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
};

use anyhow::{Result, ensure};
use proxy_agent::datapath::{ArrayTable, HashTable, PerCpuHashTable, Program};
use proxy_common::{
    addr::Addr,
    backend::{Backend, BackendFlags, BackendId},
    counters::ServiceDrop,
    drop::DropReason,
    flow::{FlowEntry, FlowHead},
    frontend::ServiceId,
    tables::{Backends, Flows, ServiceDrops, Table as _},
    tuple::{FlowKey, Protocol},
};
use sluice_tests::{
    harness,
    kernel::Kernel,
    packets::{Frame, flags},
};

fn with_kernel(test: impl FnOnce(&mut Kernel) -> Result<()>) {
    if let Err(reason) = harness::requirements() {
        harness::skipped(&reason);
        return;
    }
    let outcome = Kernel::load().and_then(|mut kernel| test(&mut kernel));
    outcome.unwrap_or_else(|error| panic!("{error:?}"));
}

/// A flow entry that knows its number.
fn flow(number: u32) -> (FlowKey, FlowEntry) {
    let source = Addr::from_v4_wire(Ipv4Addr::from_bits(number).octets());
    let head = FlowHead { backend: BackendId(number), ..FlowHead::default() };
    (FlowKey { source, ..FlowKey::default() }, FlowEntry { head, ..FlowEntry::default() })
}

#[test]
fn every_entry_is_listed_once_even_while_others_go() {
    const COUNT: u32 = 20_000;
    with_kernel(|kernel| {
        let mut flows = HashTable::<Flows>::open(kernel.pins())?;
        ensure!(flows.entries().next().is_none(), "an empty table has no entries");
        for (key, entry) in (0..COUNT).map(flow) {
            flows.put(&key, &entry)?;
        }
        let mut other = HashTable::<Flows>::open(kernel.pins())?;
        let mut seen = HashMap::<u32, u32>::new();
        for entry in flows.entries() {
            let (key, entry) = entry?;
            let number = entry.head.backend.0;
            ensure!((key, entry) == flow(number), "{key:?} has {entry:?}");
            *seen.entry(number).or_default() += 1;
            // One in two goes; that of which the iterator has just read the key among them.
            if number % 2 == 1 {
                other.delete(&key)?;
            }
        }
        let twice = seen.values().filter(|&&times| times != 1).count();
        ensure!(seen.len() == COUNT as usize && twice == 0, "{} seen, {twice} more than once", seen.len());
        let left = flows.entries().collect::<Result<Vec<_>, _>>()?;
        ensure!(
            left.len() == COUNT as usize / 2 && left.iter().all(|(_, flow)| flow.head.backend.0 % 2 == 0)
        );
        Ok(())
    });
}

#[test]
fn an_array_is_listed_to_its_end() {
    with_kernel(|kernel| {
        let mut backends = ArrayTable::<Backends>::open(kernel.pins())?;
        let last = Backends::CAPACITY - 1;
        let live = Backend { flags: BackendFlags::LIVE, ..Backend::default() };
        backends.put(0, &live)?;
        backends.put(last, &live)?;
        let all = backends.entries().collect::<Result<Vec<_>, _>>()?;
        ensure!(all.iter().map(|(index, _)| *index).eq(0..=last), "{} entries", all.len());
        let used: Vec<_> =
            all.into_iter().filter(|(_, backend)| *backend == live).map(|(at, _)| at).collect();
        ensure!(used == [0, last], "{used:?}");
        Ok(())
    });
}

#[test]
fn the_values_of_all_cpus_are_listed_with_their_key() {
    with_kernel(|kernel| {
        let (client, vip): (SocketAddr, SocketAddr) = ("10.244.1.9:4000".parse()?, "10.96.0.1:80".parse()?);
        let service = ServiceId(7);
        let syn = Frame::tcp(client, vip, flags::SYN).bytes();
        kernel.serve(service, vip, Protocol::TCP, 1, &[])?;
        kernel.run(Program::Ingress, &syn)?;
        let drops = PerCpuHashTable::<ServiceDrops>::open(kernel.pins())?;
        let drops = drops.entries().collect::<Result<Vec<_>, _>>()?;
        let drops: Vec<_> = drops.iter().map(|(key, counts)| (*key, counts.iter().sum::<u64>())).collect();
        ensure!(drops == [(ServiceDrop::new(service, DropReason::NoBackend), 1)], "{drops:?}");
        Ok(())
    });
}
