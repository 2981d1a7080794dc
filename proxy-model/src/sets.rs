//! Which endpoints become the backends of a service port: the set for those who may reach any node, and the set for
//! those who must stay on this one.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use proxy_common::{backend::BackendFlags, frontend::FrontendKey};

use crate::{
    address::BackendAddress,
    endpoint::{Conditions, Endpoint, Location, Slice, SlicePort},
    frontends::Access,
    name::{Family, ServicePortName, Transport},
    node::ThisNode,
    options::Options,
    policy::OnRemoval,
    reasons::{EndpointVerdict, Exclusion},
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
    options: &Options,
) -> Sets {
    let ServicePortName { port, transport, family, .. } = &wanted.name;
    let endpoints = merge(port, *transport, *family, slices);
    let needs = |set| frontends.iter().any(|&(_, access)| wanted.uses(set, access, options));
    let mut backends = Chosen::new();
    let staying = endpoints.iter().filter(|(_, endpoint)| keeps_flows(wanted, endpoint));
    backends.extend(staying.map(|(&address, endpoint)| (address, flags(endpoint))));
    if needs(Set::Cluster) {
        enter(&mut backends, Set::Cluster, &judge(Set::Cluster, &endpoints, node));
    }
    let mut only_elsewhere = false;
    if needs(Set::Local) {
        let judged = judge(Set::Local, &endpoints, node);
        let is_empty = judged.iter().all(|(_, _, verdict)| verdict.is_err());
        only_elsewhere = is_empty && endpoints.values().any(|endpoint| endpoint.is_usable());
        enter(&mut backends, Set::Local, &judged);
    }
    Sets { backends, only_elsewhere }
}

/// What [`choose`] thinks of every endpoint.
pub(crate) fn explain<'a>(
    wanted: &ServicePort,
    frontends: &[(FrontendKey, Access)],
    slices: impl Iterator<Item = &'a Slice>,
    node: &ThisNode,
    options: &Options,
) -> Vec<EndpointVerdict> {
    let ServicePortName { port, transport, family, .. } = &wanted.name;
    let endpoints = merge(port, *transport, *family, slices);
    let needs = |set| frontends.iter().any(|&(_, access)| wanted.uses(set, access, options));
    let verdicts = |set| {
        let is_needed = needs(set);
        let verdict = move |(_, _, verdict)| if is_needed { verdict } else { Err(Exclusion::NobodyAsks) };
        judge(set, &endpoints, node).into_iter().map(verdict)
    };
    let both = verdicts(Set::Cluster).zip(verdicts(Set::Local));
    let explained = endpoints.iter().zip(both).map(|((address, endpoint), (cluster_set, local_set))| {
        let Conditions { ready, serving, terminating } = endpoint.conditions;
        EndpointVerdict {
            address: SocketAddr::new(address.ip, address.port.get()),
            is_local: endpoint.location == Location::Local,
            ready,
            serving,
            terminating,
            cluster_set,
            local_set,
        }
    });
    explained.collect()
}

/// The addresses of slices that [`choose`] passes over, as they do not serve the port.
pub(crate) fn without_port<'a>(
    port: &ServicePortName,
    slices: impl Iterator<Item = &'a Slice>,
) -> Vec<IpAddr> {
    let ServicePortName { port, transport, family, .. } = port;
    let is_served = |slice: &Slice| numbers(port, *transport, slice).next().is_some();
    let others = slices.filter(|slice| slice.family == *family && !is_served(slice));
    others.flat_map(|slice| slice.endpoints.iter().map(|endpoint| endpoint.ip)).collect()
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

/// Those that were admitted to the set are in it.
fn enter(backends: &mut Chosen, set: Set, judged: &[Judged<'_>]) {
    for (address, endpoint, _) in judged.iter().filter(|(_, _, verdict)| verdict.is_ok()) {
        let entry = backends.entry(*address).or_insert_with(|| flags(endpoint));
        *entry = entry.with(set.flag());
    }
}

/// An endpoint, and whether it is in a set.
type Judged<'a> = (BackendAddress, &'a Endpoint, Result<(), Exclusion>);

/// Of the endpoints that are eligible, those that are ready are in the set, or else those that terminate but still serve
/// (SEL-02 to SEL-05, SEL-08).
fn judge<'a>(set: Set, endpoints: &Merged<'a>, node: &ThisNode) -> Vec<Judged<'a>> {
    let ready = endpoints.values().filter(|endpoint| endpoint.is_ready());
    let preference = Preference::of(ready.map(|endpoint| &endpoint.hints), node);
    let eligible = |endpoint: &Endpoint| match set {
        Set::Cluster => preference.judge(&endpoint.hints),
        // TOPO-10: hints say nothing about who may be reached on the node itself.
        Set::Local if endpoint.location == Location::Local => Ok(()),
        Set::Local => Err(Exclusion::OnAnotherNode),
    };
    let is_first_choice = |endpoint: &&Endpoint| endpoint.is_ready() && eligible(endpoint).is_ok();
    let has_ready = endpoints.values().any(is_first_choice);
    let verdict = |endpoint: &Endpoint| {
        if !endpoint.is_usable() {
            return Err(Exclusion::NotReady);
        }
        eligible(endpoint)?;
        if endpoint.is_ready() || !has_ready { Ok(()) } else { Err(Exclusion::Terminating) }
    };
    endpoints.iter().map(|(&address, &endpoint)| (address, endpoint, verdict(endpoint))).collect()
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
        for number in numbers(port, transport, slice) {
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

/// The ports of a slice that a service port is served by.
fn numbers<'a>(port: &str, transport: Transport, slice: &'a Slice) -> impl Iterator<Item = &'a SlicePort> {
    slice.ports.iter().filter(move |number| number.name == port && number.transport == transport)
}

#[cfg(test)]
mod tests;
