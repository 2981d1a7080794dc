//! Nobody serves: clients learn it at once.

use sluice_tests::{harness::with_agents, service::Service};

use crate::{
    Backend,
    expect::{expect_all_reach, expect_refused},
};

#[test]
pub(crate) fn a_service_without_endpoints_refuses_at_once() {
    with_agents(2, |cluster, agents| {
        let pod = cluster.nodes[0].add_pod("client")?;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let service = Service::new("echo", 1);
        agents.serve(&service)?;
        for client in [&pod.machine, &cluster.client] {
            expect_refused(client, service.vip())?;
        }
        // And serves as soon as there is somebody, and refuses again when there is not.
        agents.serve(&service.clone().with(&near.pod))?;
        expect_all_reach(&pod.machine, &service, "near")?;
        agents.serve(&service)?;
        expect_refused(&pod.machine, service.vip())
    });
}
