//! Which backend a new flow goes to: the service, who may use it, the set for this client, one of the set.

use crate::{
    addr::Addr,
    addresses::AddressFlags,
    affinity::{Affinity, AffinityKey},
    backend::{BackendFlags, BackendId},
    config::{NodeFlags, NodeSettings, SocketFlags},
    device::DeviceFlags,
    drop::DropReason,
    filter::AddressRoles,
    frontend::{Frontend, FrontendFlags, FrontendKey, SlotRun},
    hash,
    time::Ticks,
    tuple::{Endpoint, Protocol},
};

use super::{Insert, Packet, Process, Tables, Verdict, Wish};

/// The backend for a new flow, or why there is none: in one register, and with no bits left undefined. The compiler
/// keeps whatever it likes in the unused half of a `Result`, a pointer for instance, and the verifier objects. The
/// largest numbers are no backend ids, and what has more bits than the terms below is none either.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Selection(pub u32);

impl Selection {
    /// The frontend wants every client's source rewritten.
    const MASQUERADE: u32 = 1 << 30;
    /// The frontend wants connections reset when their backend is gone.
    const RESET: u32 = 1 << 29;
    /// The frontend has backends on other nodes answer themselves.
    const DSR: u32 = 1 << 28;
    /// The packet is not for a service.
    pub(super) const NOT_OURS: Self = Self(u32::MAX);
    const NO_BACKEND: Self = Self(u32::MAX - 1);
    const NO_LOCAL_BACKEND: Self = Self(u32::MAX - 2);
    /// A table does not say what others refer to.
    pub const BROKEN_TABLE: Self = Self(u32::MAX - 3);
    const NOT_IN_SOURCE_RANGES: Self = Self(u32::MAX - 4);
    const UNKNOWN_PORT: Self = Self(u32::MAX - 5);
    const TOO_MANY: Self = Self(u32::MAX - 6);

    /// With what the frontend wants of a connection to the backend, if there is one.
    #[inline(always)]
    fn on_terms_of(self, frontend: &Frontend) -> Self {
        let term = |flag, bit| if frontend.flags.contains(flag) { bit } else { 0 };
        let masquerade = term(FrontendFlags::MASQUERADE, Self::MASQUERADE);
        let terms =
            masquerade | term(FrontendFlags::RESET, Self::RESET) | term(FrontendFlags::DSR, Self::DSR);
        if self.is_backend() { Self(self.0 | terms) } else { self }
    }

    #[inline(always)]
    pub(super) const fn is_backend(self) -> bool {
        self.0 < Self::TOO_MANY.0
    }

    /// The backend, if there is one.
    #[inline(always)]
    pub(super) const fn backend(self) -> BackendId {
        BackendId(self.0 & !(Self::MASQUERADE | Self::RESET | Self::DSR))
    }

    /// Whether the source is to be rewritten, whoever the client is.
    #[inline(always)]
    pub(super) const fn masquerades(self) -> bool {
        self.0 & Self::MASQUERADE != 0
    }

    /// Whether the connection is to be reset when the backend is gone.
    #[inline(always)]
    pub(super) const fn resets(self) -> bool {
        self.0 & Self::RESET != 0
    }

    /// Whether a backend on another node is to answer the client itself.
    #[inline(always)]
    pub(super) const fn answers_directly(self) -> bool {
        self.0 & Self::DSR != 0
    }

    /// This backend, which another node has chosen, and what the frontend wants of connections to it. Here they end.
    #[inline(always)]
    pub(super) fn of_other_node(backend: BackendId, frontend: &Frontend) -> Self {
        let reset = if frontend.flags.contains(FrontendFlags::RESET) { Self::RESET } else { 0 };
        Self(backend.0 | reset)
    }

    /// What becomes of the packet if there is no backend. Nobody answers a sender that is not one host.
    #[inline(always)]
    pub(super) fn refusal(self, sender: Addr) -> Option<Verdict> {
        let reason = match self {
            Self::NOT_OURS => return Some(Verdict::Pass),
            Self::NO_BACKEND => DropReason::NoBackend,
            Self::UNKNOWN_PORT => DropReason::UnknownPort,
            Self::NO_LOCAL_BACKEND => return Some(Verdict::Drop(DropReason::NoLocalBackend)),
            Self::NOT_IN_SOURCE_RANGES => return Some(Verdict::Drop(DropReason::NotInSourceRanges)),
            Self::BROKEN_TABLE => return Some(Verdict::Drop(DropReason::BrokenTable)),
            Self::TOO_MANY => return Some(Verdict::Drop(DropReason::NewFlowLimit)),
            Self(_) => return None,
        };
        Some(if sender.is_unicast() { Verdict::Refuse(reason) } else { Verdict::Drop(reason) })
    }

