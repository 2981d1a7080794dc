//! SCTP: ports translated and checksums right, without the kernel's help (PROTO-01, E2E-043, E2E-081).

use std::{fs, net::SocketAddr};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    harness::with_agents,
    service::{Port, Service, TARGET_PORT},
    topology::{Addresses, Ends, Family, Machine, Node, Pod},
    traffic::{Protocol, SctpClient, SctpServer, Server},
};

use crate::expect::{Seen, expect_reach};

const NODE_PORT: u16 = 30_080;
struct SctpBackend {
    pod: Pod,
    server: SctpServer,
}

impl SctpBackend {
    fn on(node: &Node, name: &str) -> Result<Self> {
        let pod = node.add_pod(name)?;
        let server = SctpServer::start(&pod.machine, TARGET_PORT)?;
        Ok(Self { pod, server })
    }
}

fn service() -> Service {
    Service::new("signals", 1).with_ports([Port::new("sctp", Protocol::Sctp, 36_412, TARGET_PORT)])
}

/// The backend answers twice, and is the same.
fn expect_associations(client: &Machine, to: Ends, backend: &SctpBackend, seen: Addresses) -> Result<()> {
    // There are no sockets that could have it. Another one for each end, or they would meet at the backend (NAT-05).
    let port = 2_000 + to.port % 1_000;
    for family in Family::ALL {
        let to = to.of(family);
        let context = || format!("SCTP from {} to {to}", client.name);
        let socket = SctpClient::new(&client.namespace, family, port)?;
        for tag in [7, 8] {
            let answer = socket.ask(to, tag).with_context(context)?;
            ensure!(answer.from == to, "asked {to}, the answer came from {}", answer.from);
            let seen_as = answer.seen_as;
            let name = backend.pod.name();
            ensure!(answer.backend == name && seen_as.ip() == seen.of(family), "{}: {answer:?}", context());
            if seen == client.addresses {
                ensure!(seen_as == SocketAddr::new(seen.of(family), port), "{}: {answer:?}", context());
            }
        }
    }
    let wrong = backend.server.wrong_checksums();
    ensure!(wrong == 0, "{wrong} packets with wrong checksums");
    Ok(())
}

#[test]
pub(crate) fn associations_go_through_cluster_ips_and_node_ports() {
    with_agents(2, |cluster, agents| {
        let loaded = sctp_is_loaded()?;
        let pod = cluster.nodes[0].add_pod("pod")?;
        let near = SctpBackend::on(&cluster.nodes[0], "near")?;
        let far = SctpBackend::on(&cluster.nodes[1], "far")?;
        let node = cluster.nodes[0].addresses;
        for (backend, outside) in [(&near, cluster.client.addresses), (&far, node)] {
            let service = service().with(&backend.pod).with_node_port(NODE_PORT);
            agents.serve(&service)?;
            for to in [service.vip(), node.at(NODE_PORT)] {
                expect_associations(&pod.machine, to, backend, pod.machine.addresses)?;
                expect_associations(&cluster.client, to, backend, outside)?;
            }
        }
        ensure!(sctp_is_loaded()? == loaded, "the kernel has loaded its SCTP module");
        Ok(())
    });
}

/// PROTO-02.
#[test]
fn one_number_serves_sctp_beside_tcp_and_udp() {
    with_agents(1, |cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let sctp = SctpBackend::on(&cluster.nodes[0], "near")?;
        let other = Server::start(&sctp.pod.machine, TARGET_PORT)?;
        let port = |protocol: Protocol| Port::new(protocol.as_str(), protocol, 80, TARGET_PORT);
        let all = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
        let service = Service::new("echo", 1).with_ports(all.map(port)).with(&sctp.pod);
        agents.serve(&service)?;
        expect_reach(&pod.machine, service.vip(), "near", &Seen::Client)?;
        expect_associations(&pod.machine, service.vip(), &sctp, pod.machine.addresses)?;
        ensure!(other.connections() == 2 && other.datagrams() == 2);
        Ok(())
    });
}

/// Whether the kernel has its SCTP module, as a module or built in.
fn sctp_is_loaded() -> Result<bool> {
    let protocols = fs::read_to_string("/proc/net/protocols").context("read /proc/net/protocols")?;
    Ok(protocols.lines().any(|line| line.starts_with("SCTP")))
}
