//! Whose sockets are served.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
};

use anyhow::ensure;
use sluice_tests::{
    cgroup::Threads,
    harness::{Setup, unsupported},
    sandbox::own_cgroup,
    service::{Service, TARGET_PORT},
    topology::Family,
    traffic::{Connection, Source},
};

use super::{LOOPBACK, NODE_PORT, expect_failure_at_once, expect_pinned, expect_reach_every_way, host};
use crate::{
    Backend,
    expect::{Seen, expect_reach, expect_tcp_refused},
};

#[test]
fn without_sockets_the_host_is_not_served_and_pods_are() {
    Setup::new(1).telling(&["--socket-lb=off"]).alone().run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let near = Backend::on(node, "near")?;
        let client = node.add_pod("client")?;
        let service = Service::new("echo", 1).with(&near.pod).with_node_port(NODE_PORT);
        agents.serve(&service)?;
        expect_failure_at_once(&host(node), service.vip())?;
        for family in Family::ALL {
            expect_tcp_refused(&node.namespace, LOOPBACK.at(NODE_PORT).of(family))?;
        }
        ensure!(near.server.connections() == 0 && near.server.datagrams() == 0);
        expect_reach(&client.machine, service.vip(), "near", &Seen::Client)?;
        expect_pinned(agents.agents[0].pins()?, 0)?;
        let status = agents.agents[0].ask(&["status"])?;
        ensure!(status.contains("sockets  off"), "{status}");

        // Switched on and off again.
        for (mode, count) in [("--socket-lb=host-only", 8), ("--socket-lb=off", 0)] {
            let agent = &mut agents.agents[0];
            agent.terminate()?;
            agent.tell(&[mode]);
            agent.resume()?;
            agent.wait_until_synced()?;
            agents.settle()?;
            expect_pinned(agents.agents[0].pins()?, count)?;
            if count > 0 {
                expect_reach_every_way(&host(node), service.vip(), "near", &Seen::node(node))?;
                let status = agents.agents[0].ask(&["status"])?;
                let cgroup = format!("{}, 8 of 8", own_cgroup()?.display());
                ensure!(status.contains("sockets  host-only") && status.contains(&cgroup), "{status}");
                let status = agents.agents[0].ask(&["status", "-o", "json"])?;
                let sockets = serde_json::from_str::<serde_json::Value>(&status)?["sockets"].take();
                let count = |field: &str| sockets[field].as_array().map(Vec::len);
                ensure!(
                    sockets["mode"] == "host-only"
                        && count("hooks") == Some(8)
                        && count("missing") == Some(0),
                    "{sockets}"
                );
            } else {
                expect_failure_at_once(&host(node), service.vip())?;
            }
        }
        Ok(())
    });
}

/// Only threads in a cgroup of its own are served: that of this process has other tests' pods in it.
#[test]
fn a_pods_connection_goes_straight_to_its_backend_if_pods_are_served_at_sockets() {
    let threads = match Threads::create("pod") {
        Ok(threads) => threads,
        Err(reason) => return unsupported(&reason),
    };
    let cgroup = format!("--cgroup={}", threads.path().display());
    Setup::new(1).telling(&["--socket-lb=on", &cgroup]).alone().run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let near = Backend::on(node, "near")?;
        let client = node.add_pod("client")?;
        let service = Service::new("echo", 1).with(&near.pod);
        agents.serve(&service)?;
        for family in Family::ALL {
            let (to, pod) = (service.frontend(family), near.pod.machine.addresses.at(TARGET_PORT).of(family));
            let open = || Connection::open(&client.machine.namespace, to, Source::AnyPort);
            for (is_inside, expected) in [(true, pod), (false, to)] {
                let connection = if is_inside { threads.run(open) } else { open() }?;
                ensure!(connection.backend == "near" && connection.peer()? == to, "{connection:?}");
                ensure!(connection.seen_as == connection.local()?, "seen as {}", connection.seen_as);
                // What the socket puts on its packets.
                let sockets = client.machine.namespace.run(|| {
                    let file = if family == Family::V4 { "tcp" } else { "tcp6" };
                    Ok(fs::read_to_string(format!("/proc/thread-self/net/{file}"))?)
                })?;
                ensure!(
                    sockets.contains(&as_kernel_writes(expected)),
                    "inside {is_inside}: no {expected} in\n{sockets}"
                );
                connection.abort()?;
            }
        }
        // Its datagrams are left to packets.
        expect_reach(&client.machine, service.vip(), "near", &Seen::Client)?;
        let status = agents.agents[0].ask(&["status"])?;
        ensure!(
            status.contains("sockets  on") && status.contains(&threads.path().display().to_string()),
            "{status}"
        );
        Ok(())
    });
}

/// An end as `/proc/net/tcp` has it: words of the address in the machine's order, all in hexadecimal.
pub(crate) fn as_kernel_writes(end: SocketAddr) -> String {
    let octets = match end.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let word = |octets: &[u8]| <[u8; 4]>::try_from(octets).map(u32::from_ne_bytes).unwrap_or_default();
    let words: Vec<_> = octets.chunks_exact(4).map(|octets| format!("{:08X}", word(octets))).collect();
    format!("{}:{:04X}", words.concat(), end.port())
}
