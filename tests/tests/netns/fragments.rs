//! Datagrams larger than a packet (NAT-03, E2E-089).

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use proxy_common::drop::DropReason;
use sluice_tests::{
    harness::with_agents,
    service::{Service, TARGET_PORT},
    topology::{Ends, Family, Machine},
    traffic::{Datagram, RawSender, UdpClient},
    wait::wait_until,
};

use crate::Backend;

const NODE_PORT: u16 = 30_080;

/// A large datagram there and, by the server's answer, back.
fn expect_large_echoes(client: &Machine, to: Ends, backend: &str) -> Result<()> {
    for family in Family::ALL {
        let to = to.of(family);
        let socket = UdpClient::bind(&client.namespace, family)?;
        // Whole and in pieces from one port, in every order.
        for length in [2_000, 10, 8_000, 2_000, 60_000, 10] {
            let context = || format!("{length} bytes from {} to {to}", client.name);
            let payload: Vec<u8> = (0..=u8::MAX).cycle().take(length).collect();
            let answer = socket.exchange(to, &payload).with_context(context)?;
            ensure!(answer.backend == backend && answer.from == to, "{}: {answer:?}", context());
        }
    }
    Ok(())
}

#[test]
pub(crate) fn large_datagrams_come_and_go_whole() {
    with_agents(2, |cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        for backend in [&near, &far] {
            let service = Service::new("echo", 1).with(&backend.pod).with_node_port(NODE_PORT);
            agents.serve(&service)?;
            for client in [&pod.machine, &cluster.client] {
                for to in [service.vip(), cluster.nodes[0].addresses.at(NODE_PORT)] {
                    expect_large_echoes(client, to, backend.pod.name())?;
                }
            }
        }
        Ok(())
    });
}

/// Senders number their datagrams on their own: two may use one number at a time.
#[test]
fn fragments_of_two_clients_with_one_number_are_not_mixed() {
    with_agents(2, |cluster, agents| {
        let pods = [cluster.nodes[0].add_pod("one")?, cluster.nodes[0].add_pod("two")?];
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let service = Service::new("echo", 1).with(&far.pod);
        agents.serve(&service)?;
        for family in Family::ALL {
            let hands: Vec<_> = pods
                .iter()
                .map(|pod| ByHand::new(&pod.machine, service.vip().of(family)))
                .collect::<Result<_>>()?;
            let payloads = [vec![b'1'; 4_000], vec![b'2'; 4_000]];
            let [ones, twos] = [0, 1].map(|n| hands[n].fragments(7, &payloads[n]));
            for (one, two) in ones.iter().zip(&twos) {
                hands[0].send(one)?;
                hands[1].send(two)?;
            }
            for (hand, payload) in hands.iter().zip(&payloads) {
                let answer = hand.socket.answer(hand.to, payload)?;
                ensure!(answer.seen_as == hand.own && answer.from == hand.to, "{answer:?}");
            }
        }
        Ok(())
    });
}

/// The ports stand in the first fragment only: what comes before it has nowhere to go, and is counted.
#[test]
fn a_fragment_before_the_first_is_dropped_and_the_datagram_arrives_when_sent_again() {
    with_agents(1, |cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let service = Service::new("echo", 1).with(&near.pod);
        agents.serve(&service)?;
        let agent = &agents.agents[0];
        for family in Family::ALL {
            let hand = ByHand::new(&pod.machine, service.vip().of(family))?;
            let payload = vec![b'x'; 3_000];
            let before = agent.drops(DropReason::OrphanFragment)?;
            let mut fragments = hand.fragments(8, &payload);
            fragments.reverse();
            let orphans = fragments.len() as u64 - 1;
            fragments.iter().try_for_each(|fragment| hand.send(fragment))?;
            wait_until("the orphans are counted", || {
                Ok((agent.drops(DropReason::OrphanFragment)? == before + orphans).then_some(()))
            })?;
            let datagrams = near.server.datagrams();
            hand.fragments(9, &payload).iter().try_for_each(|fragment| hand.send(fragment))?;
            hand.socket.answer(hand.to, &payload)?;
            ensure!(near.server.datagrams() == datagrams + 1);
        }
        Ok(())
    });
}

/// A client that cuts its datagrams itself.
struct ByHand {
    socket: UdpClient,
    raw: RawSender,
    own: SocketAddr,
    to: SocketAddr,
}

impl ByHand {
    fn new(client: &Machine, to: SocketAddr) -> Result<Self> {
        let family = Family::of(to.ip());
        let socket = UdpClient::bind_to(&client.namespace, client.addresses.at(0).of(family))?;
        let own = socket.local()?;
        Ok(Self { socket, raw: RawSender::open(&client.namespace, family)?, own, to })
    }

    fn fragments(&self, id: u16, payload: &[u8]) -> Vec<Vec<u8>> {
        Datagram { source: self.own, destination: self.to, payload }.fragments(id, 1_000)
    }

    fn send(&self, fragment: &[u8]) -> Result<()> {
        self.raw.send(self.to.ip(), fragment)
    }
}

/// What is no service's is nobody's business, in pieces too.
#[test]
fn large_datagrams_between_pods_are_left_alone() {
    with_agents(2, |cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        agents.serve(&Service::new("echo", 1).with(&far.pod).with_node_port(NODE_PORT))?;
        let to = far.pod.machine.addresses.at(TARGET_PORT);
        expect_large_echoes(&pod.machine, to, "far")
    });
}
