//! What the address table says: which addresses are ClusterIPs, and which are this node's own.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
    time::Duration,
};

use proxy_common::{
    addr::Addr,
    addresses::AddressFlags,
    filter::AddressRoles,
    tables::{Addresses, Table},
};

use crate::{
    delta::{Delta, Pending},
    filter::Filter,
    io::HashTableIo,
    name::Family,
    node::ThisNode,
    options::NodePortAddresses,
    tables::Failure,
};

/// The rows of the address table. An address may be a ClusterIP for several service ports, and the node's besides.
///
/// The filter counts the rows here: one holder per row and role, wanted or actual.
#[derive(Debug)]
pub(crate) struct AddressBook {
    rows: Delta<Addresses>,
    /// How many service ports have the address as their ClusterIP.
    cluster_ips: HashMap<Addr, u32>,
    /// The node's addresses; `None` until somebody says what they are, and what was restored stays as it is.
    node: Option<HashMap<Addr, AddressFlags>>,
}

/// The bits that come from the node's addresses.
const NODE_BITS: u32 = AddressFlags::NODE.0 | AddressFlags::NODE_PORTS.0;

impl AddressBook {
    /// The kernel has these rows.
    pub(crate) fn restored(rows: Vec<(Addr, AddressFlags)>, filter: &mut Filter) -> Self {
        let book = Self { rows: Delta::restored(rows), cluster_ips: HashMap::new(), node: None };
        for (&address, _) in book.rows.entries() {
            roles(book.held(address)).for_each(|role| filter.hold(address, role));
        }
        book
    }

    /// One more service port has this ClusterIP.
    pub(crate) fn hold_cluster_ip(&mut self, address: Addr, filter: &mut Filter, now: Duration) {
        *self.cluster_ips.entry(address).or_insert(0) += 1;
        self.refresh(address, filter, now);
    }

    /// A service port no longer has this ClusterIP.
    pub(crate) fn release_cluster_ip(&mut self, address: Addr, filter: &mut Filter, now: Duration) {
        if let Some(users) = self.cluster_ips.get_mut(&address) {
            *users = users.saturating_sub(1);
            if *users == 0 {
                self.cluster_ips.remove(&address);
            }
        }
        self.refresh(address, filter, now);
    }

    /// These are the node's addresses now.
    pub(crate) fn set_node(
        &mut self,
        addresses: HashMap<Addr, AddressFlags>,
        filter: &mut Filter,
        now: Duration,
    ) {
        let mut touched: HashSet<Addr> = addresses.keys().copied().collect();
        match self.node.replace(addresses) {
            Some(before) => touched.extend(before.keys()),
            None => touched.extend(self.rows.entries().map(|(address, _)| address)),
        }
        touched.into_iter().for_each(|address| self.refresh(address, filter, now));
    }

    /// All service ports have been planned: rows that were restored for others go.
    pub(crate) fn collect(&mut self, filter: &mut Filter, now: Duration) {
        let restored: Vec<Addr> = self.rows.entries().map(|(&address, _)| address).collect();
        restored.into_iter().for_each(|address| self.refresh(address, filter, now));
    }

    /// What is known about the addresses of the node. Before the Node object has said which are `primary`, those that
    /// were go on accepting NodePorts.
    pub(crate) fn of_node(
        &self,
        addresses: &BTreeSet<IpAddr>,
        accepting: &NodePortAddresses,
        node: &ThisNode,
    ) -> HashMap<Addr, AddressFlags> {
        let primary: Vec<IpAddr> = Family::ALL.into_iter().filter_map(|family| node.ip(family)).collect();
        let waits = *accepting == NodePortAddresses::Primary && !node.is_known();
        let row = |&ip: &IpAddr| {
            let address = Addr::from(ip);
            let accepted = waits && self.flags(address).contains(AddressFlags::NODE_PORTS);
            let flags = if accepted || accepting.accept(ip, &primary) {
                AddressFlags::NODE.with(AddressFlags::NODE_PORTS)
            } else {
                AddressFlags::NODE
            };
            (address, flags)
        };
        addresses.iter().map(row).collect()
    }

    /// The rows.
    pub(crate) const fn rows(&self) -> &Delta<Addresses> {
        &self.rows
    }

    /// What the kernel knows about an address.
    fn flags(&self, address: Addr) -> AddressFlags {
        self.rows.actual(&address).copied().unwrap_or_default()
    }

    /// Whether there are rows that the kernel does not have yet, or still has.
    pub(crate) fn is_pending(&self) -> bool {
        self.rows.pending_keys().next().is_some()
    }

    /// How many rows the kernel has.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The rows that need a write.
    pub(crate) fn pending(&self) -> Vec<Addr> {
        let mut addresses: Vec<Addr> = self.rows.pending_keys().copied().collect();
        addresses.sort_unstable_by_key(|address| address.octets());
        addresses
    }

    /// Writes or deletes a row that needs it. Its filter line has been written.
    pub(crate) fn write<I: HashTableIo<Addresses>>(
        &mut self,
        address: Addr,
        filter: &mut Filter,
        now: Duration,
        io: &mut I,
    ) -> Result<(), Failure<I::Error>> {
        let done = match self.rows.pending(&address) {
            Some(Pending::Put(flags)) => io.put(&address, &flags),
            Some(Pending::Delete) => io.delete(&address),
            None => Ok(()),
        };
        done.map_err(|source| Failure::new(Addresses::NAME, source))?;
        self.change(address, filter, now, |rows| rows.confirm(&address));
        Ok(())
    }

    /// Works out anew what an address is.
    fn refresh(&mut self, address: Addr, filter: &mut Filter, now: Duration) {
        let node = match &self.node {
            Some(node) => node.get(&address).copied().unwrap_or_default(),
            None => AddressFlags(self.flags(address).0 & NODE_BITS),
        };
        let flags = if self.cluster_ips.contains_key(&address) {
            // Whoever puts ClusterIPs on devices (NodeLocal DNS, kube-proxy's IPVS mode) wants no NodePorts there.
            AddressFlags(node.0 & !AddressFlags::NODE_PORTS.0).with(AddressFlags::CLUSTER_IP)
        } else {
            node
        };
        self.change(address, filter, now, |rows| {
            if flags == AddressFlags::default() {
                rows.unwant(address);
            } else {
                rows.want(address, flags);
            }
        });
    }

    /// Changes a row, and what it holds in the filter.
    fn change(
        &mut self,
        address: Addr,
        filter: &mut Filter,
        now: Duration,
        change: impl FnOnce(&mut Delta<Addresses>),
    ) {
        let before = self.held(address);
        change(&mut self.rows);
        let after = self.held(address);
        roles(AddressFlags(after.0 & !before.0)).for_each(|role| filter.hold(address, role));
        roles(AddressFlags(before.0 & !after.0)).for_each(|role| filter.release(address, role, now));
    }

    /// What the row says, or is about to say.
    fn held(&self, address: Addr) -> AddressFlags {
        let wanted = self.rows.wanted(&address).copied().unwrap_or_default();
        self.flags(address).with(wanted)
    }
}

/// The roles that an address needs in the filter, so that its row is asked for.
fn roles(flags: AddressFlags) -> impl Iterator<Item = AddressRoles> {
    [(AddressFlags::CLUSTER_IP, AddressRoles::FRONTEND), (AddressFlags::NODE, AddressRoles::NODE)]
        .into_iter()
        .filter(move |(flag, _)| flags.contains(*flag))
        .map(|(_, role)| role)
}
