//! `sluice explain` against what then happens.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use proxy_common::drop::DropReason;
use serde_json::Value;
use sluice_tests::{
    agent::Agent,
    cgroup::Threads,
    harness::{Setup, unsupported},
    service::{Condition, Member, PORT, Service, TARGET_PORT},
    topology::{Addresses, Ends, Family, Machine, Node},
    traffic::{Connection, Protocol, Source},
};

use super::list;
use crate::{
    Backend,
    expect::{ask, expect_dropped, expect_refused, expect_tcp_refused},
};

const NODE_PORT: u16 = 30_082;
/// What makes pods known as such: see DLOC-01.
const CLUSTER: [&str; 2] = ["--cluster-cidr", "10.244.0.0/16,fd00:10:244::/48"];
const EXTERNAL: u8 = 249;

/// Who asks: by an address, or a process of the node.
#[derive(Clone, Copy)]
enum Asking<'a> {
    Machine(&'a Machine),
    Host(&'a Node),
}

impl Asking<'_> {
    fn name(self, family: Family) -> String {
        match self {
            Self::Machine(machine) => machine.addresses.of(family).to_string(),
            Self::Host(_) => "host".to_owned(),
        }
    }

    fn machine(self) -> Machine {
        let any = |family: Family| family.unspecified();
        match self {
            Self::Machine(machine) => machine.known_as(machine.addresses),
            Self::Host(node) => {
                let (std::net::IpAddr::V4(v4), std::net::IpAddr::V6(v6)) = (any(Family::V4), any(Family::V6))
                else {
                    unreachable!("addresses of their own families");
                };
                node.machine().known_as(Addresses { v4, v6 })
            }
        }
    }
}

fn explain(agent: &Agent, from: &str, to: &str, more: &[&str]) -> Result<Value> {
    agent.ask_json(&[&["explain", "--from", from, to], more].concat())
}

/// The addresses of backends of which something is true.
fn backends(answer: &Value, is: &str) -> BTreeSet<String> {
    let wanted = list(answer, "backends").iter().filter(|row| row[is] == true);
    wanted.filter_map(|row| row["address"].as_str().map(str::to_owned)).collect()
}

/// What is said comes true: one of the backends answers that are said to be possible, all do sooner or later, and they see
/// whom they are said to see.
fn expect_served(agent: &Agent, asking: Asking<'_>, to: Ends, path: &str, all: &[&Backend]) -> Result<()> {
    for family in Family::ALL {
        for protocol in Protocol::ALL {
            let end = to.of(family);
            let target = format!("{end}/{protocol}");
            let answer = explain(agent, &asking.name(family), &target, &[])?;
            let context = || format!("{} to {target}: {answer:#}", asking.name(family));
            ensure!(answer["verdict"]["outcome"] == "served" && answer["path"] == path, "{}", context());
            let expected: BTreeSet<_> = all.iter().map(|b| address_of(b, family)).collect();
            ensure!(backends(&answer, "possible") == expected, "not to {expected:?}: {}", context());
            let client = asking.machine();
            let mut met = BTreeSet::new();
            // Two backends are both met within 40 attempts but for one time in 2^40.
            for _ in 0..40 {
                let heard = ask(&client, end, protocol).with_context(context)?;
                let backend = all.iter().find(|backend| backend.pod.name() == heard.backend);
                let address = address_of(backend.with_context(context)?, family);
                let row = list(&answer, "backends").iter().find(|row| row["address"] == address);
                let row = row.with_context(context)?;
                if let Asking::Machine(_) = asking {
                    ensure!(
                        row["seen_as"] == heard.seen_as.ip().to_string(),
                        "seen as {}: {}",
                        heard.seen_as,
                        context()
                    );
                    let masqueraded = heard.seen_as.ip() != heard.own.ip();
                    // A pod that is masqueraded towards itself is another case.
                    ensure!(row["masqueraded"] == masqueraded, "{}", context());
                    ensure!(row["masqueraded_why"].is_string() == masqueraded, "{}", context());
                }
                met.insert(address);
                if met == expected {
                    break;
                }
            }
            ensure!(met == expected, "met {met:?}: {}", context());
        }
    }
    Ok(())
}

