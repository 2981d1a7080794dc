//! What load balancers and operators are told: health of the agent, and of Services.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{NodeSpec, Taint};
use serde_json::Value;
use sluice_tests::{
    agent::Agent,
    harness::{Setup, with_agents},
    scrape::{HEALTH_PORT, METRICS_PORT},
    service::{Condition, Member, Service},
    topology::{Addresses, Ends, Family, Machine, Node},
    traffic::http,
    wait::wait_until,
};

use crate::{
    Backend,
    expect::{Seen, expect_reach, expect_tcp_refused},
};

const NODE_PORT: u16 = 30_080;
const CHECK_PORT: u16 = 32_000;

/// The health check of a node answers this status, asked at either family, soon.
fn wait_for_check(client: &Machine, node: &Node, port: u16, status: u16, count: usize) -> Result<()> {
    for family in Family::ALL {
        let to = node.addresses.at(port).of(family);
        wait_until(&format!("{to} answers {status} and {count}"), || {
            let Ok(reply) = http::get(&client.namespace, to, "/healthz") else { return Ok(None) };
            let weight = reply.header("x-load-balancing-endpoint-weight") == count.to_string();
            Ok((reply.status == status && weight).then_some(()))
        })?;
    }
    Ok(())
}

/// Nobody answers health checks of a node any more, soon.
fn wait_for_closure(client: &Machine, node: &Node, port: u16) -> Result<()> {
    for family in Family::ALL {
        let to = node.addresses.at(port).of(family);
        wait_until(&format!("nobody is at {to}"), || {
            Ok(http::get(&client.namespace, to, "/").is_err().then_some(()))
        })?;
        expect_tcp_refused(&client.namespace, to)?;
    }
    Ok(())
}

/// HC-03, HC-06, HC-07, over the wire.
#[test]
fn health_checks_are_answered_like_kube_proxys() {
    with_agents(1, |cluster, agents| {
        let node = &cluster.nodes[0];
        let near = Backend::on(node, "near")?;
        agents.serve(&Service::new("echo", 1).with(&near.pod).with_health_check(CHECK_PORT))?;
        wait_for_check(&cluster.client, node, CHECK_PORT, 200, 1)?;
        let body = "{\n\t\"service\": {\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"echo\"\n\t},\n\
                    \t\"localEndpoints\": 1,\n\t\"serviceProxyHealthy\": true\n}";
        for family in Family::ALL {
            let to = node.addresses.at(CHECK_PORT).of(family);
            for (method, path) in
                [("GET", "/"), ("GET", "/any/path?and=query"), ("POST", "/healthz"), ("PUT", "/")]
            {
                let reply = http::ask(&cluster.client.namespace, to, method, path, &[])?;
                ensure!(reply.status == 200 && reply.body == body, "{method} {path}: {reply:?}");
                ensure!(reply.header("content-type") == "application/json", "{reply:?}");
                ensure!(reply.header("x-content-type-options") == "nosniff", "{reply:?}");
            }
        }
        Ok(())
    });
}

/// E2E-036, E2E-040, HC-04, ETP-03. A pod that terminates serves, but load balancers are to go elsewhere.
#[test]
fn health_checks_fail_while_the_last_endpoint_terminates() {
    with_agents(1, |cluster, agents| {
        let node = &cluster.nodes[0];
        let near = Backend::on(node, "near")?;
        let service = Service::new("echo", 1).with_node_port(NODE_PORT).with_health_check(CHECK_PORT);
        let nobody = service.clone();
        let service = service.with(&near.pod);
        for _ in 0..2 {
            agents.serve(&service)?;
            wait_for_check(&cluster.client, node, CHECK_PORT, 200, 1)?;
            agents.serve(&service.clone().with_condition("near", Condition::Terminating))?;
            wait_for_check(&cluster.client, node, CHECK_PORT, 503, 0)?;
            expect_reach(&cluster.client, node.addresses.at(NODE_PORT), "near", &Seen::Client)?;
        }
        // COND-02
        agents.serve(&service.with_condition("near", Condition::TerminatingPublished))?;
        wait_for_check(&cluster.client, node, CHECK_PORT, 200, 1)?;
        agents.serve(&nobody)?;
        wait_for_check(&cluster.client, node, CHECK_PORT, 503, 0)
    });
}

