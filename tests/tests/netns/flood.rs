//! A flood of new flows.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use proxy_common::{
    drop::DropReason,
    tables::{Flows, Table as _},
};
use sluice_tests::{
    deployment::Deployment,
    harness::Setup,
    service::{Service, TARGET_PORT},
    topology::{Family, Node, Pod},
    traffic::{Chatter, Connection, Datagram, RawSender, Source, connect_raw},
    wait::wait_at_most,
};

use crate::{Backend, expect::expect_all_reach};

/// Each flow has two entries.
const FLOWS: u32 = Flows::CAPACITY / 2;

/// Who takes part in a flood.
struct Scene {
    /// Whose connections are established.
    client: Pod,
    attacker: Pod,
    /// What the client asks.
    echo: Service,
    /// What the flood is for.
    sink: Service,
    /// The client's connections.
    talks: Vec<Chatter>,
    /// Who answers the client, and who takes what fits into its buffer and says nothing, so that no answer tells the flood's flows
    /// from lost ones.
    servers: (Backend, UdpSocket),
}

impl Scene {
    fn build(node: &Node, agents: &Deployment) -> Result<Self> {
        let (client, attacker, silent) =
            (node.add_pod("client")?, node.add_pod("attacker")?, node.add_pod("silent")?);
        let near = Backend::on(node, "near")?;
        let echo = Service::new("echo", 1).with(&near.pod);
        let sink = Service::new("sink", 2).with(&silent);
        agents.serve(&echo)?;
        agents.serve(&sink)?;
        let sink_socket = silent.machine.namespace.run(|| Ok(UdpSocket::bind(("0.0.0.0", TARGET_PORT))?))?;
        let from = &client.machine.namespace;
        let talks = Family::ALL
            .iter()
            .map(|&family| Chatter::start(Connection::open(from, echo.frontend(family), Source::AnyPort)?))
            .collect::<Result<Vec<_>>>()?;
        talks.iter().try_for_each(|talk| talk.expect_more(20))?;
        Ok(Self { client, attacker, echo, sink, talks, servers: (near, sink_socket) })
    }
}

/// An established connection does not notice that the flow table fills up, new flows are refused and counted, and when
/// the flood is over the sweep makes room again.
#[test]
fn a_flood_of_new_flows_leaves_established_connections_alone() {
    Setup::new(1).telling(&["--new-flow-limit=0"]).alone().run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let agent = &agents.agents[0];
        let Scene { client, attacker, echo, sink, talks, servers: _servers } = Scene::build(node, agents)?;
        let from = &client.machine.namespace;

        let before = agent.drops(DropReason::FlowTableFull)?;
        // Twice as many as there is room for, as some end while others begin.
        let sent = flood(&attacker, sink.frontend(Family::V4), 2 * FLOWS, || {
            Ok(agent.drops(DropReason::FlowTableFull)? > before)
        })?;
        let refused = agent.drops(DropReason::FlowTableFull)? - before;
        ensure!(refused > 0, "{sent} new flows found room in a table of {}", Flows::CAPACITY);
        talks.iter().try_for_each(|talk| talk.expect_more(20)).context("after the flood")?;

        // Whoever is refused now is served as soon as there is room. What nobody answered may be kept for thirty seconds,
        // and looked for as late again.
        for family in Family::ALL {
            let to = echo.frontend(family);
            wait_at_most(Duration::from_secs(90), "a new connection finds room", || {
                Ok(connect_raw(from, to, Source::AnyPort, Duration::from_secs(1)).ok())
            })?;
        }
        expect_all_reach(&client.machine, &echo, "near")?;
        talks.iter().try_for_each(|talk| talk.expect_more(20)).context("after the sweep")?;
        talks.into_iter().try_for_each(|talk| talk.stop().map(drop))
    });
}

/// How many flows of a flood are to be refused at least.
const REFUSED: u64 = 10_000;

/// Beyond the limit, a flood takes no room in the table, and costs nobody anything whose connection runs.
#[test]
fn a_flood_beyond_the_limit_takes_no_room() {
    Setup::new(1).telling(&["--new-flow-limit=100"]).alone().run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let agent = &agents.agents[0];
        let Scene { client, attacker, echo, sink, talks, servers: _servers } = Scene::build(node, agents)?;

        let refused = || agent.drops(DropReason::NewFlowLimit);
        let began = Instant::now();
        let sent = flood(&attacker, sink.frontend(Family::V4), 2 * FLOWS, || Ok(refused()? > REFUSED))?;
        let seconds = began.elapsed().as_secs() + 1;
        ensure!(refused()? > REFUSED, "of {sent} new flows, {} were refused", refused()?);
        let status = agent.ask_json(&["status"])?;
        let unreplied = status["flows"]["unreplied"].as_u64().unwrap_or_default();
        let cpus = std::thread::available_parallelism()?.get() as u64;
        let most = cpus * (100 * seconds + 100 / 10 + 1);
        ensure!(unreplied <= most, "{unreplied} flows began in {seconds} s: more than {most}");
        ensure!(status["new_flow_limit"] == 100, "{status}");
        ensure!(agent.drops(DropReason::FlowTableFull)? == 0, "the table was full");
        talks.iter().try_for_each(|talk| talk.expect_more(20)).context("after the flood")?;
        expect_all_reach(&client.machine, &echo, "near")?;
        talks.into_iter().try_for_each(|talk| talk.stop().map(drop))
    });
}

/// Begins flows, from as many clients as it takes, until `full`, or there are more than `most`. Returns how many.
fn flood(attacker: &Pod, to: SocketAddr, most: u32, full: impl Fn() -> Result<bool>) -> Result<u32> {
    let sender = RawSender::open(&attacker.machine.namespace, Family::V4)?;
    let [a, b, c, _] = attacker.machine.addresses.v4.octets();
    let mut sent = 0;
    // Addresses that no pod has.
    for host in 100..250 {
        let source = IpAddr::from(Ipv4Addr::new(a, b, c, host));
        for port in 1_024..u16::MAX {
            let datagram = Datagram { source: (source, port).into(), destination: to, payload: b"flood" };
            // What a full queue does not take is not sent.
            sent += u32::from(sender.try_send(to.ip(), &datagram.packet())?);
            if sent > most {
                return Ok(sent);
            }
        }
        if full()? {
            return Ok(sent);
        }
    }
    Ok(sent)
}
