//! UDP senders that never change their port, while backends change (section 38.4).

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    harness::with_agents,
    service::{Condition, Member, PORT, Port, Service, TARGET_PORT},
    topology::{Addresses, Ends, Family, Machine},
    traffic::{Protocol, Server, UdpClient},
};

use crate::Backend;

const NODE_PORT: u16 = 30_080;
/// The port of the sender in the tests of Kubernetes (VER-08).
const FIXED_PORT: u16 = 12_345;

/// Datagrams of each family that a backend has to answer.
const ASKED: u64 = 5;

/// A sender of each family.
struct Senders {
    sockets: [UdpClient; 2],
    to: Ends,
}

impl Senders {
    fn new(client: &Machine, to: Ends) -> Result<Self> {
        let [v4, v6] = Family::ALL
            .map(|family| UdpClient::bind_to(&client.namespace, client.addresses.at(FIXED_PORT).of(family)));
        Ok(Self { sockets: [v4?, v6?], to })
    }

    /// The very next datagram is answered by that backend, and so are enough for the datapath to remember it.
    fn expect(&self, backend: &str) -> Result<()> {
        for (family, socket) in Family::ALL.into_iter().zip(&self.sockets) {
            let to = self.to.of(family);
            for number in 0..ASKED {
                let answer =
                    socket.ask(to, number).with_context(|| format!("{backend} should answer at {to}"))?;
                ensure!(answer.backend == backend && answer.from == to, "{backend} at {to}: {answer:?}");
            }
        }
        Ok(())
    }

    /// Sends without expecting an answer.
    fn tell(&self) -> Result<()> {
        Family::ALL
            .iter()
            .zip(&self.sockets)
            .try_for_each(|(family, socket)| socket.tell(self.to.of(*family), 0))
    }
}

/// E2E-070, E2E-071, E2E-125, CT-05, CT-06, CT-08.
#[test]
pub(crate) fn senders_follow_when_their_backend_is_replaced() {
    with_agents(2, |cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let vip = Addresses::elsewhere(250);
        cluster.client.route(vip, &cluster.nodes[0])?;
        let near = [Backend::on(&cluster.nodes[0], "near-1")?, Backend::on(&cluster.nodes[0], "near-2")?];
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let service = Service::new("echo", 1).with_load_balancer(vip, "VIP").with_node_port(NODE_PORT);
        let node = cluster.nodes[0].addresses.at(NODE_PORT);
        for to in [service.vip(), node, vip.at(PORT)] {
            for client in [&pod.machine, &cluster.client] {
                let senders = Senders::new(client, to)?;
                // On the same node, on another, and back; the last one is there to begin with.
                for backend in [&near[0], &near[1], &far, &near[0]] {
                    agents.serve(&service.clone().with(&backend.pod))?;
                    senders.expect(backend.pod.name())?;
                }
            }
        }
        Ok(())
    });
}

/// E2E-072.
#[test]
fn senders_follow_on_their_node_under_internal_local() {
    with_agents(2, |cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let near = [Backend::on(&cluster.nodes[0], "near-1")?, Backend::on(&cluster.nodes[0], "near-2")?];
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let service = Service::new("echo", 1).with(&far.pod).local_for_inside();
        let senders = Senders::new(&pod.machine, service.vip())?;
        for backend in &near {
            agents.serve(&service.clone().with(&backend.pod))?;
            senders.expect(backend.pod.name())?;
        }
        ensure!(far.server.datagrams() == 0);
        Ok(())
    });
}

/// E2E-074: what is sent before there is a backend leaves nothing behind that stands in the way of the first one.
#[test]
fn senders_that_were_too_early_reach_the_first_backend_that_gets_ready() {
    with_agents(2, |cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let service = Service::new("echo", 1).with_node_port(NODE_PORT);
        for to in [service.vip(), cluster.nodes[0].addresses.at(NODE_PORT)] {
            agents.withdraw(&service)?;
            let senders = Senders::new(&pod.machine, to)?;
            senders.tell()?;
            agents.serve(&service)?;
            senders.tell()?;
            let early = service.clone().with_member(Member::of(&near.pod).being(Condition::Unready));
            agents.serve(&early)?;
            senders.tell()?;
            agents.serve(&early.with_condition("near", Condition::Ready))?;
            senders.expect("near")?;
        }
        Ok(())
    });
}

