//! Granular networking: sections 38.4 to 38.8.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    counters,
    harness::{Setup, with_agents},
    service::{Condition, Member, PORT, Port, Service, TARGET_PORT},
    topology::{Addresses, Ends, Family, Machine},
    traffic::{Connection, Protocol, RawSender, Segment, Server, Source, UdpClient},
    wait::{wait_at_most, wait_until},
};

use crate::{
    Backend,
    expect::{Seen, ask, expect_all_reach, expect_reach, expect_refused},
};

const NODE_PORT: u16 = 30_080;

/// Every endpoint is reached, and nobody else (VER-07).
pub(super) fn expect_all_endpoints(client: &Machine, to: Ends, names: &[&str]) -> Result<()> {
    let expected: BTreeSet<_> = names.iter().map(|&name| name.to_owned()).collect();
    for family in Family::ALL {
        for protocol in Protocol::ALL {
            let mut reached = BTreeSet::new();
            let what = format!("{protocol} from {} to {} has reached {names:?}", client.name, to.of(family));
            wait_until(&what, || {
                // Ten at a time, so that a stranger has a chance to answer too.
                for _ in 0..10 {
                    reached.insert(ask(client, to.of(family), protocol)?.backend);
                }
                let strangers: Vec<_> = reached.difference(&expected).collect();
                ensure!(strangers.is_empty(), "{what}, but {strangers:?} too");
                Ok((reached == expected).then_some(()))
            })?;
        }
    }
    Ok(())
}

/// And E2E-085: an endpoint that is removed answers no more. E2E-095 is in every test, as both families are.
#[test]
fn e2e_081_and_085_pods_reach_exactly_the_endpoints_there_are() {
    with_agents(2, |cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let backends = [
            Backend::on(&cluster.nodes[0], "one")?,
            Backend::on(&cluster.nodes[0], "two")?,
            Backend::on(&cluster.nodes[1], "three")?,
        ];
        let service = backends
            .iter()
            .fold(Service::new("echo", 1), |service, one| service.with(&one.pod))
            .with_node_port(NODE_PORT);
        let ends = [service.vip()].into_iter().chain(cluster.nodes.iter().map(|n| n.addresses.at(NODE_PORT)));
        let ends: Vec<_> = ends.collect();
        agents.serve(&service)?;
        for to in &ends {
            expect_all_endpoints(&pod.machine, *to, &["one", "two", "three"])?;
        }
        agents.serve(&service.without("one"))?;
        for to in &ends {
            expect_all_endpoints(&pod.machine, *to, &["two", "three"])?;
        }
        Ok(())
    });
}

#[test]
fn e2e_084_services_with_one_pod_do_not_depend_on_each_other() {
    with_agents(2, |cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let one = Service::new("one", 1).with(&far.pod).with_node_port(NODE_PORT);
        let two = Service::new("two", 2).with(&far.pod).with_node_port(30_081);
        agents.serve(&one)?;
        agents.serve(&two)?;
        expect_all_reach(&pod.machine, &one, "far")?;
        expect_all_reach(&pod.machine, &two, "far")?;
        agents.withdraw(&one)?;
        expect_all_reach(&pod.machine, &two, "far")?;
        let node = cluster.nodes[0].addresses;
        expect_refused(&pod.machine, node.at(NODE_PORT))?;
        expect_reach(&pod.machine, node.at(30_081), "far", &Seen::Client)
    });
}

