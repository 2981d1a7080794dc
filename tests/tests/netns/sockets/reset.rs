//! TCP connections of the host's own sockets whose endpoint goes away: reset if the Service asks for it, else kept (CT-20).

use std::{
    io::{self, Read as _},
    net::{TcpListener, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use proxy_agent::diag::{Diag, StateFlags};
use proxy_model::Transport;
use sluice_tests::{
    harness::{Setup, with_agents},
    netns::Namespace,
    service::{Member, PORT, Port, Service, TARGET_PORT},
    topology::{Addresses, Family},
    traffic::{Connection, Protocol, Source, connect_raw},
    wait::wait_until,
};

use super::{LOOPBACK, NODE_PORT, all_ways, can_abort, host};
use crate::{Backend, reset::ANNOTATION};

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(10);
/// A port that nobody but the test listens at.
const OWN_PORT: u16 = 9090;

/// Connections that have echoed to all ends of a service.
fn connect(
    from: &Namespace,
    ends: impl IntoIterator<Item = std::net::SocketAddr>,
    backend: &str,
) -> Result<Vec<Connection>> {
    let open = |to| {
        let mut connection = Connection::open(from, to, Source::AnyPort)?;
        ensure!(connection.backend == backend, "{to} is {}, not {backend}", connection.backend);
        connection.start_echo()?;
        connection.echo(0).map(|()| connection)
    };
    ends.into_iter().map(open).collect()
}

#[test]
fn connections_of_the_host_are_reset_when_their_endpoint_is_gone_if_the_service_asks_for_it() {
    if !can_abort(Transport::Tcp) {
        return;
    }
    with_agents(2, |cluster, agents| {
        let node = &cluster.nodes[0];
        let backends = [Backend::on(node, "near")?, Backend::on(&cluster.nodes[1], "far")?];
        let asking = Service::new("asking", 1).annotated(ANNOTATION, "true").with_node_port(NODE_PORT);
        let silent = Service::new("silent", 2);
        let frontends = [asking.vip(), node.addresses.at(NODE_PORT), LOOPBACK.at(NODE_PORT)];
        let from = host(node).namespace;
        for (gone, stays) in [(&backends[0], &backends[1]), (&backends[1], &backends[0])] {
            let name = gone.pod.name();
            agents.serve(&asking.clone().with(&gone.pod))?;
            agents.serve(&silent.clone().with(&gone.pod))?;
            let lost = connect(&from, frontends.into_iter().flat_map(all_ways), name)?;
            let others = all_ways(silent.vip()).into_iter();
            let pod = all_ways(gone.pod.machine.addresses.at(TARGET_PORT));
            let mut kept = connect(&from, others.chain(pod), name)?;
            agents.serve(&silent.clone().with(&stays.pod))?;
            agents.serve(&asking.clone().with(&stays.pod))?;
            for connection in lost {
                let heard = connection.wait_for_end();
                ensure!(heard.kind() == io::ErrorKind::ConnectionAborted, "{}: {heard}", connection.backend);
            }
            kept.iter_mut().try_for_each(|connection| connection.echo(1))?;
            connect(&from, all_ways(asking.vip()), stays.pod.name())?;
        }
        Ok(())
    });
}

/// The endpoint may still be there: it left the Service, and that is all.
#[test]
fn the_other_end_hears_of_it() {
    if !can_abort(Transport::Tcp) {
        return;
    }
    with_agents(1, |cluster, agents| {
        let node = &cluster.nodes[0];
        let pod = node.add_pod("pod")?;
        let listener =
            pod.machine.namespace.run(|| Ok(TcpListener::bind((Family::V6.unspecified(), OWN_PORT))?))?;
        let port = Port::new("tcp", Protocol::Tcp, PORT, OWN_PORT);
        let service = Service::new("asking", 1).annotated(ANNOTATION, "true").with_ports([port]);
        agents.serve(&service.clone().with(&pod))?;
        for to in all_ways(service.vip()) {
            let _here = connect_raw(&host(node).namespace, to, Source::AnyPort, PATIENCE)?;
            let (there, _) = listener.accept()?;
            agents.serve(&service)?;
            expect_reset(there)?;
            agents.serve(&service.clone().with(&pod))?;
        }
        Ok(())
    });
}

fn expect_reset(mut there: TcpStream) -> Result<()> {
    there.set_read_timeout(Some(PATIENCE))?;
    match there.read(&mut [0]) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        other => bail!("the other end heard {other:?}"),
    }
}

/// Its endpoint died without a word and was taken out; nobody waits until the last SYN is given up.
#[test]
fn a_process_that_is_just_connecting_is_told_too() {
    if !can_abort(Transport::Tcp) {
        return;
    }
    with_agents(2, |cluster, agents| {
        let node = &cluster.nodes[0];
        let nobody = Member::at("nobody", &cluster.nodes[1].name, Addresses::of_pod(2, 200));
        let service = Service::new("asking", 1).annotated(ANNOTATION, "true");
        agents.serve(&service.clone().with_member(nobody))?;
        let from = host(node).namespace;
        let to = service.frontend(Family::V4);
        thread::scope(|scope| {
            let connecting = scope.spawn(|| connect_raw(&from, to, Source::AnyPort, PATIENCE));
            wait_until("the process connects", || {
                let states = StateFlags::SYN_SENT;
                let found = from
                    .run(|| Ok(Diag::open()?.list(Transport::Tcp, proxy_model::Family::Ipv4, states)?))?;
                Ok((!found.is_empty()).then_some(()))
            })?;
            agents.serve(&service)?;
            let connected = connecting.join().unwrap_or_else(|panicked| std::panic::resume_unwind(panicked));
            let error = connected.err().context("it is connected to nobody")?;
            let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
            ensure!(kind == Some(io::ErrorKind::ConnectionAborted), "{error:#}");
            Ok(())
        })
    });
}

/// LIFE-13.
#[test]
fn connections_are_reset_after_a_restart_if_their_endpoint_went_meanwhile() {
    if !can_abort(Transport::Tcp) {
        return;
    }
    Setup::new(1).alone().run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let near = Backend::on(node, "near")?;
        let from = host(node).namespace;
        let service = Service::new("asking", 1).annotated(ANNOTATION, "true");
        agents.serve(&service.clone().with(&near.pod))?;
        let mut lost = connect(&from, all_ways(service.vip()), "near")?;
        agents.agents[0].kill()?;
        // With the Service goes what it asked for; the connections remember it.
        agents.agents[0].manifests.withdraw(&service)?;
        lost.iter_mut().try_for_each(|connection| connection.echo(1))?;
        agents.agents[0].resume()?;
        for connection in lost {
            let heard = connection.wait_for_end();
            ensure!(heard.kind() == io::ErrorKind::ConnectionAborted, "{heard}");
        }
        agents.agents[0].wait_until_synced()
    });
}
