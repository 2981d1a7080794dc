//! Which pods are served at their sockets, and which are left to packets.
//!
//! A pod is a network namespace and a cgroup that is called as kubelet calls it. Which way its connections went is seen in the
//! kernel's table of sockets: those that were served at their sockets are connected to a backend, the others to the service.

use std::{fs, net::SocketAddr};

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MsFlags, mount};
use serde_json::Value;
use sluice_tests::{
    agent::Agent,
    cgroup::{PodCgroups, Threads},
    deployment::Deployment,
    harness::{Setup, unsupported},
    pod::PodObject,
    sandbox::FILES,
    service::{PORT, Service, TARGET_PORT},
    topology::{Addresses, Cluster, Family, Machine, Pod},
    traffic::{Connection, Source},
    wait::wait_until,
};

use crate::{
    Backend,
    expect::{Seen, expect_reach},
    sockets::modes::as_kernel_writes,
};

/// How the connections of a pod go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Sockets,
    Packets,
}
use Way::{Packets, Sockets};

impl Way {
    /// As `sluice status` calls it.
    fn by(self) -> &'static str {
        match self {
            Sockets => "sockets",
            Packets => "packets",
        }
    }
}

/// A node whose agent serves a service, and a pod's network to reach it from. Whose process somebody is, its cgroup says.
struct Bed<'a> {
    agents: &'a mut Deployment,
    client: Pod,
    near: Backend,
    service: Service,
}

impl Bed<'_> {
    fn agent(&mut self) -> &mut Agent {
        &mut self.agents.agents[0]
    }

    /// Connections from a cgroup go that way, and whoever makes them sees nothing but the service.
    fn expect(&self, cgroup: &Threads, way: Way) -> Result<()> {
        self.expect_from(&self.client.machine, cgroup, way)
    }

    fn expect_from(&self, client: &Machine, cgroup: &Threads, way: Way) -> Result<()> {
        let open =
            |family| Connection::open(&client.namespace, self.service.frontend(family), Source::AnyPort);
        // To enter a cgroup takes the kernel longer than to connect.
        let connections = cgroup.run(|| Family::ALL.into_iter().map(open).collect::<Result<Vec<_>>>())?;
        for (family, connection) in Family::ALL.into_iter().zip(connections) {
            let to = self.service.frontend(family);
            ensure!(connection.backend == "near" && connection.peer()? == to, "{connection:?}");
            let peer = match way {
                Sockets => self.near.pod.machine.addresses.at(TARGET_PORT).of(family),
                Packets => to,
            };
            expect_connected(client, connection.local()?, peer)
                .with_context(|| format!("{}: not by {}", cgroup.path().display(), way.by()))?;
            connection.abort()?;
        }
        Ok(())
    }

    /// Waits until the kernel knows these pods and no others: name, how it is served, why.
    fn wait_for(&self, expected: &[(&str, Way, &str)]) -> Result<Value> {
        let mut expected: Vec<_> =
            expected.iter().map(|&(name, way, reason)| (format!("web/{name}"), way.by(), reason)).collect();
        expected.sort();
        wait_until(&format!("the kernel knows {expected:?}"), || {
            let status = self.status()?;
            let text = |row: &Value, field: &str| row[field].as_str().unwrap_or_default().to_owned();
            let known = status["pods"]["known"].as_array().context("a list")?.iter();
            let known = known.map(|row| (text(row, "name"), text(row, "by"), text(row, "reason")));
            let same = known.eq(expected
                .iter()
                .map(|(name, by, reason)| (name.clone(), (*by).to_owned(), (*reason).to_owned())));
            Ok(same.then_some(status))
        })
    }

    fn status(&self) -> Result<Value> {
        let status = self.agents.agents[0].ask(&["status", "-o", "json"])?;
        Ok(serde_json::from_str::<Value>(&status)?["sockets"].take())
    }

    fn publish(&self, pod: &PodObject) -> Result<()> {
        self.agents.agents[0].manifests.publish_pod(pod)
    }

    fn withdraw(&self, pod: &PodObject) -> Result<()> {
        self.agents.agents[0].manifests.withdraw_pod(pod)
    }

    /// Ends the agent, and starts it again in another mode.
    fn restart(&mut self, arguments: &[&str]) -> Result<()> {
        let agent = self.agent();
        agent.terminate()?;
        agent.tell(arguments);
        agent.resume()?;
        agent.wait_until_synced()
    }
}

