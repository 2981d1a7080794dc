//! Which endpoints become the backends of a service port: the set for those who may reach any node, and the set for
//! those who must stay on this one.

use std::collections::BTreeMap;

use proxy_common::{backend::BackendFlags, frontend::FrontendKey};

use crate::{
    address::BackendAddress,
    endpoint::{Endpoint, Location, Slice},
    frontends::Access,
    name::{Family, ServicePortName, Transport},
    node::ThisNode,
    policy::OnRemoval,
    runs::Set,
    service::ServicePort,
    topology::Preference,
};

/// The sets of a service port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sets {
    /// Who is in either set, and who would keep the flows that it has.
    pub(crate) backends: Chosen,
    /// Whether the set of this node is empty although somebody could answer elsewhere: silence, not refusal, is for
    /// those who must stay here (SEL-06, NOEP-04).
    pub(crate) only_elsewhere: bool,
}

/// Backends, each once, with what is to be said about it (SEL-07).
pub(crate) type Chosen = BTreeMap<BackendAddress, BackendFlags>;

/// The sets that clients of these frontends of a service port need.
///
/// `slices` are those of the Service, in the order of their names: where duplicates contradict each other, upstream
/// lets the order decide (EPS-11).
pub(crate) fn choose<'a>(
    wanted: &ServicePort,
    frontends: &[(FrontendKey, Access)],
    slices: impl Iterator<Item = &'a Slice>,
    node: &ThisNode,
) -> Sets {
    let ServicePortName { port, transport, family, .. } = &wanted.name;
    let endpoints = merge(port, *transport, *family, slices);
    let needs = |set| frontends.iter().any(|&(_, access)| wanted.uses(set, access));
    let mut backends = Chosen::new();
    let staying = endpoints.iter().filter(|(_, endpoint)| keeps_flows(wanted, endpoint));
    backends.extend(staying.map(|(&address, endpoint)| (address, flags(endpoint))));
    if needs(Set::Cluster) {
        let ready = endpoints.values().filter(|endpoint| endpoint.is_ready());
        let preference = Preference::of(ready.map(|endpoint| &endpoint.hints), node);
        let eligible = |endpoint: &Endpoint| preference.admits(&endpoint.hints);
        enter(&mut backends, Set::Cluster, best(&endpoints, eligible));
    }
    let mut only_elsewhere = false;
    if needs(Set::Local) {
        // TOPO-10: hints say nothing about who may be reached on the node itself.
        let here = best(&endpoints, |endpoint| endpoint.location == Location::Local);
        only_elsewhere = here.is_empty() && endpoints.values().any(|endpoint| endpoint.is_usable());
        enter(&mut backends, Set::Local, here);
    }
    Sets { backends, only_elsewhere }
}

/// Whether an endpoint keeps the flows that it has, even if it is in no set. TCP never looks, unless it is reset when its
/// endpoint is gone for good: one that is just not ready, or drains before it ends, is not. Other flows stay with an
/// endpoint that serves (CT-03, CT-11).
fn keeps_flows(wanted: &ServicePort, endpoint: &Endpoint) -> bool {
    match (wanted.name.transport, wanted.on_removal) {
        (Transport::Tcp, OnRemoval::Keep) => false,
        (Transport::Tcp, OnRemoval::Reset) => true,
        (Transport::Udp | Transport::Sctp, _) => endpoint.conditions.serving,
    }
}

/// What is to be said about a backend in any case.
fn flags(endpoint: &Endpoint) -> BackendFlags {
    match endpoint.location {
        Location::Local => BackendFlags::LIVE.with(BackendFlags::LOCAL),
        Location::Remote => BackendFlags::LIVE,
    }
}

/// These endpoints are in the set.
fn enter(backends: &mut Chosen, set: Set, endpoints: Merged<'_>) {
    for (address, endpoint) in endpoints {
        let entry = backends.entry(address).or_insert_with(|| flags(endpoint));
        *entry = entry.with(set.flag());
    }
}

/// Of the endpoints that are eligible, those that are ready, or else those that terminate but still serve (SEL-02 to
/// SEL-05, SEL-08).
fn best<'a>(endpoints: &Merged<'a>, eligible: impl Fn(&Endpoint) -> bool) -> Merged<'a> {
    let chosen_if = |usable: fn(&Endpoint) -> bool| -> Merged<'a> {
        let chosen = endpoints.iter().filter(|(_, endpoint)| usable(endpoint) && eligible(endpoint));
        chosen.map(|(&address, &endpoint)| (address, endpoint)).collect()
    };
    let ready = chosen_if(Endpoint::is_ready);
    if ready.is_empty() { chosen_if(Endpoint::is_usable) } else { ready }
}

/// The endpoints of a service port.
pub(crate) type Merged<'a> = BTreeMap<BackendAddress, &'a Endpoint>;

/// The endpoints that serve a port of this name, protocol and family, over all slices (EPS-06, EPS-07).
pub(crate) fn merge<'a>(
    port: &str,
    transport: Transport,
    family: Family,
    slices: impl Iterator<Item = &'a Slice>,
) -> Merged<'a> {
    let mut merged = Merged::new();
    for slice in slices.filter(|slice| slice.family == family) {
        let numbers = slice.ports.iter().filter(|p| p.name == port && p.transport == transport);
        for number in numbers {
            for endpoint in &slice.endpoints {
                let address = BackendAddress { ip: endpoint.ip, port: number.port };
                // EPS-11: a record that does not terminate replaces, one that does only fills a gap.
                if endpoint.conditions.terminating {
                    merged.entry(address).or_insert(endpoint);
                } else {
                    merged.insert(address, endpoint);
                }
            }
        }
    }
    merged
}

#[cfg(test)]
mod tests;
