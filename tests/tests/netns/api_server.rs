//! From the API to packets, and what packets notice of an API server that is gone: nothing.

use std::{net::SocketAddr, time::Instant};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::{
    core::v1::{Node as NodeObject, Service as ServiceObject},
    discovery::v1::EndpointSlice,
};
use sluice_tests::{
    agent::Agent,
    apiserver::{Hang, HostedApi},
    harness::Setup,
    manifest::node_object,
    service::Service,
    topology::{Cluster, Family, Pod},
    traffic::{Protocol, Spread, Steady},
    wait::wait_until,
};

use crate::Backend;

/// Services that change.
const SERVICES: u8 = 40;
const NAMESPACE: &str = "default";
/// The age of the view of Services.
const AGE: &str = r#"sluice_api_view_age_seconds{kind="Service"}"#;

fn publish(api: &HostedApi, service: &Service) {
    api.server.apply(&service.object());
    for slice in Family::ALL.into_iter().flat_map(|family| service.slices(family)) {
        api.server.apply(&slice);
    }
}

fn withdraw(api: &HostedApi, service: &Service) {
    api.server.delete::<ServiceObject>(NAMESPACE, &service.name);
    for slice in Family::ALL.into_iter().flat_map(|family| service.slices(family)) {
        let name = slice.metadata.name.unwrap_or_default();
        api.server.delete::<EndpointSlice>(NAMESPACE, &name);
    }
}

/// The services that change, as they are after so many changes: each is with one backend, with both, or not there.
fn services(round: u8, pods: [&Pod; 2]) -> Vec<(Service, bool)> {
    let service = |number: u8| {
        let service = Service::new(&format!("changing-{number}"), 100 + number);
        let [one, other] = pods;
        match (number + round) % 4 {
            0 => (service.with(one), true),
            1 => (service.with(one).with(other), true),
            2 => (service.with(other), true),
            _ => (service, false),
        }
    };
    (0..SERVICES).map(service).collect()
}

/// Changes all of them in the server.
fn churn(api: &HostedApi, round: u8, pods: [&Pod; 2]) {
    for (service, is_there) in services(round, pods) {
        if is_there { publish(api, &service) } else { withdraw(api, &service) }
    }
}

/// Waits until the kernel has them as they are after so many changes, and those that are there answer.
fn expect(agent: &Agent, from: &Pod, round: u8, pods: [&Pod; 2]) -> Result<()> {
    for (service, is_there) in services(round, pods) {
        if is_there { agent.wait_for_service(&service)? } else { agent.wait_for_absence(&service)? }
    }
    let (service, _) = services(round, pods)
        .into_iter()
        .find(|(service, _)| service.pods().len() == 2)
        .context("one with both")?;
    for family in Family::ALL {
        for protocol in Protocol::ALL {
            let spread =
                Spread::measure(&from.machine.namespace, service.frontend(family), protocol, 50, |_| {})?;
            spread.expect_uniform_over(&service.pods())?;
        }
    }
    Ok(())
}

/// What becomes of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outage {
    /// Its process is gone, and when it is back it remembers nothing of the past but how things are.
    Killed,
    /// It accepts connections and says nothing.
    Hangs,
    /// What it sends does not arrive.
    CutOff,
}

/// An outage that is under way.
struct Ongoing<'a> {
    outage: Outage,
    api: &'a HostedApi,
    node: SocketAddr,
    hang: Option<Hang>,
}

impl<'a> Ongoing<'a> {
    fn begin(outage: Outage, api: &'a HostedApi, cluster: &Cluster) -> Result<Self> {
        // What pods reach their node by.
        let node = SocketAddr::from((cluster.nodes[0].gateway().v4, 0));
        let mut hang = None;
        match outage {
            Outage::Killed => api.go_down()?,
            Outage::Hangs => hang = Some(api.hang()),
            Outage::CutOff => api.partition(node, true)?,
        }
        Ok(Self { outage, api, node, hang })
    }

