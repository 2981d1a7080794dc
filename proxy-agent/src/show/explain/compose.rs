//! The answer, from the decision and the records behind it.

use std::net::SocketAddr;

use proxy_common::{
    addresses::AddressFlags,
    affinity::AffinityKey,
    backend::{BackendFlags, BackendId},
    config::SocketFlags,
    device::DeviceFlags,
    drop::DropReason,
    frontend::FrontendFlags,
    pod::{PodReason, PodReasons},
    tuple::Protocol,
};

use super::{
    AffinityMapping, Candidate, ChosenSet, Client, Explanation, MatchedFrontend, Origin, Outcome, Path,
    SourceRanges, Target, Verdict,
    decide::{self, Decided, Matched},
    source::Asker,
    view::View,
};
use crate::show::{
    BackendState,
    names::Names,
    services::{cidr, kind_of},
    socket,
    status::explanation,
    time::Time,
};

/// Composes it, but for the flows that there are, and the node's addresses that backends see.
pub(super) fn compose(view: &View, target: &Target, asker: &Asker, names: &Names) -> Explanation {
    let matched = decide::matched(view, &asker.client, target);
    let (path, decided) = decide(view, target, asker, matched.as_ref());
    let backends = matched.map(|matched| candidates(view, asker, &matched, &decided)).unwrap_or_default();
    let hooks = match path {
        Path::Socket => asker.socket_hooks.clone(),
        Path::Tc => asker.ingress.iter().cloned().collect(),
        Path::None => Vec::new(),
    };
    Explanation {
        client: described(view, asker),
        destination: target.end,
        protocol: target.protocol.name().unwrap_or("unknown"),
        path,
        hooks,
        frontend: matched.map(|matched| MatchedFrontend {
            rule: if matched.key.is_node_port() { "node-port" } else { "exact" },
            kind: kind_of(&matched.key, view.address(matched.key.address)),
            service: names.of(matched.frontend.service),
            flags: matched.frontend.flags.names().collect(),
        }),
        other_ports: if matched.is_none() { other_ports(view, target) } else { Vec::new() },
        source_ranges: matched.and_then(|matched| source_ranges(view, asker, target, &matched)),
        origin: matched.filter(|matched| matched.frontend.flags.contains(FrontendFlags::BY_ORIGIN)).map(
            |_| {
                let (inside, why) = asker.client.origin(view);
                Origin { inside, why }
            },
        ),
        set: matched.map(|matched| chosen_set(view, &matched)),
        affinity: matched.and_then(|matched| affinity(view, asker, &matched)),
        verdict: verdict(view, target, asker, &decided, matched.as_ref(), &backends),
        backends,
        flows: Vec::new(),
        problems: Vec::new(),
    }
}

/// Where it is decided, and to what it comes. A socket that lets its wish pass leaves it to packets; those of the node's
/// own processes enter no device.
fn decide(view: &View, target: &Target, asker: &Asker, matched: Option<&Matched>) -> (Path, Vec<Decided>) {
    let client = &asker.client;
    let slots = matched.map_or(0, |matched| matched.run.count);
    if !asker.socket_hooks.is_empty() {
        let decided = decide::at_socket(view, client, target, slots);
        if decided != [Decided::Passed] {
            return (Path::Socket, decided);
        }
        if client.address.is_none() {
            return (Path::Socket, decided);
        }
    }
    if asker.ingress.is_none() {
        return (Path::None, vec![Decided::Passed]);
    }
    (Path::Tc, decide::at_ingress(view, client, target, matched))
}

fn described(view: &View, asker: &Asker) -> Client {
    let decide::Client { address, port, device, .. } = asker.client;
    let row = view.devices.get(&device).filter(|_| address.is_some());
    Client {
        address,
        port,
        is_host: address.is_none(),
        device: address.map(|_| device),
        device_name: asker.device_name.clone(),
        device_found: asker.device_found,
        pod_reason: asker.pod.and_then(PodReasons::only).map(PodReason::as_str),
        local_clients: row.map(|row| row.flags.contains(DeviceFlags::LOCAL_CLIENTS)),
    }
}

