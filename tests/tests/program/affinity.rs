//! Session affinity: a client stays with its backend, as long as it should.

use anyhow::{Context as _, Result, ensure};
use proxy_common::{
    affinity::AffinityKey,
    backend::{BackendFlags, Generation},
    drop::DropReason,
    frontend::{Frontend, FrontendFlags, ServiceId},
    time::Ticks,
};
use sluice_tests::kernel::{Action, end};

use super::bed::{Case, WEB, for_each};

/// Seconds that a client is remembered.
const TIMEOUT: u32 = 60;

fn serve(case: &mut Case) -> Result<()> {
    case.kernel.template = Frontend { affinity: TIMEOUT, ..Frontend::default() };
    case.serve(2)
}

/// Where a new connection of the client goes.
fn dial(case: &mut Case) -> Result<usize> {
    case.client.set_port(case.client.port() + 1);
    let out = case.ingress(&case.first())?;
    case.chosen(&out)
}

fn key(case: &Case) -> AffinityKey {
    AffinityKey { client: end(case.client).address, service: WEB }
}

/// Makes the client's last connection older than it is.
fn age(case: &mut Case, seconds: u32) -> Result<()> {
    let ticks = seconds * case.kernel.ticks_per_second()?;
    let mut mapping = case.kernel.affinity(&key(case))?.context("no mapping")?;
    mapping.last = Ticks(mapping.last.0.wrapping_sub(ticks));
    case.kernel.set_affinity(&key(case), &mapping)
}

#[test]
fn all_connections_of_a_client_reach_one_backend() {
    for_each(|case| {
        serve(case)?;
        let first = dial(case)?;
        for attempt in 0..60 {
            ensure!(dial(case)? == first, "attempt {attempt} went elsewhere");
        }
        Ok(())
    });
}

#[test]
fn clients_do_not_share_a_backend() {
    for_each(|case| {
        serve(case)?;
        let mut seen = [0; 2];
        for host in 1..=60_u8 {
            let address = match case.client.ip() {
                std::net::IpAddr::V4(address) => [&address.octets()[..3], &[host]].concat(),
                std::net::IpAddr::V6(address) => [&address.octets()[..15], &[host]].concat(),
            };
            let v4 = <[u8; 4]>::try_from(&address[..]).map(std::net::IpAddr::from);
            let v6 = <[u8; 16]>::try_from(&address[..]).map(std::net::IpAddr::from);
            case.client.set_ip(v4.or(v6)?);
            seen[dial(case)?] += 1;
        }
        // Sixty throws of a coin on one side: once in 10^17 runs.
        ensure!(seen.iter().all(|&count| count > 0), "{seen:?}");
        Ok(())
    });
}

#[test]
fn a_new_connection_starts_the_time_anew_and_silence_ends_it() {
    for_each(|case| {
        serve(case)?;
        let first = dial(case)?;
        for _ in 0..5 {
            age(case, TIMEOUT - 1)?;
            ensure!(dial(case)? == first, "within the time");
        }
        // After the time, the choice is free again: the same backend thirty times in a row says that it was not.
        let mut elsewhere = false;
        for _ in 0..30 {
            age(case, TIMEOUT + 1)?;
            elsewhere |= dial(case)? != first;
        }
        ensure!(elsewhere, "the mapping never expired");
        Ok(())
    });
}

#[test]
fn a_backend_that_is_gone_is_forgotten() {
    for_each(|case| {
        serve(case)?;
        let first = dial(case)?;
        let id = case.id(first);
        case.kernel.set_backend(id, WEB, case.backends[first], BackendFlags::default(), Generation(1))?;
        case.kernel.serve(WEB, case.vip, case.protocol, 11, &[case.backends[1 - first]])?;
        ensure!(dial(case)? == 1 - first, "the backend that is left");
        // It comes back with another id; the client stays where it is (AFF-07).
        let both = case.backends;
        case.kernel.serve(WEB, case.vip, case.protocol, 11, &[both[1 - first], both[first]])?;
        for _ in 0..30 {
            ensure!(dial(case)? == 1 - first, "no resurrection");
        }
        Ok(())
    });
}

#[test]
fn another_service_port_has_mappings_of_its_own() {
    for_each(|case| {
        serve(case)?;
        dial(case)?;
        let other = AffinityKey { service: ServiceId(8), ..key(case) };
        ensure!(case.kernel.affinity(&other)?.is_none(), "a mapping nobody made");
        ensure!(case.kernel.affinity(&key(case))?.is_some(), "the mapping");
        Ok(())
    });
}

#[test]
fn a_service_without_affinity_remembers_nobody() {
    for_each(|case| {
        case.serve(2)?;
        dial(case)?;
        ensure!(case.kernel.affinity(&key(case))?.is_none(), "a mapping");
        Ok(())
    });
}

#[test]
fn a_policy_without_local_backends_drops_silently() {
    for_each(|case| {
        case.kernel.template = Frontend { flags: FrontendFlags::DROP_WHEN_EMPTY, ..Frontend::default() };
        case.serve(0)?;
        let out = case.ingress(&case.first())?;
        ensure!(out.action == Action::Drop, "{out:02x?}");
        ensure!(case.kernel.drops()? == [(DropReason::NoLocalBackend, 1)], "{:?}", case.kernel.drops()?);
        Ok(())
    });
}
