//! Between clients outside and backends on other nodes, packets of running flows go past the stack.

use std::{net::SocketAddr, ops::Range};

use anyhow::{Context as _, Result, ensure};
use aya::programs::links::FdLink;
use serde_json::Value;
use sluice_tests::{
    agent::Agent,
    harness::{Setup, again_telling},
    kernel::take_what_xdp_sends,
    service::Service,
    topology::{Addresses, Cluster, Ends, Family, Overlay, Shape, finish_checksums},
    traffic::{Chatter, Connection, Direction, Pump, Source, UdpClient},
    wait::wait_until,
};

use crate::{
    Backend, errors, expect::Seen, expect::expect_reach, external, fragments, nodeport, reach, refuse, udp,
};

const NODE_PORT: u16 = 30_080;
/// Bytes that show that a transfer goes on, whatever was in buffers.
const SOME: u64 = 20 << 20;
/// Bytes of a connection's buffers: least, usual, most. A veth has places for 256 packets.
const BUFFERS: &str = "4096 65536 65536";
/// Questions of one socket.
const QUESTIONS: u64 = 200;

/// A backend on the second node, and the first node's port for it. Both ends finish their checksums, as on a wire, and have no more
/// packets on the way than queues have room for: what is said rarely would wait long for what was lost between them. The far
/// end of the first node's uplink takes what its driver sends for as long as the link is held.
fn remote(cluster: &Cluster) -> Result<(Backend, Service, Ends, FdLink)> {
    let far = Backend::on(&cluster.nodes[1], "far")?;
    let service = Service::new("echo", 1).with(&far.pod).with_node_port(NODE_PORT);
    for end in [&cluster.client.namespace, &far.pod.machine.namespace] {
        finish_checksums(end, "eth0")?;
        end.sysctl(&[("ipv4/tcp_rmem", BUFFERS), ("ipv4/tcp_wmem", BUFFERS)])?;
    }
    let link = take_what_xdp_sends(cluster.fabric(), &cluster.nodes[0].name)?;
    Ok((far, service, cluster.nodes[0].addresses.at(NODE_PORT), link))
}

fn status(agent: &Agent) -> Result<Value> {
    Ok(serde_json::from_str(&agent.ask(&["status", "-o", "json"])?)?)
}

/// How a device stands.
fn stand(agent: &Agent, device: &str) -> Result<Value> {
    let status = status(agent)?;
    let devices = status["devices"].as_array().context("devices")?;
    let row = devices.iter().find(|row| row["name"] == device).with_context(|| format!("no {device}"))?;
    Ok(row["xdp"].clone())
}

/// How many packets went past the stack.
fn forwarded(agent: &Agent) -> Result<u64> {
    status(agent)?["passages"]["forwarded"].as_u64().context("a count")
}

/// A transfer and a conversation by either family.
struct Witnesses {
    pumps: Vec<Pump>,
    talks: Vec<Chatter>,
}

impl Witnesses {
    fn start(cluster: &Cluster, to: Ends) -> Result<Self> {
        let mut witnesses = Self { pumps: Vec::new(), talks: Vec::new() };
        for (family, direction) in Family::ALL.into_iter().zip(Direction::ALL) {
            let open = || Connection::open(&cluster.client.namespace, to.of(family), Source::AnyPort);
            witnesses.pumps.push(Pump::start(open()?, direction));
            witnesses.talks.push(Chatter::start(open()?)?);
        }
        Ok(witnesses)
    }

    fn expect_progress(&self, when: &'static str) -> Result<()> {
        self.pumps.iter().try_for_each(|pump| pump.expect_more(SOME)).context(when)?;
        self.talks.iter().try_for_each(|talk| talk.expect_more(20)).context(when)
    }

    fn stop(self) -> Result<()> {
        self.pumps.into_iter().try_for_each(|pump| pump.stop().map(drop))?;
        self.talks.into_iter().try_for_each(|talk| talk.stop().map(drop))
    }
}

