//! What others may want to know of the model: what has just been finished, what is wrong, how full the tables are.

use std::{collections::BTreeSet, net::IpAddr};

use proxy_common::tables::{Addresses, Backends, Frontends, ServiceNames, Slots, SourceRanges, Table as _};

use super::{Model, Stage};
use crate::{
    change::ObjectName,
    error::Misfit,
    health::{HealthCheck, HealthCheckName},
    journal::{ChangeCounts, Trigger},
    name::{Family, ServicePortName},
    options::NodePortAddresses,
    silence::NoLocalEndpoints,
};

/// What commits have brought into effect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Finished {
    /// Health checks that are to be another now, or to go.
    pub health_checks: Vec<(HealthCheckName, Option<HealthCheck>)>,
    /// What had set off changes of slices.
    pub triggers: Vec<Trigger>,
}

/// How much is wrong at present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Troubles {
    /// Objects with a part that cannot be used.
    pub objects: usize,
    /// Service ports that lack a frontend which another Service has, or that found no room.
    pub service_ports: usize,
    /// Services that found no room.
    pub services_without_room: usize,
}

impl Model {
    /// What has been brought into effect since the last call. Of a Service that did not fit, or whose writes failed, nothing
    /// is said until it is in the tables (HC-08, MET-06).
    pub fn take_finished(&mut self) -> Finished {
        if self.stage == Stage::Waiting {
            return Finished::default();
        }
        let Self { unwritten, unfit, health_checks, state, .. } = self;
        let held_back = |service: &ObjectName| unwritten.contains(service) || unfit.contains(service);
        Finished {
            health_checks: health_checks.take_changed(held_back),
            triggers: state.journal.take_triggers(held_back),
        }
    }

    /// Whether the next plan will find that something has changed.
    #[must_use]
    pub fn has_changes(&self) -> bool {
        self.is_synced() && (self.state.is_dirty() || self.readdressed || self.stage == Stage::Waiting)
    }

    /// Whether load balancers may send traffic to this node: its Node object is there, and nobody is about to delete it
    /// (HZ-06).
    #[must_use]
    pub const fn node_is_eligible(&self) -> bool {
        self.state.node().is_eligible()
    }

    /// Which addresses of a family health checks are answered at (HC-02), of `all` that the node has; `None`: at all of
    /// them, whatever comes.
    ///
    /// Link-local addresses of IPv6 are left out: nobody can listen on one without naming its device, and the same address
    /// may be on several.
    #[must_use]
    pub fn health_check_addresses(
        &self,
        family: Family,
        all: impl IntoIterator<Item = IpAddr>,
    ) -> Option<BTreeSet<IpAddr>> {
        let accepting = &self.options.node_port_addresses;
        match accepting {
            NodePortAddresses::All => return None,
            NodePortAddresses::Networks(networks) => {
                let mut own = networks.iter().filter(|network| network.family() == family).peekable();
                if own.peek().is_none() || own.any(|network| network.is_everything()) {
                    return None;
                }
            }
            NodePortAddresses::Primary => {}
        }
        let primary: Vec<IpAddr> = self.state.node().ip(family).into_iter().collect();
        let link_local = |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        let all = all.into_iter().filter(|ip| Family::of(*ip) == family && !link_local(ip));
        Some(all.filter(|ip| accepting.accept(*ip, &primary)).collect())
    }

    /// `metadata.uid` of a Service.
    #[must_use]
    pub fn service_uid(&self, service: &ObjectName) -> Option<&str> {
        self.state.service(service)?.uid.as_deref()
    }

    /// How many objects changed, and how many changes wait.
    #[must_use]
    pub fn change_counts(&self) -> ChangeCounts {
        self.state.journal.counts()
    }

    /// How many service ports drop what only other nodes could answer, in the order of [`Family::ALL`] (MET-11).
    #[must_use]
    pub const fn no_local_endpoints(&self) -> [NoLocalEndpoints; 2] {
        self.silences.counts()
    }

    /// How much is wrong.
    #[must_use]
    pub fn troubles(&self) -> Troubles {
        Troubles {
            objects: self.state.troubled(),
            service_ports: self.problems.len(),
            services_without_room: self.unfit.len(),
        }
    }

    /// The service ports that a table has no room for, with its name and how many more entries were wanted.
    pub fn unfit_ports(&self) -> impl Iterator<Item = (&ServicePortName, &'static str, usize)> {
        self.problems.iter().flat_map(|(port, reasons)| {
            reasons.iter().filter_map(move |reason| match *reason {
                Misfit::NoRoom { table, wanted } => Some((port, table, wanted)),
                _ => None,
            })
        })
    }

    /// How many entries of each table that the model fills are in use, by the table's name.
    #[must_use]
    pub fn table_entries(&self) -> [(&'static str, usize); 6] {
        let tables = &self.tables;
        [
            (ServiceNames::NAME, tables.names.len()),
            (Frontends::NAME, tables.frontends.len()),
            (Backends::NAME, tables.backend_ids.used() as usize),
            (Slots::NAME, tables.slot_space.used() as usize),
            (Addresses::NAME, tables.addresses.len()),
            (SourceRanges::NAME, tables.ranges.len()),
        ]
    }
}
