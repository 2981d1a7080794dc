//! External IPs and the addresses of load balancers.

use anyhow::{Result, ensure};
use proxy_common::drop::DropReason;
use sluice_tests::{
    deployment::Deployment,
    harness::{Setup, with_agents},
    service::{PORT, Port, Service, TARGET_PORT},
    topology::{Addresses, Cluster, Ends, Family, Machine, Pod},
    traffic::{Connection, Protocol, Server, Source},
};

use crate::{
    Backend,
    expect::{Seen, ask, expect_all_reach, expect_dropped, expect_reach, expect_refused},
};

const NODE_PORT: u16 = 30_080;

/// Clients inside and outside, and the addresses that belong to no node.
struct Scene<'a> {
    cluster: &'a Cluster,
    pods: [Pod; 2],
    near: Backend,
    far: Backend,
    addresses: Addresses,
}

impl<'a> Scene<'a> {
    fn build(cluster: &'a Cluster) -> Result<Self> {
        let pods = [cluster.nodes[0].add_pod("pod-1")?, cluster.nodes[1].add_pod("pod-2")?];
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        Ok(Self { cluster, pods, near, far, addresses: Addresses::elsewhere(250) })
    }

    /// Everybody reaches the backend at an address that packets go to by way of each node in turn.
    fn expect_served(&self, to: Ends, backend: &Backend) -> Result<()> {
        for node in &self.cluster.nodes {
            self.cluster.client.route(self.addresses, node)?;
            let here = node.name == backend.pod.node;
            let seen = if here { Seen::Client } else { Seen::As(node.addresses) };
            expect_reach(&self.cluster.client, to, backend.pod.name(), &seen)?;
        }
        for pod in &self.pods {
            expect_reach(&pod.machine, to, backend.pod.name(), &Seen::Client)?;
        }
        Ok(())
    }

    /// Puts a machine where the addresses are routed to from the nodes: what is not captured arrives there.
    fn real_owner(&self) -> Result<Server> {
        let Addresses { v4, v6 } = self.addresses;
        let Machine { namespace, addresses: owner, .. } = &self.cluster.client;
        namespace.ip(&format!("addr add {v4}/32 dev lo\naddr add {v6}/128 dev lo nodad"))?;
        // The way back to the pods of each node.
        for node in &self.cluster.nodes {
            namespace.ip(&format!(
                "route replace {}/24 via {}\nroute replace {}/64 via {}",
                Addresses::of_pod(node.number, 0).v4,
                node.addresses.v4,
                Addresses::of_pod(node.number, 0).v6,
                node.addresses.v6
            ))?;
            node.namespace
                .ip(&format!("route add {v4} via {}\nroute add {v6} via {}", owner.v4, owner.v6))?;
        }
        Server::start(&self.cluster.client, PORT)
    }

    /// Pods that ask at the addresses reach whoever is there.
    fn expect_pods_reach(&self, name: &str) -> Result<()> {
        self.pods
            .iter()
            .try_for_each(|pod| expect_reach(&pod.machine, self.addresses.at(PORT), name, &Seen::Client))
    }
}

/// E2E-011, XIP-01.
#[test]
pub(crate) fn an_external_ip_that_no_node_has_is_served_on_every_node() {
    with_agents(2, |cluster, agents| {
        let scene = Scene::build(cluster)?;
        for backend in [&scene.near, &scene.far] {
            let service = Service::new("echo", 1).with(&backend.pod).with_external_ips(scene.addresses);
            agents.serve(&service)?;
            scene.expect_served(scene.addresses.at(PORT), backend)?;
            expect_all_reach(&scene.pods[0].machine, &service, backend.pod.name())?;
        }
        agents.serve(&Service::new("echo", 1).with_external_ips(scene.addresses))?;
        for client in [&cluster.client, &scene.pods[0].machine] {
            expect_refused(client, scene.addresses.at(PORT))?;
        }
        Ok(())
    });
}

/// XIP-03.
#[test]
fn external_ips_are_somebody_elses_if_switched_off() {
    Setup::new(2).telling(&["--serve-external-ips=false"]).alone().run(|cluster, agents| {
        let scene = Scene::build(cluster)?;
        let _owner = scene.real_owner()?;
        let service = Service::new("echo", 1)
            .with(&scene.near.pod)
            .with_external_ips(scene.addresses)
            .with_node_port(NODE_PORT);
        agents.serve(&service)?;
        scene.expect_pods_reach("client")?;
        expect_all_reach(&scene.pods[0].machine, &service, "near")?;
        let to = cluster.nodes[0].addresses.at(NODE_PORT);
        expect_reach(&cluster.client, to, "near", &Seen::Client)
    });
}

