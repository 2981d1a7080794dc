//! Two nodes, clients and backends on them, and every way from the ones to the others.

use std::{fmt::Write as _, net::SocketAddr, path::PathBuf};

use anyhow::{Result, ensure};
use proxy_agent::datapath::{HashTable, Pins, SocketHook, SocketProgram, socket_hooks};
use proxy_common::{counters::ServiceCounters, tables::ServiceNames};
use serde::Serialize;
use sluice_tests::{
    bench::{server, time},
    cgroup::Threads,
    deployment::Deployment,
    netns::Namespace,
    service::{Service, TARGET_PORT},
    topology::{Cluster, Family, Node, Pod},
};

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Client {
    /// A process in the node's own network.
    Host,
    /// A process in a pod of that node.
    Pod,
}

impl Client {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Host => "the node",
            Self::Pod => "a pod",
        }
    }
}

/// Where the backend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Place {
    /// On the client's node.
    SameNode,
    /// On the other node.
    OtherNode,
}

impl Place {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::SameNode => "the same node",
            Self::OtherNode => "the other node",
        }
    }
}

/// How a client gets to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Way {
    /// It names the pod, from a cgroup without programs.
    Direct,
    /// It names the pod, from a cgroup with programs.
    DirectWithHooks,
    /// It names the service, from a cgroup with programs.
    Socket,
    /// The same on the other node, which may have many other services.
    SocketAmongOthers,
    /// It names the service, from a cgroup without programs.
    Packet,
}

impl Way {
    /// The clients' node, from 0.
    const fn node(self) -> usize {
        match self {
            Self::Direct | Self::DirectWithHooks | Self::Socket | Self::Packet => 0,
            Self::SocketAmongOthers => 1,
        }
    }

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::DirectWithHooks => "direct, with hooks",
            Self::Socket => "by socket",
            Self::SocketAmongOthers => "by socket, among others",
            Self::Packet => "by packet",
        }
    }
}

/// A node's clients, and a pod that they can reach.
#[derive(Debug)]
struct Side {
    /// What its agent serves at sockets, whether they are the node's own or its pods'.
    served: Threads,
    /// Named directly and by socket.
    client: Pod,
    /// What has been translated by packets is remembered for minutes by source and destination, and a direct connection
    /// between the same two ports would be taken for it. So whoever needs packets translated has its own address.
    packet_client: Pod,
    /// With a server.
    echo: (Pod, Service),
    /// Without: what answers there is the benchmark itself.
    quiet: (Pod, Service),
}

/// The scene. Fields are dropped in order: agents before what they serve.
#[derive(Debug)]
pub(crate) struct Scene {
    agents: Deployment,
    cluster: Cluster,
    sides: Vec<Side>,
    /// What is measured stays here.
    pub(crate) cpu: usize,
    pub(crate) family: Family,
}

/// A client, a way and an end: all that a measurement needs to know.
pub(crate) struct Stand<'a> {
    namespace: &'a Namespace,
    cgroup: Option<&'a Threads>,
    cpu: usize,
    /// Whom to connect to.
    pub(crate) to: SocketAddr,
}

impl Stand<'_> {
    /// Executes `work` as such a client.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce(SocketAddr) -> Result<T> + Send) -> Result<T> {
        self.namespace.run(|| {
            self.cgroup.map_or(Ok(()), Threads::enter)?;
            time::stay_on(self.cpu)?;
            work(self.to)
        })
    }
}

impl Scene {
    pub(crate) fn build(family: Family) -> Result<Self> {
        let cluster = Cluster::new(2)?;
        let cgroups: Vec<_> =
            cluster.nodes.iter().map(|node| Threads::create(&node.name)).collect::<Result<_>>()?;
        // Each agent serves sockets in its own cgroup, so that none is served twice.
        let agents = Deployment::start_each(&cluster, |node| {
            let cgroup = cgroups.get(usize::from(node.number) - 1);
            let flag = cgroup.map(|cgroup| format!("--cgroup={}", cgroup.path().display()));
            flag.into_iter().chain(["--socket-lb=on".to_owned()]).collect()
        })?;
        let cpu = time::cpu()?;
        let mut sides = Vec::new();
        for (node, served) in cluster.nodes.iter().zip(cgroups) {
            let side = Side::build(node, served)?;
            let (echo, _) = &side.echo;
            server::start(&echo.machine, echo.machine.addresses.at(TARGET_PORT).of(family), cpu)?;
            for (_, service) in [&side.echo, &side.quiet] {
                agents.publish(service)?;
            }
            sides.push(side);
        }
        agents.settle()?;
        Ok(Self { agents, cluster, sides, cpu, family })
    }