fn address_of(backend: &Backend, family: Family) -> String {
    backend.pod.machine.addresses.at(TARGET_PORT).of(family).to_string()
}

/// What is said of all families and protocols alike: an outcome, and its reason.
fn expect_said(
    agent: &Agent,
    asking: Asking<'_>,
    to: Ends,
    outcome: &str,
    reason: Option<DropReason>,
) -> Result<()> {
    for family in Family::ALL {
        for protocol in Protocol::ALL {
            let target = format!("{}/{protocol}", to.of(family));
            let answer = explain(agent, &asking.name(family), &target, &[])?;
            let verdict = &answer["verdict"];
            let said = (verdict["outcome"].as_str(), verdict["reason"].as_str());
            ensure!(said == (Some(outcome), reason.map(DropReason::as_str)), "{target}: {answer:#}");
            ensure!(backends(&answer, "possible").is_empty(), "{target}: {answer:#}");
        }
    }
    Ok(())
}

#[test]
fn explanations_come_true_for_clients_inside_and_outside() {
    Setup::new(2).telling(&CLUSTER).alone().run(|cluster, agents| {
        let [first, second] = [&cluster.nodes[0], &cluster.nodes[1]];
        let pod = first.add_pod("pod")?;
        let near = Backend::on(first, "near")?;
        let far = Backend::on(second, "far")?;
        let agent = &agents.agents[0];
        let addresses = Addresses::elsewhere(EXTERNAL);
        cluster.client.route(addresses, first)?;
        let both = Service::new("both", 1).with(&near.pod).with(&far.pod).with_node_port(NODE_PORT);
        agents.serve(&both)?;
        let inside = Asking::Machine(&pod.machine);
        let outside = Asking::Machine(&cluster.client);
        expect_served(agent, inside, both.vip(), "tc", &[&near, &far])?;
        expect_served(agent, inside, first.addresses.at(NODE_PORT), "tc", &[&near, &far])?;
        expect_served(agent, outside, both.vip(), "tc", &[&near, &far])?;
        // Towards the backend beside it the client keeps its address, towards the other one it does not.
        expect_served(agent, outside, first.addresses.at(NODE_PORT), "tc", &[&near, &far])?;
        // A pod that reaches itself.
        let own = Service::new("both", 1).with(&near.pod).with_node_port(NODE_PORT);
        agents.serve(&own)?;
        expect_served(agent, Asking::Machine(&near.pod.machine), own.vip(), "tc", &[&near])?;

        // A policy keeps those outside on the node, and leaves those inside alone.
        let kept = both.clone().local_for_outside();
        agents.serve(&kept)?;
        expect_served(agent, outside, first.addresses.at(NODE_PORT), "tc", &[&near])?;
        expect_served(agent, inside, first.addresses.at(NODE_PORT), "tc", &[&near, &far])?;
        agents.serve(&kept.without("near"))?;
        expect_said(
            agent,
            outside,
            first.addresses.at(NODE_PORT),
            "dropped",
            Some(DropReason::NoLocalBackend),
        )?;
        expect_dropped(&cluster.client, first.addresses.at(NODE_PORT), agent, DropReason::NoLocalBackend)?;
        expect_served(agent, inside, first.addresses.at(NODE_PORT), "tc", &[&far])?;
        let kept = both.clone().without("near").local_for_inside();
        agents.serve(&kept)?;
        expect_said(agent, inside, kept.vip(), "dropped", Some(DropReason::NoLocalBackend))?;
        expect_dropped(&pod.machine, kept.vip(), agent, DropReason::NoLocalBackend)?;

        // Source ranges, at the load balancer's address only.
        let balancer =
            |ranges: &[&str]| both.clone().with_load_balancer(addresses, "VIP").with_source_ranges(ranges);
        agents.serve(&balancer(&["192.168.100.0/24", "fd00:100::/64"]))?;
        expect_served(agent, outside, addresses.at(PORT), "tc", &[&near, &far])?;
        agents.serve(&balancer(&["10.99.0.0/16", "fd00:99::/64"]))?;
        expect_said(agent, outside, addresses.at(PORT), "dropped", Some(DropReason::NotInSourceRanges))?;
        expect_dropped(&cluster.client, addresses.at(PORT), agent, DropReason::NotInSourceRanges)?;

        // Nobody serves, nobody knows the port, nobody has the address.
        let empty = Service::new("both", 1).with_node_port(NODE_PORT);
        agents.serve(&empty)?;
        for to in [empty.vip(), first.addresses.at(NODE_PORT)] {
            expect_said(agent, outside, to, "refused", Some(DropReason::NoBackend))?;
            expect_refused(&cluster.client, to)?;
        }
        let unknown = empty.vip().addresses.at(PORT + 1);
        expect_said(agent, inside, unknown, "refused", Some(DropReason::UnknownPort))?;
        expect_refused(&pod.machine, unknown)?;
        expect_said(agent, outside, far.pod.machine.addresses.at(TARGET_PORT), "passed", None)?;
        expect_said(agent, outside, first.addresses.at(NODE_PORT + 1), "passed", None)
    });
}

