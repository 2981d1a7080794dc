//! Processes in the node's own network, which never cross a hook of packets: they get their backend at their sockets.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use proxy_common::drop::DropReason;
use sluice_tests::{
    harness::{Setup, unsupported, with_agents},
    sandbox::own_cgroup,
    service::{PORT, Service, TARGET_PORT},
    topology::{Addresses, Ends, Family, Machine, Node},
    traffic::{Connection, Protocol, Source, Spread, UdpClient},
    wait::wait_until,
};
use socket2::{Domain, Socket, Type};

use crate::{
    Backend,
    expect::{Seen, ask, expect_reach, expect_tcp_refused},
};

const NODE_PORT: u16 = 30_080;
/// The port of the sender in the tests of Kubernetes (VER-08).
const FIXED_PORT: u16 = 12_345;
/// What is said at once is said within this time: far less than anybody waits for an answer.
const AT_ONCE: Duration = Duration::from_secs(2);
const EXTERNAL: u8 = 250;
const BALANCER: u8 = 251;

/// Loopback addresses, which every machine has.
const LOOPBACK: Addresses = Addresses { v4: Ipv4Addr::LOCALHOST, v6: Ipv6Addr::LOCALHOST };

/// The processes of a node, which leave it to the kernel what address they have.
fn host(node: &Node) -> Machine {
    node.machine().known_as(Addresses { v4: Ipv4Addr::UNSPECIFIED, v6: Ipv6Addr::UNSPECIFIED })
}

/// As the refusal of packets, but of the calls themselves: nothing is sent.
fn expect_refused_at_once(host: &Machine, to: Ends) -> Result<()> {
    let start = Instant::now();
    for family in Family::ALL {
        let to = to.of(family);
        expect_tcp_refused(&host.namespace, to)?;
        for (call, result) in udp_calls(host, to)? {
            let error = result.err().with_context(|| format!("UDP to {to}: {call} should fail"))?;
            ensure!(error.kind() == io::ErrorKind::ConnectionRefused, "UDP to {to}: {call}: {error}");
        }
    }
    ensure!(start.elapsed() < AT_ONCE, "it took {:?}", start.elapsed());
    Ok(())
}

/// Whatever tries to reach `to` fails at once.
fn expect_failure_at_once(host: &Machine, to: Ends) -> Result<()> {
    let start = Instant::now();
    for family in Family::ALL {
        let to = to.of(family);
        let connected = Connection::open(&host.namespace, to, Source::AnyPort);
        ensure!(connected.is_err(), "TCP to {to}: {connected:?}");
        for (call, result) in udp_calls(host, to)? {
            ensure!(result.is_err(), "UDP to {to}: {call} should fail");
        }
    }
    ensure!(start.elapsed() < AT_ONCE, "it took {:?}", start.elapsed());
    Ok(())
}

