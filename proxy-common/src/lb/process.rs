//! The decision for processes: taken once, when a socket connects or sends, before there is a packet.

use crate::{
    addr::Addr,
    backend::{Backend, BackendId},
    config::{SocketFlags, SocketSettings},
    drop::DropReason,
    filter::AddressRoles,
    pod::{PodReason, PodReasons},
    socket::{SocketEntry, SocketFacts, SocketKey, View, halves},
    tuple::{Endpoint, Protocol},
};

use super::{
    Listeners, Tables, own,
    select::{Selection, select_for_process},
};

/// A process that wants to talk to somebody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Process {
    /// Whom it names.
    pub end: Endpoint,
    /// By which protocol.
    pub protocol: Protocol,
    /// Cookie of its socket.
    pub socket: u64,
    /// Cookie of its network namespace.
    pub namespace: u64,
    /// Whether that namespace is the node's own.
    pub is_host: bool,
}

impl Process {
    /// As session affinity knows it: an address that no host can have, made of its namespace.
    #[must_use]
    #[inline(always)]
    pub const fn client(&self) -> Addr {
        let [low, high] = halves(self.namespace);
        Addr::from_v6_words([u32::MAX, u32::MAX, low, high])
    }
}

/// What becomes of a process's wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Wish {
    /// It gets what it asked for, or its packets decide.
    Granted,
    /// It gets this end.
    Instead(Endpoint),
    /// It hears that nobody listens there (BPF-09).
    Refused(DropReason),
    /// It hears that there is no way: its packets would be dropped without a word.
    Forbidden(DropReason),
}

/// The tables that only sockets need.
pub trait Sockets {
    /// What is known about a socket and somebody whom it talks to.
    fn socket(&self, key: &SocketKey) -> Option<SocketEntry>;
    /// Writes it. A full table forgets another entry.
    fn set_socket(&self, key: &SocketKey, entry: &SocketEntry);
    /// What is known of the pod whose cgroup is at that level above the calling process.
    fn pod(&self, level: u8) -> Option<PodReasons>;

    /// Tells whoever listens that a process was given a backend.
    #[inline(always)]
    fn tell_choice(&self, _process: &Process, _backend: &Backend) {}
}

/// The decision for a socket that connects, or a datagram that a socket sends to an address.
///
/// A pod's datagrams are left to packets: there every single one looks whether its backend is still there, which a
/// connected socket cannot.
#[inline(always)]
pub fn wish<T: Tables + Sockets, L: Listeners>(tables: &T, listeners: &L, process: &Process) -> Wish {
    if !is_served(tables, listeners, process) {
        return Wish::Granted;
    }
    let key = SocketKey::new(process.socket, process.end, View::SERVICE);
    // A datagram goes where the socket's last one to this service went, while that backend serves (BPF-05).
    if process.protocol == Protocol::UDP
        && let Some(entry) = tables.socket(&key)
        && tables.backend(entry.backend).is_some_and(|backend| backend.serves(entry.generation))
    {
        return Wish::Instead(entry.end());
    }
    let chosen = select_for_process(tables, process);
    match chosen.outcome() {
        Some(wish) => wish,
        None => remember(tables, process, &key, chosen),
    }
}

/// Whether a process's wish is looked at, at the price of an array read for most.
#[inline(always)]
fn is_served<T: Tables + Sockets, L: Listeners>(tables: &T, listeners: &L, process: &Process) -> bool {
    let Some(settings) = tables.settings() else {
        return false;
    };
    let sockets = &settings.sockets;
    let wanted = if process.is_host {
        sockets.flags.contains(SocketFlags::HOST)
    } else {
        sockets.pods != PodReasons::NONE && process.protocol == Protocol::TCP
    };
    if !wanted {
        return false;
    }
    let may_be_served = process.end.address.is_loopback() || {
        let roles = tables.roles(process.end.address);
        roles.intersects(AddressRoles::FRONTEND.with(AddressRoles::NODE))
            && !(own::may_be_both(roles) && is_for_process(tables, listeners, process))
    };
    may_be_served && (process.is_host || sockets.pods.intersects(pod_of_process(tables, sockets)))
}

/// Whether a process of the node may be meant (see `own`). From a pod's network it cannot be seen whether one listens
/// there; the pod's packets will tell.
#[inline(always)]
fn is_for_process<T: Tables, L: Listeners>(tables: &T, listeners: &L, process: &Process) -> bool {
    own::is_cluster_ip_of_node(tables, process.end.address)
        && (!process.is_host || listeners.listens(&process.end, process.protocol))
}

/// What is known of the pod that the calling process belongs to.
#[inline(always)]
fn pod_of_process<T: Sockets>(tables: &T, sockets: &SocketSettings) -> PodReasons {
    let known = sockets.levels.each().find_map(|level| tables.pod(level));
    known.unwrap_or(PodReasons::of(PodReason::Unknown))
}

/// Remembers both views of the choice.
#[inline(always)]
fn remember<T: Tables + Sockets>(tables: &T, process: &Process, key: &SocketKey, chosen: Selection) -> Wish {
    let id: BackendId = chosen.backend();
    let Some(backend) = tables.backend(id) else {
        return Wish::Forbidden(DropReason::BrokenTable);
    };
    let facts = if chosen.resets() { SocketFacts::RESET } else { SocketFacts::default() };
    let entry = |end: Endpoint| SocketEntry {
        address: end.address,
        port: end.port,
        facts,
        backend: id,
        generation: backend.generation,
    };
    if process.protocol == Protocol::UDP {
        tables.set_socket(key, &entry(backend.end()));
    }
    tables.set_socket(&SocketKey::new(process.socket, backend.end(), View::BACKEND), &entry(process.end));
    tables.tell_choice(process, &backend);
    Wish::Instead(backend.end())
}

/// Whom a process takes a peer for, if that is another: the sender of a datagram that it receives, or the peer of its
/// connection.
#[inline(always)]
pub fn believed<T: Sockets>(tables: &T, socket: u64, peer: Endpoint) -> Option<Endpoint> {
    tables.socket(&SocketKey::new(socket, peer, View::BACKEND)).map(|entry| entry.end())
}
