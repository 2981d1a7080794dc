//! What a CPU remembers of flows, and when it asks the flow table nevertheless. What is planted here holds for ever, so that no
//! test depends on the time.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Map, MapData, PerCpuArray, PerCpuValues};
use proxy_agent::datapath::ArrayTable;
use proxy_common::{
    cache::{Answer, CachePage, CachedFlow, Ground, TupleHash},
    flow::{FlowHead, FlowState},
    lb::Translation,
    tables::{FlowCache, FlowEpochs, Table as _},
    time::Ticks,
    tuple::Protocol,
};
use sluice_tests::{kernel::end, packets::flags};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::bed::{Case, WEB, for_each, passed, sent};

type Page = [u8; size_of::<CachePage>()];

fn table(case: &Case) -> Result<PerCpuArray<MapData, Page>> {
    let map = MapData::from_pin(case.kernel.pins().maps().join(FlowCache::NAME))?;
    Ok(Map::PerCpuArray(map).try_into()?)
}

/// The entry for the client's packets, on each CPU.
fn entries(case: &Case) -> Result<Vec<CachedFlow>> {
    let place = TupleHash::of(&case.request_key()).place(FlowCache::CAPACITY);
    let pages = table(case)?.get(&place.page, 0)?;
    let entry = |page: &Page| {
        let page = CachePage::read_from_bytes(page).map_err(|_| anyhow::anyhow!("not a page"))?;
        Ok(page.entries[place.at])
    };
    pages.iter().map(entry).collect()
}

/// Gives the client's packets an answer on all CPUs: the stranger's address.
fn plant(case: &Case, version: u64, backend: SocketAddr) -> Result<()> {
    let key = case.request_key();
    let head: FlowHead = case.flow(backend)?.head;
    let epochs = ArrayTable::<FlowEpochs>::open(case.kernel.pins())?;
    let epoch = epochs.get(TupleHash::of(&key).epoch())?.context("no such epoch")?;
    let ground = Ground::new(&head, epoch, Ticks(0), Ticks(u32::MAX));
    let translation =
        Translation { end: end(case.stranger), other_port: key.source_port, masquerade: false, dsr: false };
    let place = TupleHash::of(&key).place(FlowCache::CAPACITY);
    let mut table = table(case)?;
    let mut pages = Vec::new();
    for page in table.get(&place.page, 0)?.iter() {
        let mut page = CachePage::read_from_bytes(page).map_err(|_| anyhow::anyhow!("not a page"))?;
        page.entries[place.at] = CachedFlow::new(version, key, &Answer { translation, ground });
        pages.push(Page::read_from_bytes(page.as_bytes()).map_err(|_| anyhow::anyhow!("not a page"))?);
    }
    Ok(table.set(place.page, PerCpuValues::try_from(pages)?, 0)?)
}

/// A flow that runs, and where its client's packets go if the table is asked.
fn running(case: &mut Case) -> Result<SocketAddr> {
    case.serve(1)?;
    case.establish()?;
    Ok(case.backends[0])
}

/// Where the client's next packet goes, which is counted as ever.
fn expect(case: &mut Case, tcp_flags: u8, to: SocketAddr) -> Result<()> {
    let frame = case.frame(case.client, case.vip, tcp_flags);
    let out = case.counting(sent(&frame), &[], |case| case.ingress(&frame))?;
    ensure!(out == passed(&frame.to(to)), "not to {to}: {out:02x?}");
    Ok(())
}

#[test]
fn what_is_remembered_counts_until_the_flow_changes() {
    for_each(|case| {
        let backend = running(case)?;
        plant(case, 2, backend)?;
        let stranger = case.stranger;
        expect(case, flags::ACK, stranger)?;
        if case.protocol != Protocol::UDP {
            // The end of the flow is for the table, and all that comes then.
            for tcp_flags in [flags::FIN | flags::ACK, flags::ACK] {
                expect(case, tcp_flags, backend)?;
            }
            ensure!(case.flow(backend)?.head.state == FlowState::CLIENT_CLOSED);
        }
        Ok(())
    });
}

#[test]
fn an_entry_that_is_being_written_is_none() {
    for_each(|case| {
        let backend = running(case)?;
        plant(case, 3, backend)?;
        expect(case, flags::ACK, backend)
    });
}

#[test]
fn datagrams_do_not_go_where_nobody_serves_whatever_is_remembered() {
    for_each(|case| {
        let backend = running(case)?;
        plant(case, 2, backend)?;
        case.retire(0)?;
        if case.protocol != Protocol::UDP {
            let stranger = case.stranger;
            return expect(case, flags::ACK, stranger);
        }
        case.kernel.serve(WEB, case.vip, case.protocol, 2, &case.backends[1..])?;
        let frame = case.first();
        let out = case.ingress(&frame)?;
        ensure!(out == passed(&frame.to(case.backends[1])), "{out:02x?}");
        Ok(())
    });
}

#[test]
fn a_busy_flow_is_remembered_as_the_table_has_it() {
    for_each(|case| {
        let backend = running(case)?;
        let frame = case.frame(case.client, case.vip, flags::ACK);
        let key = case.request_key();
        // On a machine that is slow enough, a flow is never busy; try until it is.
        for _ in 0..10_000 {
            case.ingress(&frame)?;
            if let Some(entry) = entries(case)?.into_iter().find(|entry| entry.key == key) {
                let flow = case.flow(backend)?;
                let Ground { epoch, learned, lifetime, .. } = entry.ground;
                ensure!(entry.version % 2 == 0, "{entry:?}");
                ensure!(
                    entry.ground == Ground::new(&flow.head, epoch, learned, lifetime),
                    "{entry:?} {flow:?}"
                );
                ensure!(
                    entry.address == end(backend).address && entry.port == end(backend).port,
                    "{entry:?}"
                );
                ensure!(entry.other_port == key.source_port, "{entry:?}");
                return Ok(());
            }
        }
        None.context("it never was")
    });
}