/// Demands that a client's datagrams and their answers are sent on before the stack.
fn expect_datagrams_past_the_stack(cluster: &Cluster, agent: &Agent, to: SocketAddr) -> Result<()> {
    let before = forwarded(agent)?;
    let client = UdpClient::bind(&cluster.client.namespace, Family::of(to.ip()))?;
    for number in 0..QUESTIONS {
        client.ask(to, number)?;
    }
    // All but the first ones, and now and then one, both ways.
    let past = forwarded(agent)? - before;
    ensure!(past > QUESTIONS * 2 * 9 / 10, "{to}: {past} datagrams");
    Ok(())
}

/// Whatever is asked for is in `sluice status`.
fn expect_running_flows_past_the_stack(mode: &str) {
    Setup::new(2).telling(&[&format!("--xdp={mode}")]).alone().run(|cluster, agents| {
        let (_far, service, to, _link) = remote(cluster)?;
        agents.serve(&service)?;
        let agent = &agents.agents[0];
        ensure!(stand(agent, "eth0")? == mode, "{}", stand(agent, "eth0")?);
        let seen = Seen::As(cluster.nodes[0].addresses);
        expect_reach(&cluster.client, to, "far", &seen)?;
        for family in Family::ALL {
            expect_datagrams_past_the_stack(cluster, agent, to.of(family))?;

            let before = forwarded(agent)?;
            for direction in Direction::ALL {
                let open = Connection::open(&cluster.client.namespace, to.of(family), Source::AnyPort);
                open?.transfer(direction, SOME, &Default::default())?;
            }
            // Segments are 1,500 bytes at most.
            let past = forwarded(agent)? - before;
            ensure!(past > 2 * SOME / 1_500 * 9 / 10, "{family}: {past} segments");
        }
        let text = agent.ask(&["status"])?;
        ensure!(text.contains("\nxdp ") && text.contains("forwarded "), "{text}");
        Ok(())
    });
}

#[test]
fn running_flows_go_past_the_stack() {
    expect_running_flows_past_the_stack("native");
}

#[test]
fn running_flows_go_past_the_stack_on_behalf_of_drivers() {
    expect_running_flows_past_the_stack("generic");
}

/// Whatever encapsulates has no driver for frames, but takes what is sent. It makes room for the program of the device below.
#[test]
fn running_flows_go_past_the_stack_through_an_overlay() {
    let shape = Shape { overlay: Overlay::Vxlan, ..Shape::default() };
    Setup::new(2).shaped(shape).telling(&["--xdp=generic"]).alone().run(|cluster, agents| {
        let (_far, service, to, _link) = remote(cluster)?;
        agents.serve(&service)?;
        let agent = &mut agents.agents[0];
        for (rules, lower) in [("native,flannel*=generic", "native"), ("generic", "generic")] {
            agent.terminate()?;
            agent.tell(&[&format!("--xdp={rules}")]);
            agent.resume()?;
            agent.wait_until_synced()?;
            for (device, expected) in [("eth0", lower), ("flannel.1", "generic")] {
                ensure!(stand(agent, device)? == expected, "{device}: {}", stand(agent, device)?);
            }
        }
        let seen = Seen::As(Addresses::on_tunnel(1));
        expect_reach(&cluster.client, to, "far", &seen)?;
        for family in Family::ALL {
            expect_datagrams_past_the_stack(cluster, agent, to.of(family))?;
            for direction in Direction::ALL {
                let open = Connection::open(&cluster.client.namespace, to.of(family), Source::AnyPort);
                open?.transfer(direction, SOME, &Default::default())?;
            }
        }
        Ok(())
    });
}

