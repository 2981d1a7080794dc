//! Choices by the hash of a packet's tuple, over Maglev tables.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use proxy_common::{
    config::NodeFlags,
    flow::FlowState,
    frontend::{FrontendFlags, SlotRun},
    hash,
    tuple::Protocol,
};
use sluice_tests::packets::flags;

use super::bed::{Case, for_each, passed};

/// A table for [`Case::backends`]: the backend of each slot.
const TABLE: [usize; 7] = [0, 1, 0, 0, 1, 1, 0];

/// Runs a test for all families and protocols on a service with that table.
fn for_each_table(test: impl Fn(&mut Case) -> Result<()>) {
    for_each(|case| {
        case.kernel.template.flags = FrontendFlags::MAGLEV;
        case.serve(2)?;
        let slots: Vec<_> = TABLE.iter().map(|&index| case.id(index)).collect();
        case.kernel.set_slots(case.vip, case.protocol, &slots)?;
        test(case)
    });
}

fn clients(case: &Case) -> Vec<SocketAddr> {
    let base = case.client;
    let other = match base.ip() {
        IpAddr::V4(ip) => IpAddr::from((u32::from(ip) + 1).to_be_bytes()),
        IpAddr::V6(ip) => IpAddr::from((u128::from(ip) + 1).to_be_bytes()),
    };
    let ports = base.port()..base.port() + 50;
    ports.flat_map(|port| [SocketAddr::new(base.ip(), port), SocketAddr::new(other, port)]).collect()
}

/// Where a new connection of a client goes.
fn dial(case: &mut Case, client: SocketAddr) -> Result<usize> {
    case.client = client;
    let out = case.ingress(&case.first())?;
    case.chosen(&out)
}

/// Also once nothing is remembered.
#[test]
fn a_tuple_goes_where_its_hash_leads() {
    for_each_table(|case| {
        let mut seen = [0; 2];
        for client in clients(case) {
            case.client = client;
            let run = SlotRun { base: 0, count: u32::try_from(TABLE.len())? };
            let slot = run.choose(hash::of_request(&case.request_key())).unwrap_or_default();
            let expected = TABLE[slot as usize];
            for _ in 0..3 {
                case.kernel.clear_flows()?;
                let reached = dial(case, client)?;
                ensure!(reached == expected, "{client}: {reached}, not {expected}");
            }
            seen[expected] += 1;
        }
        // Four of seven slots, and three.
        ensure!(seen.iter().all(|&count| count > 25), "{seen:?}");
        Ok(())
    });
}

/// A segment without a flow, towards a service that leads by hash, and what is left alone all the same.
#[test]
fn a_stray_segment_of_tcp_goes_where_its_hash_leads() {
    for_each_table(|case| {
        let stray = case.frame(case.client, case.vip, flags::ACK);
        if case.protocol != Protocol::UDP {
            ensure!(case.ingress(&stray)? == passed(&stray), "without the agent's leave");
        }
        case.kernel.set_flags(NodeFlags::TAKE_UP)?;
        for client in clients(case).into_iter().take(10) {
            case.kernel.clear_flows()?;
            let begun = dial(case, client)?;
            for flags in [flags::ACK, flags::ACK | flags::FIN, flags::RST] {
                case.kernel.clear_flows()?;
                let stray = case.frame(case.client, case.vip, flags);
                let out = case.ingress(&stray)?;
                if case.protocol == Protocol::SCTP {
                    ensure!(out == passed(&stray), "{flags:#x}: {out:02x?}");
                    continue;
                }
                ensure!(out == passed(&stray.clone().to(case.backends[begun])), "{flags:#x}: {out:02x?}");
                if case.protocol == Protocol::TCP {
                    let state = case.flow(case.backends[begun])?.head.state;
                    ensure!(state == FlowState::SYN_RECEIVED, "{flags:#x}: {state:?}");
                }
            }
        }
        if case.protocol == Protocol::TCP {
            case.kernel.clear_flows()?;
            for flags in [flags::SYN | flags::ACK, 0] {
                let other = case.frame(case.client, case.vip, flags);
                ensure!(case.ingress(&other)? == passed(&other), "{flags:#x}");
            }
            ensure!(case.kernel.flows()?.is_empty(), "{:?}", case.kernel.flows()?);
        }
        Ok(())
    });
}
