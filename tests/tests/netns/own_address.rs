//! ClusterIPs that are addresses of the node as well: who listens there comes first, and otherwise the service serves.
//! NodeLocal DNS works in this way; kube-proxy's IPVS mode leaves such addresses behind.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
};

use anyhow::{Context as _, Result, ensure};
use proxy_common::drop::DropReason;
use sluice_tests::{
    harness::Setup,
    netns::Namespace,
    service::{PORT, Service},
    topology::{Addresses, Ends, Family, Machine, Node, Pod},
    traffic::{Connection, Pong, Protocol, Server, Source, UdpClient, ping},
    wait::wait_until,
};
use socket2::{Domain, Socket, Type};

use crate::{
    Backend,
    expect::{Seen, ask, expect_reach, expect_refused, expect_tcp_refused},
};

/// Where no service of these tests is.
const OTHER_PORT: u16 = 81;
const NODE_PORT: u16 = 30_080;

/// Puts ClusterIPs on a device of the node that leads nowhere (a bridge without ports, as not every kernel has dummies),
/// and waits until the agent knows: it is the node that answers pings then.
fn put_on_device(node: &Node, device: &str, vips: &[Addresses], client: &Machine) -> Result<()> {
    let mut script = format!("link add {device} type bridge\nlink set {device} up\n");
    for Addresses { v4, v6 } in vips {
        writeln!(script, "addr add {v4}/32 dev {device}\naddr add {v6}/128 dev {device} nodad")?;
    }
    node.namespace.ip(&script)?;
    for vip in vips {
        for to in Family::ALL.map(|family| vip.of(family)) {
            wait_until(&format!("{} answers at {to}", node.name), || {
                Ok((ping(&client.namespace, to)? == Pong::Reply(to)).then_some(()))
            })?;
        }
    }
    Ok(())
}

/// Everybody whose packets meet the node that has the address: a pod, a client outside, and the node's own processes,
/// which leave it to the kernel what address they have.
struct Clients<'a> {
    pod: Pod,
    outside: &'a Machine,
    host: Machine,
}

impl<'a> Clients<'a> {
    fn of(node: &Node, outside: &'a Machine) -> Result<Self> {
        let any = Addresses { v4: Ipv4Addr::UNSPECIFIED, v6: Ipv6Addr::UNSPECIFIED };
        Ok(Self { pod: node.add_pod("client")?, outside, host: node.machine().known_as(any) })
    }

    fn all(&self) -> [&Machine; 3] {
        [&self.pod.machine, self.outside, &self.host]
    }

    /// All of them reach this backend of a service.
    fn expect_served(&self, to: Ends, backend: &str) -> Result<()> {
        for (client, family) in self.all().into_iter().flat_map(|client| Family::ALL.map(|f| (client, f))) {
            for protocol in Protocol::ALL {
                let heard = ask(client, to.of(family), protocol)?;
                let name = &client.name;
                ensure!(
                    heard.backend == backend,
                    "{protocol} from {name} to {to:?}: {heard:?}, not {backend}"
                );
            }
        }
        Ok(())
    }

    /// All of them reach this process of the node, which sees them as they are.
    fn expect_left_to(&self, to: Ends, process: &Server) -> Result<()> {
        for client in [&self.pod.machine, self.outside] {
            expect_reach(client, to, process.name(), &Seen::Client)?;
        }
        // What the kernel sends to one of its own addresses comes from there.
        expect_reach(&self.host, to, process.name(), &Seen::As(to.addresses))
    }
}