/// LB-01.
#[test]
fn a_load_balancers_address_is_served_on_every_node() {
    with_agents(2, |cluster, agents| {
        let scene = Scene::build(cluster)?;
        for backend in [&scene.near, &scene.far] {
            let service = Service::new("echo", 1).with(&backend.pod);
            agents.serve(&service.with_load_balancer(scene.addresses, "VIP"))?;
            scene.expect_served(scene.addresses.at(PORT), backend)?;
        }
        agents.serve(&Service::new("echo", 1).with_load_balancer(scene.addresses, "VIP"))?;
        for client in [&cluster.client, &scene.pods[0].machine] {
            expect_refused(client, scene.addresses.at(PORT))?;
        }
        Ok(())
    });
}

/// LB-02, LB-03, LB-05, LB-06, SP-03.
#[test]
fn pods_meet_the_load_balancer_itself_unless_its_address_is_captured() {
    Setup::new(2).alone().run(|cluster, agents| {
        let scene = Scene::build(cluster)?;
        let _owner = scene.real_owner()?;
        let service = Service::new("echo", 1).with(&scene.near.pod);
        agents.serve(&service)?;
        scene.expect_pods_reach("client")?;
        agents.serve(&service.clone().with_load_balancer(scene.addresses, "VIP"))?;
        scene.expect_pods_reach("near")?;
        // A port that the Service does not have is the load balancer's own.
        let _other = Server::start(&cluster.client, 81)?;
        let other = scene.addresses.at(81);
        expect_reach(&scene.pods[0].machine, other, "client", &Seen::Client)?;
        agents.serve(&service.clone().with_load_balancer(scene.addresses, "Proxy"))?;
        scene.expect_pods_reach("client")?;
        agents.serve(&service.clone().with_load_balancer(scene.addresses, "VIP"))?;
        scene.expect_pods_reach("near")?;
        agents.serve(&service)?;
        scene.expect_pods_reach("client")
    });
}

/// E2E-122, LBSR-01 to LBSR-06, NP-04.
#[test]
fn source_ranges_admit_exactly_those_within() {
    Setup::new(1).alone().run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let agent = &agents.agents[0];
        let (one, two) = (node.add_pod("one")?, node.add_pod("two")?);
        let near = Backend::on(node, "near")?;
        let vip = Addresses::elsewhere(250);
        cluster.client.route(vip, node)?;
        let other = Addresses::on_fabric(101);
        cluster.client.add_addresses(&[other])?;
        let other = cluster.client.known_as(other);
        let everybody = [&one.machine, &two.machine, &cluster.client, &other];
        let service =
            Service::new("echo", 1).with(&near.pod).with_load_balancer(vip, "VIP").with_node_port(NODE_PORT);
        let only = |machine: &Machine| {
            [format!("{}/32", machine.addresses.v4), format!("{}/128", machine.addresses.v6)]
        };
        let halves = ["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"].map(str::to_owned);
        let nobody = ["255.0.0.0/32".to_owned(), "ffff::/128".to_owned()];
        let steps: [(&[String], &[&Machine]); 7] = [
            (&[], &everybody),
            (&only(&one.machine), &everybody[..1]),
            (&only(&other), &everybody[3..]),
            (&["192.168.100.0/24".to_owned(), "fd00:100::/64".to_owned()], &everybody[2..]),
            (&halves, &everybody),
            (&nobody, &[]),
            (&[], &everybody),
        ];
        for (ranges, admitted) in steps {
            let ranges: Vec<_> = ranges.iter().map(String::as_str).collect();
            agents.serve(&service.clone().with_source_ranges(&ranges))?;
            for client in everybody {
                if admitted.iter().any(|admitted| admitted.addresses == client.addresses) {
                    expect_reach(client, vip.at(PORT), "near", &Seen::Client)?;
                } else {
                    expect_dropped(client, vip.at(PORT), agent, DropReason::NotInSourceRanges)?;
                }
                for open in [node.addresses.at(NODE_PORT), service.vip()] {
                    expect_reach(client, open, "near", &Seen::Client)?;
                }
            }
        }
        Ok(())
    });
}

/// LBSR-03, LBSR-05.
#[test]
fn source_ranges_of_one_family_leave_the_other_open_and_running_connections_alone() {
    with_agents(1, |cluster, agents| {
        let node = &cluster.nodes[0];
        let near = Backend::on(node, "near")?;
        let vip = Addresses::elsewhere(250);
        cluster.client.route(vip, node)?;
        let service = Service::new("echo", 1).with(&near.pod).with_load_balancer(vip, "VIP");
        agents.serve(&service)?;
        let to = vip.at(PORT);
        let from = &cluster.client.namespace;
        let mut running = Connection::open(from, to.of(Family::V4), Source::AnyPort)?;
        running.start_echo()?;
        agents.serve(&service.clone().with_source_ranges(&["10.0.0.0/8"]))?;
        for protocol in Protocol::ALL {
            ensure!(ask(&cluster.client, to.of(Family::V6), protocol)?.backend == "near");
        }
        running.echo(1)?;
        // No room for doubt that new ones are not admitted.
        agents.serve(&service.with_source_ranges(&["10.0.0.0/8", "fd00:10::/32"]))?;
        expect_dropped(&cluster.client, to, &agents.agents[0], DropReason::NotInSourceRanges)?;
        running.echo(2)
    });
}

