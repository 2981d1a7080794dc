//! The agent and its programs on nodes made of network namespaces, with real sockets at both ends.
//!
//! One file per question. Who is reached: through ClusterIPs ([`reach`]), NodePorts ([`nodeport`]), external IPs and load
//! balancers ([`external`]), under policies ([`policy`]), over other networks ([`shapes`]), by other protocols ([`sctp`]) in pieces
//! ([`fragments`]) and from the nodes themselves ([`sockets`]). By whom, and as whom ([`spread`], [`source`]). What if nobody serves ([`refuse`], [`unknown`], [`errors`]). Does it hold
//! ([`load`], [`flood`]), does it follow changes ([`endpoints`], [`udp`], [`devices`], [`manifests`]), does it outlive the agent
//! ([`lifecycle`]), does it do what Kubernetes tests of a proxy ([`upstream`]), and do the demo and the commands tell the truth
//! ([`demo`], [`status`], [`show`])?

mod demo;
mod devices;
mod endpoints;
mod errors;
mod expect;
mod external;
mod flood;
mod fragments;
mod lifecycle;
mod load;
mod manifests;
mod nodeport;
mod policy;
mod reach;
mod refuse;
mod sctp;
mod shapes;
mod show;
mod sockets;
mod source;
mod spread;
mod status;
mod udp;
mod unknown;
mod upstream;

use anyhow::Result;
use sluice_tests::{
    service::TARGET_PORT,
    topology::{Node, Pod},
    traffic::Server,
};

/// A pod that serves for as long as this is held.
struct Backend {
    pod: Pod,
    server: Server,
}

impl Backend {
    fn on(node: &Node, name: &str) -> Result<Self> {
        let pod = node.add_pod(name)?;
        let server = Server::start(&pod.machine, TARGET_PORT)?;
        Ok(Self { pod, server })
    }
}