/// A server that listens at all addresses at once.
struct Wildcard(#[expect(dead_code, reason = "they listen while they exist")] Vec<(TcpListener, UdpSocket)>);

impl Wildcard {
    fn start(namespace: &Namespace, port: u16) -> Result<Self> {
        let bind = |family: Family| -> Result<_> {
            let at = SocketAddr::new(family.unspecified(), port);
            let socket = |kind| -> Result<Socket> {
                let socket = Socket::new(Domain::for_address(at), kind, None)?;
                if family == Family::V6 {
                    socket.set_only_v6(true)?;
                }
                socket.bind(&at.into())?;
                Ok(socket)
            };
            let listener = socket(Type::STREAM)?;
            listener.listen(16)?;
            Ok((listener.into(), socket(Type::DGRAM)?.into()))
        };
        namespace.run(|| Ok(Self(Family::ALL.into_iter().map(bind).collect::<Result<_>>()?)))
    }
}

/// NodeLocal DNS.
#[test]
fn a_process_that_is_bound_to_a_services_address_on_its_node_is_reached_there() {
    Setup::new(2).alone().run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let service = Service::new("dns", 1);
        let to = service.vip();
        let clients = Clients::of(node, &cluster.client)?;
        let elsewhere = cluster.nodes[1].add_pod("elsewhere")?;
        let backends = [Backend::on(node, "near")?, Backend::on(&cluster.nodes[1], "far")?];
        agents.serve(&service.clone().with(&backends[0].pod))?;
        clients.expect_served(to, "near").context("an ordinary address")?;
        put_on_device(node, "nodelocaldns", &[to.addresses], &clients.pod.machine)?;
        for Backend { pod, .. } in &backends {
            agents.serve(&service.clone().with(pod))?;
            clients.expect_served(to, pod.name()).context("an address of the node")?;
            for _ in 0..2 {
                let local = Server::start_at(&node.machine(), to)?;
                clients.expect_left_to(to, &local).context("a process listens there")?;
                // On the other node, it is an address like any other.
                expect_reach(&elsewhere.machine, to, pod.name(), &Seen::Client)?;
                drop(local);
                clients.expect_served(to, pod.name()).context("it is gone")?;
            }
            let everywhere = Wildcard::start(&node.namespace, PORT)?;
            clients
                .expect_served(to, pod.name())
                .context("a server at all addresses is for something else")?;
            drop(everywhere);
        }
        // Nobody but sockets is asked.
        let local = Server::start_at(&node.machine(), to)?;
        agents.agents[0].kill()?;
        clients.expect_left_to(to, &local).context("without an agent")?;
        drop(local);
        clients.expect_served(to, "far").context("without an agent, and it is gone")?;
        let local = Server::start_at(&node.machine(), to)?;
        clients.expect_left_to(to, &local).context("without an agent, and it is back")
    });
}

/// Each datagram looks who is there; a connection keeps its backend (CT-20).
#[test]
fn datagrams_move_to_a_process_that_begins_to_listen_and_connections_stay() {
    Setup::new(1).alone().run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let near = Backend::on(node, "near")?;
        let service = Service::new("dns", 1).with(&near.pod);
        let to = service.vip();
        let clients = Clients::of(node, &cluster.client)?;
        agents.serve(&service)?;
        put_on_device(node, "nodelocaldns", &[to.addresses], &clients.pod.machine)?;

        let mut connections = Vec::new();
        let mut sockets = Vec::new();
        for (client, family) in clients.all().into_iter().flat_map(|client| Family::ALL.map(|f| (client, f)))
        {
            let to = to.of(family);
            let mut connection = Connection::open(&client.namespace, to, Source::AnyPort)?;
            ensure!(connection.backend == "near", "{connection:?}");
            connection.start_echo()?;
            connections.push(connection);
            sockets.push((UdpClient::bind(&client.namespace, family)?, to));
        }
        let mut number = 0;
        let mut expect_answers = |backend: &str| -> Result<()> {
            number += 1;
            for connection in &mut connections {
                connection.echo(number).with_context(|| format!("{connection:?}"))?;
            }
            for (socket, to) in &sockets {
                let answer = socket.ask(*to, number)?;
                ensure!(answer.backend == backend && answer.from == *to, "{backend}: {answer:?}");
            }
            Ok(())
        };
        expect_answers("near")?;
        for _ in 0..2 {
            let local = Server::start_at(&node.machine(), to)?;
            expect_answers(local.name()).context("a process listens there")?;
            drop(local);
            expect_answers("near").context("it is gone")?;
        }
        Ok(())
    });
}

/// What is remembered of a connection that is over must not catch packets of the next one from the same port.
#[test]
fn a_client_reaches_a_process_from_the_port_that_it_reached_the_service_from() {
    const CLIENTS_PORT: u16 = 12_345;
    Setup::new(1).alone().run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let near = Backend::on(node, "near")?;
        let service = Service::new("dns", 1).with(&near.pod);
        let to = service.vip();
        let clients = Clients::of(node, &cluster.client)?;
        agents.serve(&service)?;
        put_on_device(node, "nodelocaldns", &[to.addresses], &clients.pod.machine)?;
        let talk = |backend: &str| -> Result<()> {
            for (client, family) in
                clients.all().into_iter().flat_map(|client| Family::ALL.map(|f| (client, f)))
            {
                let source = Source::At(SocketAddr::new(client.addresses.of(family), CLIENTS_PORT));
                let mut connection = Connection::open(&client.namespace, to.of(family), source)?;
                ensure!(connection.backend == backend, "{backend}: {connection:?}");
                connection.start_echo()?;
                (0..3).try_for_each(|number| connection.echo(number))?;
                connection.abort()?;
            }
            Ok(())
        };
        for _ in 0..2 {
            talk("near").context("a service")?;
            let local = Server::start_at(&node.machine(), to)?;
            talk(local.name()).context("a process listens there")?;
        }
        talk("near").context("it is gone")
    });
}