/// E2E-075.
#[test]
fn senders_follow_to_another_port_of_the_same_pod() {
    with_agents(2, |cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let far = cluster.nodes[1].add_pod("far")?;
        let servers = [Server::start(&far.machine, TARGET_PORT)?, Server::start(&far.machine, 9090)?];
        let port = |target: u16| [Port::new("udp", Protocol::Udp, PORT, target)];
        let service = |target: u16| {
            Service::new("echo", 1).with_ports(port(target)).with(&far).with_node_port(NODE_PORT)
        };
        for to in [Addresses::vip(1).at(PORT), cluster.nodes[0].addresses.at(NODE_PORT)] {
            let senders = Senders::new(&pod.machine, to)?;
            for (target, server) in [TARGET_PORT, 9090].into_iter().zip(&servers) {
                agents.serve(&service(target))?;
                let before = server.datagrams();
                senders.expect("far")?;
                ensure!(server.datagrams() == before + 2 * ASKED, "the port {target} got nothing");
            }
        }
        Ok(())
    });
}

/// CT-11, CT-03: an endpoint on its way out keeps the flows that it has, and gets no new ones.
#[test]
fn senders_stay_with_an_endpoint_that_terminates_and_still_serves() {
    with_agents(2, |cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let service = Service::new("echo", 1).with(&far.pod);
        agents.serve(&service)?;
        let senders = Senders::new(&pod.machine, service.vip())?;
        senders.expect("far")?;
        let service = service.with(&near.pod);
        agents.serve(&service)?;
        senders.expect("far")?;
        agents.serve(&service.clone().with_condition("far", Condition::Terminating))?;
        for _ in 0..5 {
            senders.expect("far")?;
            for family in Family::ALL {
                let new = UdpClient::bind(&pod.machine.namespace, family)?;
                ensure!(new.ask(service.frontend(family), 1)?.backend == "near");
            }
        }
        // Not serving any more.
        agents.serve(&service.with_condition("far", Condition::TerminatingUnready))?;
        senders.expect("near")
    });
}

/// Senders whom nobody answers, such as those of logs and metrics.
#[test]
fn senders_that_get_no_answers_follow_too() {
    with_agents(2, |cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let pods = [cluster.nodes[0].add_pod("near")?, cluster.nodes[1].add_pod("far")?];
        let service = Service::new("logs", 1);
        let senders = Senders::new(&pod.machine, service.vip())?;
        let sinks = [sink(&pods[0].machine)?, sink(&pods[1].machine)?];
        for at in [0, 1, 0, 1] {
            agents.serve(&service.clone().with(&pods[at]))?;
            for _ in 0..3 {
                senders.tell()?;
            }
            for _ in 0..6 {
                let (_, from) = sinks[at].recv_from(&mut [0; 16]).context("a datagram for the sink")?;
                let own =
                    [Family::V4, Family::V6].map(|family| pod.machine.addresses.at(FIXED_PORT).of(family));
                let from = SocketAddr::new(from.ip().to_canonical(), from.port());
                ensure!(own.contains(&from), "the sink got one from {from}");
            }
        }
        for sink in sinks {
            sink.set_nonblocking(true)?;
            ensure!(sink.recv_from(&mut [0; 16]).is_err(), "a datagram too many");
        }
        Ok(())
    });
}

/// A socket that takes datagrams of both families and says nothing.
fn sink(machine: &Machine) -> Result<UdpSocket> {
    machine.namespace.run(|| {
        let socket = UdpSocket::bind((Family::V6.unspecified(), TARGET_PORT))?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(socket)
    })
}
