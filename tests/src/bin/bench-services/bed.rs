//! A cluster with one of the systems on it, and whoever asks and answers.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use proxy_common::{counters::ServiceCounters, xdp::Passage};
use serde::Serialize;
use sluice_tests::{
    agent::Agent,
    apiserver::HostedApi,
    bench::{process, server},
    cgroup::Threads,
    manifest::node_object,
    netns::Namespace,
    service::{PORT, TARGET_PORT},
    topology::{BRIDGE, BridgeNetfilter, Cluster, Family, Node, Pod, PodNetwork, SERVICES_V4, Shape},
};

use crate::{
    catalogue::{Catalogue, Endpoint4, Service},
    empty::EmptyPrograms,
    kernel_memory,
    kube_proxy::{self, KubeProxy},
    path::Path,
    peer::{Peer, System},
    probe,
    rules::{CLUSTER_CIDR, Rules},
};

/// How long a system may take to serve what there is when it starts.
const PATIENCE: Duration = Duration::from_secs(120);

/// What serves.
#[derive(Debug)]
enum Proxy {
    /// Nothing does.
    Nothing,
    /// Nothing does, but there are programs.
    Empty(#[expect(dead_code, reason = "held as long as they are wanted")] EmptyPrograms),
    /// Agents that follow an API server. They are dropped first.
    Agents { agents: Vec<Agent>, api: HostedApi },
    /// kube-proxies that do.
    KubeProxies { proxies: Vec<KubeProxy>, api: HostedApi },
    /// Rules, the clients' node's first.
    Rules(Vec<Rules>),
}

/// How a system came up on the clients' node, where the other node's was up already.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Start {
    /// Seconds from the start of the process, or of the command that writes the rules, until all services answer.
    pub(crate) seconds: f64,
    /// Bytes by which the kernel's memory grew meanwhile.
    pub(crate) kernel_bytes: u64,
    /// Bytes that the process holds then; none if there is no process.
    pub(crate) process_bytes: Option<u64>,
}

/// The scene of one system. Fields are dropped in order: agents before the nodes they run on.
#[derive(Debug)]
pub(crate) struct Bed {
    pub(crate) system: System,
    proxy: Proxy,
    cluster: Cluster,
    /// The cgroups whose sockets Sluice serves: that of the first node is the clients'.
    cgroups: Vec<Threads>,
    /// Named directly and by socket.
    client: Pod,
    /// What has been translated by packets is remembered for minutes by source and destination, and a connection from the
    /// same port to the same pod would be taken for it. So whoever needs packets translated has its own address.
    packet_client: Pod,
    same: Pod,
    other: Pod,
    catalogue: Catalogue,
}

/// Who asks, from where, and whom.
pub(crate) struct Stand<'a> {
    pub(crate) namespace: &'a Namespace,
    cgroup: Option<&'a Threads>,
    /// Whom to connect to.
    pub(crate) to: SocketAddr,
}

impl Stand<'_> {
    /// Executes `work` as such a client.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce(SocketAddr) -> Result<T> + Send) -> Result<T> {
        self.namespace.run(|| {
            self.cgroup.map_or(Ok(()), Threads::enter)?;
            work(self.to)
        })
    }
}