/// The address is the node's: its other ports, and pings, are the stack's to answer, and NodePorts are not there.
#[test]
fn the_rest_of_such_an_address_is_the_nodes() {
    Setup::new(1).alone().run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let near = Backend::on(node, "near")?;
        let service = Service::new("dns", 1).with(&near.pod).with_node_port(NODE_PORT);
        let vip = service.vip().addresses;
        let clients = Clients::of(node, &cluster.client)?;
        agents.serve(&service)?;
        put_on_device(node, "nodelocaldns", &[vip], &clients.pod.machine)?;
        let before = agents.agents[0].drops(DropReason::UnknownPort)?;
        for client in clients.all() {
            for port in [OTHER_PORT, NODE_PORT] {
                expect_refused(client, vip.at(port)).with_context(|| client.name.clone())?;
            }
            for to in Family::ALL.map(|family| vip.of(family)) {
                let pong = ping(&client.namespace, to)?;
                ensure!(pong == Pong::Reply(to), "{} pings {to}: {pong:?}", client.name);
            }
        }
        let refused = agents.agents[0].drops(DropReason::UnknownPort)? - before;
        ensure!(refused == 0, "the datapath refused {refused} packets");
        let local = Server::start_at(&node.machine(), vip.at(OTHER_PORT))?;
        clients.expect_left_to(vip.at(OTHER_PORT), &local)?;
        clients.expect_served(service.vip(), "near")?;

        // It is taken away again.
        drop(local);
        node.namespace.ip("link del nodelocaldns")?;
        wait_until("other ports are refused", || {
            let before = agents.agents[0].drops(DropReason::UnknownPort)?;
            expect_refused(&clients.pod.machine, vip.at(OTHER_PORT))?;
            Ok((agents.agents[0].drops(DropReason::UnknownPort)? > before).then_some(()))
        })?;
        clients.expect_served(service.vip(), "near")
    });
}

/// `kube-ipvs0`, which kube-proxy's IPVS mode leaves behind with all addresses of services on it.
#[test]
fn services_are_served_though_another_proxy_has_left_their_addresses_on_a_device() {
    Setup::new(2).alone().run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let near = Backend::on(node, "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let clients = Clients::of(node, &cluster.client)?;
        let services = [
            (Service::new("one", 1).with(&near.pod).with_node_port(NODE_PORT), "near"),
            (Service::new("two", 2).with(&far.pod), "far"),
        ];
        let empty = Service::new("empty", 3);
        for service in services.iter().map(|(service, _)| service).chain([&empty]) {
            agents.serve(service)?;
        }
        let vips: Vec<_> = (1..=3).map(Addresses::vip).collect();
        put_on_device(node, "kube-ipvs0", &vips, &clients.pod.machine)?;
        for (service, backend) in &services {
            clients.expect_served(service.vip(), backend)?;
        }
        for client in clients.all() {
            for family in Family::ALL {
                expect_tcp_refused(&client.namespace, empty.frontend(family)).context("without endpoints")?;
            }
            expect_refused(client, Addresses::vip(2).at(NODE_PORT)).context("a NodePort at a ClusterIP")?;
        }
        clients
            .expect_served(node.addresses.at(NODE_PORT), "near")
            .context("a NodePort at the node's address")?;
        // What listens at all addresses of the node does so here as well.
        let everywhere = Server::start(&node.machine(), OTHER_PORT)?;
        clients.expect_served(Addresses::vip(2).at(OTHER_PORT), everywhere.name())
    });
}

/// A datagram too large for one packet, whose later parts show no ports.
#[test]
fn fragments_reach_such_a_process() {
    const LARGE: usize = 5_000;
    Setup::new(1).alone().run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let near = Backend::on(node, "near")?;
        let service = Service::new("dns", 1).with(&near.pod);
        let clients = Clients::of(node, &cluster.client)?;
        agents.serve(&service)?;
        put_on_device(node, "nodelocaldns", &[service.vip().addresses], &clients.pod.machine)?;
        let local = Server::start_at(&node.machine(), service.vip())?;
        for (client, family) in clients.all().into_iter().flat_map(|client| Family::ALL.map(|f| (client, f)))
        {
            let answer = UdpClient::bind(&client.namespace, family)?
                .exchange(service.frontend(family), &[b'x'; LARGE])
                .with_context(|| client.name.clone())?;
            ensure!(answer.backend == local.name(), "{answer:?}");
        }
        Ok(())
    });
}