/// Clients on one network, nodes on another: what comes by one uplink leaves by the other. `eth0` and `back0` are how they stand,
/// and `share` is how many packets of a conversation go past the stack, in percent.
fn expect_two_uplinks(rules: &str, [eth0, back0]: [&str; 2], share: Range<u64>) {
    Setup::new(2).telling(&[&format!("--xdp={rules}")]).alone().run(|cluster, agents| {
        let (_far, service, to, _link) = remote(cluster)?;
        let [first, second] = [&cluster.nodes[0], &cluster.nodes[1]];
        let pods = Addresses::of_pod(second.number, 0);
        first.namespace.ip(&format!("link add back0 type veth peer name back0 netns {}", second.namespace.path()))?;
        for (node, number) in [(first, 1), (second, 2)] {
            node.namespace.ip(&format!(
                "addr add 192.0.9.{number}/24 dev back0\naddr add fd00:9::{number}/64 dev back0 nodad\nlink set back0 up"
            ))?;
        }
        first.namespace.ip(&format!(
            "route replace {}/24 via 192.0.9.2\nroute replace {}/64 via fd00:9::2",
            pods.v4, pods.v6
        ))?;
        agents.serve(&service)?;
        for agent in &agents.agents {
            wait_until("the uplinks are met", || {
                Ok((stand(agent, "eth0")? == eth0 && stand(agent, "back0")? == back0).then_some(()))
            })?;
        }
        let agent = &agents.agents[0];
        for family in Family::ALL {
            let client = UdpClient::bind(&cluster.client.namespace, family)?;
            let ask = |numbers: Range<u64>| -> Result<()> {
                for number in numbers {
                    let answer = client.ask(to.of(family), number)?;
                    let node = if family == Family::V4 { "192.0.9.1" } else { "fd00:9::1" };
                    ensure!(answer.seen_as.ip().to_string() == node, "{answer:?}");
                }
                Ok(())
            };
            ask(0..1)?;
            let before = forwarded(agent)?;
            ask(1..QUESTIONS)?;
            let past = forwarded(agent)? - before;
            ensure!(share.contains(&(past * 100 / (QUESTIONS * 2))), "{family}: {past} datagrams");
            let open = || Connection::open(&cluster.client.namespace, to.of(family), Source::AnyPort);
            for direction in Direction::ALL {
                open()?.transfer(direction, SOME, &Default::default())?;
            }
            let past = forwarded(agent)? - before;
            ensure!(past > 2 * SOME / 1_500 * share.start / 100, "{family}: {past} segments");
        }
        Ok(())
    });
}

/// Drivers take what other drivers give them.
#[test]
fn running_flows_go_past_the_stack_between_two_uplinks() {
    expect_two_uplinks("native", ["native", "native"], 90..101);
}

#[test]
fn running_flows_go_past_the_stack_between_two_uplinks_on_behalf_of_drivers() {
    expect_two_uplinks("generic", ["generic", "generic"], 90..101);
}

/// Requests come by a driver that has nobody to give them to; answers are sent like any packet.
#[test]
fn half_of_a_flow_goes_past_the_stack_between_uplinks_of_both_modes() {
    expect_two_uplinks("native,back*=generic", ["native", "generic"], 45..51);
}

/// What is sent by a neighbour on the same machine may never have had a checksum, and may be many segments in one packet.
#[test]
fn unfinished_checksums_are_finished_by_the_stack() {
    expect_unfinished_checksums("native");
}

#[test]
fn unfinished_checksums_are_finished_by_the_stack_on_behalf_of_drivers() {
    expect_unfinished_checksums("generic");
}

fn expect_unfinished_checksums(mode: &str) {
    Setup::new(2).telling(&[&format!("--xdp={mode}")]).alone().run(|cluster, agents| {
        let far = Backend::on(&cluster.nodes[1], "far")?;
        agents.serve(&Service::new("echo", 1).with(&far.pod).with_node_port(NODE_PORT))?;
        let _link = take_what_xdp_sends(cluster.fabric(), &cluster.nodes[0].name)?;
        let witnesses = Witnesses::start(cluster, cluster.nodes[0].addresses.at(NODE_PORT))?;
        witnesses.expect_progress("without checksums")?;
        witnesses.stop()
    });
}