/// What both calls that name a receiver return.
fn udp_calls(host: &Machine, to: SocketAddr) -> Result<[(&'static str, io::Result<()>); 2]> {
    host.namespace.run(|| {
        let socket = || UdpSocket::bind((Family::of(to.ip()).unspecified(), 0));
        Ok([
            ("connect", socket()?.connect(to)),
            ("sendto", socket()?.send_to(b"anybody there?", to).map(drop)),
        ])
    })
}

/// A datagram and its answer on a connected socket. The process sees nobody but the service.
fn expect_connected_udp(host: &Machine, own: IpAddr, to: SocketAddr, backend: &str) -> Result<()> {
    let socket = host.namespace.run(|| Ok(UdpSocket::bind((own, 0))?))?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    socket.connect(to).with_context(|| format!("connect to {to}"))?;
    ensure!(socket.peer_addr()? == to, "the peer of a socket to {to} is {}", socket.peer_addr()?);
    for number in 0..3 {
        socket.send(number.to_string().as_bytes())?;
        let mut buffer = [0; 256];
        let (length, from) = socket.recv_from(&mut buffer).with_context(|| format!("answer from {to}"))?;
        let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
        ensure!(from == to, "asked {to}, the answer came from {from}");
        ensure!(
            answer.starts_with(&format!("{backend} ")) && answer.ends_with(&format!(" {number}")),
            "{answer}"
        );
    }
    Ok(())
}

fn mapped(end: SocketAddr) -> Option<SocketAddr> {
    match end.ip() {
        IpAddr::V4(ip) => Some((ip.to_ipv6_mapped(), end.port()).into()),
        IpAddr::V6(_) => None,
    }
}

/// By TCP and UDP, on sockets that are connected and that are not, of their own family and of the other one.
fn expect_reach_every_way(host: &Machine, to: Ends, backend: &str, seen: &Seen) -> Result<()> {
    expect_reach(host, to, backend, seen)?;
    for family in Family::ALL {
        let to = to.of(family);
        expect_connected_udp(host, family.unspecified(), to, backend)?;
        if let Some(to) = mapped(to) {
            expect_reach_mapped(host, to, backend)?;
        }
    }
    Ok(())
}

/// A socket of IPv6 that talks IPv4.
fn expect_reach_mapped(host: &Machine, to: SocketAddr, backend: &str) -> Result<()> {
    let any = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    expect_connected_udp(host, any, to, backend).context("mapped")?;
    let (datagrams, stream) = host.namespace.run(|| {
        let datagrams = Socket::new(Domain::IPV6, Type::DGRAM, None)?;
        datagrams.set_only_v6(false)?;
        datagrams.bind(&SocketAddr::new(any, 0).into())?;
        let stream = Socket::new(Domain::IPV6, Type::STREAM, None)?;
        stream.set_only_v6(false)?;
        stream.connect(&to.into()).with_context(|| format!("connect to {to}"))?;
        Ok((UdpSocket::from(datagrams), stream))
    })?;
    let peer = stream.peer_addr()?.as_socket();
    ensure!(peer == Some(to), "the peer of a connection to {to} is {peer:?}");
    let mut greeting = [0; 64];
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let length = io::Read::read(&mut &stream, &mut greeting)?;
    let greeting = String::from_utf8_lossy(&greeting[..length]);
    ensure!(greeting.starts_with(&format!("{backend} ")), "{to} is {greeting:?}");

    datagrams.set_read_timeout(Some(Duration::from_secs(10)))?;
    datagrams.send_to(b"7", to)?;
    let mut buffer = [0; 256];
    let (length, from) = datagrams.recv_from(&mut buffer).with_context(|| format!("answer from {to}"))?;
    let answer = String::from_utf8_lossy(&buffer[..length]);
    ensure!(from == to && answer.starts_with(backend), "asked {to}, {from} said {answer:?}");
    Ok(())
}

/// CIP-01, BPF-04, DEC-32.
#[test]
fn the_host_reaches_cluster_ips_by_every_kind_of_socket() {
    with_agents(2, |cluster, agents| {
        let node = &cluster.nodes[0];
        let backends = [Backend::on(node, "near")?, Backend::on(&cluster.nodes[1], "far")?];
        for backend in &backends {
            let service = Service::new("echo", 1).with(&backend.pod);
            agents.serve(&service)?;
            let name = backend.pod.name();
            expect_reach_every_way(&host(node), service.vip(), name, &Seen::node(node))?;
            // A socket that has an address already keeps it.
            expect_reach(&node.machine(), service.vip(), name, &Seen::Client)?;
        }
        Ok(())
    });
}

/// E2E-082, BPF-02: all endpoints, through the ClusterIP and through any node's port.
#[test]
fn the_host_reaches_all_endpoints_by_cluster_ip_and_node_port() {
    with_agents(2, |cluster, agents| {
        let node = &cluster.nodes[0];
        let near = Backend::on(node, "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let service = Service::new("echo", 1).with(&near.pod).with(&far.pod).with_node_port(NODE_PORT);
        agents.serve(&service)?;
        for ends in [
            service.vip(),
            node.addresses.at(NODE_PORT),
            cluster.nodes[1].addresses.at(NODE_PORT),
            LOOPBACK.at(NODE_PORT),
        ] {
            for family in Family::ALL {
                for protocol in Protocol::ALL {
                    let to = ends.of(family);
                    Spread::measure(&node.namespace, to, protocol, 100, |_| {})?
                        .expect_uniform_over(&["near", "far"])
                        .with_context(|| format!("{protocol} to {to}"))?;
                }
            }
        }
        Ok(())
    });
}

/// NP-06, NP-10, XIP-01, LB-01.
#[test]
fn the_host_reaches_node_ports_external_ips_and_load_balancers() {
    with_agents(2, |cluster, agents| {
        let node = &cluster.nodes[0];
        let backends = [Backend::on(node, "near")?, Backend::on(&cluster.nodes[1], "far")?];
        for backend in &backends {
            let service = Service::new("echo", 1)
                .with(&backend.pod)
                .with_external_ips(Addresses::elsewhere(EXTERNAL))
                .with_load_balancer(Addresses::elsewhere(BALANCER), "VIP")
                .with_node_port(NODE_PORT);
            agents.serve(&service)?;
            let own = node.own_addresses().into_iter().map(|addresses| addresses.at(NODE_PORT));
            let others = [
                LOOPBACK.at(NODE_PORT),
                Addresses::elsewhere(EXTERNAL).at(PORT),
                Addresses::elsewhere(BALANCER).at(PORT),
            ];
            for to in own.chain(others) {
                expect_reach_every_way(&host(node), to, backend.pod.name(), &Seen::node(node))?;
            }
            // NP-10: all of 127.0.0.0/8.
            let to = SocketAddr::from(([127, 1, 2, 3], NODE_PORT));
            ensure!(ask(&host(node), to, Protocol::Tcp)?.backend == backend.pod.name());
        }
        Ok(())
    });
}

/// NP-10: what listens at loopback is left alone where NodePorts are not.
#[test]
fn node_ports_are_not_at_loopback_if_that_is_left_out() {
    for flag in ["--localhost-nodeports=false", "--nodeport-addresses=192.168.0.0/16,fd00::/8"] {
        Setup::new(1).telling(&[flag]).alone().run(|cluster, agents| {
            let node = &cluster.nodes[0];
            let near = Backend::on(node, "near")?;
            agents.serve(&Service::new("echo", 1).with(&near.pod).with_node_port(NODE_PORT))?;
            expect_reach(&host(node), node.addresses.at(NODE_PORT), "near", &Seen::node(node))?;
            for family in Family::ALL {
                expect_tcp_refused(&node.namespace, LOOPBACK.at(NODE_PORT).of(family))?;
            }
            Ok(())
        });
    }
}

/// BPF-09.
#[test]
fn services_without_endpoints_and_unknown_ports_refuse_the_host_at_once() {
    with_agents(1, |cluster, agents| {
        let node = &cluster.nodes[0];
        let near = Backend::on(node, "near")?;
        let service = Service::new("echo", 1)
            .with_load_balancer(Addresses::elsewhere(BALANCER), "VIP")
            .with_node_port(NODE_PORT);
        agents.serve(&service)?;
        let ends = [
            service.vip(),
            node.addresses.at(NODE_PORT),
            LOOPBACK.at(NODE_PORT),
            Addresses::elsewhere(BALANCER).at(PORT),
        ];
        for to in ends {
            expect_refused_at_once(&host(node), to)?;
        }
        let service = service.with(&near.pod);
        agents.serve(&service)?;
        for to in ends {
            expect_reach(&host(node), to, "near", &Seen::node(node))?;
        }
        let before = agents.agents[0].drops(DropReason::UnknownPort)?;
        expect_refused_at_once(&host(node), Addresses::vip(1).at(81))?;
        // TCP, and UDP in two ways, of each family.
        let refused = agents.agents[0].drops(DropReason::UnknownPort)? - before;
        ensure!(refused == 6, "{refused} were counted");
        ensure!(near.server.connections() > 0);
        Ok(())
    });
}

/// E2E-033, ITP-01, ITP-02: from the host's network to pods.
#[test]
fn internal_local_serves_the_host_of_the_endpoints_node_only() {
    with_agents(2, |cluster, agents| {
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let service = Service::new("echo", 1).local_for_inside();
        for (backend, other, here, there) in [(&near, &far, 0, 1), (&far, &near, 1, 0)] {
            let service = service.clone().with(&backend.pod);
            agents.serve(&service)?;
            let (here, there) = (&cluster.nodes[here], &cluster.nodes[there]);
            expect_reach_every_way(&host(here), service.vip(), backend.pod.name(), &Seen::node(here))?;
            let before = backend.server.connections() + backend.server.datagrams();
            expect_failure_at_once(&host(there), service.vip())?;
            ensure!(backend.server.connections() + backend.server.datagrams() == before, "it was reached");
            // Everybody meets their own.
            agents.serve(&service.with(&other.pod))?;
            for _ in 0..5 {
                expect_reach(&host(here), Addresses::vip(1).at(PORT), backend.pod.name(), &Seen::node(here))?;
            }
        }
        Ok(())
    });
}

/// DEC-21, BPF-03.
#[test]
fn external_local_lets_the_host_reach_any_endpoint_as_the_node() {
    with_agents(2, |cluster, agents| {
        let node = &cluster.nodes[0];
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let service = Service::new("echo", 1)
            .with(&far.pod)
            .with_external_ips(Addresses::elsewhere(EXTERNAL))
            .with_load_balancer(Addresses::elsewhere(BALANCER), "VIP")
            .with_node_port(NODE_PORT)
            .local_for_outside();
        agents.serve(&service)?;
        for to in [
            node.addresses.at(NODE_PORT),
            LOOPBACK.at(NODE_PORT),
            Addresses::elsewhere(EXTERNAL).at(PORT),
            Addresses::elsewhere(BALANCER).at(PORT),
        ] {
            expect_reach_every_way(&host(node), to, "far", &Seen::node(node))?;
        }
        Ok(())
    });
}

/// The host's processes are admitted as the node's address: that of the way out.
#[test]
fn source_ranges_know_the_host_by_the_nodes_address() {
    Setup::new(1).alone().run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let way_out = cluster.client.addresses;
        node.namespace
            .ip(&format!("route add default via {}\nroute add default via {}", way_out.v4, way_out.v6))?;
        let near = Backend::on(node, "near")?;
        let to = Addresses::elsewhere(BALANCER);
        let service = Service::new("echo", 1).with(&near.pod).with_load_balancer(to, "VIP");
        agents.serve(&service.clone().with_source_ranges(&["192.168.100.0/24", "fd00:100::/64"]))?;
        for family in Family::ALL {
            wait_until("the new way out decides", || {
                Ok(ask(&host(node), to.at(PORT).of(family), Protocol::Tcp).ok())
            })?;
        }
        expect_reach(&host(node), to.at(PORT), "near", &Seen::node(node))?;
        agents.serve(&service.with_source_ranges(&["192.0.2.0/24", "2001:db8::/32"]))?;
        expect_failure_at_once(&host(node), to.at(PORT))
    });
}

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

