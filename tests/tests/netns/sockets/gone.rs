//! Sockets whose backend goes away.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use proxy_agent::diag::Diag;
use proxy_model::Transport;
use sluice_tests::{
    harness::{Setup, unsupported, with_agents},
    service::{Condition, PORT, Port, Service, TARGET_PORT},
    topology::{Ends, Family, Machine},
    traffic::{Protocol, Server, UdpClient},
};

use super::{LOOPBACK, NODE_PORT, host, mapped};
use crate::Backend;

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(10);
/// Another port of a backend.
const SECOND_PORT: u16 = 9090;
/// The port of the sender in the tests of Kubernetes (VER-08).
const FIXED_PORT: u16 = 12_345;

/// E2E-073, CT-08d, BPF-05.
#[test]
fn a_sender_on_the_host_follows_when_its_backend_is_replaced() {
    with_agents(2, |cluster, agents| {
        let node = &cluster.nodes[0];
        let near = [Backend::on(node, "near-1")?, Backend::on(node, "near-2")?];
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let service = Service::new("echo", 1).with_node_port(NODE_PORT);
        for ends in [service.vip(), node.addresses.at(NODE_PORT), LOOPBACK.at(NODE_PORT)] {
            let senders = Family::ALL.map(|family| {
                // The socket for IPv6 would take the port for both.
                let port = if family == Family::V4 { FIXED_PORT } else { FIXED_PORT + 1 };
                let own = SocketAddr::new(family.unspecified(), port);
                UdpClient::bind_to(&node.namespace, own).map(|socket| (ends.of(family), socket))
            });
            let senders = senders.into_iter().collect::<Result<Vec<_>>>()?;
            for backend in [&near[0], &near[1], &far, &near[0]] {
                agents.serve(&service.clone().with(&backend.pod))?;
                for (to, socket) in &senders {
                    for number in 0..3 {
                        let answer = socket.ask(*to, number)?;
                        let expected = backend.pod.name();
                        ensure!(answer.backend == expected && answer.from == *to, "{expected}: {answer:?}");
                    }
                }
            }
            // One that stays keeps its senders.
            agents.serve(&service.clone().with(&near[0].pod).with(&far.pod).with(&near[1].pod))?;
            for (to, socket) in &senders {
                for number in 0..20 {
                    let answer = socket.ask(*to, number)?;
                    ensure!(answer.backend == "near-1", "{answer:?}");
                }
            }
        }
        Ok(())
    });
}

/// Whether this kernel can abort sockets; says so if not.
pub(crate) fn can_abort(transport: Transport) -> bool {
    match Diag::open().and_then(|mut diag| diag.inability(transport)) {
        Ok(None) => true,
        Ok(Some(unable)) => {
            unsupported(&anyhow!("{unable}"));
            false
        }
        Err(error) => panic!("{}", proxy_agent::report(&error)),
    }
}

/// The ways to name both ends of a service: each by its family, and IPv4 by a socket of IPv6.
pub(crate) fn all_ways(ends: Ends) -> Vec<SocketAddr> {
    let own = Family::ALL.map(|family| ends.of(family));
    own.into_iter().chain(own.into_iter().filter_map(mapped)).collect()
}

/// A socket of the host that is connected, and has had an answer.
struct Talk {
    socket: UdpSocket,
    to: SocketAddr,
}

impl Talk {
    fn begin(host: &Machine, to: SocketAddr) -> Result<Self> {
        let socket = host.namespace.run(|| Ok(UdpSocket::bind((Family::of(to.ip()).unspecified(), 0))?))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(to).with_context(|| format!("connect to {to}"))?;
        Ok(Self { socket, to })
    }

    /// One to each of these ends, all of which `backend` serves.
    fn begin_all(
        host: &Machine,
        ends: impl IntoIterator<Item = SocketAddr>,
        backend: &str,
    ) -> Result<Vec<Self>> {
        let begin = |to| {
            let talk = Self::begin(host, to)?;
            talk.expect(backend).map(|()| talk)
        };
        ends.into_iter().map(begin).collect()
    }

    /// That backend answers.
    fn expect(&self, backend: &str) -> Result<()> {
        let told = || format!("a socket that is connected to {} should reach {backend}", self.to);
        self.socket.send(b"1").with_context(told)?;
        let mut answer = [0; 64];
        let length = self.socket.recv(&mut answer).with_context(told)?;
        let answer = String::from_utf8_lossy(&answer[..length]);
        ensure!(answer.starts_with(&format!("{backend} ")), "{}: {answer}", told());
        Ok(())
    }

    /// Its process is told that the connection is over, though it sends nothing.
    fn expect_abort(self) -> Result<()> {
        match self.socket.recv(&mut [0; 64]) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => Ok(()),
            other => bail!("a socket that was connected to {} heard {other:?}", self.to),
        }
    }
}