/// The socket of that machine with this end is connected to `peer`, whatever the process believes.
fn expect_connected(client: &Machine, local: SocketAddr, peer: SocketAddr) -> Result<()> {
    let file = if peer.is_ipv4() { "tcp" } else { "tcp6" };
    let table = client.namespace.run(|| Ok(fs::read_to_string(format!("/proc/thread-self/net/{file}"))?))?;
    let (local, peer) = (as_kernel_writes(local), as_kernel_writes(peer));
    let mut rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let row = rows.find(|row| row.get(1) == Some(&local.as_str()));
    let row = row.with_context(|| format!("no socket {local} in\n{table}"))?;
    ensure!(row.get(2) == Some(&peer.as_str()), "connected to {}, not to {peer}", row[2]);
    Ok(())
}

/// Runs a test on a node whose agent is told this.
fn with_pods(
    arguments: &[&str],
    mut cgroups: PodCgroups,
    test: impl FnOnce(&Cluster, &mut Bed<'_>, &mut PodCgroups) -> Result<()>,
) {
    let flag = cgroups.flag();
    Setup::new(1).telling(&[&[flag.as_str()], arguments].concat()).alone().run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let near = Backend::on(node, "near")?;
        let client = node.add_pod("client")?;
        let service = Service::new("echo", 1).with(&near.pod);
        agents.serve(&service)?;
        test(cluster, &mut Bed { agents, client, near, service }, &mut cgroups)
    });
}

/// A test's cgroups, with these in it; says so if there cannot be any.
fn cgroups(paths: &[&str]) -> Option<PodCgroups> {
    let made = PodCgroups::new().and_then(|mut cgroups| {
        paths.iter().try_for_each(|path| cgroups.make(path))?;
        Ok(cgroups)
    });
    made.map_err(|reason| unsupported(&reason)).ok()
}

const UID: &str = "4dbd2e5a-6f9f-4c2e-a33c-41d6eeab5c0";

/// What is in the cgroup of the pod number `n`, whose uid ends so.
fn uid(n: usize) -> String {
    format!("{UID}{n:x}")
}

/// A pod, its cgroup, how it goes under `auto` and under `on`, and why.
struct Sort {
    pod: PodObject,
    cgroup: String,
    auto: Way,
    on: Way,
    reason: &'static str,
}

/// Pods that are judged in every way, in cgroups as both drivers make them.
fn all_sorts() -> Vec<Sort> {
    let burstable = |n| format!("kubepods/burstable/pod{}", uid(n));
    let escaped = |n| uid(n).replace('-', "_");
    let kind = |n| {
        let slices = "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice";
        format!("{slices}/kubelet-kubepods-besteffort-pod{}.slice", escaped(n))
    };
    let pod = |name, n| PodObject::new(name, &uid(n));
    let sort = |pod, cgroup, auto, on, reason| Sort { pod, cgroup, auto, on, reason };
    let slice = format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{}.slice", escaped(2));
    let hash = "ba0e2b2ad2ff1d8a1ee2eb5bb3b1a5d3";
    let mirror = pod("static", 4).annotated("kubernetes.io/config.hash", hash);
    let sidecar = pod("sidecar", 5).annotated("sidecar.istio.io/status", "{}").beside("istio-proxy");
    let eager = pod("in", 9).choosing("on").beside("istio-proxy").with("runtimeClassName", "kata");
    vec![
        sort(pod("plain", 0), burstable(0), Sockets, Sockets, "eligible"),
        sort(pod("guaranteed", 1), format!("kubepods/pod{}", uid(1)), Sockets, Sockets, "eligible"),
        sort(pod("slice", 2), slice, Sockets, Sockets, "eligible"),
        sort(pod("kind", 3), kind(3), Sockets, Sockets, "eligible"),
        sort(mirror, format!("kubepods/burstable/pod{hash}"), Sockets, Sockets, "eligible"),
        sort(sidecar, burstable(5), Packets, Sockets, "service-mesh"),
        sort(pod("linkerd", 6).beside("linkerd-proxy"), kind(6), Packets, Sockets, "service-mesh"),
        sort(
            pod("sandbox", 7).with("runtimeClassName", "kata"),
            burstable(7),
            Packets,
            Sockets,
            "runtime-class",
        ),
        sort(pod("out", 8).choosing("off"), burstable(8), Packets, Packets, "opted-out"),
        sort(eager, kind(9), Sockets, Sockets, "opted-in"),
        sort(pod("wrong", 10).choosing("yes"), burstable(10), Packets, Packets, "unknown-choice"),
    ]
}

