//! Checksums are right, whoever finishes them.

use std::{fs, net::SocketAddr, sync::atomic::AtomicU64};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    harness::Setup,
    netns::Namespace,
    service::Service,
    topology::{Cluster, Family, Machine, Overlay, Pod, Shape, finish_checksums},
    traffic::{Connection, Direction, Source, UdpClient},
};

use crate::{
    Backend,
    expect::{Seen, expect_all_reach, expect_reach, expect_refused},
};

const NODE_PORT: u16 = 30_080;
/// Bytes of which the kernel makes large segments, if devices take them.
const MANY: u64 = 4 << 20;

/// Who finishes checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finished {
    /// Whoever sends: programs see whole ones.
    ByEnds,
    /// The nodes, as packets leave by their devices: what ends send, programs see unfinished, and what they make of it is
    /// finished and then looked at.
    ByNodes,
}

impl Finished {
    fn prepare(self, cluster: &Cluster, pods: &[&Pod]) -> Result<()> {
        let uplink = |namespace: &Namespace| finish_checksums(namespace, "eth0");
        match self {
            Self::ByEnds => {
                uplink(&cluster.client.namespace)?;
                pods.iter().try_for_each(|pod| uplink(&pod.machine.namespace))
            }
            Self::ByNodes => {
                cluster.nodes.iter().try_for_each(|node| uplink(&node.namespace))?;
                pods.iter().try_for_each(|pod| finish_checksums(&cluster.node_of(pod).namespace, &pod.device))
            }
        }
    }
}

/// How many packets a namespace has found to have wrong checksums, of whatever protocol.
fn wrong(namespace: &Namespace) -> Result<u64> {
    namespace.run(|| {
        let read = |name| fs::read_to_string(format!("/proc/thread-self/net/{name}")).context("counters");
        let (all, ipv6) = (read("snmp")?, read("snmp6")?);
        let mut count = 0;
        // A line of names, and one of values.
        for pair in all.lines().collect::<Vec<_>>().chunks(2) {
            let &[names, values] = pair else { continue };
            for (name, value) in names.split_whitespace().zip(values.split_whitespace()) {
                if name == "InCsumErrors" {
                    count += value.parse::<u64>()?;
                }
            }
        }
        for line in ipv6.lines().filter(|line| line.contains("InCsumErrors")) {
            count += line.split_whitespace().last().context("a value")?.parse::<u64>()?;
        }
        Ok(count)
    })
}

fn expect_transfer(client: &Machine, to: SocketAddr) -> Result<()> {
    let mut connection = Connection::open(&client.namespace, to, Source::AnyPort)?;
    for direction in Direction::ALL {
        connection.transfer(direction, MANY, &AtomicU64::new(0)).with_context(|| format!("with {to}"))?;
    }
    Ok(())
}

/// Datagrams in one piece and in several, and one without a checksum, to which none may be given.
fn expect_datagrams(client: &Machine, to: SocketAddr) -> Result<()> {
    let socket = UdpClient::bind(&client.namespace, Family::of(to.ip()))?;
    for length in [1, 1_000, 20_000] {
        socket.exchange(to, &vec![0x5a; length]).with_context(|| format!("{length} bytes"))?;
    }
    if to.is_ipv4() {
        socket.leave_checksums_out()?;
        socket.ask(to, 1).context("without checksum")?;
    }
    Ok(())
}

fn expect_right_checksums(shape: Shape, finished: Finished) {
    Setup::new(2).shaped(shape).alone().run(|cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let idle = cluster.nodes[1].add_pod("idle")?;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let pods = [&pod, &idle, &near.pod, &far.pod];
        finished.prepare(cluster, &pods)?;
        for backend in [&near, &far] {
            let service = Service::new("echo", 1).with(&backend.pod).with_node_port(NODE_PORT);
            agents.serve(&service)?;
            expect_all_reach(&pod.machine, &service, backend.pod.name())?;
            // The other node is outside, too: its backend sees the node that was asked (MASQ-04), the source being rewritten.
            let node = cluster.nodes[0].addresses.at(NODE_PORT);
            for family in Family::ALL {
                for (client, to) in [(&pod.machine, service.vip()), (&cluster.client, node)] {
                    let to = to.of(family);
                    expect_transfer(client, to).with_context(|| format!("{} of {}", to, client.name))?;
                    expect_datagrams(client, to).with_context(|| format!("{} of {}", to, client.name))?;
                }
            }
        }
        expect_reach(&near.pod.machine, Service::new("echo", 1).with(&far.pod).vip(), "far", &Seen::Client)?;
        // The answer is an ICMP error, about a packet that was translated.
        let closed = Service::new("closed", 2).with(&idle);
        agents.serve(&closed)?;
        expect_refused(&pod.machine, closed.vip())?;
        for machine in pods.map(|pod| &pod.machine).into_iter().chain([&cluster.client]) {
            let wrong = wrong(&machine.namespace)?;
            ensure!(wrong == 0, "{finished:?}: {wrong} packets to {} had wrong checksums", machine.name);
        }
        Ok(())
    });
}

#[test]
fn checksums_that_ends_have_finished_stay_right() {
    expect_right_checksums(Shape::default(), Finished::ByEnds);
}

#[test]
fn checksums_that_are_still_to_be_finished_become_right() {
    expect_right_checksums(Shape::default(), Finished::ByNodes);
}

#[test]
fn checksums_of_packets_from_a_tunnel_stay_right() {
    expect_right_checksums(Shape { overlay: Overlay::Vxlan, ..Shape::default() }, Finished::ByEnds);
}

/// A node that has to look at the outer packet's checksum goes on with the sum of the inner packet (`CHECKSUM_COMPLETE`).
/// Answers to those whose source was rewritten are translated in that state.
#[test]
fn checksums_of_packets_from_a_tunnel_become_right() {
    expect_right_checksums(Shape { overlay: Overlay::Vxlan, ..Shape::default() }, Finished::ByNodes);
}