/// What else there is at the address, or among NodePorts if it accepts them.
fn other_ports(view: &View, target: &Target) -> Vec<String> {
    let address = target.end.ip().into();
    let accepts = view.address(address).contains(AddressFlags::NODE_PORTS);
    let here = view.frontends.keys().filter(|key| {
        key.address == address || accepts && key.is_node_port() && key.address == address.unspecified()
    });
    let mut ports: Vec<_> = here.map(|key| (key.port.to_host(), key.protocol)).collect();
    ports.sort_unstable_by_key(|(port, protocol)| (*port, protocol.0));
    ports.iter().map(|(port, protocol)| format!("{port}/{protocol:?}")).collect()
}

fn source_ranges(view: &View, asker: &Asker, target: &Target, matched: &Matched) -> Option<SourceRanges> {
    if !matched.frontend.flags.contains(FrontendFlags::RESTRICTED) {
        return None;
    }
    let service = matched.frontend.service;
    let node = view.settings.sockets.node_for(target.end.ip().into());
    let asked = asker.client.address.map_or(node, Into::into);
    let mut ranges: Vec<_> = view.ranges_of(service).map(cidr).collect();
    ranges.sort_unstable();
    Some(SourceRanges { admitted: view.admits(service, asked), asked: asked.to_ip(), ranges })
}

fn chosen_set(view: &View, matched: &Matched) -> ChosenSet {
    let flags = matched.frontend.flags;
    let by_origin = flags.contains(FrontendFlags::BY_ORIGIN);
    let (name, why) = match () {
        () if by_origin && !matched.inside => ("local", "externalTrafficPolicy is Local"),
        () if by_origin => {
            ("cluster", "externalTrafficPolicy is Local, but the client is inside the cluster")
        }
        () if flags.contains(FrontendFlags::LOCAL_SET) => ("local", "internalTrafficPolicy is Local"),
        () => ("cluster", "no policy keeps the client on this node"),
    };
    let backends = matched.backends(view).len();
    ChosenSet { name, why, by_hash: matched.is_by_hash(), dsr: flags.contains(FrontendFlags::DSR), backends }
}

fn affinity(view: &View, asker: &Asker, matched: &Matched) -> Option<AffinityMapping> {
    let seconds = matched.frontend.affinity;
    if seconds == 0 {
        return None;
    }
    let key = AffinityKey { client: asker.client.known_as(view), service: matched.frontend.service };
    let time = Time { now: view.now, rate: view.settings.ticks_per_second.max(1) };
    let mapping = view.affinities.get(&key);
    let record = mapping.and_then(|mapping| view.backends.get(&mapping.backend));
    let age = mapping.map(|mapping| mapping.last.age(view.now));
    let counts = mapping.zip(record).is_some_and(|(mapping, record)| {
        record.serves(mapping.generation)
            && record.flags.contains(matched.member)
            && !mapping.last.age(view.now).exceeds(view.settings.ticks(seconds))
    });
    Some(AffinityMapping {
        seconds,
        backend: record.map(|record| socket(record.end())),
        age_seconds: age.map(|age| time.seconds(age)),
        counts,
    })
}

/// All backends of the service port, and which of them the decision may come to.
fn candidates(view: &View, asker: &Asker, matched: &Matched, decided: &[Decided]) -> Vec<Candidate> {
    let set = matched.backends(view);
    let is_served = decided.iter().any(|decided| matches!(decided, Decided::Backend(..)));
    let candidate = |id: BackendId| {
        let record = view.backends.get(&id)?;
        let address = socket(record.end());
        let in_set = set.contains(&id);
        // What is long gone explains nothing, unless the client is still there.
        let is_known = || view.flows.values().any(|flow| flow.head.backend == id);
        if !in_set && !record.flags.contains(BackendFlags::LIVE) && !is_known() {
            return None;
        }
        let masqueraded = decided.iter().find_map(|decided| match decided {
            Decided::Backend(found, masqueraded) if *found == address && in_set => Some(*masqueraded),
            _ => None,
        });
        let why_not = match (in_set, masqueraded) {
            (false, _) => Some(decide::why_not_in_set(view, matched, id)),
            (true, None) if is_served && matched.is_by_hash() && matched.frontend.affinity == 0 => {
                Some("the hash of the client's port leads to another backend".to_owned())
            }
            (true, None) if is_served => Some("the client is used to another backend".to_owned()),
            (true, _) => None,
        };
        let why = decide::why_masqueraded(view, &asker.client, matched, id);
        Some(Candidate {
            address,
            id: Some(id.0),
            state: Some(BackendState::of(record.flags)),
            local: record.flags.contains(BackendFlags::LOCAL),
            in_set,
            possible: masqueraded.is_some(),
            why_not,
            masqueraded,
            masqueraded_why: masqueraded.filter(|masqueraded| *masqueraded).and(why),
            seen_as: masqueraded.filter(|masqueraded| !masqueraded).and(asker.client.address),
            objects: None,
        })
    };
    let mut candidates: Vec<_> =
        decide::backends_of(view, matched.frontend.service).into_iter().filter_map(candidate).collect();
    candidates.sort_by_key(|candidate| (!candidate.in_set, candidate.address));
    candidates
}

