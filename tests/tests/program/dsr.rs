//! Direct server return: what the first node remembers, and what the backend's node makes of what it is sent.
//!
//! A test run has no notes from one hook to the next, so what the first node sends is seen where there are real packets.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use network_types::eth::EthHdr;
use proxy_agent::datapath::{HashTable, Program};
use proxy_common::{
    counters::ServiceCounters,
    device::Device,
    drop::DropReason,
    flow::{FlowFlags, FlowState},
    frontend::{FrontendFlags, FrontendKey},
    hash,
    tables::{Devices, Frontends},
    tuple::{FlowKey, Hook, Protocol},
};
use sluice_tests::{
    kernel::{Action, Output, end},
    packets::{Frame, Transport, flags},
};

use super::bed::{Case, NOTHING, answered, for_each, opened, passed, sent};

/// Number of the device that programs run on.
const DEVICE: u32 = 1;

/// Runs a test for both families of TCP and UDP, on a service that asks for it.
fn for_each_direct(test: impl Fn(&mut Case) -> Result<()>) {
    for_each(|case| {
        if case.protocol == Protocol::SCTP {
            return Ok(());
        }
        case.kernel.template.flags = FrontendFlags::DSR;
        case.serve(1)?;
        test(case)
    });
}

/// The node's address.
fn node(case: &Case) -> IpAddr {
    if case.vip.is_ipv4() {
        [192, 168, 100, 1].into()
    } else {
        "fd00:100::1".parse().unwrap_or(case.vip.ip())
    }
}

/// Makes the device an uplink: clients outside come by it.
fn by_uplink(case: &Case) -> Result<()> {
    Ok(HashTable::<Devices>::open(case.kernel.pins())?.put(&DEVICE, &Device::default())?)
}

/// Has the backend on this node, where other nodes lead to.
fn serve_here(case: &Case) -> Result<()> {
    let mut table = HashTable::<Frontends>::open(case.kernel.pins())?;
    let key = FrontendKey::new(end(case.vip), case.protocol);
    if let Some(mut frontend) = table.get(&key)? {
        frontend.outside = frontend.slots;
        table.put(&key, &frontend)?;
    }
    Ok(())
}

/// The frame in what takes it to its destination's node, byte by byte (RFC 8926 3.4, 3.5).
fn encapsulated(case: &Case, inner: &Frame, frontend: SocketAddr, client_port: u16) -> Vec<u8> {
    let key = FlowKey::new(end(inner.source), end(inner.destination), case.protocol, Hook::EGRESS);
    let source = 49_152 + (hash::of_request(&key) >> 18);
    let v4 = frontend.is_ipv4();
    let packet = inner.bytes().split_off(EthHdr::LEN);
    let (words, ether_type) = if v4 { (2, 0x0800_u16) } else { (5, 0x86dd) };
    let mut payload = vec![words + 1, 0x40];
    payload.extend(ether_type.to_be_bytes());
    payload.extend([0, 0, 0, 0, 0xff, 0x51, 0x81, words]);
    payload.extend(frontend.port().to_be_bytes());
    payload.extend(client_port.to_be_bytes());
    match frontend.ip() {
        IpAddr::V4(ip) => payload.extend(ip.octets()),
        IpAddr::V6(ip) => payload.extend(ip.octets()),
    }
    payload.extend(packet);
    let outer = Frame {
        payload,
        ..Frame::new(
            SocketAddr::new(node(case), u16::try_from(source).unwrap_or_default()),
            SocketAddr::new(inner.destination.ip(), 6_090),
            Transport::UdpUnchecked,
        )
    };
    let mut bytes = outer.bytes();
    if v4 {
        // No identification: it is never fragmented.
        let network = EthHdr::LEN;
        let check = u16::from_be_bytes([bytes[network + 10], bytes[network + 11]]);
        bytes[network + 4..network + 6].fill(0);
        let sum = u32::from(check) + 0x1234;
        let sum = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap_or_default();
        bytes[network + 10..network + 12].copy_from_slice(&sum.to_be_bytes());
    }
    bytes
}

/// A connection that only one side of is seen ends with its client's FIN.
#[test]
fn what_the_client_closes_is_over() {
    for_each_direct(|case| {
        if case.protocol != Protocol::TCP {
            return Ok(());
        }
        by_uplink(case)?;
        for (flags, state) in [
            (flags::SYN, FlowState::SYN_SENT),
            (flags::ACK, FlowState::ESTABLISHED),
            (flags::FIN | flags::ACK, FlowState::TIME_WAIT),
            (flags::ACK, FlowState::TIME_WAIT),
        ] {
            case.ingress(&case.frame(case.client, case.vip, flags))?;
            let found = case.flow(case.backends[0])?.head;
            ensure!((found.state, found.flags) == (state, FlowFlags::DSR), "{flags:#x}: {found:?}");
        }
        Ok(())
    });
}

