//! A small cluster: nodes with pods, a fabric between the nodes, a client outside.
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
//!
//! That is the shape that tests get if they ask for nothing; [`Shape`] has others.

mod address;
mod cluster;
mod node;
mod offload;
mod shape;
mod tun;

pub use address::{Addresses, Ends, Family, SERVICES_V4, SERVICES_V6};
pub use cluster::{Cluster, Machine};
pub use node::{BRIDGE, BridgeNetfilter, Node, POD_DEVICE, Pod};
pub use offload::{finish_checksums, receive_in_batches};
pub use shape::{Overlay, PodNetwork, Shape, Uplink};
