//! What happens to the bytes.

use anyhow::ensure;
use proxy_agent::datapath::Program;
use proxy_common::{
    addresses::AddressFlags, counters::ServiceCounters, drop::DropReason, filter::AddressRoles,
    tuple::Protocol,
};
use sluice_tests::{
    kernel::{Action, Output},
    packets::{Frame, Options, Transport, flags, icmp_error},
};

use super::bed::{NOTHING, answered, for_each, opened, passed, sent};

#[test]
pub(super) fn requests_go_to_the_backend_and_replies_come_from_the_service() {
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
pub(super) fn options_and_extension_headers_are_stepped_over() {
    for_each(|case| {
        case.serve(1)?;
        let first = Frame { options: Options::Padding, ..case.first() };
        let out = case.ingress(&first)?;
        ensure!(out == passed(&first.clone().to(case.backends[0])), "{out:02x?}");
        Ok(())
    });
}

/// Bytes of the first fragment: the transport header, and some.
const CUT: usize = 32;

/// NAT-03.
#[test]
pub(super) fn fragments_follow_the_first_one_both_ways() {
    for_each(|case| {
        case.serve(1)?;
        let request = case.first();
        let expected = match case.protocol {
            // Left alone: its checksum covers all of a packet, and it never sends fragments of its own accord.
            Protocol::SCTP => request.fragments(CUT),
            _ => request.clone().to(case.backends[0]).fragments(CUT),
        };
        for (fragment, expected) in request.fragments(CUT).into_iter().zip(expected) {
            let out = case.kernel.run(Program::Ingress, &fragment)?;
            ensure!(out == Output { action: Action::Next, frame: expected }, "{out:02x?}");
        }
        let reply = case.frame(case.backends[0], case.client, flags::SYN | flags::ACK);
        let expected = match case.protocol {
            Protocol::SCTP => reply.fragments(CUT),
            _ => reply.clone().from(case.vip).fragments(CUT),
        };
        for (fragment, expected) in reply.fragments(CUT).into_iter().zip(expected) {
            let out = case.kernel.run(Program::Egress, &fragment)?;
            ensure!(out == Output { action: Action::Next, frame: expected }, "{out:02x?}");
        }
        Ok(())
    });
}

#[test]
fn a_fragment_that_overtakes_the_first_one_goes_where_the_last_datagram_went() {
    for_each(|case| {
        if case.protocol == Protocol::SCTP {
            return Ok(());
        }
        case.serve(1)?;
        let vip = AddressFlags::CLUSTER_IP;
        case.kernel.set_address(case.vip, vip, AddressRoles::FRONTEND)?;
        let request = case.first();
        let [first, second] = request.fragments(CUT);
        // Nothing has been seen between these two yet: there is no telling whom it is for.
        let lost = [(DropReason::OrphanFragment, 1)];
        let out = case.counting(NOTHING, &lost, |case| case.kernel.run(Program::Ingress, &second))?;
        ensure!(out.action == Action::Drop, "{out:02x?}");
        case.kernel.run(Program::Ingress, &first)?;
        // Another datagram: its identification says so, in the last place where the two differ.
        let other = |mut fragment: Vec<u8>| {
            let (at, v4) = if request.source.is_ipv4() { (14 + 4, true) } else { (14 + 40 + 4, false) };
            fragment[at] ^= 0x40;
            if v4 {
                // The identification is a summand of the header's checksum.
                let check = u16::from_be_bytes([fragment[24], fragment[25]]);
                let sum = u32::from(!check) + u32::from(!0x0bad_u16) + u32::from(0x0bad_u16 ^ 0x4000);
                let sum = (sum & 0xffff) + (sum >> 16);
                let check = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap_or_default();
                fragment[24..26].copy_from_slice(&check.to_be_bytes());
            }
            fragment
        };
        let [_, expected] = request.clone().to(case.backends[0]).fragments(CUT);
        let out = case.kernel.run(Program::Ingress, &other(second))?;
        ensure!(out == Output { action: Action::Next, frame: other(expected) }, "{out:02x?}");
        Ok(())
    });
}

/// CIP-03, as nftables mode has it.
#[test]
fn unknown_ports_and_pings_of_a_cluster_ip_are_refused() {
    for_each(|case| {
        case.serve(1)?;
        case.kernel.set_address(case.vip, AddressFlags::CLUSTER_IP, AddressRoles::FRONTEND)?;
        let mut unknown = case.vip;
        unknown.set_port(81);
        let frame = case.frame(case.client, unknown, flags::SYN);
        let counted = [(DropReason::UnknownPort, 1)];
        let counted_twice = [(DropReason::UnknownPort, 2)];
        let out = case.counting(NOTHING, &counted, |case| case.ingress(&frame))?;
        ensure!(out == Output { action: Action::Redirect, frame: frame.refusal() }, "{out:02x?}");
        let (request, error) = if case.vip.is_ipv4() { (8, (3, 3)) } else { (128, (1, 4)) };
        let ping = icmp_error(case.client.ip(), case.vip.ip(), request, 0, b"0123456789abcdef");
        let out = case.kernel.run(Program::Ingress, &ping)?;
        let quoted = &ping[14..][..if case.vip.is_ipv4() { 28 } else { 48 }];
        let mut answer = icmp_error(case.vip.ip(), case.client.ip(), error.0, error.1, quoted);
        let (destination, rest) = answer.split_at_mut(6);
        destination.swap_with_slice(&mut rest[..6]);
        ensure!(out == Output { action: Action::Redirect, frame: answer }, "{out:02x?}");
        // An error is never answered by an error.
        let stray = icmp_error(case.client.ip(), case.vip.ip(), error.0, error.1, quoted);
        let out = case.counting(NOTHING, &counted_twice, |case| case.kernel.run(Program::Ingress, &stray))?;
        ensure!(out == Output { action: Action::Next, frame: stray }, "{out:02x?}");
        Ok(())
    });
}

#[test]
pub(super) fn a_datagram_without_checksum_stays_without() {
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
pub(super) fn checksums_are_exact_whatever_the_payload() {
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