/// As far as pods and clients outside go; PROTO-06. The endpoint is the node itself.
#[test]
fn e2e_090_endpoints_in_the_nodes_own_network_are_reached() {
    with_agents(2, |cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let to = cluster.nodes[0].addresses.at(NODE_PORT);
        for node in &cluster.nodes {
            let _server = Server::start(&node.machine(), TARGET_PORT)?;
            let member = Member::at(&node.name, &node.name, node.addresses);
            let service = Service::new("echo", 1).with_member(member).with_node_port(NODE_PORT);
            agents.serve(&service)?;
            expect_all_reach(&pod.machine, &service, &node.name)?;
            expect_reach(&pod.machine, to, &node.name, &Seen::Client)?;
            let local = node.number == 1;
            let seen = if local { Seen::Client } else { Seen::As(cluster.nodes[0].addresses) };
            expect_reach(&cluster.client, to, &node.name, &seen)?;
            for family in Family::ALL {
                let socket = UdpClient::bind(&pod.machine.namespace, family)?;
                let answer = socket.exchange(service.frontend(family), &[b'x'; 2_000])?;
                ensure!(answer.backend == node.name && answer.from == service.frontend(family), "{answer:?}");
            }
        }
        Ok(())
    });
}

/// SYNC-06: somebody takes the programs off the devices, and the agent puts them back.
#[test]
fn e2e_091_programs_that_somebody_removed_come_back() {
    Setup::new(2).alone().run(|cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let service = Service::new("echo", 1).with(&far.pod).with_node_port(NODE_PORT);
        agents.serve(&service)?;
        expect_all_reach(&pod.machine, &service, "far")?;
        let agent = &agents.agents[0];
        let before = agent.attached()?;
        agent.detach_all()?;
        wait_at_most(Duration::from_secs(60), "the programs are back", || {
            Ok((agent.attached()? == before).then_some(()))
        })?;
        expect_all_reach(&pod.machine, &service, "far")?;
        let node = cluster.nodes[0].addresses;
        expect_reach(&cluster.client, node.at(NODE_PORT), "far", &Seen::As(node))
    });
}

/// A range of service addresses is nothing that a proxy needs to know.
#[test]
fn e2e_108_a_service_in_another_range_works() {
    with_agents(2, |cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let vips = Addresses::elsewhere(20);
        let service = Service::new("echo", 1).with(&far.pod).with_node_port(NODE_PORT).edit(|spec| {
            spec.cluster_ip = Some(vips.v4.to_string());
            spec.cluster_ips = Some(vec![vips.v4.to_string(), vips.v6.to_string()]);
        });
        agents.serve(&service)?;
        expect_reach(&pod.machine, vips.at(PORT), "far", &Seen::Client)?;
        expect_reach(&pod.machine, cluster.nodes[0].addresses.at(NODE_PORT), "far", &Seen::Client)
    });
}

/// E2E-145, the blue-green half, too. Pods are replaced one by one, as a Deployment does it: each new one is ready before
/// the old one terminates, and that one serves for a while. Upstream is content with 95 % of requests.
#[test]
fn e2e_126_a_rolling_update_loses_no_request() {
    with_agents(2, |cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let vip = Addresses::elsewhere(250);
        cluster.client.route(vip, &cluster.nodes[0])?;
        let on = |name: &str, node: usize| Backend::on(&cluster.nodes[node], name);
        let old = [on("old-1", 0)?, on("old-2", 1)?];
        let new = [on("new-1", 0)?, on("new-2", 1)?];
        let base = Service::new("echo", 1).with_load_balancer(vip, "VIP").with_node_port(NODE_PORT);
        for policy in [Service::clone, |service: &Service| service.clone().local_for_outside()] {
            let mut service = old.iter().fold(policy(&base), |service, one| service.with(&one.pod));
            agents.serve(&service)?;
            let stop = AtomicBool::new(false);
            let clients = [(&pod.machine, service.vip()), (&cluster.client, vip.at(PORT))];
            let answers = thread::scope(|scope| {
                let stop = &stop;
                let asking = clients.map(|(client, to)| {
                    scope.spawn(move || -> Result<usize> {
                        let mut count = 0;
                        while !stop.load(Ordering::Relaxed) {
                            for family in Family::ALL {
                                for protocol in Protocol::ALL {
                                    ask(client, to.of(family), protocol)
                                        .with_context(|| format!("{} after {count} answers", client.name))?;
                                    count += 1;
                                }
                            }
                        }
                        Ok(count)
                    })
                });
                let mut update = || {
                    for (new, old) in new.iter().zip(&old) {
                        service = service.clone().with(&new.pod);
                        agents.serve(&service)?;
                        service = service.clone().with_condition(old.pod.name(), Condition::Terminating);
                        agents.serve(&service)?;
                        service = service.clone().without(old.pod.name());
                        agents.serve(&service)?;
                    }
                    Ok(())
                };
                let updated = update();
                stop.store(true, Ordering::Relaxed);
                let counts = asking
                    .into_iter()
                    .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                    .collect::<Result<Vec<_>>>();
                updated.and(counts)
            })?;
            ensure!(answers.iter().all(|&count| count > 20), "too few requests: {answers:?}");
            expect_all_endpoints(&pod.machine, service.vip(), &["new-1", "new-2"])?;
        }
        Ok(())
    });
}