#[test]
fn pods_go_by_sockets_or_packets_as_mode_and_label_and_mesh_and_runtime_say() {
    let sorts = all_sorts();
    let unknown = format!("kubepods/burstable/pod{}", uid(11));
    let paths: Vec<&str> = sorts.iter().map(|sort| sort.cgroup.as_str()).chain([unknown.as_str()]).collect();
    let Some(cgroups) = cgroups(&paths) else { return };
    with_pods(&[], cgroups, |cluster, bed, cgroups| {
        let flag = cgroups.flag();
        sorts.iter().try_for_each(|sort| bed.publish(&sort.pod))?;
        // A pod of another node, though its uid is that of a cgroup here.
        bed.publish(&PodObject::new("elsewhere", &uid(11)).with("nodeName", "node-2"))?;
        for (mode, others, by_sockets) in [("auto", Packets, 6), ("on", Sockets, 9)] {
            if mode == "on" {
                bed.restart(&[&flag, "--socket-lb=on"])?;
            }
            let way = |sort: &Sort| if mode == "auto" { sort.auto } else { sort.on };
            let expected: Vec<_> =
                sorts.iter().map(|sort| (sort.pod.name(), way(sort), sort.reason)).collect();
            let status = bed.wait_for(&expected)?;
            for sort in &sorts {
                let cgroup = cgroups.get(&sort.cgroup)?;
                let context = || format!("{} under {mode}", sort.pod.name());
                bed.expect(cgroup, way(sort)).with_context(context)?;
                if sort.reason == "opted-out" {
                    // What is in the host's network is the host's, wherever it is.
                    bed.expect_from(&cluster.nodes[0].machine(), cgroup, Sockets).with_context(context)?;
                }
            }
            bed.expect(cgroups.get(&unknown)?, others).context("nothing is known of the pod")?;
            bed.expect(cgroups.served(), others).context("in no pod's cgroup")?;
            // Datagrams are left to packets in any case.
            let reach = || expect_reach(&bed.client.machine, bed.service.vip(), "near", &Seen::Client);
            cgroups.get(&sorts[0].cgroup)?.run(reach)?;

            let count = |by: &str| -> u64 {
                let counts = status["pods"][by].as_object().into_iter().flatten();
                counts.filter_map(|(_, count)| count.as_u64()).sum()
            };
            ensure!(status["mode"] == mode && status["pods"]["listed"] == true, "{status:#}");
            ensure!(
                count("by_sockets") == by_sockets && count("by_packets") == 11 - by_sockets,
                "{status:#}"
            );
            let text = bed.agent().ask(&["status"])?;
            let line = format!("{by_sockets} by sockets (");
            ensure!(text.contains(&format!("sockets  {mode}: ")) && text.contains(&line), "{text}");
            let log = bed.agent().log()?;
            let told = log.lines().filter(|line| line.contains("web/wrong") && line.contains("\"yes\""));
            ensure!(told.count() == if mode == "auto" { 1 } else { 2 }, "told once in each life:\n{log}");
        }
        // Nobody asks any more.
        bed.restart(&[&flag, "--socket-lb=host-only"])?;
        bed.wait_for(&[])?;
        sorts.iter().try_for_each(|sort| bed.expect(cgroups.get(&sort.cgroup)?, Packets))
    });
}

#[test]
fn a_pod_is_served_from_when_it_is_known_until_it_is_gone() {
    let Some(cgroups) = cgroups(&[]) else { return };
    with_pods(&["--socket-lb=auto"], cgroups, |_, bed, cgroups| {
        // The cgroup first, in directories that were not there either.
        let path = format!("kubepods/burstable/pod{}", uid(1));
        cgroups.make(&path)?;
        bed.expect(cgroups.get(&path)?, Packets).context("unknown at first")?;
        let pod = PodObject::new("a", &uid(1));
        bed.publish(&pod)?;
        bed.wait_for(&[("a", Sockets, "eligible")])?;
        bed.expect(cgroups.get(&path)?, Sockets)?;
        // The pod first.
        let other = ("b", Sockets, "eligible");
        let late = format!("kubepods/pod{}", uid(2));
        bed.publish(&PodObject::new("b", &uid(2)))?;
        bed.agents.settle()?;
        cgroups.make(&late)?;
        bed.wait_for(&[("a", Sockets, "eligible"), other])?;
        bed.expect(cgroups.get(&late)?, Sockets)?;
        // It changes its mind, a mesh takes it in, it changes its mind again.
        for (pod, way, reason) in [
            (pod.clone().choosing("off"), Packets, "opted-out"),
            (pod.clone().annotated("ambient.istio.io/redirection", "enabled"), Packets, "service-mesh"),
            (pod.clone().choosing("on"), Sockets, "opted-in"),
        ] {
            bed.publish(&pod)?;
            bed.wait_for(&[("a", way, reason), other])?;
            bed.expect(cgroups.get(&path)?, way)?;
            bed.expect(cgroups.get(&late)?, Sockets)?;
        }
        // Its object goes, its last process stays, then goes too.
        bed.withdraw(&pod)?;
        bed.agents.settle()?;
        bed.expect(cgroups.get(&path)?, Sockets)?;
        cgroups.remove(&path)?;
        bed.wait_for(&[other])?;
        // A cgroup of the same name belongs to nobody that is known.
        cgroups.make(&path)?;
        bed.expect(cgroups.get(&path)?, Packets)?;
        bed.expect(cgroups.get(&late)?, Sockets)
    });
}