#[test]
fn explanations_come_true_for_processes_of_the_node() {
    Setup::new(2).telling(&CLUSTER).alone().run(|cluster, agents| {
        let [first, second] = [&cluster.nodes[0], &cluster.nodes[1]];
        let near = Backend::on(first, "near")?;
        let far = Backend::on(second, "far")?;
        let agent = &agents.agents[0];
        let host = Asking::Host(first);
        let loopback = |port: u16| Ends {
            addresses: Addresses { v4: std::net::Ipv4Addr::LOCALHOST, v6: std::net::Ipv6Addr::LOCALHOST },
            port,
        };
        let service = Service::new("echo", 1).with(&near.pod).with(&far.pod).with_node_port(NODE_PORT);
        agents.serve(&service)?;
        for to in [service.vip(), first.addresses.at(NODE_PORT), loopback(NODE_PORT)] {
            expect_served(agent, host, to, "socket", &[&near, &far])?;
        }
        // The node's own address is its processes'.
        let own = first.addresses.v4.to_string();
        let to = service.frontend(Family::V4).to_string();
        let answer = explain(agent, &own, &to, &[])?;
        ensure!(answer["client"]["is_host"] == true && answer["path"] == "socket", "{answer:#}");
        agents.serve(&Service::new("echo", 1).with_node_port(NODE_PORT))?;
        expect_said(agent, host, service.vip(), "refused", Some(DropReason::NoBackend))?;
        for family in Family::ALL {
            expect_tcp_refused(&first.namespace, service.frontend(family))?;
        }
        agents.serve(&Service::new("echo", 1).with(&far.pod).local_for_inside())?;
        expect_said(agent, host, service.vip(), "dropped", Some(DropReason::NoLocalBackend))?;
        let heard = ask(&host.machine(), service.frontend(Family::V4), Protocol::Tcp);
        ensure!(heard.is_err(), "{heard:?}");
        expect_said(agent, host, loopback(9), "passed", None)
    });
}

#[test]
fn explanations_tell_where_pods_are_served_at_their_sockets() {
    // Those of this process's own cgroup are other tests' pods, too.
    let threads = match Threads::create("explained") {
        Ok(threads) => threads,
        Err(reason) => return unsupported(&reason),
    };
    let cgroup = format!("--cgroup={}", threads.path().display());
    Setup::new(2).telling(&["--socket-lb=on", &cgroup]).alone().run(|cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let agent = &agents.agents[0];
        let service = Service::new("echo", 1).with(&near.pod).with(&far.pod);
        agents.serve(&service)?;
        for family in Family::ALL {
            let from = pod.machine.addresses.of(family).to_string();
            for (protocol, path) in [(Protocol::Tcp, "socket"), (Protocol::Udp, "tc")] {
                let to = service.frontend(family);
                let answer = explain(agent, &from, &format!("{to}/{protocol}"), &[])?;
                ensure!(answer["path"] == path && backends(&answer, "possible").len() == 2, "{answer:#}");
                let packets = || -> Result<u64> {
                    let all = agent.ask_json(&["services", "--service", "default/echo"])?;
                    Ok(list(&all, "services").iter().filter_map(|row| row["packets"].as_u64()).sum())
                };
                let before = packets()?;
                threads.run(|| ask(&pod.machine, to, protocol))?;
                // What is decided at the socket is no service's packet.
                ensure!((packets()? > before) == (path == "tc"), "{to}/{protocol} is not served by {path}");
            }
        }
        Ok(())
    });
}

