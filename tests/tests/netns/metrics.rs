//! What metrics say is so.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Result, ensure};
use k8s_openapi::jiff::Timestamp;
use proxy_agent::datapath::{HashTable, Pins, TableError};
use proxy_common::{
    drop::DropReason,
    endian::Be16,
    frontend::{Frontend, FrontendKey},
    tables::{Flows, Frontends, Table as _},
    tuple::{Endpoint, Protocol as Number},
};
use sluice_tests::{
    agent::Agent,
    harness::{Setup, with_agents},
    scrape::{HEALTH_PORT, METRICS_PORT},
    service::Service,
    topology::Family,
    traffic::{Connection, Protocol, Source, UdpClient, http},
    wait::{wait_at_most, wait_until},
};

use crate::{
    Backend,
    expect::{Seen, expect_reach, expect_refused},
};

/// MET-06, MET-32; E2E-111 as far as it is the proxy's.
#[test]
fn traffic_is_counted_by_service_port_and_direction() {
    with_agents(1, |cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let agent = &agents.agents[0];
        let before = agent.scrape()?;
        let service = Service::new("metered", 1).with(&near.pod).triggered_at(&Timestamp::now().to_string());
        let quiet = Service::new("quiet", 2).with(&near.pod);
        agents.serve(&service)?;
        agents.serve(&quiet)?;

        let labels = |port: &str, protocol: Protocol, family: Family| {
            format!(
                "namespace=\"default\",service=\"metered\",port=\"{port}\",protocol=\"{protocol}\",ip_family=\"{family}\""
            )
        };
        let from = &pod.machine.namespace;
        for (n, family) in (2..).zip(Family::ALL) {
            for _ in 0..n {
                drop(Connection::open(from, service.frontend(family), Source::AnyPort)?);
                UdpClient::bind_to(from, pod.machine.addresses.at(0).of(family))?
                    .ask(service.frontend(family), 1)?;
            }
            let tcp = labels("tcp", Protocol::Tcp, family);
            let udp = labels("udp", Protocol::Udp, family);
            // The end of a connection takes its time.
            let counted = wait_until("all is counted", || {
                let scrape = agent.scrape()?;
                let flows =
                    scrape.value(&format!("sluice_service_connections_total{{{udp}}}")).unwrap_or_default();
                Ok((flows >= f64::from(n)).then_some(scrape))
            })?;
            let value = |name: &str, labels: &str| counted.value(&format!("{name}{{{labels}}}"));
            ensure!(value("sluice_service_connections_total", &tcp)? == f64::from(n));
            ensure!(value("sluice_service_connections_total", &udp)? == f64::from(n));
            for direction in ["request", "reply"] {
                let udp = format!("{udp},direction=\"{direction}\"");
                ensure!(value("sluice_service_packets_total", &udp)? == f64::from(n), "{direction}");
                // An Ethernet and an IP header, at least.
                ensure!(value("sluice_service_bytes_total", &udp)? >= f64::from(n) * 34.0, "{direction}");
                let tcp = format!("{tcp},direction=\"{direction}\"");
                ensure!(value("sluice_service_packets_total", &tcp)? >= f64::from(n) * 2.0, "{direction}");
            }
        }
        let after = agent.scrape()?;
        ensure!(!after.text().contains("quiet"), "a service without traffic has no series");
        for family in Family::ALL {
            let name =
                format!("kubeproxy_network_programming_duration_seconds_count{{ip_family=\"{family}\"}}");
            ensure!(after.value(&name)? == before.value(&name)? + 1.0, "{name}");
            let name = format!("kubeproxy_sync_proxy_rules_last_timestamp_seconds{{ip_family=\"{family}\"}}");
            let age = Timestamp::now().as_duration().as_secs_f64() - after.value(&name)?;
            ensure!((-1.0..60.0).contains(&age), "{name} was {age} s ago");
        }
        for (name, more) in [
            // Two Services and the marks of the harness; each has slices of both families but the marks.
            ("kubeproxy_sync_proxy_rules_service_changes_total", 4.0),
            ("kubeproxy_sync_proxy_rules_endpoint_changes_total", 4.0),
        ] {
            ensure!(after.value(name)? >= before.value(name)? + more, "{name}");
        }
        for name in [
            "kubeproxy_sync_proxy_rules_service_changes_pending",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
            "sluice_failing_writes",
            "sluice_devices{state=\"unfinished\"}",
        ] {
            ensure!(after.value(name)? == 0.0, "{name}");
        }
        ensure!(after.value("sluice_synced")? == 1.0);
        ensure!(after.sum("kubeproxy_sync_proxy_rules_duration_seconds_count") > 0.0);
        ensure!(after.sum("sluice_programming_duration_seconds_count") > 0.0);
        Ok(())
    });
}