#[test]
fn what_is_known_of_pods_outlives_the_agent() {
    let paths = [1, 2].map(|n| format!("kubepods/burstable/pod{}", uid(n)));
    let Some(cgroups) = cgroups(&[&paths[0], &paths[1]]) else { return };
    with_pods(&["--socket-lb=auto"], cgroups, |_, bed, cgroups| {
        bed.publish(&PodObject::new("a", &uid(1)))?;
        bed.publish(&PodObject::new("b", &uid(2)).choosing("off"))?;
        let known = [("a", Sockets, "eligible"), ("b", Packets, "opted-out")];
        bed.wait_for(&known)?;
        let expect = |bed: &Bed<'_>| -> Result<()> {
            bed.expect(cgroups.get(&paths[0])?, Sockets)?;
            bed.expect(cgroups.get(&paths[1])?, Packets)
        };
        expect(bed)?;
        bed.agent().kill()?;
        expect(bed).context("without an agent")?;
        bed.wait_for(&known).context("status needs no agent")?;
        // It changes its mind while nobody listens.
        bed.publish(&PodObject::new("b", &uid(2)))?;
        bed.agent().resume()?;
        bed.agent().wait_until_synced()?;
        bed.wait_for(&[("a", Sockets, "eligible"), ("b", Sockets, "eligible")])?;
        paths.iter().try_for_each(|path| bed.expect(cgroups.get(path)?, Sockets))
    });
}

/// As in a container with a cgroup namespace of its own: what is mounted has another cgroup for its root.
#[test]
fn without_the_root_of_cgroup2_pods_are_left_to_packets_and_status_says_so() {
    let path = format!("kubepods/burstable/pod{}", uid(1));
    let Some(cgroups) = cgroups(&[&path]) else { return };
    for mode in ["auto", "on"] {
        let part = format!("{FILES}/part-of-cgroup2-{mode}");
        let served = cgroups.served().path().to_owned();
        Setup::new(1).alone().run(|cluster, agents| {
            let node = &cluster.nodes[0];
            node.namespace.run(|| {
                fs::create_dir(&part).with_context(|| format!("create {part}"))?;
                let none = None::<&str>;
                mount(Some(&served), part.as_str(), none, MsFlags::MS_BIND, none).context("bind a cgroup")
            })?;
            let near = Backend::on(node, "near")?;
            let client = node.add_pod("client")?;
            let service = Service::new("echo", 1).with(&near.pod);
            agents.serve(&service)?;
            let bed = &mut Bed { agents, client, near, service };
            bed.publish(&PodObject::new("a", &uid(1)))?;
            bed.restart(&[&format!("--cgroup={part}"), &format!("--socket-lb={mode}")])?;
            bed.agents.settle()?;
            bed.expect(cgroups.get(&path)?, Packets)?;
            bed.expect_from(&node.machine(), cgroups.get(&path)?, Sockets)?;
            let status = bed.agent().ask(&["status"])?;
            ensure!(status.contains("pods     by packets") && status.contains("root of cgroup2"), "{status}");
            let log = bed.agent().log()?;
            ensure!(log.contains("pods are left to packets"), "{log}");
            bed.wait_for(&[]).map(drop)
        });
    }
}

/// A service that asks where clients come from is for packets to decide, whoever asks.
#[test]
fn known_pods_too_leave_to_packets_what_only_packets_can_decide() {
    let path = format!("kubepods/burstable/pod{}", uid(1));
    let Some(cgroups) = cgroups(&[&path]) else { return };
    with_pods(&["--socket-lb=auto"], cgroups, |_, bed, cgroups| {
        bed.publish(&PodObject::new("a", &uid(1)))?;
        bed.wait_for(&[("a", Sockets, "eligible")])?;
        let external = Addresses::elsewhere(250);
        let service =
            Service::new("outside", 2).with(&bed.near.pod).with_external_ips(external).local_for_outside();
        bed.agents.serve(&service)?;
        let to = external.at(PORT).of(Family::V4);
        let client = &bed.client.machine;
        let open = || Connection::open(&client.namespace, to, Source::AnyPort);
        let connection = cgroups.get(&path)?.run(open)?;
        expect_connected(client, connection.local()?, to)?;
        bed.expect(cgroups.get(&path)?, Sockets)
    });
}