#[test]
fn without_sockets_the_host_is_not_served_and_pods_are() {
    Setup::new(1).telling(&["--socket-lb=off"]).alone().run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let near = Backend::on(node, "near")?;
        let client = node.add_pod("client")?;
        let service = Service::new("echo", 1).with(&near.pod).with_node_port(NODE_PORT);
        agents.serve(&service)?;
        expect_failure_at_once(&host(node), service.vip())?;
        for family in Family::ALL {
            expect_tcp_refused(&node.namespace, LOOPBACK.at(NODE_PORT).of(family))?;
        }
        ensure!(near.server.connections() == 0 && near.server.datagrams() == 0);
        expect_reach(&client.machine, service.vip(), "near", &Seen::Client)?;
        expect_pinned(agents.agents[0].pins()?, 0)?;
        let status = agents.agents[0].ask(&["status"])?;
        ensure!(status.contains("sockets  off"), "{status}");

        // Switched on and off again.
        for (mode, count) in [("--socket-lb=host-only", 8), ("--socket-lb=off", 0)] {
            let agent = &mut agents.agents[0];
            agent.terminate()?;
            agent.tell(&[mode]);
            agent.resume()?;
            agent.wait_until_synced()?;
            agents.settle()?;
            expect_pinned(agents.agents[0].pins()?, count)?;
            if count > 0 {
                expect_reach_every_way(&host(node), service.vip(), "near", &Seen::node(node))?;
                let status = agents.agents[0].ask(&["status"])?;
                let cgroup = format!("{}, 8 of 8", own_cgroup()?.display());
                ensure!(status.contains("sockets  host-only") && status.contains(&cgroup), "{status}");
                let status = agents.agents[0].ask(&["status", "-o", "json"])?;
                let sockets = serde_json::from_str::<serde_json::Value>(&status)?["sockets"].take();
                let count = |field: &str| sockets[field].as_array().map(Vec::len);
                ensure!(
                    sockets["mode"] == "host-only"
                        && count("hooks") == Some(8)
                        && count("missing") == Some(0),
                    "{sockets}"
                );
            } else {
                expect_failure_at_once(&host(node), service.vip())?;
            }
        }
        Ok(())
    });
}

