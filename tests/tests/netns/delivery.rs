//! Between clients and backends on one node, packets go past the node's stack if that is asked for.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    agent::Agent,
    deployment::Deployment,
    harness::{Setup, again_telling},
    netns::Namespace,
    service::Service,
    topology::{BRIDGE, BridgeNetfilter, Cluster, Ends, Family, Machine, PodNetwork, Shape},
    traffic::{Chatter, Connection, Datagram, Direction, Pump, RawSender, Source, UdpClient},
    wait::wait_until,
};

use crate::{
    Backend,
    expect::{Seen, expect_reach},
    shapes,
};

const NODE_PORT: u16 = 30_080;
/// Bytes that show that a transfer goes on, whatever was in buffers.
const SOME: u64 = 20 << 20;
/// Questions of one socket.
const QUESTIONS: u64 = 50;

fn shape(pods: PodNetwork) -> Shape {
    Shape { pods, ..Shape::default() }
}

/// A node that delivers past its stack, with pods by a bridge and by routes, in turn.
fn directly(test: impl Fn(&Cluster, &mut Deployment, PodNetwork) -> Result<()>) {
    for pods in [PodNetwork::Bridge, PodNetwork::Routed] {
        let setup = Setup::new(1).shaped(shape(pods)).telling(&["--local-delivery=direct"]).alone();
        setup.run(|cluster, agents| {
            // The agent looks when pods come.
            cluster.nodes[0].set_bridge_netfilter(BridgeNetfilter::Off)?;
            test(cluster, agents, pods).with_context(|| format!("{pods:?}"))
        });
    }
}

/// A backend and its service.
fn serve(cluster: &Cluster, agents: &Deployment) -> Result<(Backend, Service)> {
    let near = Backend::on(&cluster.nodes[0], "near")?;
    let service = Service::new("echo", 1).with(&near.pod).with_node_port(NODE_PORT);
    agents.serve(&service)?;
    agents.settle()?;
    Ok((near, service))
}

/// Who asks, and where.
fn ways<'a>(cluster: &'a Cluster, pod: &'a Machine, service: &Service) -> [(&'a Machine, Ends); 3] {
    let node_port = cluster.nodes[0].addresses.at(NODE_PORT);
    [(pod, service.vip()), (pod, node_port), (&cluster.client, node_port)]
}

/// How many packets went past the stack: to a neighbour, and into a pod.
fn delivered(agent: &Agent) -> Result<[u64; 2]> {
    let status = agent.ask_json(&["status"])?;
    let of = |manner: &str| status["deliveries"][manner].as_u64().context("a count");
    Ok([of("neighbour")?, of("peer")?])
}

/// How many packets the stack of a node has sent on.
fn forwarded(node: &Namespace, family: Family) -> Result<u64> {
    let text = |file: &str| node.run(|| Ok(fs::read_to_string(format!("/proc/thread-self/net/{file}"))?));
    let value = match family {
        // A line of names, and one of values.
        Family::V4 => {
            let text = text("snmp")?;
            let mut lines = text.lines().filter(|line| line.starts_with("Ip:")).map(str::split_whitespace);
            let (mut names, mut values) = (lines.next().context("names")?, lines.next().context("values")?);
            let at = names.position(|name| name == "ForwDatagrams").context("no such name")?;
            values.nth(at).context("no such value")?.to_owned()
        }
        Family::V6 => {
            let text = text("snmp6")?;
            let line = text.lines().find(|line| line.starts_with("Ip6OutForwDatagrams"));
            line.and_then(|line| line.split_whitespace().nth(1)).context("no such name")?.to_owned()
        }
    };
    Ok(value.parse()?)
}

/// Datagrams, a transfer each way, and a connection that ends.
fn talk(client: &Machine, to: Ends, family: Family) -> Result<()> {
    let to = to.of(family);
    let datagrams = UdpClient::bind(&client.namespace, family)?;
    (0..QUESTIONS).try_for_each(|number| datagrams.ask(to, number).map(drop))?;
    let open = || Connection::open(&client.namespace, to, Source::AnyPort);
    Direction::ALL.into_iter().try_for_each(|way| open()?.transfer(way, SOME, &Default::default()))?;
    open()?.close_there_first()
}

