//! Traffic policies: who is kept on a node, and what happens to those for whom there is nobody.

use anyhow::ensure;
use proxy_common::drop::DropReason;
use sluice_tests::{
    harness::{Setup, with_agents},
    service::{Condition, Member, PORT, Service, TARGET_PORT},
    topology::{Addresses, Ends, Pod, PodNetwork, Shape},
    traffic::Server,
};

use crate::{
    Backend,
    expect::{Seen, expect_dropped, expect_reach, expect_refused},
};

const NODE_PORT: u16 = 30_080;

/// What makes pods known as such: see DLOC-01.
const CLUSTER: [&str; 2] = ["--cluster-cidr", "10.244.0.0/16,fd00:10:244::/48"];

/// E2E-032, ITP-01, DEC-03, DEC-04.
#[test]
pub(crate) fn internal_local_serves_pods_of_the_endpoints_node_only() {
    with_agents(2, |cluster, agents| {
        let pods = [cluster.nodes[0].add_pod("pod-1")?, cluster.nodes[1].add_pod("pod-2")?];
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let service = Service::new("echo", 1).local_for_inside();
        for (backend, here, there) in [(&near, 0, 1), (&far, 1, 0)] {
            let service = service.clone().with(&backend.pod);
            agents.serve(&service)?;
            expect_reach(&pods[here].machine, service.vip(), backend.pod.name(), &Seen::Client)?;
            let agent = &agents.agents[there];
            expect_dropped(&pods[there].machine, service.vip(), agent, DropReason::NoLocalBackend)?;
        }
        // One each: everybody meets their own.
        let service = service.with(&near.pod).with(&far.pod);
        agents.serve(&service)?;
        for (pod, name) in pods.iter().zip(["near", "far"]) {
            for _ in 0..5 {
                expect_reach(&pod.machine, service.vip(), name, &Seen::Client)?;
            }
        }
        // DEC-05: nobody anywhere is a refusal.
        let service = Service::new("echo", 1).local_for_inside();
        agents.serve(&service)?;
        pods.iter().try_for_each(|pod| expect_refused(&pod.machine, service.vip()))
    });
}

/// E2E-034, as far as it is about pods; ITP-02, PROTO-06.
#[test]
fn internal_local_knows_endpoints_in_the_nodes_own_network() {
    with_agents(2, |cluster, agents| {
        let pods = [cluster.nodes[0].add_pod("pod-1")?, cluster.nodes[1].add_pod("pod-2")?];
        let node = &cluster.nodes[0];
        let _server = Server::start(&node.machine(), TARGET_PORT)?;
        let member = Member::at("node-1", &node.name, node.addresses);
        let service = Service::new("echo", 1).local_for_inside().with_member(member);
        agents.serve(&service)?;
        expect_reach(&pods[0].machine, service.vip(), "node-1", &Seen::Client)?;
        expect_dropped(&pods[1].machine, service.vip(), &agents.agents[1], DropReason::NoLocalBackend)
    });
}

/// E2E-044 (its health-check port: `health`), E2E-035, E2E-130, ETP-02, DEC-20, DEC-22, DEC-23.
#[test]
fn external_local_keeps_clients_outside_on_the_node_and_lets_pods_go_anywhere() {
    Setup::new(3).telling(&CLUSTER).run(|cluster, agents| {
        let [first, second, third] = [0, 1, 2].map(|n| &cluster.nodes[n]);
        let pod = second.add_pod("pod")?;
        let near = Backend::on(first, "near")?;
        let vip = Addresses::elsewhere(250);
        let cluster_wide = Service::new("echo", 1)
            .with(&near.pod)
            .with_load_balancer(vip, "VIP")
            .with_external_ips(Addresses::elsewhere(251))
            .with_node_port(NODE_PORT);
        let local = cluster_wide.clone().local_for_outside();
        for _ in 0..2 {
            agents.serve(&local)?;
            // A process of another node is outside too.
            for client in [&cluster.client, &second.machine(), &third.machine()] {
                expect_reach(client, first.addresses.at(NODE_PORT), "near", &Seen::Client)?;
            }
            for (node, agent) in [(second, &agents.agents[1]), (third, &agents.agents[2])] {
                let to = node.addresses.at(NODE_PORT);
                expect_dropped(&cluster.client, to, agent, DropReason::NoLocalBackend)?;
            }
            for to in external_ends(second.addresses) {
                expect_reach(&pod.machine, to, "near", &Seen::Client)?;
            }
            cluster.client.route(vip, first)?;
            expect_reach(&cluster.client, vip.at(PORT), "near", &Seen::Client)?;

            agents.serve(&cluster_wide)?;
            expect_reach(&cluster.client, first.addresses.at(NODE_PORT), "near", &Seen::Client)?;
            for node in [second, third] {
                let to = node.addresses.at(NODE_PORT);
                expect_reach(&cluster.client, to, "near", &Seen::As(node.addresses))?;
            }
        }
        Ok(())
    });
}

