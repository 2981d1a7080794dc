//! Tables that move to another capacity while packets pass.

use std::ops::Range;

use anyhow::{Result, ensure};
use proxy_agent::datapath::{self, Capacities, HashTable};
use proxy_common::{drop::DropReason, tables::Flows};
use sluice_tests::{kernel::Action, packets::flags};

use super::bed::{Case, for_each, passed};

/// Little room for flows.
const LITTLE: Capacities = Capacities {
    services: 16_384,
    frontends: 65_536,
    backends: 262_144,
    source_ranges: 65_536,
    flows: 128,
    affinities: 65_536,
    sockets: 65_536,
};

/// The flow from each of these ports is translated, at both hooks.
fn expect_flows(case: &mut Case, ports: Range<u16>) -> Result<()> {
    let (backend, vip) = (case.backends[0], case.vip);
    for port in ports {
        case.client.set_port(port);
        let there = case.frame(case.client, vip, flags::ACK);
        ensure!(case.ingress(&there)? == passed(&there.clone().to(backend)), "{port}, request");
        let back = case.frame(backend, case.client, flags::ACK);
        ensure!(case.egress(&back)? == passed(&back.clone().from(vip)), "{port}, answer");
    }
    Ok(())
}

fn open(case: &mut Case, ports: Range<u16>) -> Result<()> {
    for port in ports {
        case.client.set_port(port);
        case.ingress(&case.first())?;
        case.egress(&case.frame(case.backends[0], case.client, flags::SYN | flags::ACK))?;
    }
    Ok(())
}

/// Of two agents, one is killed before anything moves, and the other stops half way: some entries are in both tables.
#[test]
fn every_flow_is_found_while_tables_move() {
    for_each(|case| {
        case.serve(1)?;
        open(case, 20_000..20_016)?;
        case.kernel.reload(LITTLE)?;
        case.kernel.reload(LITTLE)?;
        open(case, 20_016..20_080)?;
        let moved = datapath::move_tables(case.kernel.pins());
        ensure!(moved.is_err(), "160 entries fit into 128");
        expect_flows(case, 20_000..20_080)?;
        // New ones belong into the new table, which is full.
        case.client.set_port(30_000);
        let out = case.ingress(&case.first())?;
        ensure!(
            out.action == Action::Drop && case.kernel.drops()? == [(DropReason::FlowTableFull, 1)],
            "{out:?}"
        );
        Ok(())
    });
}

#[test]
fn a_moved_table_has_all_entries_and_takes_new_ones() {
    for_each(|case| {
        case.serve(1)?;
        open(case, 20_000..20_040)?;
        case.kernel.reload(Capacities { flows: 1_000_000, ..LITTLE })?;
        open(case, 20_040..20_060)?;
        datapath::move_tables(case.kernel.pins())?;
        ensure!(case.kernel.flows()?.len() == 120);
        expect_flows(case, 20_000..20_060)?;
        open(case, 20_060..20_080)?;
        ensure!(case.kernel.flows()?.len() == 160);
        let table = HashTable::<Flows>::open(case.kernel.pins())?;
        ensure!(table.capacity() == 1_000_000);
        case.kernel.reload(Capacities { flows: 128, ..LITTLE })?;
        datapath::move_tables(case.kernel.pins())?;
        ensure!(HashTable::<Flows>::open(case.kernel.pins())?.capacity() == 1_000_000, "160 do not fit");
        Ok(())
    });
}
