//! What is sent on before the stack is what both hooks and the stack would have made of it; all else is left as it came.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use nix::net::if_::if_nametoindex;
use proxy_agent::datapath::Program;
use proxy_common::{
    addresses::AddressFlags,
    backend::{BackendFlags, BackendId, Generation},
    counters::ServiceCounters,
    filter::AddressRoles,
    flow::{FlowEntry, FlowFlags, FlowHead, FlowState},
    frontend::ServiceId,
    time::Ticks,
    tuple::{FlowKey, Protocol},
    xdp::{XdpDevice, XdpMode, XdpStand},
};
use sluice_tests::{
    harness,
    kernel::SERVING,
    packets::{Frame, Options, Transport, flags},
    uplink::{NARROW, OWN, ROUTER, SERVICE, SILENCE, Uplink},
    wait::wait_until,
};

use super::bed::{answered, sent};

const PASS: u32 = 2;
const TX: u32 = 3;
const REDIRECT: u32 = 4;

/// Runs a test for both families, TCP and UDP.
fn for_each(test: impl Fn(&mut Uplink) -> Result<()>) {
    if let Err(reason) = harness::requirements() {
        harness::skipped(&reason);
        return;
    }
    for v6 in [false, true] {
        for protocol in [Protocol::TCP, Protocol::UDP] {
            let mut bed = Uplink::new(v6, protocol).unwrap_or_else(|error| panic!("{error:?}"));
            if let Err(error) = test(&mut bed) {
                panic!("IPv{} {protocol:?}: {error:?}", if v6 { 6 } else { 4 });
            }
        }
    }
}

/// What flows are, and what is counted. When they were last seen is not: tc sees them again at once.
fn left_behind(bed: &Uplink) -> Result<(Vec<(FlowKey, FlowEntry)>, ServiceCounters)> {
    let mut flows = bed.kernel.flows()?;
    for (_, entry) in &mut flows {
        entry.head.last_seen = Ticks(0);
    }
    Ok((flows, bed.kernel.traffic(SERVICE)?))
}

/// Demands that a frame is left to the stack as it came, and leaves nothing behind.
fn expect_left(bed: &mut Uplink, what: &str, frame: &[u8]) -> Result<()> {
    let before = left_behind(bed)?;
    let (action, out) = bed.run(frame)?;
    ensure!(action == PASS && out == frame, "{what}: {action}, {out:02x?}");
    ensure!(before == left_behind(bed)?, "{what} leaves something behind");
    ensure!(bed.kernel.passages()?[0] == 0 && bed.kernel.drops()?.is_empty(), "{what}");
    Ok(())
}

/// What the stack does to a frame that it forwards.
fn forwarded(mut frame: Vec<u8>, next: [u8; 6]) -> Vec<u8> {
    frame[..6].copy_from_slice(&next);
    frame[6..12].copy_from_slice(&OWN);
    set_hops(&mut frame, 63);
    frame
}

fn hops_at(frame: &[u8]) -> usize {
    if frame[12] == 0x08 { 22 } else { 21 }
}

/// Sets the hops that are left, and IPv4's checksum with them (RFC 1624).
fn set_hops(frame: &mut [u8], hops: u8) {
    let at = hops_at(frame);
    let lost = u32::from(frame[at] - hops) << 8;
    frame[at] = hops;
    if at == 22 {
        let check = u32::from(u16::from_be_bytes([frame[24], frame[25]])) + lost;
        let check = u16::try_from((check & 0xffff) + (check >> 16)).unwrap_or_default();
        frame[24..26].copy_from_slice(&check.to_be_bytes());
    }
}

