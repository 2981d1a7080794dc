//! `sluice monitor` hears what happens on a node.

use anyhow::{Context as _, Result, ensure};
use proxy_agent::datapath::{ArrayTable, Pins};
use proxy_common::tables::EventLease;
use serde_json::Value;
use sluice_tests::{
    agent::Agent,
    harness::Setup,
    listener::Listener,
    service::{PORT, Service, TARGET_PORT},
    topology::{Addresses, Family},
    traffic::{Connection, Source, connect_raw, ping},
    wait::wait_until,
};

use crate::{
    Backend,
    expect::{expect_dropped, expect_tcp_refused},
};

const NODE_PORT: u16 = 30_083;

/// Starts a monitor and waits until the datapath tells it.
fn monitor(agent: &Agent, arguments: &[&str]) -> Result<Listener> {
    // An earlier one that was killed has left its own.
    let before = lease(agent)?;
    let listener = Listener::start(agent, &[&["monitor"], arguments].concat())?;
    wait_until("the monitor listens", || Ok((lease(agent)? != before).then_some(())))?;
    Ok(listener)
}

/// Until when the datapath tells.
fn lease(agent: &Agent) -> Result<u64> {
    agent.namespace().run(|| {
        let table = ArrayTable::<EventLease>::open(&Pins::new(agent.bpffs()))?;
        Ok(table.get(0)?.context("a listener")?.until)
    })
}

fn is(event: &Value, expected: &[(&str, Value)]) -> bool {
    expected.iter().all(|(field, value)| event[*field] == *value)
}

#[test]
fn flows_and_drops_are_told_as_they_happen() {
    Setup::new(2).alone().run(|cluster, agents| {
        let [first, second] = [&cluster.nodes[0], &cluster.nodes[1]];
        let pod = first.add_pod("pod")?;
        let near = Backend::on(first, "near")?;
        let far = Backend::on(second, "far")?;
        let agent = &agents.agents[0];
        let web = Service::new("web", 1).with(&near.pod);
        let remote = Service::new("remote", 2).with(&far.pod).with_node_port(NODE_PORT);
        let empty = Service::new("empty", 3);
        let kept = Service::new("kept", 4).with(&far.pod).local_for_inside();
        for service in [&web, &remote, &empty, &kept] {
            agents.serve(service)?;
        }
        let listener = monitor(agent, &[])?;
        for family in Family::ALL {
            let name = |service: &str| Value::from(format!("default/{service}:tcp/TCP/{family}"));
            let to = web.frontend(family);
            let connection = Connection::open(&pod.machine.namespace, to, Source::AnyPort)?;
            let own = connection.local()?.to_string();
            let begun = listener.wait_for("a pod's flow begins", |event| {
                is(event, &[("event", "begun".into()), ("client", own.clone().into())])
            })?;
            let expected = [
                ("path", "tc".into()),
                ("service", name("web")),
                ("protocol", "TCP".into()),
                ("frontend", to.to_string().into()),
                ("backend", near.pod.machine.addresses.at(TARGET_PORT).of(family).to_string().into()),
                ("masqueraded", false.into()),
                ("device_name", pod.device.clone().into()),
                ("reason", Value::Null),
            ];
            ensure!(is(&begun, &expected), "{begun:#}");

            let to = first.addresses.at(NODE_PORT).of(family);
            let connection = Connection::open(&cluster.client.namespace, to, Source::AnyPort)?;
            let own = connection.local()?.to_string();
            let begun = listener.wait_for("a flow from outside begins", |event| event["client"] == own)?;
            let expected =
                [("service", name("remote")), ("masqueraded", true.into()), ("device_name", "eth0".into())];
            ensure!(is(&begun, &expected), "{begun:#}");

            expect_tcp_refused(&pod.machine.namespace, empty.frontend(family))?;
            let refused = listener.wait_for("a pod is refused", |event| event["event"] == "refused")?;
            let expected = [
                ("service", name("empty")),
                ("reason", "no_backend".into()),
                ("frontend", empty.frontend(family).to_string().into()),
                ("backend", Value::Null),
            ];
            ensure!(is(&refused, &expected), "{refused:#}");
            ensure!(
                refused["client"]
                    .as_str()
                    .is_some_and(|client| client.contains(&pod.machine.addresses.of(family).to_string())),
                "{refused:#}"
            );

            ping(&pod.machine.namespace, web.frontend(family).ip())?;
            let refused =
                listener.wait_for("a ping is refused", |event| event["reason"] == "unknown_port")?;
            ensure!(refused["service"].is_null() && refused["protocol"] != "TCP", "{refused:#}");

            // A process of the node: it is named.
            let host = || {
                connect_raw(
                    &first.namespace,
                    web.frontend(family),
                    Source::AnyPort,
                    sluice_tests::traffic::PATIENCE,
                )
            };
            let stream = host()?;
            let begun = listener.wait_for("a process gets its backend", |event| event["path"] == "socket")?;
            let expected = [
                ("event", "begun".into()),
                ("service", name("web")),
                ("client", Value::Null),
                ("process", std::process::id().into()),
                ("frontend", web.frontend(family).to_string().into()),
            ];
            ensure!(is(&begun, &expected) && begun["process_name"].is_string(), "{begun:#}");
            drop(stream);
            expect_tcp_refused(&first.namespace, empty.frontend(family))?;
            let refused = listener.wait_for("a process is refused", |event| event["path"] == "socket")?;
            ensure!(is(&refused, &[("event", "refused".into()), ("service", name("empty"))]), "{refused:#}");
        }
        expect_dropped(&pod.machine, kept.vip(), agent, proxy_common::drop::DropReason::NoLocalBackend)?;
        let dropped = listener.wait_for("a pod's packet is dropped", |event| event["event"] == "dropped")?;
        ensure!(dropped["reason"] == "no_local_backend", "{dropped:#}");

        // Another one is told so, and does no harm.
        let second = agent.ask(&["monitor"]).unwrap_err();
        ensure!(format!("{second:#}").contains("another"), "{second:#}");
        let connection = Connection::open(&pod.machine.namespace, web.frontend(Family::V4), Source::AnyPort)?;
        let own = connection.local()?.to_string();
        listener.wait_for("the first one still hears", |event| event["client"] == own)?;
        listener.kill()
    });
}