/// E2E-044 (its port for health checks), E2E-127, E2E-128, HC-08, HC-09.
#[test]
fn health_checks_follow_policies_types_and_endpoints() {
    with_agents(3, |cluster, agents| {
        let [first, second, third] = [0, 1, 2].map(|n| &cluster.nodes[n]);
        let here = Backend::on(first, "here")?;
        let there = Backend::on(second, "there")?;
        let vip = Addresses::elsewhere(250);
        let cluster_wide = Service::new("echo", 1).with_node_port(NODE_PORT).with_load_balancer(vip, "VIP");
        let local = cluster_wide.clone().with_health_check(CHECK_PORT);
        let expect = |nodes: [(&Node, u16, usize); 3], port| {
            nodes.into_iter().try_for_each(|(node, status, count)| {
                wait_for_check(&cluster.client, node, port, status, count)
            })
        };
        for _ in 0..2 {
            agents.serve(&local.clone().with(&here.pod))?;
            expect([(first, 200, 1), (second, 503, 0), (third, 503, 0)], CHECK_PORT)?;
            agents.serve(&local.clone().with(&there.pod))?;
            expect([(first, 503, 0), (second, 200, 1), (third, 503, 0)], CHECK_PORT)?;
            agents.serve(&cluster_wide.clone().with(&here.pod))?;
            cluster.nodes.iter().try_for_each(|node| wait_for_closure(&cluster.client, node, CHECK_PORT))?;
        }
        let both = local.with(&here.pod).with(&there.pod);
        agents.serve(&both)?;
        expect([(first, 200, 1), (second, 200, 1), (third, 503, 0)], CHECK_PORT)?;
        agents.serve(&both.clone().with_health_check(CHECK_PORT + 1))?;
        expect([(first, 200, 1), (second, 200, 1), (third, 503, 0)], CHECK_PORT + 1)?;
        wait_for_closure(&cluster.client, first, CHECK_PORT)?;
        agents.serve(&both.clone().edit(|spec| spec.type_ = Some("NodePort".to_owned())))?;
        cluster.nodes.iter().try_for_each(|node| wait_for_closure(&cluster.client, node, CHECK_PORT + 1))?;
        agents.serve(&both)?;
        expect([(first, 200, 1), (second, 200, 1), (third, 503, 0)], CHECK_PORT)?;
        agents.withdraw(&both)?;
        cluster.nodes.iter().try_for_each(|node| wait_for_closure(&cluster.client, node, CHECK_PORT))
    });
}

/// HC-04: however many ports an address serves, in however many slices.
#[test]
fn health_checks_count_addresses() {
    with_agents(1, |cluster, agents| {
        let node = &cluster.nodes[0];
        let member = |n: u8| Member::at(&format!("pod-{n}"), &node.name, Addresses::of_pod(1, 200 + n));
        let service = Service::new("echo", 1).with_health_check(CHECK_PORT);
        let service = service.with_member(member(1)).with_member(member(2).with_targets(&[("tcp", 9090)]));
        let service = service.with_member(member(1).with_targets(&[("tcp", 9090)]));
        let elsewhere = Member::at("pod-3", "node-9", Addresses::of_pod(9, 3));
        agents.serve(&service.with_member(elsewhere))?;
        wait_for_check(&cluster.client, node, CHECK_PORT, 200, 2)
    });
}

