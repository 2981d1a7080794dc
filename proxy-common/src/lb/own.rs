//! ClusterIPs that the node itself has, too: a process that is bound to one comes before the service.
//!
//! NodeLocal DNS puts the address of the cluster's DNS service on a device of each node and listens there; kube-proxy's
//! IPVS mode leaves all ClusterIPs on `kube-ipvs0`, where nobody listens. So the address alone says nothing: sockets are
//! asked, for each new connection and for each datagram. While somebody listens, the stack delivers; when nobody does
//! any more, the service serves, and no agent has to notice.

use crate::{
    addr::Addr,
    addresses::AddressFlags,
    filter::AddressRoles,
    tuple::{Endpoint, FlowKey, Protocol},
};

use super::{FlowRef as _, Packet, Tables, stays};

/// The sockets of the node, as the hook sees them.
pub trait Listeners {
    /// Whether a socket waits for whoever may come to exactly this end. One that is bound to all addresses does not
    /// count, nor does one of a protocol that cannot be asked about (SCTP).
    fn listens(&self, end: &Endpoint, protocol: Protocol) -> bool;
    /// Whether a socket has the TCP connection, or the rest of it, that a packet with this key belongs to.
    fn is_connected(&self, key: &FlowKey) -> bool;
}

/// Whether a packet of a connection that is not known here belongs to one of the node's own, which began when its port was not
/// the service's.
#[inline(never)]
pub(super) fn is_of_process<T: Tables, L: Listeners>(tables: &T, listeners: &L, key: &FlowKey) -> bool {
    tables.roles(key.destination).contains(AddressRoles::NODE) && listeners.is_connected(key)
}

/// Whether an address that the filter says this of may be both, so that [`is_cluster_ip_of_node`] has to be asked.
#[inline(always)]
pub(super) const fn may_be_both(roles: AddressRoles) -> bool {
    roles.contains(AddressRoles::FRONTEND.with(AddressRoles::NODE))
}

/// Whether an address is a ClusterIP and the node's own.
#[inline(always)]
pub(super) fn is_cluster_ip_of_node<T: Tables>(tables: &T, address: Addr) -> bool {
    tables.address(address).contains(AddressFlags::CLUSTER_IP.with(AddressFlags::NODE))
}

/// Whether a packet is for a process of the node. A connection that has a backend stays with it (CT-20); datagrams come to
/// the process at once, and what is remembered of their flow is forgotten.
#[inline(never)]
pub(super) fn is_for_process<T: Tables, L: Listeners>(tables: &T, listeners: &L, packet: &Packet) -> bool {
    let key = &packet.key;
    let is_datagram = key.protocol == Protocol::UDP;
    if !is_datagram && !packet.flags.opens()
        || !is_cluster_ip_of_node(tables, key.destination)
        || !listeners.listens(&key.destination_end(), key.protocol)
    {
        return false;
    }
    if let Some(flow) = tables.flow(key) {
        let head = flow.head();
        let goes_on = !is_datagram && !head.state.is_over() && !head.is_idle(tables.now());
        if goes_on && stays(tables, packet.flags, &head) {
            return false;
        }
        // Or the rest of the connection would follow it.
        tables.remove_flow(key);
    }
    true
}
