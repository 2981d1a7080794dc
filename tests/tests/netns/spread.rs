//! New flows are spread evenly.

use anyhow::{Context as _, Result};
use sluice_tests::{
    harness::with_agents,
    service::Service,
    topology::Family,
    traffic::{Protocol, Spread},
};

use crate::Backend;

/// Enough to tell thirds from quarters at the bound of one in a million.
const FLOWS: usize = 900;

#[test]
pub(crate) fn flows_from_a_pod_spread_evenly_over_local_and_remote_backends() {
    with_agents(2, |cluster, agents| {
        let client = cluster.nodes[0].add_pod("client")?;
        let backends = [
            Backend::on(&cluster.nodes[0], "near-1")?,
            Backend::on(&cluster.nodes[1], "far-1")?,
            Backend::on(&cluster.nodes[1], "far-2")?,
        ];
        let service = backends.iter().fold(Service::new("echo", 1), |service, one| service.with(&one.pod));
        agents.serve(&service)?;
        for family in Family::ALL {
            for protocol in Protocol::ALL {
                let to = service.frontend(family);
                Spread::measure(&client.machine.namespace, to, protocol, FLOWS, |_| {})
                    .and_then(|spread| spread.expect_uniform_over(&service.pods()))
                    .with_context(|| format!("{protocol} over {family}"))?;
            }
        }
        Ok(())
    });
}

#[test]
fn flows_from_outside_spread_evenly_over_the_backends_of_the_node() {
    with_agents(1, |cluster, agents| -> Result<()> {
        let backends = [Backend::on(&cluster.nodes[0], "near-1")?, Backend::on(&cluster.nodes[0], "near-2")?];
        let service = backends.iter().fold(Service::new("echo", 1), |service, one| service.with(&one.pod));
        agents.serve(&service)?;
        for family in Family::ALL {
            for protocol in Protocol::ALL {
                let to = service.frontend(family);
                Spread::measure(&cluster.client.namespace, to, protocol, FLOWS / 3, |_| {})
                    .and_then(|spread| spread.expect_uniform_over(&service.pods()))
                    .with_context(|| format!("{protocol} over {family}"))?;
            }
        }
        Ok(())
    });
}