#[test]
fn packets_of_running_flows_become_what_hooks_and_stack_make_of_them() {
    for_each(|bed| {
        // tc is not told here that the source is to be rewritten; it looks if the client could be a backend.
        bed.kernel.set_backend(BackendId(9), ServiceId(9), bed.client, SERVING, Generation(1))?;
        let [request, reply] = bed.both_ways();
        let by = |mode| [request.clone(), reply.clone()].map(|case| (mode, case));
        for (mode, (frame, expected, next)) in XdpMode::ALL.into_iter().flat_map(by) {
            bed.mode = mode;
            let expected = forwarded(expected.bytes(), next);
            bed.run_flows()?;
            let before = bed.kernel.traffic(SERVICE)?;
            let by_tc = bed.kernel.run(Program::Ingress, &frame.bytes())?;
            let by_tc = bed.kernel.run(Program::Egress, &by_tc.frame)?;
            ensure!(forwarded(by_tc.frame.clone(), next) == expected, "tc: {:02x?}", by_tc.frame);
            let counted = bed.kernel.traffic(SERVICE)?;

            bed.run_flows()?;
            let forwarded_before = bed.kernel.passages()?[0];
            let (action, out) = bed.run(&frame.bytes())?;
            ensure!(action == TX && out == expected, "{action}: {out:02x?} is not {expected:02x?}");
            let once = if next == ROUTER { sent(&frame) } else { answered(&frame) };
            ensure!(
                counted == before.plus(once) && bed.kernel.traffic(SERVICE)? == counted.plus(once),
                "counters"
            );
            ensure!(bed.kernel.passages()? == [forwarded_before + 1, 0, 0], "{:?}", bed.kernel.passages()?);
            let keys = bed.keys();
            let touched = if next == ROUTER { &keys[..2] } else { &keys[2..] };
            let now = bed.kernel.now()?;
            for (key, entry) in bed.kernel.flows()? {
                let is_recent = entry.head.last_seen.age(now).0 < SILENCE;
                ensure!(is_recent == touched.contains(&key), "{key:?}: {entry:?}");
            }
        }
        Ok(())
    });
}

#[test]
fn checksums_of_udp_stay_absent_and_never_become_so() {
    for_each(|bed| {
        if bed.protocol != Protocol::UDP {
            return Ok(());
        }
        let [(frame, expected, next), _] = bed.both_ways();
        let with = |frame: &Frame, transport, word: u16| {
            let mut frame = Frame { transport, ..frame.clone() };
            frame.payload[..2].copy_from_slice(&word.to_be_bytes());
            frame
        };
        let (request, answer) =
            [&frame, &expected].map(|frame| with(frame, Transport::UdpUnchecked, 0)).into();
        let (action, out) = bed.run(&request.bytes())?;
        ensure!(action == TX && out == forwarded(answer.bytes(), next), "{action}: {out:02x?}");
        let check_at = hops_at(&out) + if out[12] == 0x08 { 18 } else { 39 };
        let is_all_ones = |word: &u16| {
            with(&expected, Transport::Udp, *word).bytes()[check_at..check_at + 2] == [0xff, 0xff]
        };
        let word = (0..=u16::MAX).find(is_all_ones).unwrap();
        let (action, out) = bed.run(&with(&frame, Transport::Udp, word).bytes())?;
        ensure!(
            action == TX && out == forwarded(with(&expected, Transport::Udp, word).bytes(), next),
            "{out:02x?}"
        );
        Ok(())
    });
}

