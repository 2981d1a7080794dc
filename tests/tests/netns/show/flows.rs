//! `sluice flows` and `sluice backends` against connections that are open.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sluice_tests::{
    agent::Agent,
    harness::Setup,
    listener::Listener,
    service::{Condition, PORT, Service},
    topology::Family,
    traffic::{Connection, Protocol, Source, UdpClient},
    wait::wait_until,
};

use super::list;
use crate::Backend;

const NODE_PORT: u16 = 30_081;

/// The only flow that these filters leave.
fn only(agent: &Agent, filters: &[&str]) -> Result<Value> {
    let answer = agent.ask_json(&[&["flows"], filters].concat())?;
    match list(&answer, "flows") {
        [flow] => Ok(flow.clone()),
        _ => anyhow::bail!("not one flow with {filters:?}: {answer:#}"),
    }
}

/// The flows that these filters leave.
fn count(agent: &Agent, filters: &[&str]) -> Result<usize> {
    Ok(list(&agent.ask_json(&[&["flows"], filters].concat())?, "flows").len())
}

#[test]
fn each_connection_is_one_flow_that_names_all_its_ends() {
    Setup::new(2).alone().run(|cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let agent = &agents.agents[0];
        let inside = Service::new("inside", 1).with(&near.pod);
        let outside = Service::new("outside", 2).with(&far.pod).with_node_port(NODE_PORT);
        agents.serve(&inside)?;
        agents.serve(&outside)?;
        for family in Family::ALL {
            let name = |service: &str| format!("default/{service}:tcp/TCP/{family}");
            // A pod, and a backend beside it: nobody's address changes.
            let to = inside.frontend(family);
            let connection = Connection::open(&pod.machine.namespace, to, Source::AnyPort)?;
            let own = connection.local()?.to_string();
            let flow = only(agent, &["--service", "default/inside:tcp", "--client", &own])?;
            let backend = near.pod.machine.addresses.at(8080).of(family);
            let expected = serde_json::json!({
                "service": name("inside"), "protocol": "TCP", "client": own, "frontend": to, "backend": backend,
                "backend_id": flow["backend_id"], "backend_state": "serving", "seen_as": own, "masqueraded": false,
                "dsr": false, "state": "established", "idle_seconds": flow["idle_seconds"],
                "expires_in_seconds": flow["expires_in_seconds"],
            });
            ensure!(flow == expected, "{flow:#}");
            ensure!(flow["idle_seconds"].as_u64() < Some(30), "{flow:#}");
            let left = flow["expires_in_seconds"].as_u64().context("a time to live")?;
            ensure!((86_000..=86_400).contains(&left), "{flow:#}");

            // From outside to another node: the node's address stands in, and the backend says which.
            let to = cluster.nodes[0].addresses.at(NODE_PORT).of(family);
            let masked = Connection::open(&cluster.client.namespace, to, Source::AnyPort)?;
            let own = masked.local()?.to_string();
            let flow = only(agent, &["--client", &own])?;
            ensure!(flow["seen_as"] == masked.seen_as.to_string() && flow["masqueraded"] == true, "{flow:#}");
            ensure!(flow["service"] == name("outside") && flow["frontend"] == to.to_string(), "{flow:#}");

            // Every filter finds it, and none that is about something else.
            let ip = cluster.client.addresses.of(family).to_string();
            let frontend = to.to_string();
            let backend = far.pod.machine.addresses.of(family).to_string();
            let network = if family == Family::V4 { "192.168.100.0/24" } else { "fd00:100::/64" };
            for (filters, expected) in [
                (vec!["--client", network], 1),
                (vec!["--client", &ip, "--protocol", "tcp"], 1),
                (vec!["--client", &ip, "--protocol", "udp"], 0),
                (vec!["--frontend", &frontend], 1),
                (vec!["--backend", &backend], 1),
                (vec!["--client", &ip, "--state", "established"], 1),
                (vec!["--client", &ip, "--state", "syn-sent,time-wait"], 0),
                (vec!["--client", &ip, "--service", "default/inside"], 0),
            ] {
                let found = count(agent, &filters)?;
                ensure!(found == expected, "{found} flows with {filters:?}");
            }
            let table = agent.ask(&["flows", "--client", &own])?;
            ensure!(table.contains(&format!("seen as {}", masked.seen_as)), "{table}");
            masked.abort()?;
            wait_until("the flow is reset", || {
                Ok((count(agent, &["--client", &own, "--state", "reset"])? == 1).then_some(()))
            })?;
            connection.abort()?;
        }
        let error = agent.ask(&["flows", "--service", "default/nobody"]).unwrap_err();
        ensure!(format!("{error:#}").contains("default/nobody"), "{error:#}");
        Ok(())
    });
}

