//! What the datapath remembers, and when it forgets.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use proxy_common::{
    backend::{BackendId, Generation},
    flow::FlowState,
    frontend::ServiceId,
    time::Ticks,
    tuple::{FlowKey, Hook, Protocol},
};
use sluice_tests::{
    kernel::{Action, SERVING, end},
    packets::flags,
};

use super::bed::{Case, NOTHING, WEB, for_each, opened, passed, sent};

#[test]
fn new_flows_spread_over_the_backends() {
    for_each(|case| {
        case.serve(2)?;
        let mut counts = BTreeMap::<usize, u32>::new();
        for port in 0..1000 {
            case.client.set_port(20_000 + port);
            let out = case.ingress(&case.first())?;
            *counts.entry(case.chosen(&out)?).or_default() += 1;
        }
        // 1,000 throws of a coin: outside of 400..600 once in 10^10 runs.
        ensure!(counts.len() == 2 && counts.values().all(|count| (400..600).contains(count)), "{counts:?}");
        ensure!(case.kernel.flows()?.len() == 2000, "two entries a flow");
        Ok(())
    });
}

#[test]
fn states_follow_the_connection() {
    for_each(|case| {
        case.serve(1)?;
        let (backend, client, vip) = (case.backends[0], case.client, case.vip);
        let tcp = case.protocol != Protocol::UDP;
        case.ingress(&case.first())?;
        let embryonic = if tcp { FlowState::SYN_SENT } else { FlowState::UNREPLIED };
        ensure!(case.flow(backend)?.head.state == embryonic, "{:?}", case.flow(backend)?);
        case.egress(&case.frame(backend, client, flags::SYN | flags::ACK))?;
        let answered = if tcp { FlowState::SYN_RECEIVED } else { FlowState::REPLIED };
        ensure!(case.flow(backend)?.head.state == answered, "{:?}", case.flow(backend)?);
        if !tcp {
            return Ok(());
        }
        for (from_client, tcp_flags, state) in [
            (true, flags::ACK, FlowState::ESTABLISHED),
            (false, flags::ACK, FlowState::ESTABLISHED),
            (true, flags::FIN | flags::ACK, FlowState::CLIENT_CLOSED),
            (false, flags::ACK, FlowState::CLIENT_CLOSED),
            (false, flags::FIN | flags::ACK, FlowState::TIME_WAIT),
            (true, flags::ACK, FlowState::TIME_WAIT),
        ] {
            let out = if from_client {
                case.ingress(&case.frame(client, vip, tcp_flags))?
            } else {
                case.egress(&case.frame(backend, client, tcp_flags))?
            };
            ensure!(out.action == Action::Next, "{out:02x?}");
            ensure!(case.flow(backend)?.head.state == state, "{state:?}: {:?}", case.flow(backend)?);
        }
        Ok(())
    });
}

#[test]
fn a_backend_that_goes_takes_udp_flows_along_and_leaves_tcp_connections_alone() {
    for_each(|case| {
        case.serve(2)?;
        let index = case.establish()?;
        case.retire(index)?;
        // The agent's new slot run names the other backend twice; the frontend's run stays in place here.
        case.kernel.serve(WEB, case.vip, case.protocol, 11, &[case.backends[1 - index]])?;
        let next = case.frame(case.client, case.vip, flags::ACK);
        let tcp = case.protocol != Protocol::UDP;
        let expected = case.backends[if tcp { index } else { 1 - index }];
        let counted = if tcp { sent(&next) } else { opened(&next) };
        let out = case.counting(counted, &[], |case| case.ingress(&next))?;
        ensure!(out == passed(&next.clone().to(expected)), "{out:02x?}");
        Ok(())
    });
}

#[test]
fn a_backend_id_that_was_given_away_is_another_backend() {
    for_each(|case| {
        case.serve(1)?;
        case.establish()?;
        let heir = case.backends[1];
        case.kernel.set_backend(BackendId(1), WEB, heir, SERVING, Generation(2))?;
        let next = case.frame(case.client, case.vip, flags::ACK);
        let out = case.ingress(&next)?;
        let expected = if case.protocol != Protocol::UDP { case.backends[0] } else { heir };
        ensure!(out == passed(&next.clone().to(expected)), "{out:02x?}");
        Ok(())
    });
}

#[test]
fn a_handshake_begins_anew_when_its_backend_goes() {
    for_each(|case| {
        case.serve(1)?;
        let first = case.first();
        case.ingress(&first)?;
        case.retire(0)?;
        case.kernel.serve(WEB, case.vip, case.protocol, 2, &case.backends[1..])?;
        let out = case.counting(opened(&first), &[], |case| case.ingress(&first))?;
        ensure!(out == passed(&first.clone().to(case.backends[1])), "{out:02x?}");
        Ok(())
    });
}

#[test]
fn a_connection_unknown_here_is_somebody_elses() {
    for_each(|case| {
        case.serve(1)?;
        if case.protocol == Protocol::UDP {
            return Ok(());
        }
        for tcp_flags in [flags::ACK, flags::SYN | flags::ACK, flags::FIN | flags::ACK, flags::RST] {
            let frame = case.frame(case.client, case.vip, tcp_flags);
            let out = case.counting(NOTHING, &[], |case| case.ingress(&frame))?;
            ensure!(out == passed(&frame), "{tcp_flags:02x}: {out:02x?}");
        }
        ensure!(case.kernel.flows()?.is_empty(), "flows: {:?}", case.kernel.flows()?);
        Ok(())
    });
}