impl Bed {
    /// Two nodes on which nothing serves yet.
    pub(crate) fn build(system: System, pods: PodNetwork, services: u32, cpu: usize) -> Result<Self> {
        let cluster = Cluster::shaped(2, Shape { pods, ..Shape::default() })?;
        let [one, two] = cluster.nodes.as_slice() else { unreachable!("two nodes were asked for") };
        for node in &cluster.nodes {
            // Nodes have a way to everywhere, without which what a process sends to a service gets as far as to no rule. It
            // ends at a machine that forwards nothing.
            let nowhere = cluster.client.addresses.v4;
            node.namespace.ip(&format!("route add {SERVICES_V4} via {nowhere}"))?;
            // A client that names a pod is not told a shorter way than that of its packets to services.
            let bridge = (pods == PodNetwork::Bridge).then_some(BRIDGE);
            ["all", "default", "eth0"].into_iter().chain(bridge).try_for_each(|name| {
                node.namespace.sysctl(&[(&format!("ipv4/conf/{name}/send_redirects"), "0")])
            })?;
        }
        let cgroup =
            |node: &Node| Threads::create(&format!("{}-{}", system.as_str().to_lowercase(), node.name));
        let cgroups = cluster.nodes.iter().map(cgroup).collect::<Result<_>>()?;
        let (client, packet_client) = (one.add_pod("client")?, one.add_pod("packet-client")?);
        let (same, other) = (one.add_pod("same")?, two.add_pod("other")?);
        for pod in [&same, &other] {
            server::start(&pod.machine, pod.machine.addresses.at(TARGET_PORT).of(Family::V4), cpu)?;
        }
        let catalogue = Catalogue::new(services, endpoint(&same), endpoint(&other));
        let proxy = Proxy::Nothing;
        Ok(Self { system, proxy, cluster, cgroups, client, packet_client, same, other, catalogue })
    }

    /// Has bridged packets visit netfilter no more.
    pub(crate) fn keep_bridges_from_netfilter(&self) -> Result<()> {
        self.cluster.nodes.iter().try_for_each(|node| node.set_bridge_netfilter(BridgeNetfilter::Off))
    }

    /// That of a peer.
    pub(crate) fn of(beds: &[Self], peer: Peer) -> Option<&Self> {
        beds.iter().find(|bed| bed.system == peer.system())
    }

    /// Has the system serve, and sees how long that takes.
    pub(crate) fn start(&mut self) -> Result<Option<Start>> {
        match self.system {
            System::Nothing => Ok(None),
            System::Empty => {
                self.proxy = Proxy::Empty(EmptyPrograms::attach(&self.cluster.nodes)?);
                Ok(None)
            }
            System::Sluice | System::SluiceXdp | System::SluiceXdpGeneric | System::SluiceDelivery => {
                self.start_agents().map(Some)
            }
            System::Iptables | System::IptablesLegacy | System::Nftables => match kube_proxy::program() {
                Some(_) => self.start_kube_proxies().map(Some),
                None => self.write_rules().map(Some),
            },
        }
    }

    /// An API server that holds everything.
    fn start_api(&self) -> Result<HostedApi> {
        let api = HostedApi::start(&self.cluster.client)?;
        self.cluster.nodes.iter().for_each(|node| drop(api.server.apply(&node_object(node))));
        self.catalogue.0.iter().for_each(|service| service.publish(&api.server));
        Ok(api)
    }

    fn start_kube_proxies(&mut self) -> Result<Start> {
        let api = self.start_api()?;
        let [one, two] = self.cluster.nodes.as_slice() else { unreachable!("there are two nodes") };
        let start = |node| KubeProxy::start(self.system, node, &api.server.kubeconfig());
        let mut other = start(two)?;
        other.wait_until_idle()?;
        let before = kernel_memory::used()?;
        let begin = Instant::now();
        let mut first = start(one)?;
        let served = self.wait_until_served();
        served.with_context(|| format!("the log of kube-proxy ends:\n{}", first.last_words()))?;
        let seconds = begin.elapsed().as_secs_f64();
        first.wait_until_idle()?;
        let kernel_bytes = kernel_memory::used()?.saturating_sub(before);
        self.proxy = Proxy::KubeProxies { proxies: vec![first, other], api };
        Ok(Start { seconds, kernel_bytes, process_bytes: self.process_bytes()? })
    }

