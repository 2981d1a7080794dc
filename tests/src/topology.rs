//! A small cluster: nodes with bridges and pods, a fabric between the nodes, a client outside.
//!
//! ```text
//!      node-1                         node-2
//!  pod -eth0--veth1-+             +-veth1--eth0- pod
//!                   cni0       cni0
//!  pod -eth0--veth2-+  |       |  +-veth2--eth0- pod
//!                     eth0   eth0
//!                        \   /
//!   client -eth0-------- fabric
//! ```
//!
//! Nodes filter reverse paths strictly and have no default route, so a packet that still carries a virtual address
//! where it should not is dropped instead of finding its way by luck. Devices keep all offloads, so checksums are
//! partial and segments large, as between real pods.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::atomic::{AtomicU8, Ordering},
};

use anyhow::{Context as _, Result};

use crate::netns::Namespace;

/// The virtual addresses of services, IPv4.
pub const SERVICES_V4: &str = "10.96.0.0/16";
/// The virtual addresses of services, IPv6.
pub const SERVICES_V6: &str = "fd00:10:96::/112";

/// The bridge of a node.
pub const BRIDGE: &str = "cni0";

/// How the devices of pods are called on their node, before a number.
pub const POD_DEVICE: &str = "veth";

/// An IP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// An address of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6.
    pub v6: Ipv6Addr,
}

impl Addresses {
    /// The address of a family.
    #[must_use]
    pub fn of(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    /// The virtual addresses number `n` of the service ranges.
    #[must_use]
    pub fn vip(n: u8) -> Self {
        Self { v4: Ipv4Addr::new(10, 96, 0, n), v6: Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, n.into()) }
    }

    fn on_fabric(n: u8) -> Self {
        Self {
            v4: Ipv4Addr::new(192, 168, 100, n),
            v6: Ipv6Addr::new(0xfd00, 0x100, 0, 0, 0, 0, 0, n.into()),
        }
    }

    fn of_pod(node: u8, n: u8) -> Self {
        Self {
            v4: Ipv4Addr::new(10, 244, node, n),
            v6: Ipv6Addr::new(0xfd00, 0x10, 0x244, node.into(), 0, 0, 0, n.into()),
        }
    }
}

/// Whether bridged packets visit netfilter, as `br_netfilter` makes them and many distributions leave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BridgeNetfilter {
    /// They do.
    On,
    /// They do not.
    Off,
}

/// Nodes, the fabric that joins them, and a client outside.
#[derive(Debug)]
pub struct Cluster {
    fabric: Namespace,
    /// The nodes; `nodes[0]` is called `node-1`.
    pub nodes: Vec<Node>,
    /// A machine outside, which sends what is for services to `node-1`.
    pub client: Machine,
}

impl Cluster {
    /// A cluster of `nodes` nodes without pods.
    ///
    /// # Errors
    ///
    /// If a namespace or device cannot be made.
    pub fn new(nodes: u8) -> Result<Self> {
        let fabric = Namespace::new("fabric")?;
        fabric.ip("link add fabric type bridge mcast_snooping 0\nlink set fabric up")?;
        let nodes = (1..=nodes).map(|number| Node::new(number, nodes, &fabric)).collect::<Result<_>>()?;
        let client = Machine::outside(&fabric)?;
        Ok(Self { fabric, nodes, client })
    }

    /// The namespace between the nodes, where their traffic can be watched.
    #[must_use]
    pub fn fabric(&self) -> &Namespace {
        &self.fabric
    }
}

/// A namespace with one device and one address of each family: a pod, or a machine.
#[derive(Debug)]
pub struct Machine {
    /// Name.
    pub name: String,
    /// Where it lives.
    pub namespace: Namespace,
    /// Its addresses.
    pub addresses: Addresses,
}

impl Machine {
    /// The client: on the fabric, with routes to services and to the pods of `node-1`.
    fn outside(fabric: &Namespace) -> Result<Self> {
        let name = "client".to_owned();
        let namespace = leaf(&name)?;
        let addresses = Addresses::on_fabric(100);
        let gateway = Addresses::on_fabric(1);
        join_fabric(&namespace, fabric, &name, addresses)?;
        namespace.ip(&format!(
            "route add {SERVICES_V4} via {0}\nroute add 10.244.0.0/16 via {0}\n\
             route add {SERVICES_V6} via {1}\nroute add fd00:10:244::/48 via {1}",
            gateway.v4, gateway.v6
        ))?;
        Ok(Self { name, namespace, addresses })
    }
}

/// A pod: a machine with the device that its node reaches it by.
#[derive(Debug)]
pub struct Pod {
    /// Name, namespace, addresses.
    pub machine: Machine,
    /// The node's end of the pair.
    pub device: String,
    /// Name of the node.
    pub node: String,
}

impl Pod {
    /// Name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.machine.name
    }
}

/// A node: a router between its bridge of pods and the fabric.
#[derive(Debug)]
pub struct Node {
    /// Name, as Kubernetes would know it.
    pub name: String,
    /// Where its devices are, and its agent runs.
    pub namespace: Namespace,
    /// Its addresses on the fabric.
    pub addresses: Addresses,
    number: u8,
    pods_made: AtomicU8,
}