/// So many links to a cgroup are pinned, and none of them for a while only.
fn expect_pinned(pins: Vec<PathBuf>, count: usize) -> Result<()> {
    let names = pins.iter().filter_map(|path| path.file_name()?.to_str());
    let links: Vec<_> = names.filter(|name| name.starts_with("cgroup-")).collect();
    ensure!(links.len() == count && !links.iter().any(|name| name.ends_with("-next")), "{links:?}");
    Ok(())
}

/// BPF-10, LIFE-13.
#[test]
fn the_host_is_served_while_the_agent_is_dead_and_all_through_its_restart() {
    Setup::new(1).alone().run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let near = Backend::on(node, "near")?;
        let service = Service::new("echo", 1).with(&near.pod).with_node_port(NODE_PORT);
        agents.serve(&service)?;
        let reach = || -> Result<()> {
            for to in [service.vip(), LOOPBACK.at(NODE_PORT)] {
                expect_reach_every_way(&host(node), to, "near", &Seen::node(node))?;
            }
            Ok(())
        };
        reach().context("at first")?;
        for _ in 0..2 {
            agents.agents[0].kill()?;
            reach().context("after the agent was killed")?;
            agents.agents[0].resume()?;
            let restarted = AtomicBool::new(false);
            thread::scope(|scope| {
                let connecting = scope.spawn(|| -> Result<u32> {
                    let mut rounds = 0;
                    while !restarted.load(Ordering::Relaxed) {
                        reach().context("while the agent was restarted")?;
                        rounds += 1;
                    }
                    Ok(rounds)
                });
                let synced = agents.agents[0].wait_until_synced();
                restarted.store(true, Ordering::Relaxed);
                let rounds =
                    connecting.join().unwrap_or_else(|panicked| std::panic::resume_unwind(panicked))?;
                ensure!(rounds > 0, "nothing was tried");
                synced
            })?;
            expect_pinned(agents.agents[0].pins()?, 8)?;
            reach().context("after the agent was restarted")?;
        }
        agents.serve(&Service::new("echo", 1).with_node_port(NODE_PORT))?;
        expect_refused_at_once(&host(node), service.vip())
    });
}