    fn start_agents(&mut self) -> Result<Start> {
        let api = self.start_api()?;
        let mut agents = Vec::new();
        for (node, cgroup) in self.cluster.nodes.iter().zip(&self.cgroups) {
            let xdp = match self.system {
                System::SluiceXdp => "native",
                System::SluiceXdpGeneric => "generic",
                _ => "off",
            };
            let delivery = if self.system == System::SluiceDelivery { "direct" } else { "stack" };
            let arguments = [
                format!("--cgroup={}", cgroup.path().display()),
                "--socket-lb=on".to_owned(),
                format!("--cluster-cidr={CLUSTER_CIDR}"),
                format!("--xdp={xdp}"),
                format!("--local-delivery={delivery}"),
            ];
            let mut agent = Agent::prepare(node, &arguments)?;
            agent.follow(&api.server.kubeconfig())?;
            agents.push(agent);
        }
        let [first, others @ ..] = agents.as_mut_slice() else { unreachable!("there are two nodes") };
        for agent in others {
            agent.resume()?;
            agent.wait_until_synced()?;
        }
        let before = kernel_memory::used()?;
        let begin = Instant::now();
        first.resume()?;
        self.wait_until_served()?;
        let seconds = begin.elapsed().as_secs_f64();
        first.wait_until_synced()?;
        first.wait_until_attached()?;
        let kernel_bytes = kernel_memory::used()?.saturating_sub(before);
        self.proxy = Proxy::Agents { agents, api };
        Ok(Start { seconds, kernel_bytes, process_bytes: self.process_bytes()? })
    }

    fn write_rules(&mut self) -> Result<Start> {
        let nodes = &self.cluster.nodes;
        let rules =
            |node: &Node| Rules::new(self.system, &node.namespace, &self.catalogue, node.addresses.v4);
        let rules: Vec<_> = nodes.iter().map(rules).collect();
        let [first, others @ ..] = rules.as_slice() else { unreachable!("there are two nodes") };
        others.iter().try_for_each(|rules| rules.write(&rules.text()?))?;
        let text = first.text()?;
        let before = kernel_memory::used()?;
        let begin = Instant::now();
        first.write(&text)?;
        self.wait_until_served()?;
        let seconds = begin.elapsed().as_secs_f64();
        let kernel_bytes = kernel_memory::used()?.saturating_sub(before);
        self.proxy = Proxy::Rules(rules);
        Ok(Start { seconds, kernel_bytes, process_bytes: None })
    }

    /// Waits until a pod reaches the measured services, and the last one.
    fn wait_until_served(&self) -> Result<()> {
        let last = self.catalogue.last().context("a service")?;
        let vips = [Catalogue::OTHER, Catalogue::SAME, last];
        let stand = self.probing(Catalogue::OTHER);
        stand.run(|_| vips.iter().try_for_each(|vip| probe::wait_until_reached(frontend(*vip), PATIENCE)))
    }

    /// How much the process on the clients' node holds in memory.
    pub(crate) fn process_bytes(&self) -> Result<Option<u64>> {
        let pid = match &self.proxy {
            Proxy::Nothing | Proxy::Empty(_) | Proxy::Rules(_) => return Ok(None),
            Proxy::Agents { agents, .. } => agents.first().and_then(Agent::pid),
            Proxy::KubeProxies { proxies, .. } => proxies.first().map(KubeProxy::pid),
        };
        Ok(Some(process::memory(pid.context("a running process")?)?.resident))
    }