/// Both ways and from the first packet on, or connection tracking would take the rest for invalid.
#[test]
fn packets_of_services_go_past_the_stack() {
    directly(|cluster, agents, pods| {
        let node = &cluster.nodes[0];
        let client = node.add_pod("client")?;
        let (_near, service) = serve(cluster, agents)?;
        let agent = &agents.agents[0];
        for (client, to) in ways(cluster, &client.machine, &service) {
            for family in Family::ALL {
                let before = (delivered(agent)?, forwarded(&node.namespace, family)?);
                talk(client, to, family).with_context(|| format!("{}, {family}", client.name))?;
                let after = (delivered(agent)?, forwarded(&node.namespace, family)?);
                let story = || format!("{}, {family}: {before:?}, then {after:?}", client.name);
                ensure!(after.1 == before.1, "the stack saw some: {}", story());
                let [to_neighbours, into_pods] = [0, 1].map(|at| after.0[at] - before.0[at]);
                // A bridge finds the pod by itself, and has an answer go there without the node's stack in any case.
                ensure!(to_neighbours > QUESTIONS, "{}", story());
                ensure!((into_pods > QUESTIONS) == (pods == PodNetwork::Routed), "{}", story());
            }
            expect_reach(client, to, "near", &Seen::Client)?;
        }
        let text = agent.ask(&["status"])?;
        ensure!(text.contains("\ndirect "), "{text}");
        Ok(())
    });
}

/// What is bridged visits netfilter on many nodes, so requests have to.
#[test]
fn the_stack_delivers_unless_it_may_be_passed() {
    let direct = &["--local-delivery=direct"][..];
    for (pods, arguments, netfilter) in [
        (PodNetwork::Routed, &[][..], BridgeNetfilter::Off),
        (PodNetwork::Bridge, direct, BridgeNetfilter::On),
    ] {
        Setup::new(1).shaped(shape(pods)).telling(arguments).alone().run(|cluster, agents| {
            let node = &cluster.nodes[0];
            node.set_bridge_netfilter(netfilter)?;
            let client = node.add_pod("client")?;
            let (_near, service) = serve(cluster, agents)?;
            for family in Family::ALL {
                let before = forwarded(&node.namespace, family)?;
                talk(&client.machine, service.vip(), family)?;
                let passed = forwarded(&node.namespace, family)? - before;
                ensure!(passed > QUESTIONS, "{family}: the stack saw {passed}");
            }
            let delivered = delivered(&agents.agents[0])?;
            ensure!(delivered == [0; 2], "{delivered:?}");
            Ok(())
        });
    }
}

/// MASQ-08: a source that the egress hook rewrites takes the stack, and so does what answers it.
#[test]
fn a_pod_reaches_itself() {
    directly(|cluster, agents, _| {
        let (near, service) = serve(cluster, agents)?;
        let before = delivered(&agents.agents[0])?;
        expect_reach(&near.pod.machine, service.vip(), "near", &Seen::node(&cluster.nodes[0]))?;
        let after = delivered(&agents.agents[0])?;
        ensure!(after == before, "{before:?}, then {after:?}");
        Ok(())
    });
}

/// Who claims to be somebody else is left to the stack, which filters reverse paths.
#[test]
fn a_pod_cannot_ask_in_another_ones_name() {
    let setup = Setup::new(1).shaped(shape(PodNetwork::Routed)).telling(&["--local-delivery=direct"]);
    setup.run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let (client, other) = (node.add_pod("client")?, node.add_pod("other")?);
        let (near, service) = serve(cluster, agents)?;
        let to = service.vip().of(Family::V4);
        let honest = UdpClient::bind(&client.machine.namespace, Family::V4)?;
        honest.ask(to, 1)?;
        let before = near.server.datagrams();
        let source = other.machine.addresses.at(5_000).of(Family::V4);
        let sender = RawSender::open(&client.machine.namespace, Family::V4)?;
        sender.send(to.ip(), &Datagram { source, destination: to, payload: b"not me" }.packet())?;
        // Comes by the same device, behind it.
        honest.ask(to, 2)?;
        let heard = near.server.datagrams() - before;
        ensure!(heard == 1, "the backend heard {heard} datagrams");
        Ok(())
    });
}

