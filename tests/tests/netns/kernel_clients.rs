//! What the kernel connects by itself (mounts of NFS, SMB and Ceph do), and what it makes of an error.
//!
//! The stand-in for a mount is Multipath TCP (RFC 8684): all connections of such a socket but the first are opened by the
//! kernel, from a worker and by `kernel_connect`.

use std::{
    fs,
    io::ErrorKind,
    net::{SocketAddr, TcpStream, UdpSocket},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use sluice_tests::{
    harness::{unsupported, with_agents},
    netns::Namespace,
    service::{Port, Service, TARGET_PORT},
    topology::{Ends, Family},
    traffic::{Connection, Protocol, Server},
    wait::wait_until,
};

use crate::Backend;

/// Whether this kernel has such sockets.
fn requirements() -> Result<()> {
    let missing = || anyhow!("this kernel has no Multipath TCP, or it is switched off");
    let enabled = fs::read_to_string("/proc/sys/net/mptcp/enabled").map_err(|_| missing())?;
    ensure!(enabled.trim() == "1", missing());
    Ok(())
}

/// A counter of the namespace's Multipath TCP.
fn counter(namespace: &Namespace, name: &str) -> Result<u64> {
    let text = namespace.run(|| Ok(fs::read_to_string("/proc/thread-self/net/netstat")?))?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("MPTcpExt: "));
    let (names, values) = lines.next().zip(lines.next()).context("no counters of Multipath TCP")?;
    let mut pairs = names.split(' ').zip(values.split(' '));
    let (_, value) = pairs.find(|(found, _)| *found == name).with_context(|| format!("no counter {name}"))?;
    Ok(value.parse()?)
}

/// A connection by such a socket, over which a few bytes go back and forth.
fn talk(from: &Namespace, to: Ends, backend: &str) -> Result<Vec<Connection>> {
    let talk = |family| {
        let mut connection = Connection::open_multipath(from, to.of(family))?;
        ensure!(connection.backend == backend, "{connection:?}");
        connection.start_echo()?;
        (0..10).try_for_each(|number| connection.echo(number))?;
        Ok(connection)
    };
    Family::ALL.into_iter().map(talk).collect()
}

#[test]
fn multipath_sockets_of_the_host_and_of_pods_reach_services() {
    if let Err(reason) = requirements() {
        return unsupported(&reason);
    }
    with_agents(2, |cluster, agents| {
        let node = &cluster.nodes[0];
        let client = node.add_pod("client")?;
        // One that falls back to TCP, and one that does not.
        let plain = Backend::on(node, "plain")?;
        let pod = cluster.nodes[1].add_pod("multipath")?;
        let _server = Server::start_multipath(&pod.machine, TARGET_PORT)?;
        for (backend, is_multipath) in [(&plain.pod, false), (&pod, true)] {
            let service = Service::new("echo", 1).with(backend);
            agents.serve(&service)?;
            for from in [&node.namespace, &client.machine.namespace] {
                let before = counter(from, "MPCapableSYNACKRX")?;
                talk(from, service.vip(), backend.name())?;
                let established = counter(from, "MPCapableSYNACKRX")? - before;
                ensure!((established > 0) == is_multipath, "{established} with {}", backend.name());
            }
        }
        // Refused as by any other socket.
        let empty = Service::new("echo", 1);
        agents.serve(&empty)?;
        for family in Family::ALL {
            let error = Connection::open_multipath(&node.namespace, empty.frontend(family)).err();
            let error = error.context("nobody serves")?;
            ensure!(format!("{error:#}").contains("refused"), "{error:#}");
        }
        Ok(())
    });
}

/// The backend says that it can be reached at the service's address too, and the host's kernel connects there.
#[test]
fn a_connection_that_the_kernel_opens_by_itself_is_served() {
    const MANY: &str = "mptcp limits set subflows 4 add_addr_accepted 4";
    if let Err(reason) = requirements() {
        return unsupported(&reason);
    }
    with_agents(2, |cluster, agents| {
        let node = &cluster.nodes[0];
        let pod = cluster.nodes[1].add_pod("multipath")?;
        let _server = Server::start_multipath(&pod.machine, TARGET_PORT)?;
        // What is announced is an address alone; the port is that of the connection.
        let port = Port::new("tcp", Protocol::Tcp, TARGET_PORT, TARGET_PORT);
        let service = Service::new("echo", 1).with_ports([port]).with(&pod);
        agents.serve(&service)?;
        node.namespace.ip(MANY)?;
        pod.machine.namespace.ip(MANY)?;
        for family in Family::ALL {
            pod.machine
                .namespace
                .ip(&format!("mptcp endpoint add {} signal", service.frontend(family).ip()))?;
        }
        let before = counter(&node.namespace, "MPJoinSynAckRx")?;
        let mut connections = talk(&node.namespace, service.vip(), pod.name())?;
        // A socket of IPv4 finds one more address that it can use, one of IPv6 both.
        wait_until("the kernel has opened three paths more", || {
            Ok((counter(&node.namespace, "MPJoinSynAckRx")? >= before + 3).then_some(()))
        })?;
        connections[0].echo(99)
    });
}

/// NFS tries again at once and for ever after an error that it does not know, `EPERM` for one (before Linux 6.10).
#[test]
fn where_packets_would_be_dropped_sockets_hear_that_the_host_cannot_be_reached() {
    with_agents(2, |cluster, agents| {
        let far = Backend::on(&cluster.nodes[1], "far")?;
        let service = Service::new("echo", 1).with(&far.pod).local_for_inside();
        agents.serve(&service)?;
        for family in Family::ALL {
            let to = service.frontend(family);
            cluster.nodes[0].namespace.run(|| {
                let own = SocketAddr::new(family.unspecified(), 0);
                for (what, result) in [
                    ("TCP", TcpStream::connect(to).map(drop)),
                    ("UDP, connected", UdpSocket::bind(own)?.connect(to)),
                    ("UDP", UdpSocket::bind(own)?.send_to(b"anybody there?", to).map(drop)),
                ] {
                    let error = result.err().with_context(|| format!("{what} to {to} should fail"))?;
                    ensure!(error.kind() == ErrorKind::HostUnreachable, "{what} to {to}: {error}");
                }
                Ok(())
            })?;
        }
        Ok(())
    });
}