impl Node {
    fn new(number: u8, of: u8, fabric: &Namespace) -> Result<Self> {
        let name = format!("node-{number}");
        let namespace = Namespace::new(&name)?;
        namespace.sysctl(&[
            ("ipv4/ip_forward", "1"),
            ("ipv4/conf/all/rp_filter", "1"),
            ("ipv4/conf/default/rp_filter", "1"),
            ("ipv6/conf/all/forwarding", "1"),
        ])?;
        at_once(&namespace)?;
        let gateway = Addresses::of_pod(number, 1);
        // A bridge without an address of its own takes the lowest of its ports', and changes it as they come and go;
        // what pods then send to the gateway's old address is lost.
        namespace.ip(&format!(
            "link add {BRIDGE} address 02:00:00:00:00:{number:02x} type bridge mcast_snooping 0\nlink set {BRIDGE} up\n\
             addr add {}/24 dev {BRIDGE}\naddr add {}/64 dev {BRIDGE} nodad",
            gateway.v4, gateway.v6
        ))?;
        let addresses = Addresses::on_fabric(number);
        join_fabric(&namespace, fabric, &name, addresses)?;
        let others = (1..=of).filter(|&other| other != number);
        let routes: String = others
            .map(|other| {
                let (subnet, via) = (Addresses::of_pod(other, 0), Addresses::on_fabric(other));
                format!(
                    "route add {}/24 via {}\nroute add {}/64 via {}\n",
                    subnet.v4, via.v4, subnet.v6, via.v6
                )
            })
            .collect();
        namespace.ip(&routes)?;
        Ok(Self { name, namespace, addresses, number, pods_made: AtomicU8::new(0) })
    }

    /// A new pod on the bridge of this node.
    ///
    /// # Errors
    ///
    /// If its namespace or device cannot be made.
    pub fn add_pod(&self, name: &str) -> Result<Pod> {
        let n = self.pods_made.fetch_add(1, Ordering::Relaxed) + 1;
        let device = format!("{POD_DEVICE}{n}");
        let namespace = leaf(name)?;
        let addresses = Addresses::of_pod(self.number, n + 1);
        let gateway = Addresses::of_pod(self.number, 1);
        self.namespace.ip(&format!(
            "link add {device} type veth peer name eth0 netns {}\nlink set {device} master {BRIDGE} up",
            namespace.path()
        ))?;
        configure_eth0(&namespace, addresses)?;
        namespace
            .ip(&format!("route add default via {}\nroute add default via {}", gateway.v4, gateway.v6))?;
        let machine = Machine { name: name.to_owned(), namespace, addresses };
        Ok(Pod { machine, device, node: self.name.clone() })
    }

    /// Takes a pod's device away at once, as a CNI plugin does when a pod ends.
    ///
    /// # Errors
    ///
    /// If the device is not there.
    pub fn delete_pod(&self, pod: Pod) -> Result<()> {
        let Pod { machine: _, device, node: _ } = pod;
        self.namespace.ip(&format!("link del {device}"))
    }

    /// Sets whether packets between ports of the bridge visit netfilter.
    ///
    /// # Errors
    ///
    /// If the kernel has no `br_netfilter`, unless it is to be off anyway.
    pub fn set_bridge_netfilter(&self, wanted: BridgeNetfilter) -> Result<()> {
        let present = self
            .namespace
            .run(|| Ok(std::path::Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists()))?;
        match wanted {
            BridgeNetfilter::Off if !present => Ok(()),
            BridgeNetfilter::Off => self
                .namespace
                .sysctl(&[("bridge/bridge-nf-call-iptables", "0"), ("bridge/bridge-nf-call-ip6tables", "0")]),
            BridgeNetfilter::On => self
                .namespace
                .sysctl(&[("bridge/bridge-nf-call-iptables", "1"), ("bridge/bridge-nf-call-ip6tables", "1")])
                .context("switch br_netfilter on"),
        }
    }
}

/// A namespace for a host that forwards nothing.
fn leaf(name: &str) -> Result<Namespace> {
    let namespace = Namespace::new(name)?;
    at_once(&namespace)?;
    Ok(namespace)
}

/// Lets IPv6 addresses, link-local ones too, be used without a second of duplicate address detection.
fn at_once(namespace: &Namespace) -> Result<()> {
    namespace.sysctl(&[("ipv6/conf/all/accept_dad", "0"), ("ipv6/conf/default/accept_dad", "0")])
}

fn join_fabric(namespace: &Namespace, fabric: &Namespace, name: &str, addresses: Addresses) -> Result<()> {
    fabric.ip(&format!(
        "link add {name} type veth peer name eth0 netns {}\nlink set {name} master fabric up",
        namespace.path()
    ))?;
    configure_eth0(namespace, addresses)
}

fn configure_eth0(namespace: &Namespace, addresses: Addresses) -> Result<()> {
    namespace.ip(&format!(
        "link set eth0 up\naddr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad",
        addresses.v4, addresses.v6
    ))
}