    /// What becomes of a process's wish if there is no backend.
    #[inline(always)]
    pub(super) const fn outcome(self) -> Option<Wish> {
        Some(match self {
            Self::NOT_OURS => Wish::Granted,
            Self::NO_BACKEND => Wish::Refused(DropReason::NoBackend),
            Self::UNKNOWN_PORT => Wish::Refused(DropReason::UnknownPort),
            Self::NO_LOCAL_BACKEND => Wish::Forbidden(DropReason::NoLocalBackend),
            Self::NOT_IN_SOURCE_RANGES => Wish::Forbidden(DropReason::NotInSourceRanges),
            Self::BROKEN_TABLE => Wish::Forbidden(DropReason::BrokenTable),
            Self::TOO_MANY => Wish::Forbidden(DropReason::NewFlowLimit),
            Self(_) => return None,
        })
    }

    /// Why there is no backend, if that counts as a drop of the service.
    #[inline(always)]
    const fn reason(self) -> DropReason {
        match self {
            Self::NO_BACKEND => DropReason::NoBackend,
            Self::NO_LOCAL_BACKEND => DropReason::NoLocalBackend,
            Self::NOT_IN_SOURCE_RANGES => DropReason::NotInSourceRanges,
            Self::TOO_MANY => DropReason::NewFlowLimit,
            _ => DropReason::BrokenTable,
        }
    }
}

/// Who asks.
struct Client<'a> {
    /// As session affinity knows it: by its address, or by its network namespace (BPF-01).
    known_as: Addr,
    /// As source ranges know it.
    admitted_as: Addr,
    /// Whether it is inside the cluster, if that is known already.
    is_inside: Option<bool>,
    /// Its packet, if it sent one already.
    packet: Option<&'a Packet>,
}

/// Finds the service that a process wants to talk to, and a backend of it.
///
/// A pod's socket decides only what its packets would have decided in the same way: whether it counts as a pod, and which
/// ranges it is in, depends on the address that its packets are going to have; masquerading is done to packets, and only
/// packets of other namespaces can be answered when their backend is gone.
#[inline(never)]
pub(super) fn select_for_process<T: Tables>(tables: &T, process: &Process) -> Selection {
    let frontend = match find_for_process(tables, process) {
        Some(frontend) => frontend,
        None if is_unknown_port(tables, &process.end.address) => return Selection::UNKNOWN_PORT,
        None => return Selection::NOT_OURS,
    };
    let for_packets = FrontendFlags::BY_ORIGIN
        .with(FrontendFlags::RESTRICTED)
        .with(FrontendFlags::MASQUERADE)
        .with(FrontendFlags::RESET);
    if !process.is_host && frontend.flags.intersects(for_packets) {
        return Selection::NOT_OURS;
    }
    let Some(settings) = tables.settings() else {
        return Selection::NOT_OURS;
    };
    let client = Client {
        known_as: process.client(),
        admitted_as: settings.sockets.node_for(process.end.address),
        is_inside: Some(true),
        packet: None,
    };
    let chosen = admit(tables, &client, &frontend);
    if chosen.is_backend() {
        tables.count_connection(frontend.service);
    } else {
        tables.count_drop(frontend.service, chosen.reason());
    }
    chosen.on_terms_of(&frontend)
}

/// The frontend that a process addresses. The node's own processes also reach NodePorts at loopback addresses.
#[inline(always)]
fn find_for_process<T: Tables>(tables: &T, process: &Process) -> Option<Frontend> {
    let Process { end, protocol, is_host, .. } = *process;
    if end.address.is_loopback() {
        let flags = tables.settings()?.sockets.flags;
        let served = is_host && flags.contains(SocketFlags::LOCALHOST_NODE_PORTS);
        return if served { tables.frontend(&FrontendKey::node_port(end, protocol)) } else { None };
    }
    find(tables, end, protocol)
}