/// What becomes of it, in a sentence.
fn verdict(
    view: &View,
    target: &Target,
    asker: &Asker,
    decided: &[Decided],
    matched: Option<&Matched>,
    backends: &[Candidate],
) -> Verdict {
    let served: Vec<SocketAddr> = decided
        .iter()
        .filter_map(|decided| match decided {
            Decided::Backend(address, _) => Some(*address),
            _ => None,
        })
        .collect();
    let at_socket = asker.client.address.is_none();
    if let [only] = served[..] {
        let continues = asker.client.port.is_some_and(|port| {
            view.flows.keys().any(|key| {
                socket(key.destination_end()) == target.end
                    && socket(key.source_end()).port() == port
                    && key.protocol == target.protocol
            })
        });
        let by_hash = matched.is_some_and(|matched| matched.is_by_hash() && matched.frontend.affinity == 0);
        let is_one = backends.iter().filter(|row| row.in_set).count() > 1;
        let text = match () {
            () if continues => format!("goes on to {only}, where this connection has its backend"),
            () if is_one && by_hash => format!("goes to {only}, by the hash of its address and port"),
            () if is_one => format!("goes to {only}, which the client is used to"),
            () => format!("goes to {only}, the only backend"),
        };
        return Verdict { outcome: Outcome::Served, reason: None, text };
    }
    if !served.is_empty() {
        let how = match matched {
            Some(matched) if matched.is_by_hash() && !at_socket => {
                "by the hash of its address and port: --from IP:PORT tells which"
            }
            _ => "each as likely as the others",
        };
        let text = format!("goes to one of {} backends, {how}", served.len());
        return Verdict { outcome: Outcome::Served, reason: None, text };
    }
    let because = |reason: DropReason| explanation(reason);
    match decided.first() {
        Some(Decided::Refused(reason)) => Verdict {
            outcome: Outcome::Refused,
            reason: Some(reason.as_str()),
            text: format!("is refused at once: {}", because(*reason)),
        },
        Some(Decided::Dropped(reason)) => Verdict {
            outcome: Outcome::Dropped,
            reason: Some(reason.as_str()),
            text: if at_socket {
                format!("fails at once, as unreachable (EHOSTUNREACH): {}", because(*reason))
            } else {
                format!("is dropped without a word: {}", because(*reason))
            },
        },
        Some(Decided::Reset(reason)) => Verdict {
            outcome: Outcome::Reset,
            reason: Some(reason.as_str()),
            text: format!("is reset: {}", because(*reason)),
        },
        _ => Verdict {
            outcome: Outcome::Passed,
            reason: None,
            text: format!("is left as it is: {}", why_passed(view, target, asker, matched)),
        },
    }
}

/// Why nothing is done.
fn why_passed(view: &View, target: &Target, asker: &Asker, matched: Option<&Matched>) -> String {
    let flags = view.settings.sockets.flags;
    if asker.client.address.is_none() {
        return match () {
            () if target.protocol == Protocol::SCTP => "SCTP of the node's own processes is not served",
            () if !flags.contains(SocketFlags::HOST) => {
                "the node's own processes are not served (--socket-lb=off)"
            }
            () if view.listens => "a process of the node listens at just this address and port",
            () if asker.socket_hooks.is_empty() => {
                "no program for sockets is attached; `sluice status` tells which are missing"
            }
            () if matched.is_some() && target.end.ip().is_loopback() => "no NodePorts at loopback addresses",
            () if matched.is_some() => "the address filter does not know this address yet",
            () => "no service's",
        }
        .to_owned();
    }
    if asker.ingress.is_none() {
        let device = asker.device_name.as_deref().unwrap_or("its device");
        return format!(
            "no program is attached to the ingress of {device}; `sluice status` tells where they are"
        );
    }
    match matched {
        Some(_) if view.listens => "a process of the node listens at just this address and port",
        Some(_) => "the decision does not take it for the service's",
        None => "no service's",
    }
    .to_owned()
}
