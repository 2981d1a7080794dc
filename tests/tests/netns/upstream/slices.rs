//! EndpointSlices: sections 38.2 and 38.3.

use anyhow::{Result, ensure};
use sluice_tests::{
    harness::with_agents,
    service::{Member, Port, Service, TARGET_PORT},
    topology::Family,
    traffic::{Protocol, Server},
};

use crate::{
    Backend,
    expect::{expect_all_reach, expect_refused},
};

#[test]
fn e2e_029_a_headless_slice_is_no_slice() {
    with_agents(1, |cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let service = Service::new("echo", 1).with(&near.pod);
        let headless = service.clone().with_slices_labelled("service.kubernetes.io/headless", "");
        for _ in 0..2 {
            agents.serve(&service)?;
            expect_all_reach(&pod.machine, &service, "near")?;
            agents.serve(&headless)?;
            expect_refused(&pod.machine, service.vip())?;
        }
        Ok(())
    });
}

/// EPS-07: a named port has the number that each pod gives it.
#[test]
fn e2e_046_a_named_port_has_another_number_in_each_pod() {
    with_agents(2, |cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let far = cluster.nodes[1].add_pod("far")?;
        let _server = Server::start(&far.machine, 9_090)?;
        let service = Service::new("echo", 1)
            .with(&near.pod)
            .with_member(Member::of(&far).with_targets(&[("tcp", 9_090), ("udp", 9_090)]));
        agents.serve(&service)?;
        super::networking::expect_all_endpoints(&pod.machine, service.vip(), &["near", "far"])
    });
}

#[test]
fn e2e_060_ports_in_several_slices_with_one_pod_reach_the_right_ports() {
    with_agents(1, |cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let backend = cluster.nodes[0].add_pod("backend")?;
        let servers =
            [Server::start(&backend.machine, TARGET_PORT)?, Server::start(&backend.machine, 9_090)?];
        let member = |name: &str, number: u16| Member::of(&backend).with_targets(&[(name, number)]);
        let service = Service::new("echo", 1)
            .with_ports([
                Port::new("one", Protocol::Tcp, 80, TARGET_PORT),
                Port::new("two", Protocol::Tcp, 81, 9_090),
            ])
            .with_member(member("one", TARGET_PORT))
            .with_member(member("two", 9_090));
        ensure!(service.slices(Family::V4).len() > 1, "all endpoints are in one slice");
        agents.serve(&service)?;
        for (port, server) in [80, 81].into_iter().zip(&servers) {
            super::expect_tcp(&pod.machine, service.vip().addresses.at(port), Some("backend"))?;
            ensure!(server.connections() == 2, "port {port} led elsewhere");
        }
        Ok(())
    });
}

#[test]
fn e2e_061_addresses_in_several_slices_are_all_reached() {
    with_agents(2, |cluster, agents| -> Result<()> {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let backends = [
            Backend::on(&cluster.nodes[0], "one")?,
            Backend::on(&cluster.nodes[1], "two")?,
            Backend::on(&cluster.nodes[1], "three")?,
        ];
        let service = backends.iter().fold(Service::new("echo", 1), |service, one| service.with(&one.pod));
        let empty = Service::new("echo", 1);
        for agent in &agents.agents {
            agent.manifests.publish(&empty)?;
            for family in Family::ALL {
                // A slice for each, beside the one without endpoints that belongs to the service.
                for mut slice in service.slices(family) {
                    for (n, endpoint) in slice.endpoints.take().into_iter().flatten().enumerate() {
                        let name = format!("by-hand-{family}-{n}").to_lowercase();
                        slice.metadata.name = Some(name.clone());
                        slice.endpoints = Some(vec![endpoint]);
                        agent.manifests.write(&format!("{name}.yaml"), &slice)?;
                    }
                }
            }
        }
        agents.settle()?;
        super::networking::expect_all_endpoints(&pod.machine, service.vip(), &["one", "two", "three"])
    });
}