/// Finds the service that a packet is for, and a backend of it.
///
/// A packet from the middle of a connection that is not known here belongs to somebody else: to netfilter, if kube-proxy
/// translated it before the switch-over. Or another node led it, or this one forgot it; if a Maglev table says where, it goes on
/// there, and what says anything else leaves it alone. Not so where there is an old entry (`mode`), as its tuple may be a direct
/// connection's by now.
#[inline(never)]
pub fn select<T: Tables>(tables: &T, packet: &Packet, mode: Insert) -> Selection {
    let key = &packet.key;
    let begins = packet.begins();
    if !begins && (mode == Insert::Replace || !may_be_taken_up(tables, packet)) {
        return Selection::NOT_OURS;
    }
    let Some(frontend) = find(tables, key.destination_end(), key.protocol) else {
        return if begins && is_unknown_port(tables, &key.destination) {
            Selection::UNKNOWN_PORT
        } else {
            Selection::NOT_OURS
        };
    };
    if !begins && !frontend.flags.contains(FrontendFlags::MAGLEV) {
        return Selection::NOT_OURS;
    }
    let source = packet.key.source;
    let client = Client { known_as: source, admitted_as: source, is_inside: None, packet: Some(packet) };
    let chosen = admit(tables, &client, &frontend);
    if !chosen.is_backend() {
        if !begins {
            return Selection::NOT_OURS;
        }
        tables.count_drop(frontend.service, chosen.reason());
    }
    chosen.on_terms_of(&frontend)
}

/// Whether a packet that begins nothing may go on with a connection that is not known here.
#[inline(always)]
fn may_be_taken_up<T: Tables>(tables: &T, packet: &Packet) -> bool {
    packet.key.protocol == Protocol::TCP
        && packet.flags.goes_on()
        && tables.settings().is_some_and(|settings| settings.flags.contains(NodeFlags::TAKE_UP))
}

/// The frontend that a packet addresses: its exact destination, else a NodePort (NP-02).
#[inline(always)]
fn find<T: Tables>(tables: &T, end: Endpoint, protocol: Protocol) -> Option<Frontend> {
    let roles = tables.roles(end.address);
    if roles.contains(AddressRoles::FRONTEND)
        && let Some(frontend) = tables.frontend(&FrontendKey::new(end, protocol))
    {
        return Some(frontend);
    }
    if !roles.contains(AddressRoles::NODE) {
        return None;
    }
    // Most of what reaches the node's own addresses is for the node; the port tells that before the address does.
    let frontend = tables.frontend(&FrontendKey::node_port(end, protocol))?;
    tables.address(end.address).contains(AddressFlags::NODE_PORTS).then_some(frontend)
}

/// Whether a packet that no frontend is there for goes to a ClusterIP all the same, so that nobody can answer it
/// (CIP-03, in nftables mode). The node can, if it has the address.
#[inline(never)]
pub(super) fn is_unknown_port<T: Tables>(tables: &T, destination: &Addr) -> bool {
    if !tables.roles(*destination).contains(AddressRoles::FRONTEND) {
        return false;
    }
    let flags = tables.address(*destination);
    flags.contains(AddressFlags::CLUSTER_IP) && !flags.contains(AddressFlags::NODE)
}

/// A backend for a client that the frontend admits: source ranges come first (LBSR-06, LBSR-08 as nftables mode has it).
#[inline(always)]
fn admit<T: Tables>(tables: &T, client: &Client<'_>, frontend: &Frontend) -> Selection {
    let restricted = frontend.flags.contains(FrontendFlags::RESTRICTED);
    if restricted && !tables.admits(frontend.service, client.admitted_as) {
        return Selection::NOT_IN_SOURCE_RANGES;
    }
    let set = if frontend.flags.contains(FrontendFlags::BY_ORIGIN) && !is_inside(tables, client) {
        Set {
            run: frontend.outside,
            member: BackendFlags::LOCAL_SET,
            silent: FrontendFlags::DROP_OUTSIDE_WHEN_EMPTY,
        }
    } else {
        let local = frontend.flags.contains(FrontendFlags::LOCAL_SET);
        let member = if local { BackendFlags::LOCAL_SET } else { BackendFlags::CLUSTER_SET };
        Set { run: frontend.slots, member, silent: FrontendFlags::DROP_WHEN_EMPTY }
    };
    choose(tables, frontend, &set, client)
}