/// All that `externalTrafficPolicy` is about, as a client on a node, or on its way there, knows it.
fn external_ends(node: Addresses) -> [Ends; 3] {
    [node.at(NODE_PORT), Addresses::elsewhere(250).at(PORT), Addresses::elsewhere(251).at(PORT)]
}

/// E2E-129.
#[test]
fn external_local_meets_the_endpoint_of_the_node_that_was_asked() {
    Setup::new(2).telling(&CLUSTER).run(|cluster, agents| {
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let vip = Addresses::elsewhere(250);
        let service = Service::new("echo", 1).with(&near.pod).with(&far.pod).local_for_outside();
        agents.serve(&service.with_load_balancer(vip, "VIP"))?;
        for (node, name) in cluster.nodes.iter().zip(["near", "far"]) {
            cluster.client.route(vip, node)?;
            for _ in 0..5 {
                expect_reach(&cluster.client, vip.at(PORT), name, &Seen::Client)?;
            }
        }
        Ok(())
    });
}

/// DEC-25: without knowing what a pod is, everybody is outside.
#[test]
pub(crate) fn external_local_treats_pods_like_clients_outside_if_it_cannot_tell_them() {
    with_agents(2, |cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let service = Service::new("echo", 1).with(&far.pod).with_node_port(NODE_PORT).local_for_outside();
        agents.serve(&service)?;
        for client in [&pod.machine, &cluster.client] {
            let to = cluster.nodes[0].addresses.at(NODE_PORT);
            expect_dropped(client, to, &agents.agents[0], DropReason::NoLocalBackend)?;
        }
        // DEC-24: nobody anywhere is a refusal.
        agents.serve(&service.without("far"))?;
        expect_refused(&pod.machine, cluster.nodes[0].addresses.at(NODE_PORT))
    });
}

/// DLOC-03, DLOC-04. A pod behind a bridge comes from the bridge.
#[test]
fn pods_are_known_by_the_devices_that_they_come_from() {
    let bridge = ["--detect-local-mode", "BridgeInterface", "--pod-bridge-interface", "cni0"];
    let prefix =
        |prefix| ["--detect-local-mode", "InterfaceNamePrefix", "--pod-interface-name-prefix", prefix];
    let ways = [
        (PodNetwork::Bridge, bridge),
        (PodNetwork::Bridge, prefix("cni")),
        (PodNetwork::Routed, prefix("veth")),
    ];
    for (pods, way) in ways {
        let shape = Shape { pods, ..Shape::default() };
        Setup::new(2).shaped(shape).telling(&way).run(|cluster, agents| {
            let pod = cluster.nodes[0].add_pod("pod")?;
            let far = Backend::on(&cluster.nodes[1], "far")?;
            let service =
                Service::new("echo", 1).with(&far.pod).with_node_port(NODE_PORT).local_for_outside();
            agents.serve(&service)?;
            let to = cluster.nodes[0].addresses.at(NODE_PORT);
            expect_reach(&pod.machine, to, "far", &Seen::Client)?;
            expect_dropped(&cluster.client, to, &agents.agents[0], DropReason::NoLocalBackend)
        });
    }
}