/// CT-08, E2E-073.
#[test]
fn connected_sockets_are_aborted_when_their_backend_is_gone_and_others_are_not() {
    if !can_abort(Transport::Udp) {
        return;
    }
    with_agents(2, |cluster, agents| {
        let node = &cluster.nodes[0];
        let backends = [Backend::on(node, "near")?, Backend::on(&cluster.nodes[1], "far")?];
        let service = Service::new("echo", 1).with_node_port(NODE_PORT);
        let frontends = [service.vip(), node.addresses.at(NODE_PORT), LOOPBACK.at(NODE_PORT)];
        for (gone, stays) in [(&backends[0], &backends[1]), (&backends[1], &backends[0])] {
            let (gone_name, stays_name) = (gone.pod.name(), stays.pod.name());
            let both = service.clone().with(&gone.pod).with(&stays.pod);
            // Another service has the same pod, and keeps it.
            let other = Service::new("other", 2).with(&gone.pod);
            agents.serve(&other)?;
            agents.serve(&service.clone().with(&gone.pod))?;
            let leaving = Talk::begin_all(&host(node), frontends.into_iter().flat_map(all_ways), gone_name)?;
            let pod = all_ways(gone.pod.machine.addresses.at(TARGET_PORT));
            let direct = Talk::begin_all(&host(node), pod, gone_name)?;
            let others = Talk::begin_all(&host(node), all_ways(other.vip()), gone_name)?;
            // That somebody else comes disturbs nobody.
            agents.serve(&both)?;
            leaving.iter().try_for_each(|talk| talk.expect(gone_name))?;

            agents.serve(&service.clone().with(&stays.pod))?;
            leaving.into_iter().try_for_each(Talk::expect_abort)?;
            direct.iter().chain(&others).try_for_each(|talk| talk.expect(gone_name))?;
            let staying = Talk::begin_all(&host(node), frontends.into_iter().flat_map(all_ways), stays_name)?;
            agents.serve(&both)?;
            agents.serve(&service.clone().with(&stays.pod))?;
            staying.iter().try_for_each(|talk| talk.expect(stays_name))?;
        }
        Ok(())
    });
}

/// CT-04, CT-08, CT-09, CT-11: as with packets, what counts is whether the backend serves.
#[test]
fn connected_sockets_stay_exactly_as_long_as_their_backend_serves() {
    if !can_abort(Transport::Udp) {
        return;
    }
    with_agents(2, |cluster, agents| {
        let node = &cluster.nodes[0];
        let (near, far) = (Backend::on(node, "near")?, Backend::on(&cluster.nodes[1], "far")?);
        let only = Service::new("echo", 1).with(&far.pod);
        let both = only.clone().with(&near.pod);
        let ways = || all_ways(both.vip());
        let second = Server::start(&far.pod.machine, SECOND_PORT)?;
        let moved = Port::new("udp", Protocol::Udp, PORT, SECOND_PORT);
        for (what, change) in [
            ("it serves no more", both.clone().with_condition("far", Condition::TerminatingUnready)),
            ("it was the last one", Service::new("echo", 1)),
            ("it has another port", only.clone().with_ports([moved])),
        ] {
            agents.serve(&only)?;
            let talks = Talk::begin_all(&host(node), ways(), "far")?;
            // On its way out it keeps the sockets that it has, and gets no new ones.
            agents.serve(&both.clone().with_condition("far", Condition::Terminating))?;
            Talk::begin_all(&host(node), ways(), "near")?;
            talks.iter().try_for_each(|talk| talk.expect("far"))?;
            agents.serve(&change)?;
            talks.into_iter().try_for_each(Talk::expect_abort).context(what)?;
        }
        ensure!(second.datagrams() == 0);
        agents.serve(&only)?;
        let talks = Talk::begin_all(&host(node), ways(), "far")?;
        agents.withdraw(&only)?;
        talks.into_iter().try_for_each(Talk::expect_abort).context("the service is gone")
    });
}

/// CT-08, LIFE-13.
#[test]
fn what_goes_while_the_agent_is_dead_is_made_up_for_when_it_is_back() {
    if !can_abort(Transport::Udp) {
        return;
    }
    Setup::new(1).alone().run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let backends = [Backend::on(node, "near-1")?, Backend::on(node, "near-2")?];
        let service = Service::new("echo", 1);
        agents.serve(&service.clone().with(&backends[0].pod))?;
        let talks = Talk::begin_all(&host(node), all_ways(service.vip()), "near-1")?;
        agents.agents[0].kill()?;
        agents.publish(&service.clone().with(&backends[1].pod))?;
        talks.iter().try_for_each(|talk| talk.expect("near-1"))?;
        agents.agents[0].resume()?;
        talks.into_iter().try_for_each(Talk::expect_abort)?;
        agents.agents[0].wait_until_synced()?;
        Talk::begin_all(&host(node), all_ways(service.vip()), "near-2").map(drop)
    });
}