#[test]
fn explanations_tell_affinity_and_the_flows_that_there_are() {
    Setup::new(2).alone().run(|cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let agent = &agents.agents[0];
        let service = Service::new("echo", 1).with(&near.pod).with(&far.pod).with_affinity(600);
        agents.serve(&service)?;
        let from = pod.machine.addresses.v4.to_string();
        let to = service.frontend(Family::V4);
        let asked = || explain(agent, &from, &to.to_string(), &[]);
        let before = asked()?;
        ensure!(
            before["affinity"]["seconds"] == 600 && before["affinity"]["backend"].is_null(),
            "{before:#}"
        );
        ensure!(backends(&before, "possible").len() == 2, "{before:#}");
        let connection = Connection::open(&pod.machine.namespace, to, Source::AnyPort)?;
        let after = asked()?;
        let used_to = if connection.backend == "near" { &near } else { &far };
        let address = address_of(used_to, Family::V4);
        ensure!(after["affinity"]["backend"] == address && after["affinity"]["counts"] == true, "{after:#}");
        ensure!(backends(&after, "possible") == BTreeSet::from([address.clone()]), "{after:#}");
        ensure!(backends(&after, "in_set").len() == 2, "{after:#}");
        let [flow] = list(&after, "flows") else {
            anyhow::bail!("not one flow: {after:#}");
        };
        ensure!(flow["backend"] == address && flow["client"] == connection.local()?.to_string(), "{flow:#}");
        // The other backend alone is left: the client is used to nobody that counts.
        agents.serve(&service.without(used_to.pod.name()))?;
        let later = asked()?;
        ensure!(later["affinity"]["counts"] == false && backends(&later, "possible").len() == 1, "{later:#}");
        Ok(())
    });
}

#[test]
fn asking_changes_nothing() {
    Setup::new(1).alone().run(|cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let agent = &agents.agents[0];
        let service = Service::new("echo", 1).with(&near.pod).with_affinity(600);
        agents.serve(&service)?;
        let nothing = || -> Result<bool> {
            let services = agent.ask_json(&["services"])?;
            let counted =
                list(&services, "services").iter().any(|row| row["connections"] != 0 || row["drops"] != 0);
            let status = agent.ask_json(&["status"])?;
            let used = list(&status, "tables").iter().any(|table| {
                ["FLOWS", "AFFINITIES", "SOCKETS", "FRAGMENTS"].iter().any(|name| table["name"] == *name)
                    && table["used"] != 0
            });
            let dropped =
                status["drops"].as_object().is_some_and(|drops| drops.values().any(|count| *count != 0));
            Ok(!counted && !used && !dropped)
        };
        ensure!(nothing()?, "something has happened before");
        for from in [pod.machine.addresses.v4.to_string(), "host".to_owned()] {
            for port in [PORT, PORT + 1] {
                explain(agent, &from, &service.vip().addresses.at(port).of(Family::V4).to_string(), &[])?;
            }
        }
        ensure!(nothing()?, "{:#}", agent.ask_json(&["status"])?);
        Ok(())
    });
}

