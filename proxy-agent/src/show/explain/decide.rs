//! From tables to an answer: the kernel's own decision, tried with every throw of the dice, and the records that it
//! followed from.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use proxy_common::{
    addr::Addr,
    addresses::AddressFlags,
    backend::{BackendFlags, BackendId},
    config::SocketFlags,
    device::DeviceFlags,
    drop::DropReason,
    endian::Be16,
    filter::AddressRoles,
    flow::TcpFlags,
    frontend::{Frontend, FrontendFlags, FrontendKey, ServiceId, SlotRun},
    lb::{self, Packet, Process, Verdict as Decision, Wish},
    socket::halves,
    tuple::{Endpoint, FlowKey, Hook, Protocol},
};

use super::{
    Target,
    view::{Trial, View},
};
use crate::show::socket;

/// Somebody who wants to talk, as the tables know it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Client {
    /// Its address; `None` for a process of the node.
    pub(super) address: Option<IpAddr>,
    /// Its port, if one was given.
    pub(super) port: Option<u16>,
    /// The device that its packets come by.
    pub(super) device: u32,
    /// Whether its socket is asked first: a process of the node's, or of a pod that is served so.
    pub(super) at_socket: bool,
}

/// What a decision comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decided {
    /// It goes to a backend; its source is rewritten or not.
    Backend(SocketAddr, bool),
    /// It is refused.
    Refused(DropReason),
    /// It is dropped.
    Dropped(DropReason),
    /// It is over, and its client is told.
    Reset(DropReason),
    /// It is not Sluice's.
    Passed,
}

/// Where clients of a destination are led, and where this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Matched {
    /// The key of the frontend.
    pub(super) key: FrontendKey,
    /// How it serves.
    pub(super) frontend: Frontend,
    /// Whether the client counts as inside the cluster.
    pub(super) inside: bool,
    /// The backends that the client may reach.
    pub(super) run: SlotRun,
    /// How these are marked.
    pub(super) member: BackendFlags,
}

impl Matched {
    /// Whether the hash of a packet says where it goes.
    pub(super) const fn is_by_hash(&self) -> bool {
        self.frontend.flags.contains(FrontendFlags::MAGLEV)
    }

    /// The backends that the client may reach.
    pub(super) fn backends(&self, view: &View) -> BTreeSet<BackendId> {
        view.run(self.run.base, self.run.count).collect()
    }
}

/// The end that an address and port are.
pub(super) fn end(address: SocketAddr) -> Endpoint {
    Endpoint { address: address.ip().into(), port: Be16::from_host(address.port()) }
}

impl Client {
    /// As session affinity knows it.
    pub(super) fn known_as(&self, view: &View) -> Addr {
        match self.address {
            Some(ip) if !self.at_socket => ip.into(),
            _ => self.process(view, SocketAddr::new([0; 4].into(), 0), Protocol::TCP).client(),
        }
    }

    fn process(&self, view: &View, to: SocketAddr, protocol: Protocol) -> Process {
        let is_host = self.address.is_none();
        let [low, high] = if is_host { view.settings.sockets.host_namespace } else { halves(0) };
        let namespace = u64::from(low) | u64::from(high) << 32;
        Process { end: end(to), protocol, socket: 0, namespace, is_host }
    }

    /// Whether it counts as inside the cluster, in the order in which the decision asks; and why.
    pub(super) fn origin(&self, view: &View) -> (bool, String) {
        let Some(ip) = self.address else {
            return (true, "a process of the node".to_owned());
        };
        let address = Addr::from(ip);
        let networks = view.settings.pod_networks;
        if let Some(network) = networks.iter().find(|network| network.contains(address)) {
            let (first, length) = network.prefix();
            return (true, format!("in the pod network {}/{length}", first.to_ip()));
        }
        if view
            .devices
            .get(&self.device)
            .is_some_and(|device| device.flags.contains(DeviceFlags::POD_TRAFFIC))
        {
            return (true, "its device is the pods'".to_owned());
        }
        if view.address(address).contains(AddressFlags::NODE) {
            return (true, "the node's own address".to_owned());
        }
        let by_device = view.devices.values().any(|device| device.flags.contains(DeviceFlags::POD_TRAFFIC));
        let is_told =
            by_device || networks.iter().any(|network| *network != proxy_common::config::Network::NONE);
        let why = if is_told {
            "in no pod network, by no device of pods, and not the node's own address"
        } else {
            "nothing tells pods from others (--cluster-cidr, --detect-local-mode)"
        };
        (false, why.to_owned())
    }
}

/// The frontend that a destination addresses, and what it means for this client.
pub(super) fn matched(view: &View, client: &Client, target: &Target) -> Option<Matched> {
    let to = end(target.end);
    let exact = FrontendKey::new(to, target.protocol);
    let node_port = FrontendKey::node_port(to, target.protocol);
    let roles = view.roles(to.address);
    let is_at_node =
        roles.contains(AddressRoles::NODE) && view.address(to.address).contains(AddressFlags::NODE_PORTS);
    let is_at_loopback = to.address.is_loopback()
        && client.address.is_none()
        && view.settings.sockets.flags.contains(SocketFlags::LOCALHOST_NODE_PORTS);
    let found = |key: FrontendKey| view.frontends.get(&key).map(|frontend| (key, *frontend));
    let by_address = found(exact).filter(|_| roles.contains(AddressRoles::FRONTEND));
    let (key, frontend) = by_address.or_else(|| found(node_port).filter(|_| is_at_node || is_at_loopback))?;
    let inside = client.origin(view).0;
    let is_outside = frontend.flags.contains(FrontendFlags::BY_ORIGIN) && !inside;
    let local = is_outside || frontend.flags.contains(FrontendFlags::LOCAL_SET);
    Some(Matched {
        key,
        frontend,
        inside,
        run: if is_outside { frontend.outside } else { frontend.slots },
        member: if local { BackendFlags::LOCAL_SET } else { BackendFlags::CLUSTER_SET },
    })
}

