//! The nodes, pods and services of the demo, and how they are measured.

use std::time::Instant;

use anyhow::{Context as _, Result};
use sluice_tests::{
    deployment::Deployment,
    service::{PORT, Service, TARGET_PORT},
    topology::{Cluster, Family, Machine, Pod},
    traffic::{Protocol, Server, Spread},
};

use crate::screen::{Screen, thousands};

/// Where a backend is, seen from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// On the client's node.
    Local,
    /// On the other node.
    Remote,
}

impl Role {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Remote => "remote",
        }
    }
}

/// Everything on stage. Fields are dropped in order: agents before the nodes they run on.
pub(crate) struct Scene {
    pub(crate) agents: Deployment,
    _servers: Vec<Server>,
    /// The pods that serve; the last one is no endpoint at first.
    pub(crate) pods: Vec<Pod>,
    /// The pod that asks, on `node-1`.
    pub(crate) client: Pod,
    /// Served by all pods but the last.
    pub(crate) echo: Service,
    /// Served by the pods of `node-1`.
    front: Service,
    pub(crate) cluster: Cluster,
}

impl Scene {
    pub(crate) fn build(screen: Screen) -> Result<Self> {
        let start = Instant::now();
        let cluster = Cluster::new(2).context("build the nodes")?;
        let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
        let client = first.add_pod("client")?;
        let pods = vec![
            first.add_pod("echo-1")?,
            first.add_pod("echo-2")?,
            second.add_pod("echo-3")?,
            second.add_pod("echo-4")?,
            second.add_pod("echo-5")?,
        ];
        let servers =
            pods.iter().map(|pod| Server::start(&pod.machine, TARGET_PORT)).collect::<Result<_>>()?;
        screen.done("two nodes with bridges and six pods, a client outside", start.elapsed());

        let start = Instant::now();
        let agents = Deployment::start(&cluster, &[]).context("start the agents")?;
        screen.done("an agent on each node, fed from a directory of manifests", start.elapsed());

        let start = Instant::now();
        let echo = pods.iter().take(4).fold(Service::new("echo", 1), Service::with);
        let front = pods.iter().take(2).fold(Service::new("front", 2), Service::with);
        agents.serve(&echo)?;
        agents.serve(&front)?;
        let (v4, v6) = (echo.frontend(Family::V4).ip(), echo.frontend(Family::V6).ip());
        let text = format!("service echo at {v4} and {v6}, port {PORT}: four endpoints");
        screen.done(&text, start.elapsed());
        Ok(Self { agents, _servers: servers, pods, client, echo, front, cluster })
    }

    /// The pods that serve, and where they are, seen from `node-1`.
    pub(crate) fn roles(&self) -> Vec<(String, Role)> {
        let here = &self.cluster.nodes[0].name;
        let role = |pod: &Pod| if pod.node == *here { Role::Local } else { Role::Remote };
        self.pods.iter().map(|pod| (pod.name().to_owned(), role(pod))).collect()
    }

    /// New flows from the pod to `echo`.
    pub(crate) fn spread_from_pod(
        &self,
        screen: Screen,
        protocol: Protocol,
        family: Family,
        count: usize,
    ) -> Result<()> {
        let title = format!("a pod on node-1 to the service, {family}");
        self.spread(screen, &self.client.machine, &title, &self.echo, protocol, family, count)
    }

    /// New connections from the client outside to `front`.
    pub(crate) fn spread_from_outside(&self, screen: Screen, count: usize) -> Result<()> {
        let title = "the client outside, through node-1, to a service with pods there";
        let client = &self.cluster.client;
        self.spread(screen, client, title, &self.front, Protocol::Tcp, Family::V4, count / 2)
    }

    #[expect(clippy::too_many_arguments, reason = "one line of the programme, told in full")]
    fn spread(
        &self,
        screen: Screen,
        client: &Machine,
        title: &str,
        service: &Service,
        protocol: Protocol,
        family: Family,
        count: usize,
    ) -> Result<()> {
        let flows = match protocol {
            Protocol::Tcp => "TCP connections",
            Protocol::Udp => "UDP flows",
            Protocol::Sctp => "SCTP associations",
        };
        screen.heading(&format!("{} {flows}: {title}", thousands(count)));
        let to = service.frontend(family);
        let what = || format!("{flows} from {} to {to}", client.name);
        let spread = Spread::measure(&client.namespace, to, protocol, count, |done| {
            screen.progress(done, count);
        });
        let spread = spread.with_context(what)?;
        let members = service.pods();
        let mut roles = self.roles();
        roles.retain(|(name, _)| members.contains(&name.as_str()) || spread.of(name) > 0);
        screen.bars(&spread, &roles);
        spread.expect_uniform_over(&members).with_context(what)
    }
}
