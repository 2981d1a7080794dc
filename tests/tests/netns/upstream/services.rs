//! Services: section 38.2.

use anyhow::{Result, ensure};
use sluice_tests::{
    deployment::Deployment,
    harness::with_agents,
    service::{Condition, Member, PORT, Port, Service, TARGET_PORT},
    topology::{Cluster, Family, Pod},
    traffic::{Chatter, Connection, Protocol, Source},
};

use crate::{
    Backend,
    expect::{
        Seen, ask, expect_all_reach, expect_reach, expect_refused, expect_tcp_refused, expect_udp_refused,
    },
};

const NODE_PORT: u16 = 30_080;

/// A cluster with a pod that asks and backends on both nodes.
fn with_backends(test: impl FnOnce(&Cluster, &mut Deployment, &Pod, [&Backend; 2]) -> Result<()>) {
    with_agents(2, |cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        test(cluster, agents, &pod, [&near, &far])
    });
}

#[test]
fn e2e_001_endpoints_follow_pods() {
    with_backends(|_, agents, pod, [near, far]| {
        let service = Service::new("echo", 1);
        agents.serve(&service)?;
        expect_refused(&pod.machine, service.vip())?;
        let one = service.clone().with(&near.pod);
        agents.serve(&one)?;
        expect_all_reach(&pod.machine, &one, "near")?;
        let both = one.with(&far.pod);
        agents.serve(&both)?;
        expect_reach_all(pod, &both, &["near", "far"])?;
        let other = both.without("near");
        agents.serve(&other)?;
        expect_all_reach(&pod.machine, &other, "far")?;
        agents.serve(&service)?;
        expect_refused(&pod.machine, service.vip())
    });
}

/// By every protocol and family, each of them and nobody else (VER-07).
fn expect_reach_all(pod: &Pod, service: &Service, names: &[&str]) -> Result<()> {
    super::networking::expect_all_endpoints(&pod.machine, service.vip(), names)
}

#[test]
fn e2e_002_each_port_reaches_its_own_pods() {
    with_backends(|_, agents, pod, [near, far]| {
        let port = |name, number| Port::new(name, Protocol::Tcp, number, TARGET_PORT);
        let service = Service::new("echo", 1).with_ports([port("one", 80), port("two", 81)]);
        let one = Member::of(&near.pod).with_targets(&[("one", TARGET_PORT)]);
        let two = Member::of(&far.pod).with_targets(&[("two", TARGET_PORT)]);
        let steps: [(&[&Member], [Option<&str>; 2]); 4] = [
            (&[&one], [Some("near"), None]),
            (&[&one, &two], [Some("near"), Some("far")]),
            (&[&two], [None, Some("far")]),
            (&[], [None, None]),
        ];
        for (members, expected) in steps {
            let service = members.iter().fold(service.clone(), |service, &m| service.with_member(m.clone()));
            agents.serve(&service)?;
            for (port, expected) in [80, 81].into_iter().zip(expected) {
                let to = service.vip().addresses.at(port);
                super::expect_tcp(&pod.machine, to, expected)?;
            }
        }
        Ok(())
    });
}

#[test]
fn e2e_003_ports_are_added_and_removed() {
    with_backends(|_, agents, pod, [near, _]| {
        let port = |name, number| Port::new(name, Protocol::Tcp, number, TARGET_PORT);
        let (one, two) = (port("one", 80), port("two", 81));
        let steps = [vec![one.clone()], vec![one.clone(), two.clone()], vec![two], vec![one]];
        for ports in steps {
            let served: Vec<_> = ports.iter().map(|port| port.port).collect();
            let service = Service::new("echo", 1).with_ports(ports).with(&near.pod);
            agents.serve(&service)?;
            for port in [80, 81] {
                let to = service.vip().addresses.at(port);
                super::expect_tcp(&pod.machine, to, served.contains(&port).then_some("near"))?;
            }
        }
        Ok(())
    });
}

#[test]
fn e2e_006_services_come_up_and_go_one_by_one() {
    with_backends(|_, agents, pod, [near, far]| {
        let one = Service::new("one", 1).with(&near.pod);
        let two = Service::new("two", 2).with(&far.pod);
        agents.serve(&one)?;
        agents.serve(&two)?;
        expect_all_reach(&pod.machine, &one, "near")?;
        expect_all_reach(&pod.machine, &two, "far")?;
        agents.withdraw(&one)?;
        super::expect_tcp(&pod.machine, one.vip(), None)?;
        expect_all_reach(&pod.machine, &two, "far")?;
        let three = Service::new("three", 3).with(&near.pod);
        agents.serve(&three)?;
        expect_all_reach(&pod.machine, &three, "near")?;
        expect_all_reach(&pod.machine, &two, "far")
    });
}

#[test]
fn e2e_007_a_service_made_again_works_again() {
    with_backends(|_, agents, pod, [near, far]| {
        for backend in [near, far, near] {
            let service = Service::new("echo", 1).with(&backend.pod);
            agents.serve(&service)?;
            expect_all_reach(&pod.machine, &service, backend.pod.name())?;
            agents.withdraw(&service)?;
            super::expect_tcp(&pod.machine, service.vip(), None)?;
        }
        Ok(())
    });
}