/// HC-02, and addresses that come and go.
#[test]
fn health_checks_are_answered_where_node_ports_are() {
    let flags = ["--nodeport-addresses", "192.168.77.0/24"];
    Setup::new(1).telling(&flags).alone().run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let near = Backend::on(node, "near")?;
        agents.serve(&Service::new("echo", 1).with(&near.pod).with_health_check(CHECK_PORT))?;
        // The other family is not restricted (NP-05).
        let to_v6 = node.addresses.at(CHECK_PORT).of(Family::V6);
        wait_until("IPv6 is answered", || Ok(http::get(&cluster.client.namespace, to_v6, "/").ok()))?;
        let own = SocketAddr::from((node.addresses.v4, CHECK_PORT));
        expect_tcp_refused(&cluster.client.namespace, own)?;
        let added = SocketAddr::from((Ipv4Addr::new(192, 168, 77, 1), CHECK_PORT));
        node.namespace.ip("addr add 192.168.77.1/32 dev eth0")?;
        let reply =
            wait_until("the new address is answered", || Ok(http::get(&node.namespace, added, "/").ok()))?;
        ensure!(reply.status == 200, "{reply:?}");
        expect_tcp_refused(&cluster.client.namespace, own)?;
        node.namespace.ip("addr del 192.168.77.1/32 dev eth0\naddr add 192.168.77.2/32 dev eth0")?;
        let moved = SocketAddr::from((Ipv4Addr::new(192, 168, 77, 2), CHECK_PORT));
        wait_until("the other one is answered", || Ok(http::get(&node.namespace, moved, "/").ok())).map(drop)
    });
}

/// HC-10: one that cannot be answered disturbs no other, and is tried again.
#[test]
fn a_health_check_whose_port_is_taken_is_answered_once_it_is_free() {
    with_agents(1, |cluster, agents| {
        let node = &cluster.nodes[0];
        let near = Backend::on(node, "near")?;
        let holder = node.namespace.run(|| Ok(TcpListener::bind(("0.0.0.0", CHECK_PORT))?))?;
        agents.serve(&Service::new("blocked", 1).with(&near.pod).with_health_check(CHECK_PORT))?;
        agents.serve(&Service::new("other", 2).with(&near.pod).with_health_check(CHECK_PORT + 1))?;
        wait_for_check(&cluster.client, node, CHECK_PORT + 1, 200, 1)?;
        wait_until("the agent says why", || {
            let log = agents.agents[0].log()?;
            let told = |line: &str| {
                line.contains("FailedToStartServiceHealthcheck") && line.contains("default/blocked")
            };
            Ok(log.lines().any(told).then_some(()))
        })?;
        drop(holder);
        wait_for_check(&cluster.client, node, CHECK_PORT, 200, 1)
    });
}

/// E2E-080, HZ-01, HZ-02, HZ-09, MAPI-02 to MAPI-04.
#[test]
fn the_agent_answers_where_kube_proxy_does() {
    with_agents(1, |cluster, agents| {
        let node = &cluster.nodes[0];
        let agent = &agents.agents[0];
        let everywhere: [(&Machine, Ends); 2] = [
            (
                &node.machine(),
                Addresses { v4: Ipv4Addr::LOCALHOST, v6: std::net::Ipv6Addr::LOCALHOST }.at(HEALTH_PORT),
            ),
            (&cluster.client, node.addresses.at(HEALTH_PORT)),
        ];
        for (client, to) in everywhere {
            for family in Family::ALL {
                let reply = http::get(&client.namespace, to.of(family), "/healthz")?;
                let body: Value = serde_json::from_str(&reply.body)?;
                ensure!(reply.status == 200 && body["lastUpdated"].is_string(), "{reply:?}");
                ensure!(body["healthy"] == true && body["nodeEligible"] == true, "{reply:?}");
                ensure!(body["status"]["IPv6"]["healthy"] == true, "{reply:?}");
                ensure!(http::get(&client.namespace, to.of(family), "/livez")?.status == 200);
                ensure!(http::get(&client.namespace, to.of(family), "/")?.status == 404);
            }
        }
        let said = |path: &str| agent.ask_over_http(METRICS_PORT, path);
        let mode = said("/proxyMode")?;
        ensure!((mode.status, mode.body.as_str()) == (200, "sluice"), "{mode:?}");
        ensure!(said("/healthz")?.body == "ok");
        let configuration: Value = serde_json::from_str(&said("/configz")?.body)?;
        let configuration = &configuration["kubeproxy.config.k8s.io"];
        ensure!(configuration["kind"] == "KubeProxyConfiguration", "{configuration}");
        ensure!(configuration["hostnameOverride"] == node.name, "{configuration}");
        ensure!(said("/flagz")?.status == 404);
        // Nobody else's business.
        expect_tcp_refused(&cluster.client.namespace, node.addresses.at(METRICS_PORT).of(Family::V4))
    });
}