#[test]
fn e2e_140_names_are_asked_for_by_udp_and_tcp() {
    with_agents(2, |cluster, agents| {
        let pods = [cluster.nodes[0].add_pod("pod-1")?, cluster.nodes[1].add_pod("pod-2")?];
        let names = cluster.nodes[1].add_pod("dns")?;
        let _server = Server::start(&names.machine, 53)?;
        let port = |name: &str, protocol| Port::new(name, protocol, 53, 53);
        let service = Service::new("kube-dns", 10)
            .with_ports([port("dns", Protocol::Udp), port("dns-tcp", Protocol::Tcp)])
            .with(&names);
        agents.serve(&service)?;
        pods.iter().try_for_each(|pod| expect_all_reach(&pod.machine, &service, "dns"))
    });
}

/// A Service without a selector, whose endpoints are processes of nodes.
#[test]
fn e2e_141_pods_reach_the_api_server_by_its_service() {
    with_agents(2, |cluster, agents| {
        let pods = [cluster.nodes[0].add_pod("pod-1")?, cluster.nodes[1].add_pod("pod-2")?];
        let node = &cluster.nodes[0];
        let _server = Server::start(&node.machine(), 6_443)?;
        let service = Service::new("kubernetes", 1)
            .with_ports([Port::new("https", Protocol::Tcp, 443, 6_443)])
            .with_member(Member::at("api", &node.name, node.addresses));
        agents.serve(&service)?;
        pods.iter().try_for_each(|pod| super::expect_tcp(&pod.machine, service.vip(), Some("node-1")))
    });
}

/// CT-21: a server, or somebody in its place, sends segments that no window has room for. The client sees them come from
/// the service, and goes on.
#[test]
fn e2e_076_segments_out_of_the_window_reset_nothing() {
    with_agents(2, |cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let from = &pod.machine.namespace;
        for backend in [&near, &far] {
            let service = Service::new("echo", 1).with(&backend.pod);
            agents.serve(&service)?;
            let resets = counters::resets_sent(from)?;
            for family in Family::ALL {
                let mut connection = Connection::open(from, service.frontend(family), Source::AnyPort)?;
                connection.start_echo()?;
                connection.echo(1)?;
                let sender = RawSender::open(&backend.pod.machine.namespace, family)?;
                let destination = connection.local()?;
                let before = counters::received(from, "eth0")?.frames;
                for n in 0..8 {
                    let segment = Segment {
                        source: backend.pod.machine.addresses.at(TARGET_PORT).of(family),
                        destination,
                        sequence: n << 29,
                        acknowledgement: n << 29,
                        payload: b"nobody asked for this",
                    };
                    sender.send(destination.ip(), &segment.packet())?;
                }
                wait_until("the segments arrive", || {
                    Ok((counters::received(from, "eth0")?.frames >= before + 8).then_some(()))
                })?;
                (2..20).try_for_each(|number| connection.echo(number))?;
            }
            let resets = counters::resets_sent(from)? - resets;
            ensure!(resets == 0, "the client sent {resets} resets");
        }
        Ok(())
    });
}