#[test]
fn what_is_out_of_the_ordinary_is_left_to_the_stack() {
    for_each(|bed| {
        for (frame, _, _) in bed.both_ways() {
            let bytes = frame.bytes();
            let edited = |edit: &dyn Fn(&mut Vec<u8>)| {
                let mut bytes = bytes.clone();
                edit(&mut bytes);
                bytes
            };
            let transport = if bytes[12] == 0x08 { 34 } else { 54 };
            let check = transport + if bed.protocol == Protocol::TCP { 16 } else { 6 };
            expect_left(bed, "a packet without hops", &edited(&|bytes| set_hops(bytes, 1)))?;
            expect_left(bed, "somebody else's", &edited(&|bytes| bytes[5] = 9))?;
            expect_left(bed, "a broadcast", &edited(&|bytes| bytes[..6].fill(0xff)))?;
            expect_left(
                bed,
                "a tagged frame",
                &edited(&|bytes| {
                    bytes.splice(12..12, [0x81, 0, 0, 100]);
                }),
            )?;
            expect_left(bed, "less than its header says", &edited(&|bytes| bytes.truncate(bytes.len() - 1)))?;
            for length in [14, 20, transport, transport + 7] {
                expect_left(bed, "half a header", &edited(&|bytes| bytes.truncate(length)))?;
            }
            let pseudo = unfinished(&bytes, transport, bed.protocol)?;
            expect_left(
                bed,
                "an unfinished checksum",
                &edited(&|bytes| {
                    bytes[check..check + 2].copy_from_slice(&pseudo.to_be_bytes());
                }),
            )?;
            expect_left(bed, "options", &Frame { options: Options::Padding, ..frame.clone() }.bytes())?;
            for fragment in frame.fragments(32) {
                expect_left(bed, "a fragment", &fragment)?;
            }
            let sctp = Frame { transport: Transport::Sctp(0), ..frame.clone() };
            expect_left(bed, "SCTP", &sctp.bytes())?;
            let other = SocketAddr::new(frame.source.ip(), frame.source.port() + 1);
            expect_left(bed, "another flow's", &frame.clone().from(other).bytes())?;
            if bed.protocol == Protocol::TCP {
                for flags in [flags::SYN, flags::SYN | flags::ACK, flags::FIN | flags::ACK, flags::RST] {
                    let frame = Frame { transport: Transport::Tcp(flags), ..frame.clone() };
                    expect_left(bed, "what changes the flow", &frame.bytes())?;
                }
            }
        }
        Ok(())
    });
}

/// The sum of the pseudo header, where a checksum will be.
fn unfinished(bytes: &[u8], transport: usize, protocol: Protocol) -> Result<u16> {
    let addresses = if transport == 34 { &bytes[26..34] } else { &bytes[22..54] };
    let length = u32::try_from(bytes.len() - transport)?;
    let words = addresses.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum = words.sum::<u32>() + u32::from(protocol.0) + length;
    let sum = (sum & 0xffff) + (sum >> 16);
    Ok(u16::try_from((sum & 0xffff) + (sum >> 16))?)
}

#[test]
fn flows_that_do_not_run_are_left_to_the_stack() {
    for_each(|bed| {
        for way in 0..2 {
            let frame = bed.both_ways()[way].0.bytes();
            let keys = bed.keys();
            for key in &keys[way * 2..way * 2 + 2] {
                let entry = bed.kernel.flow(key)?.unwrap();
                for state in [FlowState::TIME_WAIT, FlowState::VOID, FlowState::SYN_RECEIVED] {
                    let head = FlowHead { state, ..entry.head };
                    bed.kernel.set_flow(key, &FlowEntry { head, ..entry })?;
                    expect_left(bed, "a flow that does not run", &frame)?;
                }
                let head = FlowHead { timeout: Ticks(1), ..entry.head };
                bed.kernel.set_flow(key, &FlowEntry { head, ..entry })?;
                expect_left(bed, "an idle flow", &frame)?;
                bed.kernel.clear_flows()?;
                bed.run_flows()?;
                let others: Vec<_> =
                    bed.kernel.flows()?.into_iter().filter(|(other, _)| other != key).collect();
                bed.kernel.clear_flows()?;
                for (key, entry) in &others {
                    bed.kernel.set_flow(key, entry)?;
                }
                expect_left(bed, "half a flow", &frame)?;
                bed.run_flows()?;
            }
        }
        let [(request, expected, next), _] = bed.both_ways();
        bed.kernel.set_backend(BackendId(1), SERVICE, bed.backend, BackendFlags::default(), Generation(1))?;
        if bed.protocol == Protocol::UDP {
            return expect_left(bed, "a flow that has lost its backend", &request.bytes());
        }
        let (action, out) = bed.run(&request.bytes())?;
        ensure!(
            action == TX && out == forwarded(expected.bytes(), next),
            "connections keep their backend: {out:02x?}"
        );
        Ok(())
    });
}

