//! Health checks of load balancers: which ports are asked about which Services, and how many endpoints there are to
//! tell of. Plain data; whoever has sockets listens.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    num::NonZeroU16,
};

use crate::{
    change::ObjectName,
    endpoint::{Endpoint, Location, Slice},
    name::{Family, Transport},
    sets::merge,
    state::ParsedService,
};

/// What a health check is about: every family of a Service has its own (HC-01).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HealthCheckName {
    /// The Service.
    pub service: ObjectName,
    /// The family of its ClusterIP and endpoints, and of the addresses to listen on.
    pub family: Family,
}

/// Where load balancers ask for a Service, and what is to be said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// `spec.healthCheckNodePort`.
    pub port: NonZeroU16,
    /// Distinct addresses of endpoints on this node that are ready (HC-04).
    pub local_endpoints: usize,
    /// `metadata.uid` of the Service, for Events about it.
    pub uid: Option<String>,
}

impl HealthCheck {
    /// That of a family of a Service, if it has one: it needs a ClusterIP of the family, and a port (SVC-08, SVC-09).
    pub(crate) fn of<'a, S: Iterator<Item = &'a Slice>>(
        service: &ParsedService,
        family: Family,
        slices: impl Fn() -> S,
    ) -> Option<Self> {
        let port = service.ports.iter().find(|port| port.name.family == family)?.external.health_check?;
        Some(Self { port, local_endpoints: local_endpoints(family, slices), uid: service.uid.clone() })
    }
}

/// Distinct addresses of local ready endpoints, whatever ports they serve. Where several records of one contradict each
/// other, the same one counts as for traffic (EPS-11).
fn local_endpoints<'a, S: Iterator<Item = &'a Slice>>(family: Family, slices: impl Fn() -> S) -> usize {
    let ports: BTreeSet<(&str, Transport)> = slices()
        .filter(|slice| slice.family == family)
        .flat_map(|slice| slice.ports.iter().map(|port| (port.name.as_str(), port.transport)))
        .collect();
    let counts = |endpoint: &Endpoint| endpoint.is_ready() && endpoint.location == Location::Local;
    let mut ips = BTreeSet::new();
    for (port, transport) in ports {
        let merged = merge(port, transport, family, slices());
        ips.extend(
            merged.into_iter().filter(|(_, endpoint)| counts(endpoint)).map(|(address, _)| address.ip),
        );
    }
    ips.len()
}

/// All health checks, and which of them nobody has been told about yet.
#[derive(Debug, Default)]
pub(crate) struct HealthChecks {
    wanted: BTreeMap<HealthCheckName, HealthCheck>,
    changed: BTreeSet<HealthCheckName>,
}

impl HealthChecks {
    /// The check should be this, or none.
    pub(crate) fn set(&mut self, name: HealthCheckName, check: Option<HealthCheck>) {
        if self.wanted.get(&name) == check.as_ref() {
            return;
        }
        match check {
            Some(check) => self.wanted.insert(name.clone(), check),
            None => self.wanted.remove(&name),
        };
        self.changed.insert(name);
    }

    /// What has changed since the last call, but not of Services that are `held_back`.
    pub(crate) fn take_changed(
        &mut self,
        held_back: impl Fn(&ObjectName) -> bool,
    ) -> Vec<(HealthCheckName, Option<HealthCheck>)> {
        let (kept, told): (BTreeSet<_>, BTreeSet<_>) =
            mem::take(&mut self.changed).into_iter().partition(|name| held_back(&name.service));
        self.changed = kept;
        let with_check = |name: HealthCheckName| {
            let check = self.wanted.get(&name).cloned();
            (name, check)
        };
        told.into_iter().map(with_check).collect()
    }
}
