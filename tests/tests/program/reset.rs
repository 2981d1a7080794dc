//! Connections through a service that wants them reset when their backend is gone.

use anyhow::{Result, ensure};
use proxy_common::{
    counters::ServiceCounters, drop::DropReason, flow::FlowState, frontend::FrontendFlags, tuple::Protocol,
};
use sluice_tests::{
    kernel::{Action, Output},
    packets::{Frame, Options, flags},
};

use super::bed::{Case, NOTHING, for_each, passed};

const PSH: u8 = 0x08;

/// Runs a test for TCP in both families, on an established connection to a backend that is gone since.
fn for_each_lost(test: impl Fn(&mut Case) -> Result<()>) {
    for_each(|case| {
        if case.protocol != Protocol::TCP {
            return Ok(());
        }
        case.kernel.template.flags = FrontendFlags::RESET;
        case.serve(1)?;
        case.establish()?;
        case.retire(0)?;
        test(case)
    });
}

/// The answer to a segment of the client.
fn reset(case: &mut Case, segment: &Frame) -> Result<Output> {
    let drops = case.kernel.drops()?.first().map_or(0, |(_, count)| *count);
    let counted = ServiceCounters { drops: 1, ..NOTHING };
    case.counting(counted, &[(DropReason::BackendGone, drops + 1)], |case| case.ingress(segment))
}

/// RFC 9293 3.10.7.1.
#[test]
fn a_segment_becomes_the_reset_that_answers_it() {
    for_each_lost(|case| {
        let expected = |segment: &Frame| Output { action: Action::Redirect, frame: segment.reset() };
        for flags in [
            flags::ACK,
            flags::ACK | PSH,
            flags::ACK | flags::FIN,
            flags::ACK | flags::SYN,
            PSH,
            flags::FIN,
            0,
        ] {
            let whole = case.frame(case.client, case.vip, flags);
            for segment in [
                whole.clone(),
                Frame { payload: Vec::new(), ..whole.clone() },
                Frame { payload: vec![0xff; 1401], ..whole.clone() },
                Frame { options: Options::Padding, ..whole },
            ] {
                let out = reset(case, &segment)?;
                ensure!(
                    out == expected(&segment),
                    "{segment:x?}\nbecame {out:02x?}\nnot {:02x?}",
                    expected(&segment)
                );
                ensure!(case.flow(case.backends[0])?.head.state == FlowState::RESET, "the flow goes on");
            }
        }
        Ok(())
    });
}

#[test]
fn a_fragment_of_a_lost_connection_is_dropped() {
    for_each_lost(|case| {
        for fragment in case.frame(case.client, case.vip, flags::ACK).fragments(32) {
            let out = case.kernel.run(proxy_agent::datapath::Program::Ingress, &fragment)?;
            ensure!(out.action == Action::Drop, "{out:02x?}");
        }
        Ok(())
    });
}

#[test]
fn a_reset_of_the_client_goes_on_to_the_backend_and_a_syn_begins_anew() {
    for_each_lost(|case| {
        let (client, vip, gone) = (case.client, case.vip, case.backends[0]);
        let rst = case.frame(client, vip, flags::RST);
        ensure!(case.ingress(&rst)? == passed(&rst.clone().to(gone)), "RST");
        let backends = case.backends;
        case.kernel.serve(super::bed::WEB, vip, Protocol::TCP, 2, &backends[1..])?;
        let syn = case.first();
        ensure!(case.ingress(&syn)? == passed(&syn.clone().to(backends[1])), "SYN");
        Ok(())
    });
}

/// CT-20.
#[test]
fn without_the_flag_a_connection_keeps_its_backend() {
    for_each(|case| {
        if case.protocol == Protocol::UDP {
            return Ok(());
        }
        case.serve(1)?;
        case.establish()?;
        case.retire(0)?;
        let next = case.frame(case.client, case.vip, flags::ACK);
        ensure!(case.ingress(&next)? == passed(&next.clone().to(case.backends[0])));
        Ok(())
    });
}