#[test]
fn a_cluster_ip_of_the_node_is_left_to_the_stack() {
    for_each(|bed| {
        let both = AddressRoles::NODE.with(AddressRoles::FRONTEND);
        bed.kernel.set_address(bed.frontend, AddressFlags::NODE.with(AddressFlags::CLUSTER_IP), both)?;
        let [(request, ..), _] = bed.both_ways();
        expect_left(bed, "a process may listen there", &request.bytes())?;
        bed.kernel.set_address(bed.frontend, AddressFlags::NODE, both)?;
        ensure!(bed.run(&request.bytes())?.0 == TX, "an external address of the node");
        Ok(())
    });
}

#[test]
fn what_is_remembered_holds_until_a_flow_changes() {
    for_each(|bed| {
        for (frame, expected, next) in bed.both_ways() {
            let expected = forwarded(expected.bytes(), next);
            let frame = frame.bytes();
            bed.run_flows()?;
            let keys = if next == ROUTER { [0, 1] } else { [2, 3] }.map(|at| bed.keys()[at]);
            for key in keys {
                wait_until("an answer without the flow table", || {
                    bed.run_flows()?;
                    ensure!(bed.run(&frame)? == (TX, expected.clone()), "a flow runs");
                    bed.kernel.lose_flow(&key)?;
                    // Unless what was remembered has just become too old.
                    Ok((bed.run(&frame)? == (TX, expected.clone())).then_some(()))
                })?;
                bed.kernel.outdate(&key)?;
                ensure!(bed.run(&frame)? == (PASS, frame.clone()), "there is no such flow");
            }
        }
        Ok(())
    });
}

/// To a driver, the other uplink has to be one whose driver has the program, too, or what that makes of the frame is not known.
#[test]
fn packets_may_leave_by_another_uplink() {
    for_each(|bed| {
        let [(request, expected, _), _] = bed.both_ways();
        let (pods, via) = match request.source {
            SocketAddr::V4(_) => ("10.244.2.0/24", "192.0.3.2"),
            SocketAddr::V6(_) => ("fd00:244:2::/64", "2001:db8:3::2"),
        };
        bed.namespace.ip(&format!("route replace {pods} via {via}"))?;
        let other = if_nametoindex("other0")?;
        let [native, generic] = [XdpStand::Native, XdpStand::Generic].map(XdpDevice::new);
        let address = [[2, 0], [0, 0], [0, 2]].map(u16::from_ne_bytes);
        let own = native.at(address);
        expect_left(bed, "nothing is known of either", &request.bytes())?;
        for (what, came, leaves) in [
            ("the other one has no program", own, XdpDevice::new(XdpStand::Off)),
            ("the other one's driver has none", own, generic),
            ("nothing is known of the address", native, native),
            ("somebody else's", native.at([1, 2, 3]), native),
        ] {
            bed.kernel.set_xdp_device(bed.device, came)?;
            bed.kernel.set_xdp_device(other, leaves)?;
            // What is remembered would hold for a moment.
            bed.run_flows()?;
            expect_left(bed, what, &request.bytes())?;
        }
        let mut expected = forwarded(expected.bytes(), [2, 0, 0, 0, 0, 5]);
        expected[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 7]);
        for (number, mode, came, leaves) in [
            (1, XdpMode::Native, own, native),
            (2, XdpMode::Generic, generic.at(address), native),
            (3, XdpMode::Generic, generic.at(address), generic),
        ] {
            bed.mode = mode;
            bed.kernel.set_xdp_device(bed.device, came)?;
            bed.kernel.set_xdp_device(other, leaves)?;
            bed.run_flows()?;
            let (action, out) = bed.run(&request.bytes())?;
            ensure!(
                action == REDIRECT && out == expected,
                "{mode:?}, {action}: {out:02x?}, not {expected:02x?}"
            );
            ensure!(bed.kernel.passages()?[0] == number, "{mode:?}: {:?}", bed.kernel.passages()?);
        }
        bed.kernel.set_xdp_device(other, XdpDevice::new(XdpStand::Refused))?;
        ensure!(
            bed.run(&request.bytes())? == (PASS, request.bytes()),
            "nothing on the driver's behalf, either"
        );
        Ok(())
    });
}

