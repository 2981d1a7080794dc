//! What the object contains, and what the verifier thinks of it.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{MapInfo, MapType};
use proxy_agent::datapath::Program;
use proxy_common::tables::{
    AddressFilter, Addresses, Affinities, Backends, Delivered, Deliveries, DeliveryDevices, Devices, Drops,
    EventLease, Events, FlowCache, FlowEpochs, Flows, Fragments, Frontends, Growth, LostEvents, Misfits,
    PLACES, Passages, Pods, ServiceDrops, ServiceNames, ServiceTraffic, Settings, Shortcuts, Slots, Sockets,
    SourceRanges, Table, TableKind, XdpDevices,
};
use proxy_common::xdp::XdpMode;
use sluice_tests::{harness, kernel::Kernel};

/// Most instructions that the verifier may walk, by program: some more than it did when this was written, and well below the
/// kernel's limit of a million. More says that a loop or a branch has exploded.
const WALKED: [(Program, u32); 6] = [
    (Program::Ingress, 230_000),
    (Program::Egress, 140_000),
    (Program::IngressL3, 230_000),
    (Program::EgressL3, 140_000),
    (Program::Delivery, 20_000),
    (Program::Clock, 10),
];
/// The same for the programs before the stack.
const WALKED_BEFORE: u32 = 15_000;

fn kernel() -> Option<Kernel> {
    if let Err(reason) = harness::requirements() {
        harness::skipped(&reason);
        return None;
    }
    Some(Kernel::load().unwrap_or_else(|error| panic!("{error:?}")))
}

#[test]
fn the_verifier_walks_no_more_than_budgeted() -> Result<()> {
    let Some(mut kernel) = kernel() else {
        return Ok(());
    };
    for (program, budget) in WALKED {
        let info = kernel.program(program)?.info()?;
        let walked = info.verified_instruction_count().context("the kernel does not tell")?;
        ensure!(walked <= budget, "{program:?}: {walked} instructions walked, budget {budget}");
    }
    for mode in XdpMode::ALL {
        let info = kernel.xdp_program(mode)?.info()?;
        let walked = info.verified_instruction_count().context("the kernel does not tell")?;
        ensure!(
            walked <= WALKED_BEFORE,
            "XDP, {mode:?}: {walked} instructions walked, budget {WALKED_BEFORE}"
        );
    }
    Ok(())
}

fn describe<T: Table>() -> (String, (MapType, usize, usize, usize)) {
    let kind = match T::KIND {
        TableKind::Hash => MapType::Hash,
        TableKind::PerCpuHash => MapType::PerCpuHash,
        TableKind::LruHash => MapType::LruHash,
        TableKind::LpmTrie => MapType::LpmTrie,
        TableKind::Array => MapType::Array,
        TableKind::PerCpuArray => MapType::PerCpuArray,
        TableKind::Ring => MapType::RingBuf,
    };
    (T::NAME.to_owned(), (kind, size_of::<T::Key>(), size_of::<T::Value>(), T::CAPACITY as usize))
}

/// The array that programs find a table through.
fn places<T: Table>() -> (String, (MapType, usize, usize, usize)) {
    let Growth::Moved(array) = T::GROWTH else { panic!("{}", T::NAME) };
    (array.to_owned(), (MapType::ArrayOfMaps, 4, 4, PLACES as usize))
}

#[test]
fn the_maps_are_the_tables() -> Result<()> {
    let Some(kernel) = kernel() else {
        return Ok(());
    };
    let expected = BTreeMap::from(
        [
            describe::<Frontends>(),
            describe::<Slots>(),
            describe::<Backends>(),
            describe::<Flows>(),
            describe::<FlowCache>(),
            describe::<FlowEpochs>(),
            describe::<AddressFilter>(),
            describe::<ServiceNames>(),
            describe::<ServiceTraffic>(),
            describe::<Affinities>(),
            describe::<Sockets>(),
            describe::<Addresses>(),
            describe::<SourceRanges>(),
            describe::<Devices>(),
            describe::<Pods>(),
            describe::<Fragments>(),
            describe::<ServiceDrops>(),
            describe::<Settings>(),
            describe::<Drops>(),
            describe::<XdpDevices>(),
            describe::<Shortcuts>(),
            describe::<Passages>(),
            describe::<DeliveryDevices>(),
            describe::<Deliveries>(),
            describe::<Delivered>(),
            describe::<EventLease>(),
            describe::<Events>(),
            describe::<LostEvents>(),
            describe::<Misfits>(),
            places::<Flows>(),
            places::<Affinities>(),
            places::<Sockets>(),
        ]
        .map(|(name, what)| (name, format!("{what:?}"))),
    );
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(kernel.pins().maps())? {
        let path = entry?.path();
        let info = MapInfo::from_pin(&path)?;
        let name = path.file_name().and_then(|name| name.to_str()).context("name")?.to_owned();
        let what = (
            info.map_type()?,
            info.key_size() as usize,
            info.value_size() as usize,
            info.max_entries() as usize,
        );
        found.insert(name, format!("{what:?}"));
    }
    ensure!(found == expected, "{found:#?}\nis not\n{expected:#?}");
    Ok(())
}