#[test]
fn a_monitor_tells_what_it_is_asked_for_and_leaves_nothing_behind() {
    Setup::new(1).alone().run(|cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let agent = &agents.agents[0];
        let [one, two] = [1, 2].map(|n| Service::new(&format!("web{n}"), n).with(&near.pod));
        for service in [&one, &two] {
            agents.serve(service)?;
        }
        let from = &pod.machine.namespace;
        let connect =
            |service: &Service| Connection::open(from, service.frontend(Family::V4), Source::AnyPort);
        let all_is_for = |listener: &Listener, service: &Service| -> Result<()> {
            let own = connect(service)?.local()?.to_string();
            let unasked = listener.wait_for("what was asked for", |event| {
                event["client"] == own
                    || event["event"] != "begun"
                    || event["frontend"] != service.frontend(Family::V4).to_string()
            })?;
            ensure!(unasked["client"] == own, "{unasked:#}");
            Ok(())
        };
        let listener = monitor(agent, &["--service", "default/web2"])?;
        connect(&one)?;
        all_is_for(&listener, &two)?;
        // Ended without a word, it is forgotten when its lease is over, and another one can listen at once.
        listener.kill()?;
        let client = pod.machine.addresses.v4.to_string();
        let listener = monitor(
            agent,
            &["--flows", "--client", &client, "--frontend", &format!("{}", Addresses::vip(1).v4)],
        )?;
        expect_tcp_refused(from, Addresses::vip(1).at(PORT + 1).of(Family::V4))?;
        connect(&two)?;
        all_is_for(&listener, &one)?;
        listener.kill()?;
        let until = lease(agent)?;
        wait_until("the lease is over", || {
            let now =
                std::time::Duration::from(nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?);
            Ok((now.as_nanos() > u128::from(until)).then_some(()))
        })?;
        ensure!(lease(agent)? == until, "somebody has put it off");
        let listener = monitor(agent, &["--drops"])?;
        connect(&one)?;
        let unknown = Addresses::vip(1).at(PORT + 1).of(Family::V4);
        expect_tcp_refused(from, unknown)?;
        let first = listener.wait_for("anything", |_| true)?;
        ensure!(first["reason"] == "unknown_port" && first["frontend"] == unknown.to_string(), "{first:#}");
        listener.kill()
    });
}
