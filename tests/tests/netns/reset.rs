//! Services that want TCP connections reset when their endpoint is gone, and those that do not (CT-20): by packets. What
//! becomes of the host's own sockets is told in [`crate::sockets`].

use std::{io, sync::atomic::AtomicU64};

use anyhow::{Context as _, Result, bail, ensure};
use proxy_common::drop::DropReason;
use sluice_tests::{
    harness::{Setup, with_agents},
    service::{Condition, Service},
    topology::{Family, Machine, finish_checksums},
    traffic::{Connection, Direction, Source},
};

use crate::{
    Backend,
    expect::{Seen, expect_reach},
};

/// How a Service asks for resets.
pub(crate) const ANNOTATION: &str = "sluice.io/reset-on-backend-removal";
const NODE_PORT: u16 = 30_080;
/// More than anybody takes in while a test lasts.
const ENDLESS: u64 = u64::MAX / 2;

/// A connection of each family that has echoed.
fn connect(client: &Machine, service: &Service) -> Result<Vec<Connection>> {
    let open = |family| {
        let mut connection = Connection::open(&client.namespace, service.frontend(family), Source::AnyPort)?;
        connection.start_echo()?;
        connection.echo(0)?;
        Ok(connection)
    };
    Family::ALL.into_iter().map(open).collect()
}

/// That is what the process hears, now or at its next call.
pub(crate) fn expect_error(connection: &mut Connection, kind: io::ErrorKind) -> Result<()> {
    let error = connection.echo(1).err().context("the connection goes on")?;
    let cause = error.downcast_ref::<io::Error>().map(io::Error::kind);
    ensure!(cause == Some(kind), "{} instead of {kind:?}: {error:#}", connection.backend);
    Ok(())
}

/// From a pod on the same node, a pod on another, and from outside, each to an endpoint here and one there.
#[test]
fn connections_are_reset_when_their_endpoint_is_gone_if_the_service_asks_for_it() {
    with_agents(2, |cluster, agents| {
        let backends = [Backend::on(&cluster.nodes[0], "near")?, Backend::on(&cluster.nodes[1], "far")?];
        let pods = [cluster.nodes[0].add_pod("pod-1")?, cluster.nodes[1].add_pod("pod-2")?];
        let asking = Service::new("asking", 1).annotated(ANNOTATION, "true").with_node_port(NODE_PORT);
        let silent = Service::new("silent", 2);
        let node = cluster.nodes[0].addresses.at(NODE_PORT);
        for (gone, stays) in [(&backends[0], &backends[1]), (&backends[1], &backends[0])] {
            agents.serve(&asking.clone().with(&gone.pod))?;
            agents.serve(&silent.clone().with(&gone.pod))?;
            let mut lost = Vec::new();
            let mut kept = Vec::new();
            for pod in &pods {
                lost.extend(connect(&pod.machine, &asking)?);
                kept.extend(connect(&pod.machine, &silent)?);
            }
            for family in Family::ALL {
                let outside = &cluster.client.namespace;
                let mut connection = Connection::open(outside, node.of(family), Source::AnyPort)?;
                connection.start_echo()?;
                lost.push(connection);
            }
            // On its way out, it keeps what it has.
            let both = asking.clone().with(&gone.pod).with(&stays.pod);
            for condition in [Condition::Terminating, Condition::TerminatingUnready] {
                agents.serve(&both.clone().with_condition(gone.pod.name(), condition))?;
                lost.iter_mut().try_for_each(|connection| connection.echo(2))?;
            }
            let dropped = |agent: usize| agents.agents[agent].drops(DropReason::BackendGone);
            let before = dropped(0)? + dropped(1)?;
            agents.serve(&asking.clone().with(&stays.pod))?;
            agents.serve(&silent.clone().with(&stays.pod))?;
            for connection in &mut lost {
                expect_error(connection, io::ErrorKind::ConnectionReset)?;
            }
            let answered = dropped(0)? + dropped(1)? - before;
            ensure!(answered >= lost.len() as u64, "{answered} segments were answered");
            kept.iter_mut().try_for_each(|connection| connection.echo(3))?;
            for pod in &pods {
                expect_reach(&pod.machine, asking.vip(), stays.pod.name(), &Seen::Client)?;
            }
        }
        Ok(())
    });
}

/// It says nothing by itself; what it acknowledges is enough.
#[test]
fn a_client_that_only_listens_is_reset_too() {
    with_agents(1, |cluster, agents| {
        let node = &cluster.nodes[0];
        let (near, pod) = (Backend::on(node, "near")?, node.add_pod("pod")?);
        let service = Service::new("asking", 1).annotated(ANNOTATION, "true");
        agents.serve(&service.clone().with(&near.pod))?;
        let progress = AtomicU64::new(0);
        let mut connection =
            Connection::open(&pod.machine.namespace, service.frontend(Family::V4), Source::AnyPort)?;
        std::thread::scope(|scope| {
            let listening = scope.spawn(|| connection.transfer(Direction::Download, ENDLESS, &progress));
            agents.serve(&service)?;
            let Err(error) = listening.join().unwrap_or_else(|panicked| std::panic::resume_unwind(panicked))
            else {
                bail!("the download came to an end");
            };
            let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
            ensure!(kind == Some(io::ErrorKind::ConnectionReset), "{error:#}");
            Ok(())
        })
    });
}

/// What a pod sends has no checksum yet, and the answer takes over what is there: finished by the kernel on its way back,
/// it must be right.
#[test]
fn the_reset_is_whole_where_the_device_finishes_no_checksums() {
    Setup::new(1).alone().run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let (near, pod) = (Backend::on(node, "near")?, node.add_pod("pod")?);
        let service = Service::new("asking", 1).annotated(ANNOTATION, "true");
        agents.serve(&service.clone().with(&near.pod))?;
        finish_checksums(&node.namespace, &pod.device)?;
        let mut lost = connect(&pod.machine, &service)?;
        agents.serve(&service)?;
        lost.iter_mut().try_for_each(|connection| expect_error(connection, io::ErrorKind::ConnectionReset))
    });
}

#[test]
fn another_value_is_complained_about_and_counts_as_off() {
    with_agents(1, |cluster, agents| {
        let node = &cluster.nodes[0];
        let (near, pod) = (Backend::on(node, "near")?, node.add_pod("pod")?);
        let service = Service::new("confused", 1).annotated(ANNOTATION, "yes");
        agents.serve(&service.clone().with(&near.pod))?;
        let mut kept = connect(&pod.machine, &service)?;
        agents.serve(&service)?;
        kept.iter_mut().try_for_each(|connection| connection.echo(1))?;
        let log = agents.agents[0].log()?;
        let complaint =
            format!("Service default/confused: metadata.annotations[{ANNOTATION}]: \"yes\" is not");
        ensure!(log.contains(&complaint), "{log}");
        Ok(())
    });
}
