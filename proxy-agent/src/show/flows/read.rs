//! From entries of the flow table to flows.

use std::{cell::RefCell, collections::HashMap, net::SocketAddr};

use proxy_common::{
    backend::{Backend, BackendId},
    flow::{Direction, FlowEntry, FlowFlags},
    frontend::ServiceId,
    tables::{Backends, Flows},
    time::Ticks,
    tuple::FlowKey,
};

use super::{FlowFilter, FlowRow};
use crate::{
    datapath::{ArrayTable, HashTable, Pins, TableError},
    show::{BackendState, ShowError, names::Names, socket, time::Time},
};

/// The tables that flows are told from.
pub(in crate::show) struct Reader {
    flows: HashTable<Flows>,
    backends: ArrayTable<Backends>,
    /// Records that were read already: most flows share a few.
    known: RefCell<HashMap<BackendId, Option<Backend>>>,
    names: Names,
    time: Time,
}

/// What a flow's other entries say.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::show) struct Joint {
    /// That of the way back.
    pub(in crate::show) reply: Option<FlowEntry>,
    /// That which rewrites the source as packets leave.
    pub(in crate::show) leaving: Option<FlowEntry>,
    /// Its backend's record.
    pub(in crate::show) backend: Option<Backend>,
}

impl Reader {
    /// Opens them. Ages are told as of now.
    pub(in crate::show) fn open(pins: &Pins) -> Result<Self, ShowError> {
        Ok(Self {
            flows: HashTable::open(pins)?,
            backends: ArrayTable::open(pins)?,
            known: RefCell::default(),
            names: Names::read(pins)?,
            time: Time::read(pins)?,
        })
    }

    pub(in crate::show) const fn names(&self) -> &Names {
        &self.names
    }

    /// The flows that a filter admits, in the kernel's order.
    pub(in crate::show) fn rows<'a>(
        &'a self,
        filter: &'a FlowFilter,
    ) -> impl Iterator<Item = Result<FlowRow, ShowError>> + 'a {
        let row = move |entry: Result<(FlowKey, FlowEntry), TableError>| {
            let found = entry.and_then(|(key, entry)| self.row(filter, &key, &entry));
            found.map_err(Into::into).transpose()
        };
        self.flows.entries().filter_map(row)
    }

    /// The flow that an entry is the client's direction of, if it is and the filter admits it.
    fn row(
        &self,
        filter: &FlowFilter,
        key: &FlowKey,
        entry: &FlowEntry,
    ) -> Result<Option<FlowRow>, TableError> {
        let FlowEntry { peer, head } = entry;
        let is_wanted = head.direction == Direction::ORIGINAL && head.service != ServiceId::NONE;
        let (client, frontend) = (Some(key.source_end()), Some(key.destination_end()));
        let backend = Some(peer.source_end());
        if !is_wanted || !filter.ends.admit(Some(head.service), client, frontend, backend, key.protocol) {
            return Ok(None);
        }
        let joint = Joint {
            reply: self.flows.get(peer)?.filter(|reply| reply.peer == *key),
            leaving: match head.flags.contains(FlowFlags::MASQUERADE) {
                true => self.flows.get(&peer.reversed())?,
                false => None,
            },
            backend: self.backend(head.backend)?,
        };
        let row = join(key, entry, &joint, self.time, self.names.of(head.service));
        Ok(Some(row).filter(|row| filter.admits_row(row)))
    }

    fn backend(&self, id: BackendId) -> Result<Option<Backend>, TableError> {
        if let Some(known) = self.known.borrow().get(&id) {
            return Ok(*known);
        }
        let found = self.backends.get(id.0)?;
        self.known.borrow_mut().insert(id, found);
        Ok(found)
    }
}

