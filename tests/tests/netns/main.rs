//! The agent and its programs on nodes made of network namespaces, with real sockets at both ends.
//!
//! One file per question. Who is reached: through ClusterIPs ([`reach`]), NodePorts ([`nodeport`]), external IPs and load
//! balancers ([`external`]), under policies ([`policy`]), over other networks ([`shapes`]), by other protocols ([`sctp`]) in pieces
//! ([`fragments`]), from the nodes themselves and from pods by their sockets ([`sockets`], [`pods`]) or without
//! ([`without_sockets`]); what the kernel connects by itself ([`kernel_clients`]), and who comes before a service at its address
//! ([`own_address`]). By whom, and as whom ([`spread`], [`source`]). What if nobody serves ([`refuse`], [`unknown`],
//! [`errors`]), or not any more ([`reset`]). Are checksums right ([`checksums`])? Does it hold ([`load`], [`flood`]), does it follow changes ([`endpoints`], [`audit`], [`udp`],
//! [`dns`], [`devices`], [`manifests`]), what if there is no room ([`capacity`]), does it outlive the agent ([`lifecycle`], [`undisturbed`]) and the API server ([`api_server`]), can it take over from kube-proxy ([`migrate`]), also with the privileges of its container alone
//! ([`deploy`]), do packets go past the stack ([`xdp`], [`delivery`]) and answers past the node that was asked ([`dsr`]), does it do as it is told ([`configuration`]), does it do what Kubernetes tests of a proxy ([`upstream`]), does it say how it is ([`health`], [`metrics`]), and do the demo, the benchmark and the commands tell the truth
//! ([`demo`], [`bench`], [`status`], [`show`])?

mod api_server;
mod audit;
mod bench;
mod capacity;
mod checksums;
mod configuration;
mod delivery;
mod demo;
mod deploy;
mod devices;
mod dns;
mod dsr;
mod endpoints;
mod errors;
mod expect;
mod external;
mod flood;
mod fragments;
mod health;
mod kernel_clients;
mod lifecycle;
mod load;
mod maglev;
mod manifests;
mod metrics;
mod migrate;
mod nodeport;
mod own_address;
mod pods;
mod policy;
mod reach;
mod refuse;
mod reset;
mod sctp;
mod shapes;
mod show;
mod sockets;
mod source;
mod spread;
mod status;
mod udp;
mod undisturbed;
mod unknown;
mod upstream;
mod without_sockets;
mod xdp;

use anyhow::Result;
use sluice_tests::{
    service::TARGET_PORT,
    topology::{Node, Pod},
    traffic::{Server, repeat_only_what_is_lost},
};

/// A pod that serves for as long as this is held.
struct Backend {
    pod: Pod,
    server: Server,
}

impl Backend {
    fn on(node: &Node, name: &str) -> Result<Self> {
        Self::serving(node.add_pod(name)?)
    }

    /// One that takes nothing for lost that is only late; see [`repeat_only_what_is_lost`].
    fn patient_on(node: &Node, name: &str) -> Result<Self> {
        let pod = node.add_pod(name)?;
        repeat_only_what_is_lost(&pod.machine.namespace)?;
        Self::serving(pod)
    }

    fn serving(pod: Pod) -> Result<Self> {
        let server = Server::start(&pod.machine, TARGET_PORT)?;
        Ok(Self { pod, server })
    }
}