/// HZ-06, HZ-07, HZ-10.
#[test]
fn a_node_that_is_to_go_wants_no_traffic_but_lives() {
    Setup::new(1).alone().run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let agent = &agents.agents[0];
        let near = Backend::on(node, "near")?;
        agents.serve(&Service::new("echo", 1).with(&near.pod).with_health_check(CHECK_PORT))?;
        let expect = |agent: &Agent, healthz: u16| -> Result<()> {
            wait_until(&format!("/healthz is {healthz}"), || {
                Ok((agent.ask_over_http(HEALTH_PORT, "/healthz")?.status == healthz).then_some(()))
            })?;
            ensure!(agent.ask_over_http(HEALTH_PORT, "/livez")?.status == 200);
            // HC-05: that of Services is another question.
            wait_for_check(&cluster.client, node, CHECK_PORT, 200, 1)
        };
        expect(agent, 200)?;
        let doomed = Taint {
            key: "ToBeDeletedByClusterAutoscaler".to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Taint::default()
        };
        let spec = NodeSpec { taints: Some(vec![doomed]), ..NodeSpec::default() };
        agent.manifests.publish_node_as(node, |object| object.spec = Some(spec))?;
        expect(agent, 503)?;
        let reply = agent.ask_over_http(HEALTH_PORT, "/healthz")?;
        ensure!(reply.body.contains("\"nodeEligible\":false,\"healthy\":true"), "{reply:?}");
        agent.manifests.publish_node(node)?;
        expect(agent, 200)?;
        agent.manifests.withdraw_node(node)?;
        expect(agent, 503)
    });
}

/// HZ-03.
#[test]
fn an_address_that_is_taken_is_waited_for_or_an_error() {
    Setup::new(1).alone().run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let agent = &mut agents.agents[0];
        agent.kill()?;
        let hold = |port| node.namespace.run(move || Ok(TcpListener::bind(("127.0.0.1", port))?));
        let holder = hold(METRICS_PORT)?;
        agent.resume()?;
        agent.wait_until_synced()?;
        ensure!(
            agent.ask_over_http(HEALTH_PORT, "/healthz")?.status == 200,
            "the other server is none the worse"
        );
        drop(holder);
        wait_until("metrics are told", || {
            Ok(agent.ask_over_http(METRICS_PORT, "/proxyMode").ok().filter(|reply| reply.status == 200))
        })?;
        agent.kill()?;
        agent.tell(&["--bind-address-hard-fail"]);
        let holder = hold(METRICS_PORT)?;
        agent.resume()?;
        let ended = agent.wait_until_synced().map_err(|error| format!("{error:#}"));
        let told = ended.err().context("the agent runs without its metrics")?;
        for part in ["ended", "127.0.0.1:10249", "--metrics-bind-address", "FailedToStartMetricServer"] {
            ensure!(told.contains(part), "{part}: {told}");
        }
        drop(holder);
        agent.resume()?;
        agent.wait_until_synced()
    });
}
