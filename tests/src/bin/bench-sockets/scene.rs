//! Two nodes, clients and backends on them, and every way from the ones to the others.

use std::{fmt::Write as _, net::SocketAddr, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use proxy_agent::datapath::{HashTable, PerCpuTable, Pins, SocketHook, SocketProgram, socket_hooks};
use proxy_common::{
    counters::ServiceCounters,
    tables::{ServiceNames, ServiceTraffic},
};
use serde::Serialize;
use sluice_tests::{
    cgroup::Threads,
    deployment::Deployment,
    netns::Namespace,
    service::{Service, TARGET_PORT},
    topology::{Cluster, Family, Pod},
};

use crate::{server, time};

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Client {
    /// A process in the node's own network.
    Host,
    /// A process in a pod of that node.
    Pod,
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
    /// It names the service, from a cgroup without programs.
    Packet,
}

/// The scene. Fields are dropped in order: agents before their nodes and the cgroup.
#[derive(Debug)]
pub(crate) struct Scene {
    agents: Deployment,
    cluster: Cluster,
    served: Threads,
    /// What is measured stays here.
    pub(crate) cpu: usize,
    pub(crate) family: Family,
    /// Named directly and by socket.
    client: Pod,
    /// What has been translated by packets is remembered for minutes by source and destination, and a direct connection
    /// between the same two ports would be taken for it. So whoever needs packets translated has its own address.
    packet_client: Pod,
    near: (Pod, Service),
    far: (Pod, Service),
    /// A pod without server: what answers there is the benchmark itself.
    quiet: (Pod, Service),
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
        let served = Threads::create("served").context("a cgroup to serve the sockets of")?;
        let cluster = Cluster::new(2)?;
        // The clients' node serves sockets of all kinds below that cgroup. The other one has no clients.
        let agents = Deployment::start_each(&cluster, |node| match node.number {
            1 => {
                vec!["--socket-lb=on".to_owned(), format!("--cgroup={}", served.path().display())]
            }
            _ => vec!["--socket-lb=off".to_owned()],
        })?;
        let [here, there] = cluster.nodes.as_slice() else { unreachable!("a cluster of two") };
        let cpu = time::cpu()?;
        let backend = |name: &str, node: &sluice_tests::topology::Node, vip| -> Result<(Pod, Service)> {
            let pod = node.add_pod(name)?;
            let service = Service::new(name, vip).with(&pod);
            Ok((pod, service))
        };
        let (near, far) = (backend("near", here, 1)?, backend("far", there, 2)?);
        let quiet = backend("quiet", here, 3)?;
        let (client, packet_client) = (here.add_pod("client")?, here.add_pod("packet-client")?);
        for (pod, _) in [&near, &far] {
            server::start(&pod.machine, pod.machine.addresses.at(TARGET_PORT).of(family), cpu)?;
        }
        for (_, service) in [&near, &far, &quiet] {
            agents.publish(service)?;
        }
        agents.settle()?;
        Ok(Self { agents, cluster, served, cpu, family, client, packet_client, near, far, quiet })
    }

    /// From a client to a server.
    pub(crate) fn stand(&self, client: Client, place: Place, way: Way) -> Stand<'_> {
        self.towards(client, if place == Place::SameNode { &self.near } else { &self.far }, way)
    }

    /// From a client to the pod without server.
    pub(crate) fn quiet_stand(&self, client: Client, way: Way) -> Stand<'_> {
        self.towards(client, &self.quiet, way)
    }

    fn towards(&self, client: Client, (pod, service): &(Pod, Service), way: Way) -> Stand<'_> {
        let direct = pod.machine.addresses.at(TARGET_PORT).of(self.family);
        let to = match way {
            Way::Direct | Way::DirectWithHooks => direct,
            Way::Socket | Way::Packet => service.frontend(self.family),
        };
        let namespace = match (client, way) {
            (Client::Host, _) => &self.cluster.nodes[0].namespace,
            (Client::Pod, Way::Packet) => &self.packet_client.machine.namespace,
            (Client::Pod, _) => &self.client.machine.namespace,
        };
        let has_hooks = matches!(way, Way::DirectWithHooks | Way::Socket);
        Stand { namespace, cgroup: has_hooks.then_some(&self.served), cpu: self.cpu, to }
    }

    /// Where the pod without server is.
    pub(crate) fn quiet_backend(&self) -> (&Namespace, SocketAddr) {
        let machine = &self.quiet.0.machine;
        (&machine.namespace, machine.addresses.at(TARGET_PORT).of(self.family))
    }

    /// Has the clients' node serve so many more services, of one endpoint each.
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
        let agent = &self.agents.agents[0];
        agent.manifests.write_text("others.yaml", &text)?;
        self.agents.settle()?;
        let served = self.in_sandbox(|pins| Ok(HashTable::<ServiceNames>::open(pins)?.entries().count()))?;
        ensure!(served >= usize::try_from(count)?, "{served} services are served, not {count} more");
        Ok(())
    }

    /// What the clients' node has counted so far, of all services.
    pub(crate) fn traffic(&self) -> Result<ServiceCounters> {
        self.in_sandbox(|pins| {
            let table = PerCpuTable::<ServiceTraffic>::open(pins)?;
            let mut sum = ServiceCounters::default();
            for entry in HashTable::<ServiceNames>::open(pins)?.entries() {
                let (id, _) = entry?;
                sum = table.get(id.0)?.into_iter().fold(sum, ServiceCounters::plus);
            }
            Ok(sum)
        })
    }

    /// The kernel's ids of the programs that are attached to the cgroup, by name.
    pub(crate) fn hooks(&self) -> Result<Vec<(&'static str, u32)>> {
        self.in_sandbox(|pins| {
            let attached = |(program, hook): (SocketProgram, SocketHook)| match hook {
                SocketHook::Attached { program: id, .. } => Some((program.name(), id)),
                _ => None,
            };
            Ok(socket_hooks(pins).into_iter().filter_map(attached).collect())
        })
    }

    fn in_sandbox<T: Send>(&self, work: impl FnOnce(&Pins) -> Result<T> + Send) -> Result<T> {
        let agent = &self.agents.agents[0];
        let path: PathBuf = agent.bpffs().to_owned();
        agent.namespace().run(move || work(&Pins::new(&path)))
    }
}
