//! Nodes and their pods.

use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context as _, Result};

use super::{
    address::Addresses,
    cluster::Machine,
    shape::{Overlay, PodNetwork, Shape, Uplink},
};
use crate::netns::Namespace;

/// The bridge of a node.
pub const BRIDGE: &str = "cni0";

/// How the devices of pods are called on their node, before a number.
pub const POD_DEVICE: &str = "veth";

/// The number of the VLAN that uplinks are in if they are in one.
const VLAN: u16 = 100;

/// The link-layer address of the node's end of a routed pod's pair, and the gateways that the pod knows behind it.
const GATEWAY: &str = "ee:ee:ee:ee:ee:ee";
const GATEWAY_V4: &str = "169.254.1.1";
const GATEWAY_V6: &str = "fe80::ecee:eeff:feee:eeee";

/// Whether bridged packets visit netfilter, as `br_netfilter` makes them and many distributions leave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BridgeNetfilter {
    /// They do.
    On,
    /// They do not.
    Off,
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

/// A node: a router between its pods and the fabric.
#[derive(Debug)]
pub struct Node {
    /// Name, as Kubernetes would know it.
    pub name: String,
    /// Where its devices are, and its agent runs.
    pub namespace: Namespace,
    /// Its addresses on the fabric.
    pub addresses: Addresses,
    /// Its number, from 1.
    pub number: u8,
    shape: Shape,
    pods_made: AtomicU8,
}

impl Node {
    pub(super) fn new(number: u8, of: u8, fabric: &Namespace, shape: Shape) -> Result<Self> {
        let name = format!("node-{number}");
        let namespace = Namespace::new(&name)?;
        namespace.sysctl(&[
            ("ipv4/ip_forward", "1"),
            ("ipv4/conf/all/rp_filter", "1"),
            ("ipv4/conf/default/rp_filter", "1"),
            ("ipv6/conf/all/forwarding", "1"),
        ])?;
        at_once(&namespace)?;
        let addresses = Addresses::on_fabric(number);
        let node = Self { name, namespace, addresses, number, shape, pods_made: AtomicU8::new(0) };
        if shape.pods == PodNetwork::Bridge {
            node.add_bridge()?;
        }
        let uplink = join_fabric(&node.namespace, fabric, &node.name, shape.uplink)?;
        configure(&node.namespace, uplink, addresses)?;
        for other in (1..=of).filter(|&other| other != number) {
            match shape.overlay {
                Overlay::None => node.route_pods(other, &Addresses::on_fabric(other), "")?,
                Overlay::Vxlan => node.add_vxlan(uplink, other)?,
                // The wire that joins both brings the routes.
                Overlay::Headerless => {}
            }
        }
        Ok(node)
    }

    /// Every address that it has itself.
    #[must_use]
    pub fn own_addresses(&self) -> Vec<Addresses> {
        let mut own = vec![self.addresses];
        if self.shape.pods == PodNetwork::Bridge {
            own.push(self.gateway());
        }
        if self.shape.overlay != Overlay::None {
            own.push(Addresses::on_tunnel(self.number));
        }
        own
    }

    /// Its addresses on the bridge, if it has one.
    #[must_use]
    pub fn gateway(&self) -> Addresses {
        Addresses::of_pod(self.number, 1)
    }

    /// How many pods it has ever had.
    #[must_use]
    pub fn pods_made(&self) -> u8 {
        self.pods_made.load(Ordering::Relaxed)
    }

    fn add_bridge(&self) -> Result<()> {
        let gateway = self.gateway();
        // A bridge without an address of its own takes the lowest of its ports', and changes it as they come and go;
        // what pods then send to the gateway's old address is lost.
        self.namespace.ip(&format!(
            "link add {BRIDGE} address 02:00:00:00:00:{:02x} type bridge mcast_snooping 0\nlink set {BRIDGE} up",
            self.number
        ))?;
        configure(&self.namespace, BRIDGE, gateway)
    }

    /// Routes the pods of another node through a machine, or through a device.
    fn route_pods(&self, other: u8, via: &Addresses, options: &str) -> Result<()> {
        let subnet = Addresses::of_pod(other, 0);
        self.namespace.ip(&format!(
            "route add {}/24 via {} {options}\nroute add {}/64 via {} {options}",
            subnet.v4, via.v4, subnet.v6, via.v6
        ))
    }

    /// One device for both families, over IPv4: which family carries the tunnel makes no difference to what is in it.
    fn add_vxlan(&self, uplink: &str, other: u8) -> Result<()> {
        let device = "flannel.1";
        let (own, peer) = (Addresses::on_tunnel(self.number), Addresses::on_tunnel(other));
        self.namespace.ip(&format!(
            "link add {device} type vxlan id 1 dstport 8472 dev {uplink} local {} remote {}\n\
             link set {device} up\naddr add {}/32 dev {device}\naddr add {}/128 dev {device} nodad",
            self.addresses.v4,
            Addresses::on_fabric(other).v4,
            own.v4,
            own.v6
        ))?;
        self.route_pods(other, &peer, &format!("dev {device} onlink"))
    }

