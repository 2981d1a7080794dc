//! The limit on new flows.

use anyhow::{Result, ensure};
use proxy_common::drop::DropReason;
use sluice_tests::{
    kernel::{Action, Output},
    packets::flags,
};

use super::bed::{Case, NOTHING, WEB, for_each, passed};

/// Far more than a bucket of one token a second holds, on any CPU that the test may run on.
const FLOOD: u16 = 64;

/// Opens as many flows as may begin, and some more. Returns how many were refused.
fn flood(case: &mut Case) -> Result<u64> {
    let client = case.client;
    let mut refused = 0;
    for port in 20_000..20_000 + FLOOD {
        case.client.set_port(port);
        let opens = case.first();
        let out = case.ingress(&opens)?;
        let dropped = Output { action: Action::Drop, frame: opens.bytes() };
        ensure!(out == dropped || out == passed(&opens.to(case.backends[0])), "port {port}: {out:02x?}");
        ensure!(
            case.kernel.flow(&case.request_key())?.is_some() == (out.action == Action::Next),
            "port {port}"
        );
        refused += u64::from(out == dropped);
    }
    case.client = client;
    Ok(refused)
}

#[test]
fn flows_beyond_the_limit_are_dropped_and_counted_and_leave_nothing() {
    for_each(|case| {
        case.serve(1)?;
        case.kernel.set_new_flow_limit(1)?;
        let refused = flood(case)?;
        ensure!(refused > 0, "all of {FLOOD} flows began");
        ensure!(refused < u64::from(FLOOD), "no flow began");
        ensure!(case.kernel.drops()? == [(DropReason::NewFlowLimit, refused)], "{:?}", case.kernel.drops()?);
        let began = u64::from(FLOOD) - refused;
        let counted = case.kernel.traffic(WEB)?;
        ensure!((counted.connections, counted.drops) == (began, refused), "{began}, {refused}: {counted:?}");
        ensure!(case.kernel.flows()?.len() as u64 == 2 * began, "entries for more than {began} flows");
        Ok(())
    });
}

#[test]
fn beyond_the_limit_only_new_flows_are_touched() {
    for_each(|case| {
        case.serve(1)?;
        let index = case.establish()?;
        case.kernel.set_new_flow_limit(1)?;
        ensure!(flood(case)? > 0, "all of {FLOOD} flows began");
        let backend = case.backends[index];
        let stranger = case.stranger;
        for _ in 0..FLOOD {
            let there = case.frame(case.client, case.vip, flags::ACK);
            ensure!(case.ingress(&there)? == passed(&there.clone().to(backend)), "request");
            let back = case.frame(backend, case.client, flags::ACK);
            ensure!(case.egress(&back)? == passed(&back.clone().from(case.vip)), "answer");
            let elsewhere = case.frame(case.client, stranger, flags::SYN);
            ensure!(case.ingress(&elsewhere)? == passed(&elsewhere), "not a service");
        }
        // What begins no flow needs no token: this service has nobody to send it to.
        case.kernel.serve(WEB, case.vip, case.protocol, 1, &[])?;
        case.client.set_port(30_000);
        let before = case.kernel.drops()?;
        case.ingress(&case.first())?;
        let after = case.kernel.drops()?;
        ensure!(after.contains(&(DropReason::NoBackend, 1)), "{before:?}, then {after:?}");
        Ok(())
    });
}

#[test]
fn without_a_limit_all_flows_begin() {
    for_each(|case| {
        case.serve(1)?;
        case.kernel.set_new_flow_limit(0)?;
        ensure!(flood(case)? == 0, "refused");
        case.counting(NOTHING, &[], |_| Ok(()))
    });
}