#[test]
fn drops_are_counted_by_reason_and_tables_by_entries() {
    Setup::new(1).alone().run(|cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let agent = &agents.agents[0];
        let service = Service::new("empty", 1).with_node_port(30_080);
        agents.serve(&service)?;
        let before = agent.scrape()?;
        ensure!(before.sum("sluice_drops_total") == 0.0 && before.sum("sluice_service_drops_total") == 0.0);
        expect_refused(&pod.machine, service.vip())?;
        let after = agent.scrape()?;
        for reason in DropReason::ALL {
            let drops = f64::from(u32::try_from(agent.drops(reason)?)?);
            let name = reason.as_str();
            ensure!(after.value(&format!("sluice_drops_total{{reason=\"{name}\"}}"))? == drops, "{name}");
            let of_services = if reason == DropReason::NoBackend { drops } else { 0.0 };
            let suffix = format!("reason=\"{name}\"}}");
            let sum: f64 = after
                .text()
                .lines()
                .filter(|line| line.starts_with("sluice_service_drops_total{") && line.contains(&suffix))
                .map(|line| line.rsplit(' ').next().unwrap_or_default().parse::<f64>())
                .sum::<Result<_, _>>()?;
            ensure!(sum == of_services, "{name}: {sum}");
        }
        let entries = |table: &str| after.value(&format!("sluice_table_entries{{table=\"{table}\"}}"));
        // Two ports in two families, each with a NodePort; the harness has a port of its own.
        ensure!(entries("SERVICE_NAMES")? == 5.0 && entries("FRONTENDS")? == 9.0, "{}", after.text());
        ensure!(entries("BACKENDS")? == 0.0 && entries("AFFINITIES")? == 0.0);
        let devices = f64::from(u32::try_from(agent.attached()?.len())?);
        ensure!(entries("DEVICES")? == devices, "{devices} devices");
        ensure!(after.value("sluice_devices{state=\"attached\"}")? == devices);
        let capacity = after.value("sluice_table_capacity{table=\"FLOWS\"}")?;
        ensure!(capacity == f64::from(Flows::CAPACITY));
        Ok(())
    });
}

/// MAPI-01.
#[test]
fn metrics_are_told_in_the_format_that_is_asked_for() {
    with_agents(1, |_, agents| {
        let agent = &agents.agents[0];
        let to = (Ipv4Addr::LOCALHOST, METRICS_PORT).into();
        for (accept, content_type) in [
            ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
            (
                "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3",
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
            ),
        ] {
            let reply = http::ask(agent.namespace(), to, "GET", "/metrics", &[("Accept", accept)])?;
            ensure!(reply.status == 200 && reply.header("content-type") == content_type, "{reply:?}");
            ensure!(reply.body.ends_with("# EOF\n") == content_type.starts_with("application"), "{reply:?}");
            for name in ["process_cpu_seconds_total ", "process_open_fds ", "sluice_build_info{"] {
                ensure!(reply.body.contains(&format!("\n{name}")), "{name}: {}", reply.body);
            }
        }
        Ok(())
    });
}

