//! The same backend through every node, whether or not a node knows the connection.

use std::{collections::BTreeSet, net::SocketAddr, process::Command};

use anyhow::{Context as _, Result, ensure};
use proxy_agent::datapath::Pins;
use sluice_tests::{
    agent::Agent,
    harness::{Setup, skipped, with_agents},
    kernel::forget_flows,
    service::{Service, TARGET_PORT},
    topology::{Cluster, Family},
    traffic::{Connection, Protocol, Server, Source},
    wait::wait_until,
};

use crate::{Backend, expect::ask_from};

/// How a Service asks for it.
const ANNOTATION: &str = "sluice.io/backend-selection";
const NODE_PORT: u16 = 30_080;
/// Ports of clients: such as sources may be rewritten to.
const CLIENTS: std::ops::Range<u16> = 20_000..20_008;

fn backends(cluster: &Cluster) -> Result<[Backend; 3]> {
    let on = |node: usize, name| Backend::on(&cluster.nodes[node], name);
    Ok([on(0, "near")?, on(1, "far")?, on(1, "farther")?])
}

fn led_by_hash(backends: &[Backend]) -> Service {
    let service = Service::new("echo", 1).annotated(ANNOTATION, "maglev").with_node_port(NODE_PORT);
    backends.iter().fold(service, |service, backend| service.with(&backend.pod))
}

/// Has a node forget all flows.
fn forget(agent: &Agent) -> Result<()> {
    agent.namespace().run(|| forget_flows(&Pins::new(agent.bpffs())))
}

fn wait_until_taking_up(agent: &Agent) -> Result<()> {
    wait_until("connections that are not known go on", || {
        Ok(agent.log()?.contains("go on where their hash leads").then_some(()))
    })
}

#[test]
fn a_client_finds_the_same_backend_through_every_node() {
    with_agents(2, |cluster, agents| {
        let backends = backends(cluster)?;
        agents.serve(&led_by_hash(&backends))?;
        let mut found = BTreeSet::new();
        for family in Family::ALL {
            for protocol in Protocol::ALL {
                for port in CLIENTS {
                    let own = SocketAddr::new(cluster.client.addresses.of(family), port);
                    let ask = |node: usize| {
                        let to = cluster.nodes[node].addresses.at(NODE_PORT).of(family);
                        ask_from(&cluster.client.namespace, own, to, protocol).map(|heard| heard.backend)
                    };
                    let (first, second) = (ask(0)?, ask(1)?);
                    ensure!(first == second, "{own} over {protocol}: {first} and {second}");
                    found.insert(first);
                }
            }
        }
        ensure!(found.len() == backends.len(), "only {found:?}");
        let shown = agents.agents[0].ask(&["services"])?;
        ensure!(shown.contains("chosen by hash (Maglev)"), "{shown}");
        let status = agents.agents[0].ask_json(&["status"])?;
        // A NodePort for each protocol and family.
        ensure!(status["maglev_frontends"] == 4, "{status}");
        Ok(())
    });
}

/// To backends of the node and of another; and not where chance led it.
#[test]
fn a_connection_goes_on_when_its_entry_is_gone() {
    Setup::new(2).alone().run(|cluster, agents| {
        let backends = backends(cluster)?;
        agents.serve(&led_by_hash(&backends))?;
        let by_chance = Service::new("chance", 2).with_node_port(NODE_PORT + 1).with(&backends[0].pod);
        agents.serve(&by_chance)?;
        wait_until_taking_up(&agents.agents[0])?;
        let node = &cluster.nodes[0];
        let open = |family: Family, port, to| {
            let own = SocketAddr::new(cluster.client.addresses.of(family), port);
            let to = node.addresses.at(to).of(family);
            let mut connection = Connection::open(&cluster.client.namespace, to, Source::At(own))?;
            connection.start_echo()?;
            connection.echo(0)?;
            anyhow::Ok(connection)
        };
        let (mut kept, mut lost) = (Vec::new(), Vec::new());
        for family in Family::ALL {
            for port in CLIENTS {
                kept.push(open(family, port, NODE_PORT)?);
            }
            lost.push(open(family, CLIENTS.end, NODE_PORT + 1)?);
        }
        let reached: BTreeSet<_> = kept.iter().map(|connection| connection.backend.as_str()).collect();
        ensure!(reached.len() == backends.len(), "only {reached:?}");
        for round in 1..4 {
            forget(&agents.agents[0])?;
            for connection in &mut kept {
                connection.echo(round).with_context(|| format!("{} in round {round}", connection.backend))?;
            }
        }
        for connection in &mut lost {
            ensure!(connection.echo(1).is_err(), "nothing says where it was");
        }
        Ok(())
    });
}

/// What somebody else translates, as kube-proxy did, is left alone until it is over.
#[test]
fn connections_that_netfilter_translates_are_left_to_it() {
    if Command::new("nft").arg("--version").output().is_err() {
        return skipped(&anyhow::anyhow!("nft is not installed"));
    }
    // What an agent has once let be taken up, it does not ask about again.
    Setup::new(1).alone().run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let (old, new) = (Backend::on(node, "old")?, Backend::on(node, "new")?);
        let target = old.pod.machine.addresses.v4;
        let rules = format!(
            "table ip before {{ chain led {{ type nat hook prerouting priority -100; tcp dport {NODE_PORT} dnat to {target}:{TARGET_PORT}; }}; }}"
        );
        node.namespace.output(Command::new("nft").arg(&rules))?;
        let to = node.addresses.at(NODE_PORT).of(Family::V4);
        let mut connection = Connection::open(&cluster.client.namespace, to, Source::AnyPort)?;
        ensure!(connection.backend == "old", "{}", connection.backend);
        connection.start_echo()?;
        connection.echo(0)?;
        agents.serve(&led_by_hash(&[new]))?;
        for number in 1..20 {
            connection.echo(number).context("beside Sluice")?;
        }
        let log = agents.agents[0].log()?;
        ensure!(log.contains("netfilter translates 1 of them"), "{log}");
        connection.abort()?;
        wait_until_taking_up(&agents.agents[0])
    });
}

/// A process of the node keeps the connections that it had before its port became a service's.
#[test]
fn connections_of_the_nodes_own_processes_are_left_to_them() {
    with_agents(1, |cluster, agents| {
        let node = &cluster.nodes[0];
        let near = Backend::on(node, "near")?;
        let _own = Server::start(&node.machine(), NODE_PORT)?;
        let mut kept = Vec::new();
        for family in Family::ALL {
            let to = node.addresses.at(NODE_PORT).of(family);
            let mut connection = Connection::open(&cluster.client.namespace, to, Source::AnyPort)?;
            connection.start_echo()?;
            connection.echo(0)?;
            kept.push(connection);
        }
        agents.serve(&led_by_hash(&[near]))?;
        wait_until_taking_up(&agents.agents[0])?;
        for (number, connection) in (1..20).flat_map(|number| [(number, 0), (number, 1)]) {
            kept[connection].echo(number).with_context(|| format!("{connection}, {number}"))?;
        }
        Ok(())
    });
}
