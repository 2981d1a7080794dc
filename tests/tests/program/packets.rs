//! What happens to the bytes.

use anyhow::ensure;
use proxy_agent::datapath::Program;
use proxy_common::{counters::ServiceCounters, drop::DropReason, tuple::Protocol};
use sluice_tests::{
    kernel::{Action, Output},
    packets::{Frame, Options, Transport, flags},
};

use super::bed::{NOTHING, answered, for_each, opened, passed, sent};

#[test]
fn requests_go_to_the_backend_and_replies_come_from_the_service() {
    for_each(|case| {
        case.serve(1)?;
        let (first, backend) = (case.first(), case.backends[0]);
        let out = case.counting(opened(&first), &[], |case| case.ingress(&first))?;
        ensure!(out == passed(&first.clone().to(backend)), "first packet: {out:02x?}");

        let reply = case.frame(backend, case.client, flags::SYN | flags::ACK);
        let out = case.counting(answered(&reply), &[], |case| case.egress(&reply))?;
        ensure!(out == passed(&reply.clone().from(case.vip)), "reply: {out:02x?}");

        let next = case.frame(case.client, case.vip, flags::ACK);
        let out = case.counting(sent(&next), &[], |case| case.ingress(&next))?;
        ensure!(out == passed(&next.clone().to(backend)), "next packet: {out:02x?}");
        Ok(())
    });
}

#[test]
fn each_hook_rewrites_its_own_end_only() {
    for_each(|case| {
        case.serve(1)?;
        let first = case.first();
        let translated = first.clone().to(case.backends[0]);
        case.ingress(&first)?;
        let reply = case.frame(case.backends[0], case.client, flags::SYN | flags::ACK);
        for (name, out, same) in [
            ("request leaving towards the backend", case.egress(&translated)?, translated),
            ("reply entering from the backend", case.ingress(&reply)?, reply),
        ] {
            ensure!(out == passed(&same), "{name}: {out:02x?}");
        }
        Ok(())
    });
}

#[test]
fn what_is_not_a_service_passes_untouched() {
    for_each(|case| {
        case.serve(1)?;
        let mut other_port = case.vip;
        other_port.set_port(81);
        for frame in [
            case.frame(case.client, case.stranger, flags::SYN),
            case.frame(case.stranger, case.client, flags::ACK),
            case.frame(case.client, case.backends[0], flags::SYN),
            case.frame(case.backends[0], case.client, flags::ACK),
            case.frame(case.client, other_port, flags::SYN),
        ] {
            for program in [Program::Ingress, Program::Egress] {
                let out = case.counting(NOTHING, &[], |case| case.kernel.run(program, &frame.bytes()))?;
                ensure!(out == passed(&frame), "{program:?}: {out:02x?}");
            }
        }
        ensure!(case.kernel.flows()?.is_empty(), "flows: {:?}", case.kernel.flows()?);
        Ok(())
    });
}

#[test]
fn a_service_without_backends_refuses_and_counts() {
    for_each(|case| {
        case.serve(0)?;
        let first = case.first();
        let dropped = ServiceCounters { drops: 1, ..NOTHING };
        let out = case.counting(dropped, &[(DropReason::NoBackend, 1)], |case| case.ingress(&first))?;
        ensure!(out == Output { action: Action::Redirect, frame: first.refusal() }, "{out:02x?}");
        ensure!(case.kernel.flows()?.is_empty(), "flows: {:?}", case.kernel.flows()?);
        Ok(())
    });
}

#[test]
fn a_service_of_the_other_protocol_is_another_service() {
    for_each(|case| {
        case.serve(1)?;
        let transport =
            if case.protocol == Protocol::TCP { Transport::Udp } else { Transport::Tcp(flags::SYN) };
        let frame = Frame::new(case.client, case.vip, transport);
        let out = case.counting(NOTHING, &[], |case| case.ingress(&frame))?;
        ensure!(out == passed(&frame), "{out:02x?}");
        Ok(())
    });
}

#[test]
fn options_and_extension_headers_are_stepped_over() {
    for_each(|case| {
        case.serve(1)?;
        let first = Frame { options: Options::Padding, ..case.first() };
        let out = case.ingress(&first)?;
        ensure!(out == passed(&first.clone().to(case.backends[0])), "{out:02x?}");
        Ok(())
    });
}

#[test]
fn fragments_are_left_alone() {
    for_each(|case| {
        case.serve(1)?;
        if case.vip.is_ipv6() {
            return Ok(());
        }
        let first = Frame { options: Options::FirstFragment, ..case.first() };
        let out = case.counting(NOTHING, &[], |case| case.ingress(&first))?;
        ensure!(out == passed(&first), "{out:02x?}");
        Ok(())
    });
}

#[test]
fn a_datagram_without_checksum_stays_without() {
    for_each(|case| {
        case.serve(1)?;
        if case.protocol != Protocol::UDP || case.vip.is_ipv6() {
            return Ok(());
        }
        let first = Frame::new(case.client, case.vip, Transport::UdpUnchecked);
        let out = case.ingress(&first)?;
        ensure!(out == passed(&first.clone().to(case.backends[0])), "{out:02x?}");
        Ok(())
    });
}

#[test]
fn checksums_are_exact_whatever_the_payload() {
    for_each(|case| {
        case.serve(1)?;
        // Payloads that bring the sum past every carry, odd lengths, and the UDP checksum that sums to zero.
        for seed in 0..=255_u8 {
            let payload = (0..48 + seed % 3).map(|n| n.wrapping_mul(seed).wrapping_add(seed)).collect();
            let frame = Frame { payload, ..case.first() };
            let out = case.ingress(&frame)?;
            ensure!(out == passed(&frame.clone().to(case.backends[0])), "seed {seed}: {out:02x?}");
        }
        Ok(())
    });
}

#[test]
fn packets_cut_short_pass_untouched() {
    for_each(|case| {
        case.serve(1)?;
        let whole = Frame { payload: Vec::new(), ..case.first() }.bytes();
        // The kernel refuses to run a program on less than a network header.
        let shortest = if case.vip.is_ipv4() { 34 } else { 54 };
        for length in shortest..whole.len() {
            for program in [Program::Ingress, Program::Egress] {
                let cut = whole[..length].to_vec();
                let out = case.counting(NOTHING, &[], |case| case.kernel.run(program, &cut))?;
                ensure!(out == Output { action: Action::Next, frame: cut }, "{length} bytes: {out:02x?}");
            }
        }
        Ok(())
    });
}

#[test]
fn nonsense_headers_pass_untouched() {
    for_each(|case| {
        case.serve(1)?;
        let good = case.first().bytes();
        // Version and header length: a version that contradicts the EtherType, a header shorter than itself.
        let broken: &[u8] = if case.vip.is_ipv4() { &[0x00, 0x65, 0x44, 0x40] } else { &[0x00, 0x40] };
        for &first in broken {
            let mut frame = good.clone();
            frame[14] = first;
            let out = case.counting(NOTHING, &[], |case| case.kernel.run(Program::Ingress, &frame))?;
            ensure!(out == Output { action: Action::Next, frame }, "{first:02x}: {out:02x?}");
        }
        // Not IP at all.
        let mut frame = good;
        frame[12..14].copy_from_slice(&[0x88, 0xcc]);
        let out = case.counting(NOTHING, &[], |case| case.kernel.run(Program::Ingress, &frame))?;
        ensure!(out == Output { action: Action::Next, frame }, "{out:02x?}");
        Ok(())
    });
}