/// Entries that stand in the way of others.
struct Junk {
    keys: Vec<FrontendKey>,
}

impl Junk {
    /// Fills the table of frontends with entries that no packet asks for.
    fn fill(agent: &Agent) -> Result<Self> {
        agent.namespace().run(|| {
            let mut table = HashTable::<Frontends>::open(&Pins::new(agent.bpffs()))?;
            let mut keys = Vec::new();
            for number in 0..=Frontends::CAPACITY {
                let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(203, 0, 0, 0)) + number);
                let end =
                    Endpoint { address: std::net::IpAddr::V4(address).into(), port: Be16::from_host(1) };
                let key = FrontendKey::new(end, Number::TCP);
                match table.put(&key, &Frontend::default()) {
                    Ok(()) => keys.push(key),
                    Err(TableError::Full { .. }) => return Ok(Self { keys }),
                    Err(error) => return Err(error.into()),
                }
            }
            anyhow::bail!("the table takes more than its capacity")
        })
    }

    fn remove(self, agent: &Agent) -> Result<()> {
        agent.namespace().run(|| {
            let mut table = HashTable::<Frontends>::open(&Pins::new(agent.bpffs()))?;
            self.keys.iter().try_for_each(|key| Ok(table.delete(key)?))
        })
    }
}

/// HZ-05, HC-05: a change that never gets through. Services that are there go on, and so does the agent.
#[test]
fn writes_that_fail_for_too_long_are_unhealthy_until_they_succeed() {
    const PATIENCE: Duration = Duration::from_secs(180);
    Setup::new(1).alone().run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let pod = node.add_pod("pod")?;
        let near = Backend::on(node, "near")?;
        let agent = &agents.agents[0];
        let good = Service::new("good", 1).with(&near.pod).with_health_check(32_000);
        agents.serve(&good)?;
        let check = || http::get(&cluster.client.namespace, node.addresses.at(32_000).of(Family::V4), "/");
        let statuses = || -> Result<[u16; 3]> {
            let of = |path| Ok::<_, anyhow::Error>(agent.ask_over_http(HEALTH_PORT, path)?.status);
            Ok([of("/healthz")?, of("/livez")?, check()?.status])
        };
        wait_until("all is well", || Ok((statuses()? == [200; 3]).then_some(())))?;

        let junk = Junk::fill(agent)?;
        let blocked = Service::new("blocked", 2).with(&near.pod).with_health_check(32_001);
        agents.publish(&blocked)?;
        wait_until("writes fail", || {
            let scrape = agent.scrape()?;
            Ok((scrape.value("sluice_failing_writes")? > 0.0).then_some(()))
        })?;
        ensure!(statuses()? == [200; 3], "a change may be late for a while");
        let refused = http::get(&cluster.client.namespace, node.addresses.at(32_001).of(Family::V4), "/");
        ensure!(refused.is_err(), "a Service that is not there has no health: {refused:?}");
        wait_at_most(PATIENCE, "the agent is unhealthy", || Ok((statuses()? == [503; 3]).then_some(())))?;
        ensure!(check()?.body.contains("\"serviceProxyHealthy\": false"));
        expect_reach(&pod.machine, good.vip(), "near", &Seen::Client)?;
        let log = agent.log()?;
        ensure!(log.contains("FailedToProgram") && log.contains("default/blocked"), "{log}");

        junk.remove(agent)?;
        wait_until("all is well again", || Ok((statuses()? == [200; 3]).then_some(())))?;
        agents.settle()?;
        expect_reach(&pod.machine, blocked.vip(), "near", &Seen::Client)?;
        ensure!(agent.scrape()?.value("sluice_failing_writes")? == 0.0);
        let is_ok = |reply: http::Reply| (reply.status == 200).then_some(());
        wait_until("the late Service is healthy", || {
            let reply = http::get(&cluster.client.namespace, node.addresses.at(32_001).of(Family::V4), "/");
            Ok(reply.ok().and_then(is_ok))
        })
    });
}