#[test]
fn the_backends_node_passes_the_packet_on_and_answers_as_the_frontend() {
    for_each_direct(|case| {
        serve_here(case)?;
        let backend = case.backends[0];
        let inner = case.frame(case.client, backend, flags::SYN);
        let given = encapsulated(case, &inner, case.vip, case.client.port());
        for counted in [opened(&inner), sent(&inner)] {
            let out = case.counting(counted, &[], |case| case.kernel.run(Program::Ingress, &given))?;
            ensure!(out == passed(&inner), "{out:02x?}");
        }
        let reply = case.frame(backend, case.client, flags::SYN | flags::ACK);
        let out = case.counting(answered(&reply), &[], |case| case.egress(&reply))?;
        ensure!(out == passed(&reply.clone().from(case.vip)), "{out:02x?}");
        // The flow is one like any other: a client that finds another way here goes on.
        let direct = case.frame(case.client, case.vip, flags::ACK);
        let out = case.ingress(&direct)?;
        ensure!(out == passed(&direct.clone().to(backend)), "{out:02x?}");
        ensure!(
            case.flow(backend)?.head.flags == FlowFlags::default(),
            "the client is told of no other node"
        );
        Ok(())
    });
}

/// Two nodes have led one client port here: their packets look the same, and what they carry does not.
#[test]
fn what_looks_the_same_gets_another_port() {
    for_each_direct(|case| {
        serve_here(case)?;
        let backend = case.backends[0];
        let inner = case.frame(case.client, backend, flags::SYN);
        let mut other = case.client;
        other.set_port(case.client.port() + 1);
        let given = [case.client, other].map(|sent| encapsulated(case, &inner, case.vip, sent.port()));
        let out = case.kernel.run(Program::Ingress, &given[0])?;
        ensure!(out == passed(&inner), "{out:02x?}");
        let out = case.kernel.run(Program::Ingress, &given[1])?;
        let at = ports(case);
        let port = u16::from_be_bytes([out.frame[at], out.frame[at + 1]]);
        let mut seen = case.client;
        seen.set_port(port);
        ensure!(port != case.client.port() && out == passed(&inner.from(seen)), "{out:02x?}");
        let reply = case.frame(backend, seen, flags::SYN | flags::ACK);
        let out = case.egress(&reply)?;
        ensure!(out == passed(&reply.clone().from(case.vip).to(other)), "{out:02x?}");
        Ok(())
    });
}

/// Where a frame has its source port.
fn ports(case: &Case) -> usize {
    EthHdr::LEN + if case.vip.is_ipv4() { 20 } else { 40 }
}

#[test]
fn a_node_serves_only_what_it_was_told_to() {
    for_each_direct(|case| {
        serve_here(case)?;
        let backend = case.backends[0];
        let inner = case.frame(case.client, backend, flags::SYN);
        let mut closed = backend;
        closed.set_port(backend.port() + 1);
        let misled = inner.clone().to(closed);
        let counted = ServiceCounters { drops: 1, ..NOTHING };
        let cases = [
            (encapsulated(case, &inner, case.stranger, case.client.port()), NOTHING),
            (encapsulated(case, &misled, case.vip, case.client.port()), counted),
        ];
        for (number, (given, counted)) in (1..).zip(cases) {
            let drops = [(DropReason::NotServedHere, number)];
            let out = case.counting(counted, &drops, |case| case.kernel.run(Program::Ingress, &given))?;
            ensure!(out.action == Action::Drop, "{out:02x?}");
        }
        // Nor what does not ask for it.
        let mut table = HashTable::<Frontends>::open(case.kernel.pins())?;
        let key = FrontendKey::new(end(case.vip), case.protocol);
        if let Some(mut frontend) = table.get(&key)? {
            frontend.flags = FrontendFlags::default();
            table.put(&key, &frontend)?;
        }
        let given = encapsulated(case, &inner, case.vip, case.client.port());
        let out = case.kernel.run(Program::Ingress, &given)?;
        ensure!(out.action == Action::Drop && case.kernel.flows()?.is_empty(), "{out:02x?}");
        Ok(())
    });
}

#[test]
fn what_is_no_packet_of_a_node_is_left_alone_or_dropped() {
    for_each_direct(|case| {
        serve_here(case)?;
        let inner = case.frame(case.client, case.backends[0], flags::SYN);
        let whole = encapsulated(case, &inner, case.vip, case.client.port());
        let geneve = ports(case) + 8;
        let option = geneve + 8;
        let inside = whole.len() - (inner.bytes().len() - EthHdr::LEN);
        let changed = |at: usize, to: u8| {
            let mut bytes = whole.clone();
            bytes[at] = to;
            bytes
        };
        // Another version or length, another flag, protocol, class, type or length of the option: somebody else's.
        for at in [geneve, geneve + 1, geneve + 3, option, option + 2, option + 3] {
            let given = changed(at, 0x7f);
            let out = case.counting(NOTHING, &[], |case| case.kernel.run(Program::Ingress, &given))?;
            ensure!(out == Output { action: Action::Next, frame: given.clone() }, "byte {at}: {out:02x?}");
        }
        // Inside: another version, no protocol that is sent so, another destination, or cut short.
        let v4 = case.vip.is_ipv4();
        let (protocol, destination) = if v4 { (9, 19) } else { (6, 39) };
        let bad = [
            changed(inside, 0x10),
            changed(inside + protocol, 132),
            changed(inside + destination, 0x77),
            whole[..inside + 12].to_vec(),
        ];
        for (number, given) in (1..).zip(bad) {
            let drops = [(DropReason::BadEncapsulation, number)];
            let out = case.counting(NOTHING, &drops, |case| case.kernel.run(Program::Ingress, &given))?;
            ensure!(out.action == Action::Drop, "{number}: {out:02x?}");
        }
        ensure!(case.kernel.flows()?.is_empty(), "{:?}", case.kernel.flows()?);
        Ok(())
    });
}
