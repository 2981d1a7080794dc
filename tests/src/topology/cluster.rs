//! The whole.

use std::fmt::Write as _;

use anyhow::{Result, ensure};

use super::{
    address::{Addresses, SERVICES_V4, SERVICES_V6},
    node::{Node, Pod, configure, join_fabric, leaf},
    shape::{Overlay, Shape, Uplink},
    tun::Wire,
};
use crate::netns::Namespace;

/// Nodes, the fabric that joins them, and a client outside.
#[derive(Debug)]
pub struct Cluster {
    fabric: Namespace,
    /// The nodes; `nodes[0]` is called `node-1`.
    pub nodes: Vec<Node>,
    /// A machine outside, which sends what is for services to `node-1`.
    pub client: Machine,
    /// What the nodes' devices without Ethernet headers are ends of.
    _wire: Option<Wire>,
}

impl Cluster {
    /// A cluster of `nodes` nodes without pods, in the ordinary shape.
    ///
    /// # Errors
    ///
    /// If a namespace or device cannot be made.
    pub fn new(nodes: u8) -> Result<Self> {
        Self::shaped(nodes, Shape::default())
    }

    /// A cluster of that shape.
    ///
    /// # Errors
    ///
    /// If a namespace or device cannot be made.
    pub fn shaped(nodes: u8, shape: Shape) -> Result<Self> {
        ensure!(shape.overlay == Overlay::None || nodes == 2, "overlays join two nodes, not {nodes}");
        let fabric = Namespace::new("fabric")?;
        fabric.ip("link add fabric type bridge mcast_snooping 0\nlink set fabric up")?;
        let nodes: Vec<_> =
            (1..=nodes).map(|number| Node::new(number, nodes, &fabric, shape)).collect::<Result<_>>()?;
        let client = Machine::outside(&fabric)?;
        let wire = match (shape.overlay, nodes.as_slice()) {
            (Overlay::Headerless, [a, b]) => Some(Wire::join(a, b)?),
            _ => None,
        };
        Ok(Self { fabric, nodes, client, _wire: wire })
    }

    /// The namespace between the nodes, where their traffic can be watched.
    #[must_use]
    pub fn fabric(&self) -> &Namespace {
        &self.fabric
    }

    /// The node that a pod is on.
    ///
    /// # Panics
    ///
    /// If it is on none.
    #[must_use]
    pub fn node_of(&self, pod: &Pod) -> &Node {
        let found = self.nodes.iter().find(|node| node.name == pod.node);
        found.unwrap_or_else(|| panic!("{} is on {}, which is not in this cluster", pod.name(), pod.node))
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
    /// The client: on the fabric, with routes to services and to pods through `node-1`.
    fn outside(fabric: &Namespace) -> Result<Self> {
        let name = "client".to_owned();
        let namespace = leaf(&name)?;
        let addresses = Addresses::on_fabric(100);
        let gateway = Addresses::on_fabric(1);
        join_fabric(&namespace, fabric, &name, Uplink::Plain)?;
        configure(&namespace, "eth0", addresses)?;
        namespace.ip(&format!(
            "route add {SERVICES_V4} via {0}\nroute add 10.244.0.0/16 via {0}\n\
             route add {SERVICES_V6} via {1}\nroute add fd00:10:244::/48 via {1}",
            gateway.v4, gateway.v6
        ))?;
        Ok(Self { name, namespace, addresses })
    }

    /// Sends what is for `destination` to a node from now on.
    ///
    /// # Errors
    ///
    /// If the node is no neighbour.
    pub fn route(&self, destination: Addresses, node: &Node) -> Result<()> {
        self.namespace.ip(&format!(
            "route replace {} via {}\nroute replace {} via {}",
            destination.v4, node.addresses.v4, destination.v6, node.addresses.v6
        ))
    }

    /// Gives the machine more addresses, beside its own.
    ///
    /// # Errors
    ///
    /// If it has one of them already.
    pub fn add_addresses(&self, more: &[Addresses]) -> Result<()> {
        let mut script = String::new();
        for addresses in more {
            writeln!(script, "addr add {}/24 dev eth0", addresses.v4)?;
            writeln!(script, "addr add {}/64 dev eth0 nodad", addresses.v6)?;
        }
        self.namespace.ip(&script)
    }

    /// The same machine under addresses that it was given beside its own.
    #[must_use]
    pub fn known_as(&self, addresses: Addresses) -> Self {
        Self { name: self.name.clone(), namespace: self.namespace.clone(), addresses }
    }
}