/// See also what `lifecycle` asks of restarts.
#[test]
fn e2e_008_services_outlive_the_agent_and_new_ones_follow_its_return() {
    with_backends(|cluster, agents, pod, [near, far]| {
        let node = cluster.nodes[0].addresses;
        let before = Service::new("before", 1).with(&far.pod).with_node_port(NODE_PORT);
        agents.serve(&before)?;
        let serves = |service: &Service, name: &str, seen: &Seen, port: u16| {
            expect_all_reach(&pod.machine, service, name)?;
            expect_reach(&cluster.client, node.at(port), name, seen)
        };
        serves(&before, "far", &Seen::As(node), NODE_PORT)?;
        // From outside to the other node: translated twice here.
        let from = &cluster.client.namespace;
        let open = |family| Connection::open(from, node.at(NODE_PORT).of(family), Source::AnyPort);
        let talks = Family::ALL.map(|family| open(family).and_then(Chatter::start));
        let talks: Vec<_> = talks.into_iter().collect::<Result<_>>()?;
        agents.agents.iter_mut().try_for_each(|agent| agent.kill())?;
        serves(&before, "far", &Seen::As(node), NODE_PORT)?;
        talks.iter().try_for_each(|talk| talk.expect_more(20))?;
        agents.agents.iter_mut().try_for_each(|agent| agent.resume())?;
        agents.agents.iter_mut().try_for_each(|agent| agent.wait_until_synced())?;
        serves(&before, "far", &Seen::As(node), NODE_PORT)?;
        let after = Service::new("after", 2).with(&near.pod).with_node_port(30_081);
        agents.serve(&after)?;
        serves(&after, "near", &Seen::Client, 30_081)?;
        talks.iter().try_for_each(|talk| talk.expect_more(20))?;
        talks.into_iter().try_for_each(|talk| talk.stop().map(drop))?;
        serves(&before, "far", &Seen::As(node), NODE_PORT)
    });
}

#[test]
fn e2e_013_to_016_a_service_is_an_external_name_for_a_while() {
    with_backends(|cluster, agents, pod, [near, _]| {
        let node = cluster.nodes[0].addresses.at(NODE_PORT);
        let cluster_ip = Service::new("echo", 1).with(&near.pod);
        let node_port = cluster_ip.clone().with_node_port(NODE_PORT);
        let alias = node_port.clone().as_external_name();
        for _ in 0..2 {
            agents.serve(&alias)?;
            super::expect_tcp(&pod.machine, cluster_ip.vip(), None)?;
            expect_refused(&pod.machine, node)?;
            agents.serve(&cluster_ip)?;
            expect_all_reach(&pod.machine, &cluster_ip, "near")?;
            expect_refused(&pod.machine, node)?;
            agents.serve(&alias)?;
            super::expect_tcp(&pod.machine, cluster_ip.vip(), None)?;
            agents.serve(&node_port)?;
            expect_all_reach(&pod.machine, &node_port, "near")?;
            expect_reach(&pod.machine, node, "near", &Seen::Client)?;
        }
        Ok(())
    });
}

#[test]
fn e2e_028_a_service_for_another_proxy_is_left_to_it() {
    with_backends(|_, agents, pod, [near, far]| {
        let ours = Service::new("echo", 1).with(&near.pod);
        let theirs = ours.clone().labelled("service.kubernetes.io/service-proxy-name", "");
        let other = Service::new("other", 2).with(&far.pod);
        agents.serve(&other)?;
        for _ in 0..2 {
            agents.serve(&theirs)?;
            super::expect_tcp(&pod.machine, ours.vip(), None)?;
            agents.serve(&ours)?;
            expect_all_reach(&pod.machine, &ours, "near")?;
        }
        expect_all_reach(&pod.machine, &other, "far")
    });
}

/// And NOEP-03: everybody is told, wherever they ask.
#[test]
fn e2e_030_a_service_without_endpoints_refuses() {
    with_backends(|cluster, agents, pod, _| {
        let service = Service::new("echo", 1).with_node_port(NODE_PORT);
        agents.serve(&service)?;
        for client in [&pod.machine, &cluster.client] {
            expect_refused(client, service.vip())?;
            expect_refused(client, cluster.nodes[1].addresses.at(NODE_PORT))?;
        }
        Ok(())
    });
}

/// An evicted pod's endpoint is neither ready nor serving, even if the Service publishes pods that are not ready.
#[test]
fn e2e_031_evicted_pods_are_no_endpoints() {
    with_backends(|_, agents, pod, [near, far]| {
        let gone = |backend: &Backend| Member::of(&backend.pod).being(Condition::Unready);
        let service = Service::new("echo", 1).with_member(gone(near)).with_member(gone(far));
        agents.serve(&service)?;
        expect_refused(&pod.machine, service.vip())?;
        ensure!(near.server.connections() + far.server.connections() == 0);
        Ok(())
    });
}

#[test]
fn e2e_041_and_042_one_number_serves_both_protocols_until_one_is_removed() {
    with_backends(|_, agents, pod, [near, _]| {
        let port = |protocol: Protocol| Port::new(protocol.as_str(), protocol, PORT, TARGET_PORT);
        let service = Service::new("echo", 1).with(&near.pod);
        let both = service.clone().with_ports(Protocol::ALL.map(port));
        for balanced in [false, true] {
            let both = match balanced {
                true => both.clone().edit(|spec| spec.type_ = Some("LoadBalancer".to_owned())),
                false => both.clone(),
            };
            agents.serve(&both)?;
            expect_all_reach(&pod.machine, &both, "near")?;
        }
        for left in Protocol::ALL {
            agents.serve(&service.clone().with_ports([port(left)]))?;
            for family in Family::ALL {
                let to = service.frontend(family);
                ensure!(ask(&pod.machine, to, left)?.backend == "near");
                match left {
                    Protocol::Tcp => expect_udp_refused(&pod.machine.namespace, to)?,
                    _ => expect_tcp_refused(&pod.machine.namespace, to)?,
                }
            }
        }
        Ok(())
    });
}