/// E2E-124, LB-04.
#[test]
fn a_load_balancer_needs_no_node_port_and_may_get_one_later() {
    with_agents(1, |cluster, agents| {
        let node = &cluster.nodes[0];
        let client = node.add_pod("client")?;
        let near = Backend::on(node, "near")?;
        let vip = Addresses::elsewhere(250);
        cluster.client.route(vip, node)?;
        let balanced = Service::new("echo", 1).with(&near.pod).with_load_balancer(vip, "VIP");
        let without = balanced.clone().edit(|spec| spec.allocate_load_balancer_node_ports = Some(false));
        let with = balanced.with_node_port(NODE_PORT);
        for (service, has_port) in [(&without, false), (&with, true), (&without, false)] {
            agents.serve(service)?;
            for client in [&cluster.client, &client.machine] {
                expect_reach(client, vip.at(PORT), "near", &Seen::Client)?;
                let port = node.addresses.at(NODE_PORT);
                if has_port {
                    expect_reach(client, port, "near", &Seen::Client)?;
                } else {
                    expect_refused(client, port)?;
                }
            }
        }
        Ok(())
    });
}

/// E2E-012, E2E-120, E2E-121. What a service no longer has stops, and the rest goes on.
#[test]
fn a_service_lives_through_all_types_and_ports() {
    with_agents(2, |cluster, agents| {
        let life = Life::begin(cluster, agents)?;
        let ports = |port: u16, node_port: Option<u16>| {
            Protocol::ALL.map(|protocol| Port {
                node_port,
                ..Port::new(protocol.as_str(), protocol, port, TARGET_PORT)
            })
        };
        let base = Service::new("echo", 1).with(&life.far.pod);
        let cluster_ip = base.clone().with_ports(ports(80, None));
        let balanced = base.with_load_balancer(life.vip, "VIP");
        let node_port = cluster_ip.clone().with_node_port(30_001);
        life.expect(&cluster_ip, &[(life.cluster_ip(80), true), (life.node_port(30_001), false)])?;
        life.expect(&node_port, &[(life.cluster_ip(80), true), (life.node_port(30_001), true)])?;
        let first = balanced.clone().with_ports(ports(80, Some(30_001)));
        life.expect(&first, &[(life.balancer(80), true), (life.node_port(30_001), true)])?;
        let renumbered = balanced.clone().with_ports(ports(80, Some(30_002)));
        life.expect(
            &renumbered,
            &[(life.balancer(80), true), (life.node_port(30_001), false), (life.node_port(30_002), true)],
        )?;
        let moved = balanced.with_ports(ports(81, Some(30_002)));
        life.expect(
            &moved,
            &[(life.cluster_ip(80), false), (life.cluster_ip(81), true), (life.node_port(30_002), true)],
        )?;
        life.expect(&moved, &[(life.balancer(81), true)])?;
        let nobody = moved.clone().without("far");
        let all = [life.cluster_ip(81), life.balancer(81), life.node_port(30_002)];
        life.expect(&nobody, &all.map(|to| (to, false)))?;
        life.expect(&moved, &all.map(|to| (to, true)))?;
        life.expect(&cluster_ip, &[(life.cluster_ip(80), true), (life.node_port(30_002), false)])
    });
}

struct Life<'a> {
    cluster: &'a Cluster,
    agents: &'a Deployment,
    far: Backend,
    vip: Addresses,
}

impl<'a> Life<'a> {
    fn begin(cluster: &'a Cluster, agents: &'a Deployment) -> Result<Self> {
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let vip = Addresses::elsewhere(250);
        cluster.client.route(vip, &cluster.nodes[0])?;
        Ok(Self { cluster, agents, far, vip })
    }

    fn cluster_ip(&self, port: u16) -> Ends {
        Addresses::vip(1).at(port)
    }

    fn balancer(&self, port: u16) -> Ends {
        self.vip.at(port)
    }

    fn node_port(&self, port: u16) -> Ends {
        self.cluster.nodes[0].addresses.at(port)
    }

    /// Where `service` answers, and where it refuses.
    fn expect(&self, service: &Service, ends: &[(Ends, bool)]) -> Result<()> {
        self.agents.serve(service)?;
        let node = self.cluster.nodes[0].addresses;
        for &(to, answers) in ends {
            if answers {
                expect_reach(&self.cluster.client, to, "far", &Seen::As(node))?;
            } else {
                expect_refused(&self.cluster.client, to)?;
            }
        }
        Ok(())
    }
}