    fn end(self) -> Result<()> {
        match self.outage {
            Outage::Killed => {
                self.api.server.compact();
                self.api.come_up()
            }
            Outage::Hangs => {
                drop(self.hang);
                Ok(())
            }
            Outage::CutOff => self.api.partition(self.node, false),
        }
    }
}

fn lists(api: &HostedApi) -> usize {
    api.server.requests().iter().filter(|request| request.is_list("services")).count()
}

/// Whatever becomes of the API server, packets go on; what it was told meanwhile is served when it is back. In the end, the
/// tables contain what a fresh agent would have written.
#[test]
fn outages_of_the_api_are_not_noticed_and_made_up_for() {
    Setup::new(1).alone().run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let client = node.add_pod("client")?;
        let backends = [Backend::patient_on(node, "one")?, Backend::patient_on(node, "other")?];
        let pods = [&backends[0].pod, &backends[1].pod];
        let api = HostedApi::start(&node.add_pod("api")?.machine)?;
        api.server.apply::<NodeObject>(&node_object(node));
        let service = Service::new("steady", 1).with(pods[0]).with(pods[1]);
        publish(&api, &service);
        churn(&api, 0, pods);

        let agent = &mut agents.agents[0];
        agent.terminate()?;
        agent.follow(&api.server.kubeconfig())?;
        agent.forget_everything()?;
        agent.resume()?;
        agent.wait_until_synced()?;
        agent.wait_until_attached()?;
        expect(agent, &client, 0, pods)?;

        // Not from the node itself: what the agent sends to a server that is cut off is lost, and would count.
        let from = [&client.machine.namespace];
        let steady = Steady::start(&from, &service, &pods.map(|pod| &pod.machine.namespace), 100)?;
        for (outage, round) in [Outage::Killed, Outage::Hangs, Outage::CutOff].into_iter().zip(1..) {
            let before = lists(&api);
            let ongoing = Ongoing::begin(outage, &api, cluster)?;
            churn(&api, round, pods);
            steady.expect_use().with_context(|| format!("{outage:?}"))?;
            // The view gets older by as much as time goes by.
            let (age, begun) = (agent.scrape()?.value(AGE)?, Instant::now());
            steady.expect_use().with_context(|| format!("{outage:?}"))?;
            let elapsed = begun.elapsed().as_secs_f64();
            let last = agent.scrape()?.value(AGE)?;
            let asked = Instant::now();
            ensure!(last >= age + elapsed, "{outage:?}: {age} s, and {elapsed} s later {last} s");
            ongoing.end()?;
            expect(agent, &client, round, pods).with_context(|| format!("{outage:?}"))?;
            wait_until("the view is confirmed", || {
                let unconfirmed = last + asked.elapsed().as_secs_f64();
                Ok((agent.scrape()?.value(AGE)? < unconfirmed).then_some(()))
            })
            .with_context(|| format!("{outage:?}"))?;
            ensure!(
                (lists(&api) > before) == (outage == Outage::Killed),
                "{outage:?}: a gap is closed by a list"
            );
        }
        steady.expect_use()?;
        println!("nothing was lost: {:?}", steady.stop()?);

        let found = agent.contents()?;
        agent.kill()?;
        agent.forget_everything()?;
        agent.resume()?;
        agent.wait_until_synced()?;
        agent.wait_until_attached()?;
        let fresh = agent.contents()?;
        if found.entries != fresh.entries {
            let only = |a: &sluice_tests::contents::Contents, b: &sluice_tests::contents::Contents| {
                a.entries.difference(&b.entries).cloned().collect::<Vec<_>>()
            };
            bail!("stale: {:#?}, missing: {:#?}", only(&found, &fresh), only(&fresh, &found));
        }
        ensure!(found.may_be_all_of(&fresh), "the address filter lacks something");
        Ok(())
    });
}