#[test]
fn programs_come_and_go_under_traffic() {
    expect_changes(&["off", "native", "native", "off"]);
}

/// A device has one program, of one mode.
#[test]
fn modes_change_under_traffic() {
    expect_changes(&["native", "generic", "generic", "native", "generic", "off"]);
}

/// A driver that is set up anew loses what is in its queues, so connections are the measure: none breaks, and new ones come about.
fn expect_changes(modes: &[&str]) {
    Setup::new(2).telling(&["--xdp=off"]).alone().run(|cluster, agents| {
        let (_far, service, to, _link) = remote(cluster)?;
        agents.serve(&service)?;
        let witnesses = Witnesses::start(cluster, to)?;
        for &mode in modes {
            let agent = &mut agents.agents[0];
            agent.terminate()?;
            agent.tell(&[&format!("--xdp={mode}")]);
            agent.resume()?;
            agent.wait_until_synced()?;
            wait_until("the device stands as it should", || {
                Ok((stand(agent, "eth0")? == mode).then_some(()))
            })?;
            let before = forwarded(agent)?;
            witnesses.expect_progress("after the agent was told otherwise")?;
            let past = forwarded(agent)? - before;
            ensure!((past > 0) == (mode != "off"), "--xdp={mode}: {past} packets went past the stack");
            for family in Family::ALL {
                Connection::open(&cluster.client.namespace, to.of(family), Source::AnyPort)?;
            }
        }
        witnesses.stop()
    });
}

#[test]
fn virtual_devices_are_left_alone_unless_they_are_asked_for() {
    Setup::new(1).alone().run(|cluster, agents| {
        let agent = &mut agents.agents[0];
        let is = |agent: &Agent, expected: &str| {
            wait_until(expected, || {
                Ok(stand(agent, "eth0")?
                    .as_str()
                    .is_some_and(|stand| stand.starts_with(expected))
                    .then_some(()))
            })
        };
        is(agent, "off")?;
        agent.terminate()?;
        agent.tell(&["--xdp=auto"]);
        agent.resume()?;
        agent.wait_until_synced()?;
        is(agent, "not on virtual devices")?;
        agent.terminate()?;
        agent.tell(&["--xdp=native"]);
        agent.resume()?;
        agent.wait_until_synced()?;
        is(agent, "native")?;
        agent.terminate()?;
        agent.tell(&["--xdp=auto,eth*=generic"]);
        agent.resume()?;
        agent.wait_until_synced()?;
        is(agent, "generic")?;
        let pod = cluster.nodes[0].add_pod("pod")?;
        agents.settle()?;
        ensure!(stand(&agents.agents[0], &pod.device)? == Value::Null, "a pod's device is no uplink");
        Ok(())
    });
}

/// The broad tests once more, with programs on all uplinks.
#[test]
fn nothing_is_different_past_the_stack() {
    expect_no_difference("native");
}

#[test]
fn nothing_is_different_past_the_stack_on_behalf_of_drivers() {
    expect_no_difference("generic");
}

fn expect_no_difference(mode: &str) {
    again_telling(
        &[&format!("--xdp={mode}")],
        &[
            reach::client_outside_reaches_a_backend_on_the_node_it_asks,
            nodeport::outside_reaches_a_backend_through_every_node,
            nodeport::a_pod_reaches_backends_through_the_other_node,
            external::an_external_ip_that_no_node_has_is_served_on_every_node,
            refuse::a_service_without_endpoints_refuses_at_once,
            udp::senders_follow_when_their_backend_is_replaced,
            fragments::large_datagrams_come_and_go_whole,
            errors::a_client_learns_that_the_backends_port_is_closed,
        ],
    );
}
