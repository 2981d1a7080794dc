//! Choices by the hash of a packet's tuple, over Maglev tables.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use proxy_common::{
    frontend::{FrontendFlags, SlotRun},
    hash,
};

use super::bed::{Case, for_each};

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