    /// Routes the other node's pods over a device that has no link-layer addresses.
    pub(super) fn use_wire(&self, device: &str, other: &Self) -> Result<()> {
        let own = Addresses::on_tunnel(self.number);
        let subnet = Addresses::of_pod(other.number, 0);
        self.namespace.ip(&format!(
            "link set {device} up\naddr add {}/32 dev {device}\naddr add {}/128 dev {device} nodad\n\
             route add {}/24 dev {device}\nroute add {}/64 dev {device}",
            own.v4, own.v6, subnet.v4, subnet.v6
        ))
    }

    /// A new pod on this node.
    ///
    /// # Errors
    ///
    /// If its namespace or device cannot be made.
    pub fn add_pod(&self, name: &str) -> Result<Pod> {
        let n = self.pods_made.fetch_add(1, Ordering::Relaxed) + 1;
        let device = format!("{POD_DEVICE}{n}");
        let namespace = leaf(name)?;
        let addresses = Addresses::of_pod(self.number, n + 1);
        self.namespace
            .ip(&format!("link add {device} type veth peer name eth0 netns {}", namespace.path()))?;
        match self.shape.pods {
            PodNetwork::Bridge => self.bridge_pod(&device, &namespace, addresses)?,
            PodNetwork::Routed => self.route_pod(&device, &namespace, addresses)?,
        }
        let machine = Machine { name: name.to_owned(), namespace, addresses };
        Ok(Pod { machine, device, node: self.name.clone() })
    }

    fn bridge_pod(&self, device: &str, pod: &Namespace, addresses: Addresses) -> Result<()> {
        let gateway = self.gateway();
        self.namespace.ip(&format!("link set {device} master {BRIDGE} up"))?;
        configure(pod, "eth0", addresses)?;
        pod.ip(&format!("route add default via {}\nroute add default via {}", gateway.v4, gateway.v6))
    }

    fn route_pod(&self, device: &str, pod: &Namespace, addresses: Addresses) -> Result<()> {
        let Addresses { v4, v6 } = addresses;
        self.namespace.ip(&format!("link set {device} address {GATEWAY} up"))?;
        pod.ip(&format!(
            "link set eth0 up\naddr add {v4}/32 dev eth0\naddr add {v6}/128 dev eth0 nodad\n\
             neigh add {GATEWAY_V4} lladdr {GATEWAY} dev eth0 nud permanent\n\
             route add {GATEWAY_V4} dev eth0 scope link\nroute add default via {GATEWAY_V4} dev eth0\n\
             route add default via {GATEWAY_V6} dev eth0"
        ))?;
        self.namespace.ip(&format!("route add {v4} dev {device} scope link\nroute add {v6} dev {device}"))
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

    /// The node itself as a machine, for what runs in its network: pods of the host network.
    #[must_use]
    pub fn machine(&self) -> Machine {
        Machine { name: self.name.clone(), namespace: self.namespace.clone(), addresses: self.addresses }
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
pub(super) fn leaf(name: &str) -> Result<Namespace> {
    let namespace = Namespace::new(name)?;
    at_once(&namespace)?;
    Ok(namespace)
}

/// Lets IPv6 addresses, link-local ones too, be used without a second of duplicate address detection, and errors be
/// reported as often as there are any.
fn at_once(namespace: &Namespace) -> Result<()> {
    namespace.sysctl(&[
        ("ipv6/conf/all/accept_dad", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv4/icmp_ratelimit", "0"),
        ("ipv6/icmp/ratelimit", "0"),
    ])
}

/// Joins a machine to the fabric. Returns the name of the device that its addresses belong on.
pub(super) fn join_fabric(
    namespace: &Namespace,
    fabric: &Namespace,
    name: &str,
    uplink: Uplink,
) -> Result<&'static str> {
    let path = namespace.path();
    let plug = |here: &str, there: &str| {
        fabric.ip(&format!("link add {here} type veth peer name {there} netns {path}\nlink set {here} up"))
    };
    plug(name, "eth0")?;
    let (port, device) = match uplink {
        Uplink::Plain => (name.to_owned(), "eth0"),
        Uplink::Vlan => {
            let port = format!("{name}.{VLAN}");
            fabric
                .ip(&format!("link add link {name} name {port} type vlan id {VLAN}\nlink set {port} up"))?;
            namespace
                .ip(&format!("link set eth0 up\nlink add link eth0 name eth0.100 type vlan id {VLAN}"))?;
            (port, "eth0.100")
        }
        Uplink::Bond => {
            let second = format!("{name}-b");
            plug(&second, "eth1")?;
            fabric.ip(&format!("link set {second} master fabric"))?;
            namespace.ip("link add bond0 type bond mode active-backup miimon 100\n\
                 link set eth0 master bond0\nlink set eth1 master bond0")?;
            (name.to_owned(), "bond0")
        }
    };
    fabric.ip(&format!("link set {port} master fabric"))?;
    Ok(device)
}

/// Brings a device up with addresses in their subnets.
pub(super) fn configure(namespace: &Namespace, device: &str, addresses: Addresses) -> Result<()> {
    namespace.ip(&format!(
        "link set {device} up\naddr add {}/24 dev {device}\naddr add {}/64 dev {device} nodad",
        addresses.v4, addresses.v6
    ))
}