#[test]
fn a_port_is_reused_at_once_after_close_or_reset() {
    for_each(|case| {
        case.serve(1)?;
        if case.protocol == Protocol::UDP {
            return Ok(());
        }
        let (backend, client, vip) = (case.backends[0], case.client, case.vip);
        for ending in [flags::FIN | flags::ACK, flags::RST] {
            case.establish()?;
            case.ingress(&case.frame(client, vip, ending))?;
            case.egress(&case.frame(backend, client, ending))?;
            ensure!(case.flow(backend)?.head.state.is_over(), "{:?}", case.flow(backend)?);
            let first = case.first();
            let out = case.counting(opened(&first), &[], |case| case.ingress(&first))?;
            ensure!(out == passed(&first.to(backend)), "{out:02x?}");
            ensure!(case.flow(backend)?.head.state == FlowState::SYN_SENT, "{:?}", case.flow(backend)?);
        }
        Ok(())
    });
}

#[test]
fn a_pod_dialled_directly_from_the_port_of_a_closed_connection_is_not_translated() {
    for_each(|case| {
        case.serve(1)?;
        if case.protocol == Protocol::UDP {
            return Ok(());
        }
        let (backend, client, vip) = (case.backends[0], case.client, case.vip);
        case.establish()?;
        case.ingress(&case.frame(client, vip, flags::RST))?;
        for tcp_flags in [flags::SYN | flags::ACK, flags::ACK, flags::FIN | flags::ACK] {
            let direct = case.frame(backend, client, tcp_flags);
            let out = case.egress(&direct)?;
            ensure!(out == passed(&direct), "{tcp_flags:02x}: {out:02x?}");
        }
        Ok(())
    });
}

/// Makes entries look as if they had last seen a packet long ago.
fn age(case: &mut Case, backend: std::net::SocketAddr, original: bool, reply: bool) -> Result<()> {
    for (key, old) in [(case.request_key(), original), (case.reply_key(backend), reply)] {
        let mut entry = case.kernel.flow(&key)?.context("no entry")?;
        if old {
            entry.head.last_seen = Ticks(entry.head.last_seen.0.wrapping_sub(entry.head.timeout.0 + 2));
        }
        case.kernel.set_flow(&key, &entry)?;
    }
    Ok(())
}

#[test]
fn a_silent_flow_expires_without_anybody_sweeping() {
    for_each(|case| {
        case.serve(1)?;
        case.establish()?;
        let backend = case.backends[0];
        age(case, backend, true, true)?;
        let late = case.frame(backend, case.client, flags::ACK);
        let out = case.counting(NOTHING, &[], |case| case.egress(&late))?;
        ensure!(out == passed(&late), "a late reply is not ours: {out:02x?}");
        let first = case.first();
        let out = case.counting(opened(&first), &[], |case| case.ingress(&first))?;
        ensure!(out == passed(&first.to(backend)), "{out:02x?}");
        Ok(())
    });
}

#[test]
fn a_flow_that_one_side_uses_is_alive_for_both() {
    for_each(|case| {
        case.serve(1)?;
        case.establish()?;
        let backend = case.backends[0];
        age(case, backend, true, false)?;
        let next = case.frame(case.client, case.vip, flags::ACK);
        let out = case.counting(sent(&next), &[], |case| case.ingress(&next))?;
        ensure!(out == passed(&next.to(backend)), "{out:02x?}");
        age(case, backend, false, true)?;
        let reply = case.frame(backend, case.client, flags::ACK);
        let out = case.egress(&reply)?;
        ensure!(out == passed(&reply.from(case.vip)), "{out:02x?}");
        Ok(())
    });
}

/// NAT-05.
#[test]
fn two_services_one_backend_one_client_port_do_not_mix() {
    for_each(|case| {
        case.serve(1)?;
        case.establish()?;
        let backend = case.backends[0];
        let mut other = case.vip;
        other.set_port(443);
        case.kernel.serve(ServiceId(8), other, case.protocol, 9, &[backend])?;
        let frame = case.frame(case.client, other, flags::SYN);
        let out = case.counting(NOTHING, &[], |case| case.ingress(&frame))?;
        // The client's port is another now, and nothing else is.
        let request = FlowKey::new(end(case.client), end(other), case.protocol, Hook::INGRESS);
        let flow = case.kernel.flow(&request)?.context("no flow")?;
        let mut seen_as = case.client;
        seen_as.set_port(flow.peer.destination_port.to_host());
        ensure!(seen_as != case.client, "the same port for both");
        ensure!(out == passed(&frame.from(seen_as).to(backend)), "{out:02x?}");
        let reply = case.frame(backend, seen_as, flags::ACK);
        let out = case.egress(&reply)?;
        ensure!(out == passed(&reply.from(other).to(case.client)), "the second flow's answer: {out:02x?}");
        let reply = case.frame(backend, case.client, flags::ACK);
        let out = case.egress(&reply)?;
        ensure!(out == passed(&reply.from(case.vip)), "the first flow goes on: {out:02x?}");
        Ok(())
    });
}