    /// From a client to a server.
    pub(crate) fn stand(&self, client: Client, place: Place, way: Way) -> Stand<'_> {
        let own = way.node();
        let place = match place {
            Place::SameNode => own,
            Place::OtherNode => 1 - own,
        };
        self.towards(client, &self.sides[place].echo, way)
    }

    /// From a client to the pod without server on its node.
    pub(crate) fn quiet_stand(&self, client: Client, way: Way) -> Stand<'_> {
        self.towards(client, &self.sides[way.node()].quiet, way)
    }

    fn towards(&self, client: Client, (pod, service): &(Pod, Service), way: Way) -> Stand<'_> {
        let side = &self.sides[way.node()];
        let namespace = match (client, way) {
            (Client::Host, _) => &self.cluster.nodes[way.node()].namespace,
            (Client::Pod, Way::Packet) => &side.packet_client.machine.namespace,
            (Client::Pod, _) => &side.client.machine.namespace,
        };
        let (to, has_hooks) = match way {
            Way::Direct => (server_end(pod, self.family), false),
            Way::DirectWithHooks => (server_end(pod, self.family), true),
            Way::Socket | Way::SocketAmongOthers => (service.frontend(self.family), true),
            Way::Packet => (service.frontend(self.family), false),
        };
        Stand { namespace, cgroup: has_hooks.then_some(&side.served), cpu: self.cpu, to }
    }

    /// Where the pod without server is that clients find on this way.
    pub(crate) fn quiet_backend(&self, way: Way) -> (&Namespace, SocketAddr) {
        let (pod, _) = &self.sides[way.node()].quiet;
        (&pod.machine.namespace, server_end(pod, self.family))
    }

    /// Has the node of [`Way::SocketAmongOthers`] serve so many more services, of one endpoint each.
    pub(crate) fn add_others(&self, count: u32) -> Result<()> {
        let mut text = String::new();
        for number in 0..count {
            let [_, _, high, low] = number.to_be_bytes();
            let family = self.family;
            let [vip, pod] = match family {
                Family::V4 => [format!("10.97.{high}.{low}"), format!("10.245.{high}.{low}")],
                Family::V6 => [format!("fd00:10:97::{number:x}"), format!("fd00:10:245::{number:x}")],
            };
            let name = format!("other-{number}");
            writeln!(
                text,
                "---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: default}}, spec: {{\
                 clusterIP: '{vip}', clusterIPs: ['{vip}'], ipFamilies: [{family}], ports: [{{port: 80}}]}}}}\n\
                 ---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: {family}, metadata: {{\
                 name: {name}, namespace: default, labels: {{kubernetes.io/service-name: {name}}}}}, \
                 endpoints: [{{addresses: ['{pod}']}}], ports: [{{port: 8080}}]}}"
            )?;
        }
        let way = Way::SocketAmongOthers;
        self.agents.agents[way.node()].manifests.write_text("others.yaml", &text)?;
        self.agents.settle()?;
        let names = |pins: &Pins| Ok(HashTable::<ServiceNames>::open(pins)?.entries().count());
        let served = self.in_sandbox(way, names)?;
        ensure!(served >= usize::try_from(count)?, "{served} services are served, not {count} more");
        Ok(())
    }

    /// What the clients' node has counted so far, of all services.
    pub(crate) fn traffic(&self, way: Way) -> Result<ServiceCounters> {
        self.agents.agents[way.node()].traffic()
    }

    /// The kernel's ids of the programs that are attached to the cgroup, by name.
    pub(crate) fn hooks(&self, way: Way) -> Result<Vec<(&'static str, u32)>> {
        self.in_sandbox(way, |pins| {
            let attached = |(program, hook): (SocketProgram, SocketHook)| match hook {
                SocketHook::Attached { program: id, .. } => Some((program.name(), id)),
                _ => None,
            };
            Ok(socket_hooks(pins).into_iter().filter_map(attached).collect())
        })
    }

    fn in_sandbox<T: Send>(&self, way: Way, work: impl FnOnce(&Pins) -> Result<T> + Send) -> Result<T> {
        let agent = &self.agents.agents[way.node()];
        let path: PathBuf = agent.bpffs().to_owned();
        agent.namespace().run(move || work(&Pins::new(&path)))
    }
}

impl Side {
    fn build(node: &Node, served: Threads) -> Result<Self> {
        let backend = |name: &str, vip| -> Result<(Pod, Service)> {
            let name = format!("{name}-{}", node.number);
            let pod = node.add_pod(&name)?;
            let service = Service::new(&name, vip).with(&pod);
            Ok((pod, service))
        };
        Ok(Self {
            served,
            client: node.add_pod("client")?,
            packet_client: node.add_pod("packet-client")?,
            echo: backend("echo", 2 * node.number)?,
            quiet: backend("quiet", 2 * node.number + 1)?,
        })
    }
}

/// Where a pod answers.
fn server_end(pod: &Pod, family: Family) -> SocketAddr {
    pod.machine.addresses.at(TARGET_PORT).of(family)
}