#[test]
fn objects_say_why_an_endpoint_is_left_out() {
    Setup::new(2).telling(&CLUSTER).alone().run(|cluster, agents| {
        let [first, second] = [&cluster.nodes[0], &cluster.nodes[1]];
        let pod = first.add_pod("pod")?;
        let [near, far, slow, late] = [(first, "near"), (second, "far"), (second, "slow"), (first, "late")]
            .map(|(node, name)| Backend::on(node, name));
        let (near, far, slow, late) = (near?, far?, slow?, late?);
        let agent = &agents.agents[0];
        let service = Service::new("echo", 1)
            .with(&near.pod)
            .with(&far.pod)
            .with_member(Member::of(&slow.pod).being(Condition::Unready))
            .with_member(Member::of(&late.pod).being(Condition::Terminating))
            .with_node_port(NODE_PORT)
            .local_for_outside();
        agents.serve(&service)?;
        let manifests = agent.manifests.path().to_str().context("a path in UTF-8")?.to_owned();
        let objects = ["--manifests", manifests.as_str(), "--hostname-override", first.name.as_str()];
        let ask = |from: &Machine, to: String| {
            explain(&agents.agents[0], &from.addresses.v4.to_string(), &to, &objects)
        };
        let said = |answer: &Value, backend: &Backend| -> Result<Value> {
            let address = address_of(backend, Family::V4);
            let row = list(answer, "backends").iter().find(|row| row["address"] == address).cloned();
            row.with_context(|| format!("{address}: {answer:#}"))
        };
        let inside = ask(&pod.machine, service.frontend(Family::V4).to_string())?;
        let outside = ask(&cluster.client, first.addresses.at(NODE_PORT).of(Family::V4).to_string())?;
        for (answer, backend, in_set, why) in [
            (&inside, &near, true, None),
            (&inside, &far, true, None),
            (&inside, &slow, false, Some("not ready")),
            (&inside, &late, false, Some("terminates, and others are ready")),
            (&outside, &near, true, None),
            (&outside, &far, false, Some("on another node")),
            (&outside, &slow, false, Some("not ready")),
            (&outside, &late, false, Some("terminates, and others are ready")),
        ] {
            let row = said(answer, backend)?;
            let objects = &row["objects"];
            ensure!(objects["in_set"] == in_set && row["in_set"] == in_set, "{row:#}");
            ensure!(objects["why_not"].as_str() == why, "{row:#}");
        }
        ensure!(
            list(&inside, "problems").is_empty() && list(&outside, "problems").is_empty(),
            "{inside:#} {outside:#}"
        );

        // The objects say otherwise than the kernel: an agent that is not there.
        agents.agents[0].kill()?;
        let agent = &agents.agents[0];
        agent.manifests.publish(&service.clone().with_condition("slow", Condition::Ready))?;
        agent.manifests.publish(&Service::new("new", 9).with(&near.pod))?;
        let to = service.frontend(Family::V4).to_string();
        let answer = explain(agent, &pod.machine.addresses.v4.to_string(), &to, &objects)?;
        let problem = |answer: &Value, part: &str| {
            list(answer, "problems").iter().any(|text| text.as_str().is_some_and(|text| text.contains(part)))
        };
        ensure!(problem(&answer, &address_of(&slow, Family::V4)), "{answer:#}");
        let to = Service::new("new", 9).frontend(Family::V4).to_string();
        let answer = explain(agent, &pod.machine.addresses.v4.to_string(), &to, &objects)?;
        ensure!(problem(&answer, "default/new:tcp/TCP/IPv4"), "{answer:#}");
        Ok(())
    });
}

#[test]
fn what_nobody_can_answer_is_said() {
    Setup::new(1).alone().run(|cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let service = Service::new("echo", 1).with(&near.pod);
        agents.serve(&service)?;
        let agent = &agents.agents[0];
        let to = service.frontend(Family::V4).to_string();
        let from = pod.machine.addresses.v4.to_string();
        for (arguments, part) in [
            (vec!["explain", "--from", "10.99.99.99", &to], "no route leads to 10.99.99.99"),
            (vec!["explain", "--from", &from, "--device", "nic7", &to], "nic7"),
            (vec!["explain", "--from", "host", "--device", "eth0", &to], "--from host"),
            (vec!["explain", "--from", "nobody", &to], "nobody"),
            (vec!["explain", "--from", &from, "10.96.0.1"], "no address and port"),
        ] {
            let said = agent.ask(&arguments).err().map(|error| format!("{error:#}")).unwrap_or_default();
            ensure!(said.contains(part), "{arguments:?}: {said}");
        }
        // By a device that is named, whatever the routes say.
        let answer = explain(agent, "10.99.99.99", &to, &["--device", "eth0"])?;
        ensure!(
            answer["client"]["device_name"] == "eth0" && answer["verdict"]["outcome"] == "served",
            "{answer:#}"
        );
        // Somebody takes the programs away.
        agent.detach_all()?;
        let answer = explain(agent, &from, &to, &[])?;
        ensure!(answer["path"] == "none" && answer["verdict"]["outcome"] == "passed", "{answer:#}");
        ensure!(
            answer["verdict"]["text"].as_str().is_some_and(|text| text.contains("no program")),
            "{answer:#}"
        );
        Ok(())
    });
}
