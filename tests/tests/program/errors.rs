//! ICMP errors about translated packets, in both directions.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use proxy_agent::datapath::Program;
use proxy_common::tuple::Protocol;
use sluice_tests::{
    kernel::{Action, Output},
    packets::{Frame, flags, icmp_error},
};

use super::bed::{Case, NOTHING, for_each};

/// Errors that a service's client or backend may meet: unreachable ports, packets too big, time exceeded.
fn kinds(case: &Case) -> [(u8, u8); 3] {
    if case.vip.is_ipv4() { [(3, 3), (3, 4), (11, 0)] } else { [(1, 4), (2, 0), (3, 0)] }
}

/// A quotation of `frame` whose addresses were translated, and whose transport checksum was not: what is left of the
/// quoted packet cannot be verified anyway.
fn quotation(case: &Case, translated: &Frame, original: &Frame) -> Vec<u8> {
    let (mut quoted, untouched) = (translated.headers(), original.headers());
    let network = if case.vip.is_ipv4() { 20 } else { 40 };
    let check = match case.protocol {
        Protocol::TCP => 16..18,
        Protocol::SCTP => 8..12,
        _ => 6..8,
    };
    let check = network + check.start..network + check.end;
    quoted[check.clone()].copy_from_slice(&untouched[check]);
    quoted
}

fn expect(case: &mut Case, program: Program, given: Vec<u8>, expected: Vec<u8>) -> Result<()> {
    let out = case.counting(NOTHING, &[], |case| case.kernel.run(program, &given))?;
    ensure!(
        out == Output { action: Action::Next, frame: expected.clone() },
        "{out:02x?}\nis not {expected:02x?}"
    );
    Ok(())
}

/// A router between node and backend.
fn router(case: &Case) -> IpAddr {
    case.stranger.ip()
}

#[test]
fn an_error_about_a_request_reaches_the_client_as_one_about_the_service() {
    for_each(|case| {
        case.serve(1)?;
        let request = case.first();
        case.ingress(&request)?;
        let (client, vip, backend) = (case.client.ip(), case.vip, case.backends[0]);
        let sent = request.clone().to(backend);
        for (kind, code) in kinds(case) {
            for sender in [backend.ip(), router(case)] {
                let given = icmp_error(sender, client, kind, code, &sent.headers());
                let back = quotation(case, &request, &sent);
                expect(case, Program::Egress, given, icmp_error(vip.ip(), client, kind, code, &back))?;
            }
        }
        Ok(())
    });
}

#[test]
fn an_error_about_a_reply_reaches_the_backend_as_one_about_its_own_packet() {
    for_each(|case| {
        case.serve(1)?;
        case.ingress(&case.first())?;
        let (client, vip, backend) = (case.client, case.vip, case.backends[0]);
        let reply = case.frame(backend, client, flags::ACK);
        let seen = reply.clone().from(vip);
        for (kind, code) in kinds(case) {
            for sender in [client.ip(), router(case)] {
                let given = icmp_error(sender, vip.ip(), kind, code, &seen.headers());
                let back = quotation(case, &reply, &seen);
                expect(case, Program::Ingress, given, icmp_error(sender, backend.ip(), kind, code, &back))?;
            }
        }
        Ok(())
    });
}

#[test]
fn errors_about_other_packets_and_other_messages_pass_untouched() {
    for_each(|case| {
        case.serve(1)?;
        let request = case.first();
        case.ingress(&request)?;
        let (client, backend) = (case.client, case.backends[0]);
        let mut other = client;
        other.set_port(client.port() + 1);
        let sent = request.clone().to(backend);
        let echo = if client.is_ipv4() { 8 } else { 128 };
        let quote = |source: SocketAddr| sent.clone().from(source).headers();
        for given in [
            icmp_error(backend.ip(), client.ip(), kinds(case)[0].0, kinds(case)[0].1, &quote(other)),
            icmp_error(backend.ip(), client.ip(), echo, 0, &quote(client)),
            // Too little quoted to tell the ports.
            icmp_error(backend.ip(), client.ip(), kinds(case)[0].0, kinds(case)[0].1, &quote(client)[..20]),
        ] {
            for program in [Program::Ingress, Program::Egress] {
                expect(case, program, given.clone(), given.clone())?;
            }
        }
        Ok(())
    });
}