/// What becomes of the client's wish at its socket. Every outcome that the dice allow, by the backend's address.
pub(super) fn at_socket(view: &View, client: &Client, target: &Target, slots: u32) -> Vec<Decided> {
    let process = client.process(view, target.end, target.protocol);
    outcomes((0..slots.max(1)).map(|at| match lb::wish(&Trial::choosing(view, at, slots), view, &process) {
        Wish::Granted => Decided::Passed,
        Wish::Instead(end) => Decided::Backend(socket(end), false),
        Wish::Refused(reason) => Decided::Refused(reason),
        Wish::Forbidden(reason) => Decided::Dropped(reason),
    }))
}

/// The same of a packet that enters the node. Where its hash decides and nobody has said which port it comes from, of every
/// port that it may come from.
pub(super) fn at_ingress(
    view: &View,
    client: &Client,
    target: &Target,
    matched: Option<&Matched>,
) -> Vec<Decided> {
    let by_hash = matched.is_some_and(Matched::is_by_hash);
    let slots = if by_hash { 1 } else { matched.map_or(0, |matched| matched.run.count) };
    let ip = client.address.unwrap_or(target.end.ip());
    match client.port {
        None if by_hash => {
            outcomes((1024..=u16::MAX).map(|port| from_port(view, client, target, port, 0, 1)))
        }
        port => {
            let port = port.unwrap_or_else(|| view.free_port(ip));
            outcomes((0..slots.max(1)).map(|at| from_port(view, client, target, port, at, slots)))
        }
    }
}

/// The same if it comes from this port and the dice choose number `at` of `slots`.
fn from_port(view: &View, client: &Client, target: &Target, port: u16, at: u32, slots: u32) -> Decided {
    let from = SocketAddr::new(client.address.unwrap_or(target.end.ip()), port);
    let key = FlowKey::new(end(from), end(target.end), target.protocol, Hook::INGRESS);
    // What continues a connection, if there is one from this very port.
    let flags = match target.protocol {
        Protocol::UDP => TcpFlags::default(),
        _ if view.flows.contains_key(&key) => TcpFlags::ACK,
        _ => TcpFlags::SYN,
    };
    let packet = Packet { key, flags, length: 0, device: client.device };
    match lb::ingress(&Trial::choosing(view, at, slots), view, &packet) {
        Decision::Pass => Decided::Passed,
        Decision::Rewrite(new) => Decided::Backend(socket(new.end), new.masquerade),
        Decision::Drop(reason) => Decided::Dropped(reason),
        Decision::Refuse(reason) => Decided::Refused(reason),
        Decision::Reset(reason) => Decided::Reset(reason),
    }
}

/// Each outcome once.
fn outcomes(all: impl Iterator<Item = Decided>) -> Vec<Decided> {
    let mut found = Vec::new();
    let mut backends = BTreeMap::new();
    for outcome in all {
        match outcome {
            Decided::Backend(address, masqueraded) => {
                backends.insert(address, masqueraded);
            }
            other if !found.contains(&other) => found.push(other),
            _ => {}
        }
    }
    found.extend(backends.into_iter().map(|(address, masqueraded)| Decided::Backend(address, masqueraded)));
    found
}

/// Why a source is rewritten, as the tables tell (MASQ); `None` if nothing asks for it.
pub(super) fn why_masqueraded(
    view: &View,
    client: &Client,
    matched: &Matched,
    backend: BackendId,
) -> Option<&'static str> {
    let record = view.backends.get(&backend)?;
    let ip = client.address?;
    let has_local_clients = view
        .devices
        .get(&client.device)
        .is_some_and(|device| device.flags.contains(DeviceFlags::LOCAL_CLIENTS));
    if matched.frontend.flags.contains(FrontendFlags::MASQUERADE) {
        Some("--masquerade-all")
    } else if record.address == Addr::from(ip) {
        Some("client and backend are the same pod")
    } else if !record.flags.contains(BackendFlags::LOCAL) && !has_local_clients {
        Some("neither client nor backend is on this node: the answer would not come back here")
    } else {
        None
    }
}

/// Why a backend is in no set that the client may reach, as its record tells.
pub(super) fn why_not_in_set(view: &View, matched: &Matched, id: BackendId) -> String {
    let Some(record) = view.backends.get(&id) else {
        return "the tables have no such backend".to_owned();
    };
    let has = |flag| record.flags.contains(flag);
    let is_for_local = matched.member == BackendFlags::LOCAL_SET;
    match () {
        () if !has(BackendFlags::LIVE) => "no longer an endpoint",
        () if is_for_local && !has(BackendFlags::LOCAL) => "on another node",
        () if is_for_local && has(BackendFlags::CLUSTER_SET) => "given only to those who may reach any node",
        () if !is_for_local && has(BackendFlags::LOCAL_SET) => {
            "terminates, or its hints name others: given only to those whom a policy keeps on this node"
        }
        () => "not ready: keeps the flows that it has",
    }
    .to_owned()
}

/// The service port that a record belongs to.
pub(super) fn backends_of(view: &View, service: ServiceId) -> Vec<BackendId> {
    let mut ids: Vec<_> =
        view.backends.iter().filter(|(_, record)| record.service == service).map(|(id, _)| *id).collect();
    ids.sort_unstable();
    ids
}