#[test]
fn backends_are_told_with_their_sets_and_their_flows() {
    Setup::new(2).alone().run(|cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let agent = &agents.agents[0];
        let service = Service::new("echo", 1)
            .with(&near.pod)
            .with(&far.pod)
            .with_node_port(NODE_PORT)
            .local_for_outside();
        agents.serve(&service)?;
        let told = |address: &str| -> Result<Option<Value>> {
            let answer = agent.ask_json(&["backends", "--service", "default/echo:tcp"])?;
            Ok(list(&answer, "backends").iter().find(|row| row["address"] == address).cloned())
        };
        let [near_end, far_end] =
            [&near, &far].map(|backend| backend.pod.machine.addresses.at(8080).of(Family::V4).to_string());
        let connections = Connection::open_many(&pod.machine.namespace, service.frontend(Family::V4), 20)?;
        let on_far = connections.iter().filter(|connection| connection.backend == "far").count();
        let row = told(&near_end)?.context("the backend beside the client")?;
        ensure!(
            row["local"] == true && row["in_local_set"] == true && row["in_cluster_set"] == true,
            "{row:#}"
        );
        ensure!(row["flows"] == 20 - on_far && row["state"] == "serving", "{row:#}");
        let row = told(&far_end)?.context("the other backend")?;
        ensure!(
            row["local"] == false && row["in_local_set"] == false && row["in_cluster_set"] == true,
            "{row:#}"
        );
        ensure!(row["flows"] == on_far, "{row:#}");

        // It leaves: as long as it has connections, it is told.
        ensure!(on_far > 0, "all of 20 connections went to one of two backends");
        agents.serve(&service.clone().without("far"))?;
        let row = told(&far_end)?.context("a backend that has flows")?;
        ensure!(row["state"] == "gone" && row["flows"] == on_far, "{row:#}");
        connections.into_iter().try_for_each(Connection::abort)?;
        wait_until("the backend that is gone is forgotten", || Ok(told(&far_end)?.is_none().then_some(())))?;

        // Of UDP, one that terminates keeps what it has.
        let answer =
            UdpClient::bind(&pod.machine.namespace, Family::V4)?.ask(service.frontend(Family::V4), 1)?;
        ensure!(["near", "far"].contains(&answer.backend.as_str()));
        agents.serve(&service.with_condition("near", Condition::Terminating))?;
        let answer = agent.ask_json(&["backends", "--service", "default/echo:udp/UDP/IPv4"])?;
        let row =
            list(&answer, "backends").iter().find(|row| row["address"] == near_end).context("near")?.clone();
        // The policy's set has nobody better.
        ensure!(row["in_cluster_set"] == false && row["in_local_set"] == true, "{row:#}");
        Ok(())
    });
}

#[test]
fn flows_are_followed_as_they_begin_change_and_end() {
    Setup::new(1).alone().run(|cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let service = Service::new("echo", 1).with(&near.pod);
        agents.serve(&service)?;
        let to = service.frontend(Family::V4);
        let from = &pod.machine.namespace;
        let first = Connection::open(from, to, Source::AnyPort)?;
        let listener = Listener::start(&agents.agents[0], &["flows", "-w", "--service", "default/echo"])?;
        let of = |own: String, change: &'static str| {
            move |event: &Value| event["client"] == own && event["change"] == change
        };
        listener.wait_for("the first is told", of(first.local()?.to_string(), "present"))?;
        let second = Connection::open(from, to, Source::AnyPort)?;
        let own = second.local()?.to_string();
        let event = listener.wait_for("another begins", of(own.clone(), "begun"))?;
        ensure!(
            event["protocol"] == Protocol::Tcp.as_str() && event["frontend"] == format!("{to}"),
            "{event:#}"
        );
        second.abort()?;
        let event = listener.wait_for("it is reset", of(own, "changed"))?;
        ensure!(
            event["state"] == "reset"
                && event["frontend"] == format!("{}", service.vip().addresses.at(PORT).of(Family::V4)),
            "{event:#}"
        );
        listener.kill()
    });
}
