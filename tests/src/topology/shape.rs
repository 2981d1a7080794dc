//! What clusters look like beyond the ordinary.

use anyhow::{Result, anyhow};
use clap::ValueEnum;

use crate::netns::Namespace;

/// The device that joins a node to the fabric.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Uplink {
    /// `eth0`.
    #[default]
    Plain,
    /// `eth0.100`, a VLAN; the fabric tags its frames too.
    Vlan,
    /// `bond0` of `eth0` and `eth1`.
    Bond,
}

/// How packets get to pods of another node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overlay {
    /// Routed over the fabric.
    #[default]
    None,
    /// In VXLAN, over a device with addresses of its own, as flannel does it. For two nodes.
    Vxlan,
    /// Over a device without Ethernet headers, as WireGuard and IPIP are. For two nodes.
    Headerless,
}

/// How pods are joined to their node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum PodNetwork {
    /// By a bridge.
    #[default]
    Bridge,
    /// By a route to each pod's device, and a gateway that exists in the pod's neighbour table only, as Calico and the
    /// AWS VPC CNI do it.
    Routed,
}

/// What a cluster looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// The nodes' uplinks.
    pub uplink: Uplink,
    /// The way between nodes.
    pub overlay: Overlay,
    /// The way to pods.
    pub pods: PodNetwork,
}

impl Shape {
    /// Whether this kernel has the devices for it.
    ///
    /// # Errors
    ///
    /// What is missing.
    pub fn requirements(self) -> Result<()> {
        let scratch = Namespace::new("scratch")?;
        let probe = |what: &str, script: &str| {
            scratch.ip(script).map_err(|_| anyhow!("this kernel, or this ip command, has no {what}"))
        };
        scratch.ip("link add probe0 type veth peer name probe1")?;
        match self.uplink {
            Uplink::Plain => {}
            Uplink::Vlan => probe("VLAN devices", "link add link probe0 name probe0.1 type vlan id 1")?,
            Uplink::Bond => probe("bonds", "link add probe-bond type bond")?,
        }
        match self.overlay {
            Overlay::None => Ok(()),
            Overlay::Vxlan => probe("VXLAN devices", "link add probe-vxlan type vxlan id 1 dstport 8472"),
            Overlay::Headerless => probe("TUN devices", "tuntap add dev probe-tun mode tun"),
        }
    }
}