/// Whether the client counts as inside the cluster: as a pod, if there is a way to tell, or as the node itself
/// (DEC-20, DEC-21, DLOC).
#[inline(always)]
fn is_inside<T: Tables>(tables: &T, client: &Client<'_>) -> bool {
    if let Some(known) = client.is_inside {
        return known;
    }
    let Client { known_as: address, packet, .. } = *client;
    let device = packet.map_or(0, |packet| packet.device);
    let in_networks =
        |settings: &NodeSettings| settings.pod_networks.iter().any(|network| network.contains(address));
    tables.settings().is_some_and(in_networks)
        || tables.device(device).is_some_and(|device| device.flags.contains(DeviceFlags::POD_TRAFFIC))
        || tables.address(address).contains(AddressFlags::NODE)
}

/// The backends that a client may reach.
struct Set {
    run: SlotRun,
    /// How its members are marked.
    member: BackendFlags,
    /// What the frontend says if it is empty and packets are to be dropped without a word.
    silent: FrontendFlags,
}

/// The backend that the client is used to, or else one of the set; or none, if too many flows begin.
#[inline(always)]
fn choose<T: Tables>(tables: &T, frontend: &Frontend, set: &Set, client: &Client<'_>) -> Selection {
    // What is refused anyway begins no flow, and processes have none.
    if client.packet.is_some_and(Packet::begins) && set.run.count != 0 && !tables.may_begin() {
        return Selection::TOO_MANY;
    }
    if frontend.affinity == 0 {
        return draw(tables, frontend, set, client);
    }
    let key = AffinityKey { client: client.known_as, service: frontend.service };
    let now = tables.now();
    let mut chosen = familiar(tables, frontend, set, &key, now);
    if !chosen.is_backend() {
        chosen = draw(tables, frontend, set, client);
    }
    // Every new connection starts the time anew, packets of old ones do not (AFF-05).
    if let Some(backend) = tables.backend(chosen.backend())
        && chosen.is_backend()
        && client.packet.is_none_or(Packet::begins)
    {
        let mapping = Affinity { backend: chosen.backend(), generation: backend.generation, last: now };
        tables.set_affinity(&key, &mapping);
    }
    chosen
}

/// The backend of the client's last connection, while it is in the set and the client has not been away too long
/// (AFF-06).
#[inline(always)]
fn familiar<T: Tables>(
    tables: &T,
    frontend: &Frontend,
    set: &Set,
    key: &AffinityKey,
    now: Ticks,
) -> Selection {
    let Some(Affinity { backend: id, generation, last }) = tables.affinity(key) else {
        return Selection::NO_BACKEND;
    };
    if set.run.count == 0 || last.age(now).exceeds(tables.seconds(frontend.affinity)) {
        return Selection::NO_BACKEND;
    }
    match tables.backend(id) {
        Some(backend)
            if backend.serves(generation)
                && backend.flags.contains(set.member)
                && backend.service == key.service =>
        {
            Selection(id.0)
        }
        _ => Selection::NO_BACKEND,
    }
}

/// Any backend of the set, each with the same probability (LBAL-01); or the one that its Maglev table has for the packet's
/// tuple. A process that connects has no tuple yet: any slot of the table will do.
#[inline(always)]
fn draw<T: Tables>(tables: &T, frontend: &Frontend, set: &Set, client: &Client<'_>) -> Selection {
    let number = match client.packet {
        Some(packet) if frontend.flags.contains(FrontendFlags::MAGLEV) => hash::of_request(&packet.key),
        _ => tables.random(),
    };
    let Some(slot) = set.run.choose(number) else {
        let silent = frontend.flags.contains(set.silent);
        return if silent { Selection::NO_LOCAL_BACKEND } else { Selection::NO_BACKEND };
    };
    // The kernel may recycle a frontend's value while it is copied; what does not fit together is not used.
    let backend = tables.slot(slot).and_then(|id| Some((id, tables.backend(id)?)));
    match backend {
        Some((id, backend)) if backend.service == frontend.service => Selection(id.0),
        _ => Selection::BROKEN_TABLE,
    }
}