/// A flow from the entry of the client's direction, and what belongs to that.
pub(super) fn join(key: &FlowKey, entry: &FlowEntry, joint: &Joint, time: Time, service: String) -> FlowRow {
    let FlowEntry { peer, head } = entry;
    let masqueraded = head.flags.contains(FlowFlags::MASQUERADE);
    let seen_as: Option<SocketAddr> = match (&joint.leaving, masqueraded) {
        (Some(leaving), true) => Some(socket(leaving.peer.destination_end())),
        (None, true) => None,
        (_, false) => Some(socket(peer.destination_end())),
    };
    let ages = [Some(head), joint.reply.as_ref().map(|reply| &reply.head)];
    let idle =
        ages.into_iter().flatten().map(|head| head.last_seen.age(time.now).0).min().map_or(Ticks(0), Ticks);
    let left = head.timeout.0.checked_sub(idle.0).map(|left| time.seconds(Ticks(left)));
    FlowRow {
        service,
        protocol: key.protocol.name().unwrap_or("unknown"),
        client: socket(key.source_end()),
        frontend: socket(key.destination_end()),
        backend: socket(peer.source_end()),
        backend_id: head.backend.0,
        backend_state: joint
            .backend
            .filter(|backend| backend.serves(head.generation))
            .map_or(BackendState::Gone, |backend| BackendState::of(backend.flags)),
        seen_as,
        masqueraded,
        dsr: head.flags.contains(FlowFlags::DSR),
        state: head.state.as_str(),
        idle_seconds: time.seconds(idle),
        expires_in_seconds: left,
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::{
        backend::{BackendFlags, Generation},
        flow::{FlowHead, FlowState},
        tuple::{Endpoint, Hook, Protocol},
    };

    use super::*;

    fn end(text: &str) -> Endpoint {
        let end: SocketAddr = text.parse().unwrap();
        Endpoint { address: end.ip().into(), port: proxy_common::endian::Be16::from_host(end.port()) }
    }

    #[test]
    fn both_directions_and_the_rewritten_source_are_one_flow() {
        let (client, frontend) = (end("10.0.0.9:40000"), end("192.0.2.1:30080"));
        let (backend, node) = (end("10.244.2.7:8080"), end("192.0.2.1:5000"));
        let key = |from, to, hook| FlowKey::new(from, to, Protocol::TCP, hook);
        let head = FlowHead {
            backend: BackendId(3),
            generation: Generation(1),
            service: ServiceId(7),
            last_seen: Ticks(100),
            timeout: Ticks(600),
            state: FlowState::ESTABLISHED,
            flags: FlowFlags::MASQUERADE,
            ..FlowHead::default()
        };
        let there = key(client, frontend, Hook::INGRESS);
        let back = key(backend, client, Hook::EGRESS);
        let request = FlowEntry { peer: back, head };
        let reply = FlowEntry { peer: there, head: FlowHead { last_seen: Ticks(150), ..head } };
        let leaving = FlowEntry { peer: key(backend, node, Hook::INGRESS), head: FlowHead::default() };
        let flags = BackendFlags::LIVE.with(BackendFlags::CLUSTER_SET);
        let record = Backend { generation: Generation(1), flags, ..Backend::default() };
        let joint = Joint { reply: Some(reply), leaving: Some(leaving), backend: Some(record) };
        let time = Time { now: Ticks(250), rate: 100 };
        let row = |joint: &Joint| join(&there, &request, joint, time, "default/web/TCP/IPv4".to_owned());
        let expected = FlowRow {
            service: "default/web/TCP/IPv4".to_owned(),
            protocol: "TCP",
            client: "10.0.0.9:40000".parse().unwrap(),
            frontend: "192.0.2.1:30080".parse().unwrap(),
            backend: "10.244.2.7:8080".parse().unwrap(),
            backend_id: 3,
            backend_state: BackendState::Serving,
            seen_as: Some("192.0.2.1:5000".parse().unwrap()),
            masqueraded: true,
            dsr: false,
            state: "established",
            idle_seconds: 1,
            expires_in_seconds: Some(5),
        };
        assert_eq!(row(&joint), expected);
        // Its id names another backend now; nothing has left the node; the way back is gone.
        let record = Backend { generation: Generation(2), ..record };
        let bare = row(&Joint { backend: Some(record), ..Joint::default() });
        assert_eq!((bare.backend_state, bare.seen_as), (BackendState::Gone, None));
        assert_eq!((bare.idle_seconds, bare.expires_in_seconds), (1, Some(4)));
        let late = Time { now: Ticks(751), ..time };
        let row = join(&there, &request, &joint, late, String::new());
        assert_eq!((row.idle_seconds, row.expires_in_seconds), (6, None));
    }
}