/// What does not fit is the stack's, which says so.
#[test]
fn a_client_learns_of_a_narrow_way_to_the_backend() {
    directly(|cluster, agents, pods| {
        let (near, _service) = serve(cluster, agents)?;
        let narrow = if pods == PodNetwork::Bridge { BRIDGE } else { &near.pod.device };
        cluster.nodes[0].namespace.ip(&format!("link set {narrow} mtu 1400"))?;
        let client = &cluster.client.namespace;
        for family in Family::ALL {
            let to = cluster.nodes[0].addresses.at(NODE_PORT).of(family);
            let open = Connection::open(client, to, Source::AnyPort);
            open?.transfer(Direction::Upload, SOME, &Default::default()).context(family)?;
            let route = client.output(Command::new("ip").args(["route", "get", &to.ip().to_string()]))?;
            ensure!(route.contains("mtu 1400"), "{family}: {route}");
        }
        Ok(())
    });
}

/// A pod that has come after the agent serves, another takes its place, and it goes.
#[test]
fn senders_follow_from_pod_to_pod() {
    directly(|cluster, agents, _| {
        let node = &cluster.nodes[0];
        let client = node.add_pod("client")?;
        let (near, service) = serve(cluster, agents)?;
        let open = |family| UdpClient::bind(&client.machine.namespace, family);
        let senders = [open(Family::V4)?, open(Family::V6)?];
        let ask = |number| -> Result<Vec<String>> {
            let each = Family::ALL.into_iter().zip(&senders);
            let to = service.vip();
            each.map(|(family, sender)| Ok(sender.ask(to.of(family), number)?.backend)).collect()
        };
        ensure!(ask(1)? == ["near"; 2], "the first backend");
        let next = Backend::on(node, "next")?;
        agents.serve(&service.clone().without("near").with(&next.pod))?;
        node.delete_pod(near.pod)?;
        let before = delivered(&agents.agents[0])?;
        wait_until("both have followed", || Ok((ask(2)? == ["next"; 2]).then_some(())))?;
        (0..QUESTIONS).try_for_each(|number| ask(number).map(drop))?;
        let after = delivered(&agents.agents[0])?;
        ensure!(after[0] > before[0] + QUESTIONS, "{before:?}, then {after:?}");
        Ok(())
    });
}

/// Connections go on while agents come that are told otherwise, and new ones come about.
#[test]
fn it_is_switched_under_traffic() {
    directly(|cluster, agents, _| {
        let client = cluster.nodes[0].add_pod("client")?;
        let (_near, service) = serve(cluster, agents)?;
        let ways = ways(cluster, &client.machine, &service);
        let [from_pod, _, from_outside] = ways;
        let (mut pumps, mut talks) = (Vec::new(), Vec::new());
        for ((client, to), (family, direction)) in
            [from_pod, from_outside].into_iter().zip(Family::ALL.into_iter().zip(Direction::ALL))
        {
            let open = |family| Connection::open(&client.namespace, to.of(family), Source::AnyPort);
            pumps.push(Pump::start(open(family)?, direction));
            for family in Family::ALL {
                talks.push(Chatter::start(open(family)?)?);
            }
        }
        for mode in ["stack", "direct", "stack"] {
            let agent = &mut agents.agents[0];
            agent.terminate()?;
            agent.tell(&[&format!("--local-delivery={mode}")]);
            agent.resume()?;
            agent.wait_until_synced()?;
            let pinned =
                agent.links("")?.iter().any(|link| link.to_string_lossy().contains("sluice_delivery"));
            ensure!(pinned == (mode == "direct"), "{mode}: the program is there: {pinned}");
            let before = delivered(agent)?;
            pumps.iter().try_for_each(|pump| pump.expect_more(SOME)).context(mode)?;
            talks.iter().try_for_each(|talk| talk.expect_more(20)).context(mode)?;
            let after = delivered(agent)?;
            ensure!((after != before) == (mode == "direct"), "{mode}: {before:?}, then {after:?}");
            for (client, to) in ways {
                expect_reach(client, to, "near", &Seen::Client).context(mode)?;
            }
        }
        pumps.into_iter().try_for_each(|pump| pump.stop().map(drop))?;
        talks.into_iter().try_for_each(|talk| talk.stop().map(drop))
    });
}

/// The broad test once more.
#[test]
fn nothing_is_different_past_the_stack() {
    again_telling(&["--local-delivery=direct"], &[shapes::services_work_for_pods_that_are_routed_to]);
}
