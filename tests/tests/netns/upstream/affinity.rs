//! Session affinity: section 38.2, and 38.7 as far as addresses of load balancers go.

use std::{collections::BTreeSet, thread, time::Duration};

use anyhow::{Result, ensure};
use sluice_tests::{
    deployment::Deployment,
    harness::with_agents,
    service::{PORT, Service},
    topology::{Addresses, Cluster, Ends, Family, Machine},
    traffic::Protocol,
    wait::wait_until,
};

use crate::{Backend, expect::ask};

const NODE_PORT: u16 = 30_080;
/// The default of Kubernetes: no test takes as long.
const HOURS: u16 = 10_800;

/// Fifteen new connections reach one backend (VER-06).
fn expect_one(client: &Machine, to: Ends) -> Result<()> {
    for family in Family::ALL {
        for protocol in Protocol::ALL {
            let reached = (0..15)
                .map(|_| Ok(ask(client, to.of(family), protocol)?.backend))
                .collect::<Result<BTreeSet<_>>>()?;
            ensure!(reached.len() == 1, "{protocol} from {} to {to:?} reached {reached:?}", client.name);
        }
    }
    Ok(())
}

/// New connections reach both backends in time.
fn expect_both(client: &Machine, to: Ends) -> Result<()> {
    super::networking::expect_all_endpoints(client, to, &["near", "far"])
}

/// A service with a backend on each node, known by its virtual addresses, the nodes' ports and a load balancer's
/// addresses.
fn with_service(test: impl FnOnce(&Cluster, &Deployment, &Service, [(&Machine, Ends); 4]) -> Result<()>) {
    with_agents(2, |cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let balancer = Addresses::elsewhere(250);
        cluster.client.route(balancer, &cluster.nodes[0])?;
        let service = Service::new("echo", 1)
            .with(&near.pod)
            .with(&far.pod)
            .with_load_balancer(balancer, "VIP")
            .with_node_port(NODE_PORT);
        let node = cluster.nodes[0].addresses.at(NODE_PORT);
        let ways = [
            (&pod.machine, service.vip()),
            (&pod.machine, node),
            (&cluster.client, node),
            (&cluster.client, balancer.at(PORT)),
        ];
        test(cluster, agents, &service, ways)
    });
}

#[test]
fn e2e_022_025_088_and_123_clients_stay_with_their_backend() {
    with_service(|_, agents, service, ways| {
        agents.serve(&service.clone().with_affinity(HOURS))?;
        ways.into_iter().try_for_each(|(client, to)| expect_one(client, to))
    });
}

/// AFF-04: whichever address a client asks at.
#[test]
fn a_client_stays_with_its_backend_across_the_addresses_of_a_service() {
    with_service(|_, agents, service, ways| {
        agents.serve(&service.clone().with_affinity(HOURS))?;
        for family in Family::ALL {
            for protocol in Protocol::ALL {
                for [one, two] in [[ways[0], ways[1]], [ways[2], ways[3]]] {
                    let first = ask(one.0, one.1.of(family), protocol)?.backend;
                    for _ in 0..10 {
                        let reached = ask(two.0, two.1.of(family), protocol)?.backend;
                        ensure!(reached == first, "{} reached {first}, then {reached}", one.0.name);
                    }
                }
            }
        }
        Ok(())
    });
}

#[test]
fn e2e_024_027_and_123_affinity_is_switched_on_and_off() {
    with_service(|_, agents, service, ways| {
        for _ in 0..2 {
            agents.serve(service)?;
            ways.into_iter().try_for_each(|(client, to)| expect_both(client, to))?;
            agents.serve(&service.clone().with_affinity(HOURS))?;
            ways.into_iter().try_for_each(|(client, to)| expect_one(client, to))?;
        }
        Ok(())
    });
}

/// E2E-123 with `externalTrafficPolicy: Local`.
#[test]
fn e2e_123_affinity_under_external_local_stays_on_the_node() {
    with_service(|_, agents, service, ways| {
        agents.serve(&service.clone().with_affinity(HOURS).local_for_outside())?;
        for (client, to) in &ways[2..] {
            expect_one(client, *to)?;
            ensure!(ask(client, to.of(Family::V4), Protocol::Tcp)?.backend == "near");
        }
        Ok(())
    });
}

/// What passes here is time itself: nothing else could be waited for. Each of many clients has an even chance to come to
/// another backend, so that none does would be chance once in 65,536 times.
#[test]
fn e2e_023_and_026_a_client_that_stays_away_is_forgotten() {
    with_service(|cluster, agents, service, ways| {
        let more: Vec<_> = (101..117).map(Addresses::on_fabric).collect();
        cluster.client.add_addresses(&more)?;
        let clients: Vec<_> = more.into_iter().map(|addresses| cluster.client.known_as(addresses)).collect();
        let (_, node) = ways[2];
        let reached = |family: Family| {
            let names = clients.iter().map(|client| ask(client, node.of(family), Protocol::Tcp));
            names.map(|heard| Ok(heard?.backend)).collect::<Result<Vec<_>>>()
        };
        agents.serve(&service.clone().with_affinity(1))?;
        for family in Family::ALL {
            let before = reached(family)?;
            wait_until("a client has come to another backend", || {
                thread::sleep(Duration::from_millis(1_300));
                Ok((reached(family)? != before).then_some(()))
            })?;
        }
        Ok(())
    });
}

/// AFF-06.
#[test]
fn a_client_whose_backend_goes_stays_with_the_next() {
    with_service(|_, agents, service, ways| {
        let service = service.clone().with_affinity(HOURS);
        agents.serve(&service)?;
        for (client, to) in ways {
            agents.serve(&service)?;
            let first = ask(client, to.of(Family::V4), Protocol::Tcp)?.backend;
            let other = if first == "near" { "far" } else { "near" };
            agents.serve(&service.clone().without(&first))?;
            for _ in 0..5 {
                ensure!(ask(client, to.of(Family::V4), Protocol::Tcp)?.backend == other);
            }
            // The first is back, and nobody's any more (AFF-07).
            agents.serve(&service)?;
            for _ in 0..5 {
                ensure!(ask(client, to.of(Family::V4), Protocol::Tcp)?.backend == other);
            }
        }
        Ok(())
    });
}
