//! Whose an event is: what the datapath does not say of it, as whoever drops a packet has no time to.

use std::{collections::HashMap, fs};

use k8s_openapi::jiff::Timestamp;
use proxy_common::{
    addr::Addr,
    addresses::AddressFlags,
    drop::DropReason,
    event::{Event, EventKind},
    flow::FlowFlags,
    frontend::{FrontendKey, ServiceId},
    tables::{Addresses, Flows, Frontends},
    tuple::{Endpoint, Hook, Protocol},
};

use super::{EventRow, Happening};
use crate::{
    datapath::{HashTable, Pins, TableError},
    devices::{Ifindex, name_of},
    show::{Path, ShowError, names::Names, socket},
};

/// The tables that tell it.
pub(super) struct Resolver {
    frontends: HashTable<Frontends>,
    addresses: HashTable<Addresses>,
    flows: HashTable<Flows>,
    names: Names,
    devices: HashMap<u32, String>,
}

/// Whose an event is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) service: Option<ServiceId>,
    pub(super) client: Option<Endpoint>,
    pub(super) frontend: Option<Endpoint>,
    pub(super) backend: Option<Endpoint>,
}

impl Resolver {
    pub(super) fn open(pins: &Pins) -> Result<Self, ShowError> {
        Ok(Self {
            frontends: HashTable::open(pins)?,
            addresses: HashTable::open(pins)?,
            flows: HashTable::open(pins)?,
            names: Names::read(pins)?,
            devices: HashMap::new(),
        })
    }

    pub(super) const fn names(&self) -> &Names {
        &self.names
    }

    /// Reads names again if events are of services that have come since. Devices' names go along.
    pub(super) fn learn(&mut self, events: &[Event], pins: &Pins) -> Result<bool, ShowError> {
        for event in events.iter().filter(|event| is_packet(event.kind)) {
            let name =
                || name_of(Ifindex(event.origin)).unwrap_or_else(|| format!("device {}", event.origin));
            self.devices.entry(event.origin).or_insert_with(name);
        }
        let mut is_stale = false;
        for event in events {
            let service = self.resolve(event)?.service;
            is_stale |= service.is_some_and(|service| !self.names.has(service));
        }
        if is_stale {
            self.names = Names::read(pins)?;
        }
        Ok(is_stale)
    }

    /// Finds out whose an event is.
    pub(super) fn resolve(&self, event: &Event) -> Result<Found, TableError> {
        let key = &event.key;
        let known = Some(event.service).filter(|service| *service != ServiceId::NONE);
        let client = Some(key.source_end()).filter(|_| is_packet(event.kind));
        if key.hook == Hook::EGRESS {
            // Its way back knows through which frontend it came.
            let reply = self.flows.get(&key.reversed())?;
            return Ok(Found {
                service: known.or(reply.map(|reply| reply.head.service)),
                client,
                frontend: reply.map(|reply| reply.peer.destination_end()),
                backend: Some(key.destination_end()),
            });
        }
        let to = key.destination_end();
        let service = match known {
            Some(service) => Some(service),
            None => self.service_at(to, key.protocol)?,
        };
        let has_backend = event.backend != Addr::default();
        Ok(Found { service, client, frontend: Some(to), backend: has_backend.then(|| event.backend_end()) })
    }

    /// The service port that is addressed there.
    fn service_at(&self, to: Endpoint, protocol: Protocol) -> Result<Option<ServiceId>, TableError> {
        if let Some(frontend) = self.frontends.get(&FrontendKey::new(to, protocol))? {
            return Ok(Some(frontend.service));
        }
        let facts = self.addresses.get(&to.address)?.unwrap_or_default();
        if !facts.contains(AddressFlags::NODE_PORTS) && !to.address.is_loopback() {
            return Ok(None);
        }
        let frontend = self.frontends.get(&FrontendKey::node_port(to, protocol))?;
        Ok(frontend.map(|frontend| frontend.service))
    }
}

impl Found {
    /// For people.
    pub(super) fn row(&self, event: &Event, time: Timestamp, resolver: &Resolver) -> EventRow {
        let is_packet = is_packet(event.kind);
        let reason = event.drop_reason();
        EventRow {
            time: time.to_string(),
            event: happening(event.kind, reason),
            path: if is_packet { Path::Tc } else { Path::Socket },
            service: self.service.map(|service| resolver.names.of(service)),
            protocol: format!("{:?}", event.key.protocol),
            client: self.client.map(socket),
            process: (!is_packet).then_some(event.origin),
            process_name: if is_packet { None } else { process_name(event.origin) },
            frontend: self.frontend.map(socket),
            backend: self.backend.map(socket),
            masqueraded: event.flags.contains(FlowFlags::MASQUERADE),
            reason: reason.map(DropReason::as_str),
            device: is_packet.then_some(event.origin),
            device_name: if is_packet { resolver.devices.get(&event.origin).cloned() } else { None },
        }
    }
}

const fn is_packet(kind: EventKind) -> bool {
    kind.0 == EventKind::FLOW.0 || kind.0 == EventKind::DROP.0
}

/// What an event is to the client.
fn happening(kind: EventKind, reason: Option<DropReason>) -> Happening {
    match reason {
        None => Happening::Begun,
        Some(DropReason::NoBackend | DropReason::UnknownPort) => Happening::Refused,
        Some(DropReason::BackendGone) => Happening::Reset,
        Some(_) if is_packet(kind) => Happening::Dropped,
        Some(_) => Happening::Forbidden,
    }
}

/// The name of a process, while it runs.
fn process_name(id: u32) -> Option<String> {
    fs::read_to_string(format!("/proc/{id}/comm")).ok().map(|name| name.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_told_dropped_or_forbidden() {
        let refused = Some(DropReason::NoBackend);
        let silent = Some(DropReason::NoLocalBackend);
        for (kind, reason, expected) in [
            (EventKind::FLOW, None, Happening::Begun),
            (EventKind::CHOICE, None, Happening::Begun),
            (EventKind::DROP, refused, Happening::Refused),
            (EventKind::DROP, silent, Happening::Dropped),
            (EventKind::DROP, Some(DropReason::BackendGone), Happening::Reset),
            (EventKind::REFUSAL, refused, Happening::Refused),
            (EventKind::REFUSAL, silent, Happening::Forbidden),
        ] {
            assert_eq!(happening(kind, reason), expected, "{kind:?} {reason:?}");
        }
        assert_eq!(process_name(u32::MAX), None);
    }
}