/// A cgroup for threads of this process, gone with this value.
pub(crate) struct Threads(PathBuf);

impl Threads {
    pub(crate) fn create(name: &str) -> Result<Self> {
        let dir = own_cgroup()?.join(name);
        fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
        let threads = Self(dir);
        fs::write(threads.0.join("cgroup.type"), "threaded").context("make a threaded cgroup")?;
        Ok(threads)
    }

    /// The flag that has an agent serve them, and nobody else.
    pub(crate) fn flag(&self) -> String {
        format!("--cgroup={}", self.0.display())
    }

    /// Executes `work` on a thread there, with those that it starts.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let inside = || {
            fs::write(self.0.join("cgroup.threads"), "0").context("enter the cgroup")?;
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join())
            .unwrap_or_else(|panicked| std::panic::resume_unwind(panicked))
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // At worst it stays, and is empty.
        drop(fs::remove_dir(&self.0));
    }
}

/// Only threads in a cgroup of its own are served: that of this process has other tests' pods in it.
#[test]
fn a_pods_connection_goes_straight_to_its_backend_if_pods_are_served_at_sockets() {
    let threads = match Threads::create("pod") {
        Ok(threads) => threads,
        Err(reason) => return unsupported(&reason),
    };
    Setup::new(1).telling(&["--socket-lb=on", &threads.flag()]).alone().run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let near = Backend::on(node, "near")?;
        let client = node.add_pod("client")?;
        let service = Service::new("echo", 1).with(&near.pod);
        agents.serve(&service)?;
        for family in Family::ALL {
            let (to, pod) = (service.frontend(family), near.pod.machine.addresses.at(TARGET_PORT).of(family));
            let open = || Connection::open(&client.machine.namespace, to, Source::AnyPort);
            for (is_inside, expected) in [(true, pod), (false, to)] {
                let connection = if is_inside { threads.run(open) } else { open() }?;
                ensure!(connection.backend == "near" && connection.peer()? == to, "{connection:?}");
                ensure!(connection.seen_as == connection.local()?, "seen as {}", connection.seen_as);
                // What the socket puts on its packets.
                let sockets = client.machine.namespace.run(|| {
                    let file = if family == Family::V4 { "tcp" } else { "tcp6" };
                    Ok(fs::read_to_string(format!("/proc/thread-self/net/{file}"))?)
                })?;
                ensure!(
                    sockets.contains(&as_kernel_writes(expected)),
                    "inside {is_inside}: no {expected} in\n{sockets}"
                );
                connection.abort()?;
            }
        }
        // Its datagrams are left to packets.
        expect_reach(&client.machine, service.vip(), "near", &Seen::Client)?;
        let status = agents.agents[0].ask(&["status"])?;
        ensure!(
            status.contains("sockets  on") && status.contains(&threads.0.display().to_string()),
            "{status}"
        );
        Ok(())
    });
}

/// An end as `/proc/net/tcp` has it: words of the address in the machine's order, all in hexadecimal.
fn as_kernel_writes(end: SocketAddr) -> String {
    let octets = match end.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let word = |octets: &[u8]| <[u8; 4]>::try_from(octets).map(u32::from_ne_bytes).unwrap_or_default();
    let words: Vec<_> = octets.chunks_exact(4).map(|octets| format!("{:08X}", word(octets))).collect();
    format!("{}:{:04X}", words.concat(), end.port())
}