#[test]
fn routes_decide_and_are_followed() {
    for_each(|bed| {
        let [(request, _, _), (mut reply, expected, next)] = bed.both_ways();
        let (headers, v6) = if reply.source.is_ipv6() { (40, true) } else { (20, false) };
        let transport = if bed.protocol == Protocol::TCP { 20 } else { 8 };
        let fitting = vec![7; NARROW - headers - transport];
        reply.payload.clone_from(&fitting);
        let (action, out) = bed.run(&reply.bytes())?;
        let expected = Frame { payload: fitting, ..expected };
        ensure!(action == TX && out == forwarded(expected.bytes(), next), "{action}");
        reply.payload.push(7);
        ensure!(bed.run(&reply.bytes())? == (PASS, reply.bytes()), "a packet that is too long");
        ensure!(bed.kernel.passages()? == [1, 0, 1], "{:?}", bed.kernel.passages()?);

        let pods = if v6 { "fd00:244:2::/64" } else { "10.244.2.0/24" };
        let (here, other) = if v6 { ("2001:db8::", "2001:db8:3::") } else { ("192.0.2.", "192.0.3.") };
        for (what, route) in [
            ("nobody knows the neighbour", format!("route replace {pods} via {here}7")),
            ("it leaves by another device", format!("route replace {pods} via {other}2")),
            ("it is for the node", format!("route replace local {pods} dev lo")),
            ("there is no way", format!("route replace unreachable {pods}")),
        ] {
            bed.namespace.ip(&route)?;
            wait_until(what, || Ok((bed.run(&request.bytes())? == (PASS, request.bytes())).then_some(())))?;
            if route.contains("local") || route.contains("unreachable") {
                bed.namespace.ip(&route.replace("replace", "del"))?;
            }
            bed.namespace.ip(&format!("route replace {pods} via {here}2"))?;
            wait_until("the way back", || Ok((bed.run(&request.bytes())?.0 == TX).then_some(())))?;
        }
        bed.namespace.ip(&format!("neigh replace {here}2 lladdr 02:00:00:00:00:66 dev up0 nud permanent"))?;
        wait_until("another neighbour", || {
            Ok((bed.run(&request.bytes())?.1[..6] == [2, 0, 0, 0, 0, 0x66]).then_some(()))
        })?;
        ensure!(bed.kernel.traffic(SERVICE)? != ServiceCounters::default(), "requests were counted");
        Ok(())
    });
}

/// The egress hook encapsulates it, even if what an earlier flow of the same tuple has left there would masquerade it.
#[test]
fn what_is_to_be_encapsulated_is_left_to_the_stack() {
    for_each(|bed| {
        let [(sent, ..), _] = bed.both_ways();
        let [there, _, _, back_out] = bed.keys();
        // A client that may be a backend itself is asked about at the egress hook, note or no note.
        bed.kernel.set_backend(BackendId(2), SERVICE, bed.client, SERVING, Generation(1))?;
        for key in [there, back_out] {
            if let Some(mut entry) = bed.kernel.flow(&key)? {
                entry.head.flags = FlowFlags::DSR;
                bed.kernel.set_flow(&key, &entry)?;
            }
        }
        expect_left(bed, "a packet for another node", &sent.bytes())
    });
}