    /// Where somebody asks on a path by a peer's way; `None` if that way is none.
    pub(crate) fn stand(&self, peer: Peer, path: Path) -> Option<Stand<'_>> {
        let [one, _] = self.cluster.nodes.as_slice() else { return None };
        let (namespace, has_hooks) = match (path, peer) {
            // What a process of the node sends crosses no hook of packets, and what comes from outside no hook of sockets.
            (Path::HostToOther | Path::OutsideToSame | Path::OutsideToOther, Peer::SluicePackets) => {
                return None;
            }
            // Between nodes it is the same as by packets.
            (Path::PodToOther | Path::HostToOther | Path::OutsideToOther, Peer::SluiceDelivery) => {
                return None;
            }
            (Path::PodToSame | Path::PodToOther, Peer::SluicePackets) => {
                (&self.packet_client.machine.namespace, false)
            }
            (Path::PodToSame | Path::PodToOther, _) => (&self.client.machine.namespace, true),
            (Path::HostToOther, _) => (&one.namespace, true),
            (Path::OutsideToSame | Path::OutsideToOther, _) => (&self.cluster.client.namespace, false),
        };
        let (pod, vip) = match path {
            Path::PodToSame | Path::OutsideToSame => (&self.same, Catalogue::SAME),
            Path::PodToOther | Path::HostToOther | Path::OutsideToOther => (&self.other, Catalogue::OTHER),
        };
        let to = match (peer, path) {
            (Peer::Direct | Peer::DirectEmpty, _) => pod.machine.addresses.at(TARGET_PORT).of(Family::V4),
            (_, Path::OutsideToSame | Path::OutsideToOther) => {
                (IpAddr::from(one.addresses.v4), self.catalogue.node_port(vip)?).into()
            }
            _ => frontend(vip),
        };
        let cgroup = self.cgroups.first().filter(|_| has_hooks && self.system == System::Sluice);
        Some(Stand { namespace, cgroup, to })
    }

    /// The clients' node.
    pub(crate) fn first(&self) -> &Node {
        let [one, ..] = self.cluster.nodes.as_slice() else { unreachable!("there are two nodes") };
        one
    }

    /// What the nodes are joined by.
    pub(crate) fn fabric(&self) -> &Namespace {
        self.cluster.fabric()
    }

    /// What the clients' node has counted so far, of all services; nothing if nobody counts.
    pub(crate) fn traffic(&self) -> Result<Option<ServiceCounters>> {
        let Proxy::Agents { agents, .. } = &self.proxy else { return Ok(None) };
        agents.first().context("an agent")?.traffic().map(Some)
    }

    /// How many packets the clients' node has sent on before its stack.
    pub(crate) fn passages(&self) -> Result<u64> {
        let Proxy::Agents { agents, .. } = &self.proxy else { return Ok(0) };
        agents.first().context("an agent")?.passages(Passage::Forwarded)
    }

    /// A pod that asks a service whether it is there, by packets.
    fn probing(&self, vip: Ipv4Addr) -> Stand<'_> {
        Stand { namespace: &self.packet_client.machine.namespace, cgroup: None, to: frontend(vip) }
    }

    /// Seconds from when a service is made until a pod reaches it, and from when its endpoint is gone until it is refused.
    pub(crate) fn change(&mut self) -> Result<Option<[f64; 2]>> {
        if matches!(self.proxy, Proxy::Nothing | Proxy::Empty(_)) {
            return Ok(None);
        }
        let service = Service::passing(endpoint(&self.other));
        let emptied = service.emptied();
        let made = self.time_change(&service, true)?;
        let gone = self.time_change(&emptied, false)?;
        if let Proxy::Agents { api, .. } | Proxy::KubeProxies { api, .. } = &self.proxy {
            service.withdraw(&api.server);
        }
        Ok(Some([made, gone]))
    }

    /// How long it takes until a service is as it should be, for a pod that goes on asking meanwhile.
    fn time_change(&mut self, service: &Service, is_reached: bool) -> Result<f64> {
        let to = frontend(service.vip);
        let namespace = self.packet_client.machine.namespace.clone();
        namespace.run(|| probe::wait_until_no_more(to, is_reached, PATIENCE))?;
        thread::scope(|scope| {
            let asking = scope.spawn(move || namespace.run(|| probe::wait_until(to, is_reached, PATIENCE)));
            let begin = Instant::now();
            match &mut self.proxy {
                Proxy::Nothing | Proxy::Empty(_) => {}
                Proxy::Agents { api, .. } | Proxy::KubeProxies { api, .. } => service.publish(&api.server),
                // The other node has rules of its own, and kube-proxies do not wait for each other.
                Proxy::Rules(rules) => rules.first_mut().context("rules")?.put(service)?,
            }
            let seen = asking.join().unwrap_or_else(|panicked| std::panic::resume_unwind(panicked))?;
            let elapsed = seen.saturating_duration_since(begin);
            ensure!(!elapsed.is_zero(), "{to} was so before");
            Ok(elapsed.as_secs_f64())
        })
    }
}

fn frontend(vip: Ipv4Addr) -> SocketAddr {
    (vip, PORT).into()
}

fn endpoint(pod: &Pod) -> Endpoint4 {
    Endpoint4 { address: pod.machine.addresses.v4, node: pod.node.clone() }
}
