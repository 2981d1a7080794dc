//! From kube-proxy to Sluice: its rules, live connections through them, and away with them.

mod rules;

use std::{
    ffi::OsStr,
    process::{Child, Command, Output, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    agent::{Agent, binary},
    deployment::Deployment,
    harness::{Setup, skipped, with_cluster},
    service::{Service, TARGET_PORT},
    topology::{Cluster, Family, Node, SERVICES_V4, SERVICES_V6},
    traffic::{Chatter, Connection, Source},
    wait::wait_until,
};

use crate::Backend;

use self::rules::Kind;

/// `sluice run --cleanup-kube-proxy` on a node, run by this program, if any.
fn clean_up(node: &Node, by: &[&str]) -> Result<Output> {
    let sluice = binary()?;
    let mut words = by.iter().map(OsStr::new).chain([sluice.as_os_str()]);
    let mut command = Command::new(words.next().context("a program")?);
    command.args(words).args(["run", "--cleanup-kube-proxy"]).env("NO_COLOR", "1");
    node.namespace.run(|| command.output().context("start sluice"))
}

/// Leaves a program the capabilities of Sluice's container.
const AS_CONTAINER: [&str; 4] =
    ["setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all,+bpf,+net_admin,+perfmon"];

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Whether others have rules as well.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Others {
    Some,
    None,
}

/// A service that kube-proxy's rules on the first node lead to one pod of the second, and connections by them.
struct Before {
    old: Backend,
    service: Service,
    others: String,
    talks: Vec<Chatter>,
}

impl Before {
    fn make(cluster: &Cluster, kind: Kind, others: Others) -> Result<Self> {
        let node = &cluster.nodes[0];
        let client = node.add_pod("client")?;
        let old = Backend::on(&cluster.nodes[1], "old")?;
        let service = Service::new("echo", 1);
        if others == Others::Some {
            rules::add_others(&node.namespace, kind)?;
        }
        let others = rules::saved(&node.namespace, kind)?;
        for family in Family::ALL {
            let target = (old.pod.machine.addresses.of(family), TARGET_PORT).into();
            rules::add(&node.namespace, kind, service.frontend(family).ip(), target)?;
        }
        // A node has a way to everywhere.
        let via = cluster.nodes[1].addresses;
        node.namespace
            .ip(&format!("route add {SERVICES_V4} via {}\nroute add {SERVICES_V6} via {}", via.v4, via.v6))?;
        let mut talks = Vec::new();
        for from in [&client.machine.namespace, &node.namespace] {
            for family in Family::ALL {
                let connection = Connection::open(from, service.frontend(family), Source::AnyPort)?;
                ensure!(connection.backend == "old", "{}", connection.backend);
                talks.push(Chatter::start(connection)?);
            }
        }
        Ok(Self { old, service, others, talks })
    }

    fn expect_talks(&self, when: &'static str) -> Result<()> {
        self.talks.iter().try_for_each(|talk| talk.expect_more(20)).context(when)
    }
}

fn expect_served(cluster: &Cluster, agents: &Deployment, service: &Service, by: &str) -> Result<()> {
    let client = cluster.nodes[0].add_pod("another")?;
    // Until its device is covered, whoever else translates does.
    agents.settle()?;
    for family in Family::ALL {
        let connection =
            Connection::open(&client.machine.namespace, service.frontend(family), Source::AnyPort)?;
        ensure!(connection.backend == by, "{family}: {} serves, not {by}", connection.backend);
    }
    Ok(())
}

fn migrate(kind: Kind) {
    if let Err(reason) = rules::requirements(kind) {
        return skipped(&reason);
    }
    with_cluster(2, |cluster| {
        let node = &cluster.nodes[0];
        let before = Before::make(cluster, kind, Others::Some)?;
        let new = Backend::on(&cluster.nodes[1], "new")?;
        let agents = Deployment::start(cluster, &[])?;
        let service = before.service.clone().with(&new.pod);
        agents.serve(&service)?;
        expect_served(cluster, &agents, &service, "new")?;
        before.expect_talks("beside Sluice")?;

        let found = rules_check(&agents.agents[0])?;
        ensure!(found.contains("kube-proxy's are there"), "{found}");
        if kind == Kind::Legacy {
            // As in a container, where nobody can.
            let refused = clean_up(node, &["env", "PATH=/nonexistent"])?;
            ensure!(!refused.status.success(), "{}", said(&refused));
            ensure!(said(&refused).contains("| iptables-legacy-restore --counters"), "{}", said(&refused));
        }
        // The legacy iptables' own programs want more.
        let by: &[&str] = if kind == Kind::Legacy { &[] } else { &AS_CONTAINER };
        let cleaned = clean_up(node, by)?;
        ensure!(cleaned.status.success(), "{}", said(&cleaned));
        ensure!(said(&cleaned).contains("removed table ip"), "{}", said(&cleaned));
        let left = rules::saved(&node.namespace, kind)?;
        ensure!(left == before.others, "{left}\n--- and before:\n{}", before.others);
        before.expect_talks("after kube-proxy's rules were removed")?;
        expect_served(cluster, &agents, &service, "new")?;

        let again = clean_up(node, by)?;
        ensure!(again.status.success() && said(&again).contains("nothing to remove"), "{}", said(&again));
        let found = rules_check(&agents.agents[0])?;
        ensure!(found.starts_with("none of kube-proxy's"), "{found}");
        before.talks.into_iter().try_for_each(|talk| talk.stop().map(drop))?;
        drop(before.old);
        Ok(())
    });
}

/// What preflight says of rules.
fn rules_check(agent: &Agent) -> Result<String> {
    let answer = agent.ask_json(&["preflight"])?;
    let checks = answer["checks"].as_array().context("checks")?;
    let check = checks.iter().find(|check| check["name"] == "netfilter rules").context("of rules")?;
    Ok(check["found"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn a_node_leaves_the_mode_iptables_without_losing_a_connection() {
    migrate(Kind::Iptables);
}

#[test]
fn a_node_leaves_the_legacy_iptables_without_losing_a_connection() {
    migrate(Kind::Legacy);
}

#[test]
fn a_node_leaves_the_mode_nftables_without_losing_a_connection() {
    migrate(Kind::Nftables);
}

/// The kernel translates only as long as somebody's rule asks for it.
fn hold(kind: Kind) {
    if let Err(reason) = rules::requirements(kind) {
        return skipped(&reason);
    }
    with_cluster(2, |cluster| {
        let node = &cluster.nodes[0];
        let before = Before::make(cluster, kind, Others::None)?;
        for _ in 0..2 {
            let held = clean_up(node, &[])?;
            ensure!(!held.status.success(), "{}", said(&held));
            ensure!(said(&held).contains("translating 2 TCP connections"), "{}", said(&held));
            before.expect_talks("while they are the last")?;
        }
        // Nobody is led to the pod any more.
        let client = cluster.nodes[0].add_pod("another")?;
        for family in Family::ALL {
            let to = before.service.frontend(family);
            let refused = Connection::open(&client.machine.namespace, to, Source::AnyPort);
            ensure!(refused.is_err(), "{to} is served");
        }
        before.talks.into_iter().try_for_each(|talk| talk.stop().map(drop))?;
        let last = wait_until("nobody needs translation", || {
            let cleaned = clean_up(node, &[])?;
            Ok(cleaned.status.success().then_some(cleaned))
        })?;
        ensure!(said(&last).contains("removed table ip6 kube-proxy"), "{}", said(&last));
        let left = node.namespace.output(Command::new("nft").args(["list", "ruleset"]))?;
        ensure!(!left.contains("kube-proxy") && !left.contains("KUBE-"), "{left}");
        Ok(())
    });
}

#[test]
fn connections_go_on_although_nobody_else_translates_after_the_mode_nftables() {
    hold(Kind::Nftables);
}

#[test]
fn connections_go_on_although_nobody_else_translates_after_the_mode_iptables() {
    hold(Kind::Iptables);
}

#[test]
fn device_and_sets_of_the_mode_ipvs_are_removed_and_others_sets_stay() {
    let ipset = Command::new("ipset").arg("version").output().context("ipset is not installed");
    if let Err(reason) = ipset {
        return skipped(&reason);
    }
    with_cluster(1, |cluster| {
        let node = &cluster.nodes[0];
        // (Not every kernel has dummies, and their name is what matters.)
        node.namespace.ip("link add kube-ipvs0 type bridge\naddr add 10.96.0.1/32 dev kube-ipvs0")?;
        let ipset = |arguments: &[&str]| node.namespace.output(Command::new("ipset").args(arguments));
        for set in ["KUBE-CLUSTER-IP", "KUBE-LOAD-BALANCER", "KUBE-SRC-OTHER"] {
            ipset(&["create", set, "hash:ip,port"])?;
        }
        ipset(&["add", "KUBE-CLUSTER-IP", "10.96.0.1,80"])?;
        let cleaned = clean_up(node, &AS_CONTAINER)?;
        let text = said(&cleaned);
        ensure!(cleaned.status.success(), "{text}");
        ensure!(text.contains("removed device kube-ipvs0") && text.contains("removed 2 ipsets"), "{text}");
        ensure!(ipset(&["list", "-name"])?.trim_end() == "KUBE-SRC-OTHER", "{}", ipset(&["list"])?);
        let again = said(&clean_up(node, &AS_CONTAINER)?);
        ensure!(again.contains("nothing to remove"), "{again}");
        Ok(())
    });
}

/// A process of a node that is called kube-proxy, until it is dropped.
struct Impostor(Child);

impl Impostor {
    fn start(node: &Node) -> Result<Self> {
        let mut command = Command::new("sh");
        // It waits for its standard input.
        command.args(["-c", "printf kube-proxy > /proc/self/comm; read -r _"]).stdin(Stdio::piped());
        let child = node.namespace.spawn(command)?;
        let comm = format!("/proc/{}/comm", child.id());
        wait_until("it is called so", || {
            Ok((std::fs::read_to_string(&comm)?.trim_end() == "kube-proxy").then_some(()))
        })?;
        Ok(Self(child))
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill().and_then(|()| self.0.wait()));
    }
}

#[test]
fn an_agent_waits_for_a_running_kube_proxy_to_end_unless_it_is_told_otherwise() {
    Setup::new(1).alone().run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let agent = &mut agents.agents[0];
        agent.terminate()?;
        let running = Impostor::start(node)?;
        let refused = clean_up(node, &[])?;
        ensure!(!refused.status.success() && said(&refused).contains("as process"), "{}", said(&refused));

        agent.resume()?;
        wait_until("it waits", || {
            Ok(agent.log()?.contains("waiting up to 30 s for it to end").then_some(()))
        })?;
        // It ends as well as ever meanwhile.
        ensure!(agent.terminate()?.success(), "{}", agent.log()?);
        agent.resume()?;
        drop(running);
        agent.wait_until_synced()?;

        agent.terminate()?;
        let _running = Impostor::start(node)?;
        agent.tell(&["--allow-kube-proxy"]);
        agent.resume()?;
        agent.wait_until_synced()
    });
}