/// E2E-037 to E2E-040, SEL-03, SEL-04, ETP-03. The only endpoint is on its way out.
#[test]
fn the_last_endpoint_serves_while_it_terminates() {
    Setup::new(2).telling(&CLUSTER).run(|cluster, agents| {
        let pods = [cluster.nodes[0].add_pod("pod-1")?, cluster.nodes[1].add_pod("pod-2")?];
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let leaving = Member::of(&near.pod).being(Condition::Terminating);
        let service = Service::new("echo", 1).with_member(leaving).with_node_port(NODE_PORT);
        let [first, second] = [0, 1].map(|n| cluster.nodes[n].addresses);
        let reach = |pod: &Pod, to: Ends, seen: &Seen| expect_reach(&pod.machine, to, "near", seen);

        agents.serve(&service)?;
        for pod in &pods {
            reach(pod, service.vip(), &Seen::Client)?;
        }
        reach(&pods[0], first.at(NODE_PORT), &Seen::Client)?;
        reach(&pods[0], second.at(NODE_PORT), &Seen::As(second))?;
        expect_reach(&cluster.client, second.at(NODE_PORT), "near", &Seen::As(second))?;

        let local = service.clone().local_for_inside();
        agents.serve(&local)?;
        reach(&pods[0], local.vip(), &Seen::Client)?;
        expect_dropped(&pods[1].machine, local.vip(), &agents.agents[1], DropReason::NoLocalBackend)?;

        let local = service.local_for_outside();
        agents.serve(&local)?;
        for pod in &pods {
            reach(pod, first.at(NODE_PORT), &Seen::Client)?;
        }
        expect_reach(&cluster.client, first.at(NODE_PORT), "near", &Seen::Client)?;
        // ETP-05, and the same from a process of the endpoint's node.
        for client in [&cluster.client, &cluster.nodes[0].machine()] {
            expect_dropped(client, second.at(NODE_PORT), &agents.agents[1], DropReason::NoLocalBackend)?;
        }
        Ok(())
    });
}

/// ETP-04, SEL-05, SEL-08.
#[test]
fn a_terminating_endpoint_serves_those_who_must_stay_while_others_have_better() {
    Setup::new(2).telling(&CLUSTER).run(|cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let leaving = Member::of(&near.pod).being(Condition::Terminating);
        let service = Service::new("echo", 1)
            .with_member(leaving)
            .with(&far.pod)
            .with_node_port(NODE_PORT)
            .local_for_outside();
        agents.serve(&service)?;
        let to = cluster.nodes[0].addresses.at(NODE_PORT);
        for _ in 0..5 {
            expect_reach(&cluster.client, to, "near", &Seen::Client)?;
            expect_reach(&pod.machine, to, "far", &Seen::Client)?;
            expect_reach(&pod.machine, service.vip(), "far", &Seen::Client)?;
        }
        ensure!(near.server.connections() > 0);
        Ok(())
    });
}

/// E2E-019 to E2E-021, COND-01, COND-02, COND-05. What `publishNotReadyAddresses` makes of a pod is in its slice.
#[test]
fn a_pod_serves_if_it_is_published_ready_or_not() {
    with_agents(2, |cluster, agents| {
        let pods = [cluster.nodes[0].add_pod("pod-1")?, cluster.nodes[1].add_pod("pod-2")?];
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let service = Service::new("echo", 1).with(&near.pod).with_node_port(NODE_PORT);
        let published = [Condition::Ready, Condition::TerminatingPublished];
        let hidden = [Condition::Unready, Condition::TerminatingUnready];
        let serves = published.iter().zip(&hidden).flat_map(|(yes, no)| [(*yes, true), (*no, false)]);
        for (condition, serves) in serves {
            agents.serve(&service.clone().with_condition("near", condition))?;
            for (pod, node) in pods.iter().zip(&cluster.nodes) {
                for to in [service.vip(), node.addresses.at(NODE_PORT)] {
                    if serves {
                        expect_reach(&pod.machine, to, "near", &Seen::Client)?;
                    } else {
                        expect_refused(&pod.machine, to)?;
                    }
                }
            }
        }
        Ok(())
    });
}

/// What a policy leaves over of a service may be nobody's on every node but one, and is so from the first packet on.
#[test]
fn a_policy_takes_effect_while_the_service_runs() {
    with_agents(2, |cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let free = Service::new("echo", 1).with(&far.pod).with_node_port(NODE_PORT);
        let to = cluster.nodes[0].addresses;
        for _ in 0..2 {
            agents.serve(&free)?;
            expect_reach(&pod.machine, free.vip(), "far", &Seen::Client)?;
            expect_reach(&cluster.client, to.at(NODE_PORT), "far", &Seen::As(to))?;
            let kept = free.clone().local_for_inside().local_for_outside();
            agents.serve(&kept)?;
            let agent = &agents.agents[0];
            expect_dropped(&pod.machine, kept.vip(), agent, DropReason::NoLocalBackend)?;
            expect_dropped(&cluster.client, to.at(NODE_PORT), agent, DropReason::NoLocalBackend)?;
        }
        Ok(())
    });
}
