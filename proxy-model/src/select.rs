//! Which endpoints become the backends of a service port.

use std::collections::BTreeMap;

use proxy_common::frontend::FrontendFlags;

use crate::{
    address::BackendAddress,
    endpoint::{Endpoint, Location, Slice},
    name::ServicePortName,
    node::ThisNode,
    policy::{SessionAffinity, TrafficPolicy},
    service::ServicePort,
    topology::Preference,
};

/// How the frontends of a service port are served.
#[derive(Clone, Debug, Default)]
pub(crate) struct Target {
    /// Who answers.
    pub(crate) backends: Chosen,
    /// Whether clients stay with the one that answered first.
    pub(crate) affinity: SessionAffinity,
    /// What happens to packets that nobody answers.
    pub(crate) flags: FrontendFlags,
}

/// The backends of a service port, each once, with where it runs.
pub(crate) type Chosen = BTreeMap<BackendAddress, Location>;

/// Who answers at the ClusterIP of a service port (DEC-01 to DEC-05).
///
/// `slices` are those of the Service, in the order of their names: where duplicates contradict each other, upstream
/// lets the order decide (EPS-11).
pub(crate) fn choose<'a>(
    wanted: &ServicePort,
    slices: impl Iterator<Item = &'a Slice>,
    node: &ThisNode,
) -> Target {
    let endpoints = merge(&wanted.name, slices);
    let backends = match wanted.internal {
        TrafficPolicy::Cluster => {
            let ready = endpoints.values().filter(|endpoint| endpoint.is_ready());
            let preference = Preference::of(ready.map(|endpoint| &endpoint.hints), node);
            best(&endpoints, |endpoint| preference.admits(&endpoint.hints))
        }
        // TOPO-10: hints say nothing about who may be reached on the node itself.
        TrafficPolicy::Local => best(&endpoints, |endpoint| endpoint.location == Location::Local),
    };
    // SEL-06: under the policy Cluster, an empty set means that there is nobody anywhere.
    let flags = if backends.is_empty() && endpoints.values().any(|endpoint| endpoint.is_usable()) {
        FrontendFlags::DROP_WHEN_EMPTY
    } else {
        FrontendFlags::default()
    };
    Target { backends, affinity: wanted.affinity, flags }
}

/// Of the endpoints that are eligible, those that are ready, or else those that terminate but still serve (SEL-02 to
/// SEL-04, SEL-08).
fn best(endpoints: &Merged<'_>, eligible: impl Fn(&Endpoint) -> bool) -> Chosen {
    let chosen_if = |usable: fn(&Endpoint) -> bool| -> Chosen {
        endpoints
            .iter()
            .filter(|(_, endpoint)| usable(endpoint) && eligible(endpoint))
            .map(|(&address, endpoint)| (address, endpoint.location))
            .collect()
    };
    let ready = chosen_if(Endpoint::is_ready);
    if ready.is_empty() { chosen_if(Endpoint::is_usable) } else { ready }
}

/// The endpoints of a service port.
type Merged<'a> = BTreeMap<BackendAddress, &'a Endpoint>;

/// The endpoints that serve a port of this name, protocol and family, over all slices (EPS-06, EPS-07).
fn merge<'a>(port: &ServicePortName, slices: impl Iterator<Item = &'a Slice>) -> Merged<'a> {
    let mut merged = Merged::new();
    for slice in slices.filter(|slice| slice.family == port.family) {
        let numbers = slice.ports.iter().filter(|p| p.name == port.port && p.transport == port.transport);
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
mod tests {
    use std::num::NonZeroU16;

    use k8s_openapi::api::core::v1::Node;
    use serde_json::json;

    use super::*;
    use crate::{
        change::Event,
        endpoint::{Conditions, SlicePort},
        name::{Family, Transport},
        topology::Hints,
    };

    /// An endpoint in words: its address, `local`, how it is, if not ready, and for which zones it is meant.
    fn endpoint(text: &str) -> Endpoint {
        let mut words = text.split(' ');
        let mut endpoint = Endpoint {
            ip: words.next().unwrap().parse().unwrap(),
            location: Location::Remote,
            conditions: Conditions { ready: true, serving: true, terminating: false },
            hints: Hints::default(),
        };
        let Conditions { ready, serving, terminating } = &mut endpoint.conditions;
        for word in words {
            match word {
                "local" => endpoint.location = Location::Local,
                "unready" => *ready = false,
                "stopping" => *terminating = true,
                "draining" => (*ready, *terminating) = (false, true),
                "dead" => (*ready, *serving, *terminating) = (false, false, true),
                zone if zone.starts_with("zone-") => endpoint.hints.zones.push(zone.to_owned()),
                other => panic!("{other}?"),
            }
        }
        endpoint
    }

    fn slice(endpoints: &[&str]) -> Slice {
        let port = SlicePort {
            name: "http".to_owned(),
            transport: Transport::Tcp,
            port: NonZeroU16::new(8080).unwrap(),
        };
        Slice {
            service: "web".to_owned(),
            family: Family::Ipv4,
            endpoints: endpoints.iter().map(|text| endpoint(text)).collect(),
            ports: vec![port],
        }
    }

    /// A node in `zone-a`.
    fn node() -> ThisNode {
        let mut this = ThisNode::new("node-a", None);
        let labels = json!({ "topology.kubernetes.io/zone": "zone-a" });
        let node: Node =
            serde_json::from_value(json!({ "metadata": { "name": "node-a", "labels": labels } })).unwrap();
        this.apply(&Event::Apply(node));
        this
    }

    fn target(internal: TrafficPolicy, slices: &[Slice]) -> (Vec<String>, FrontendFlags) {
        let wanted = ServicePort {
            name: "default/web:http/TCP/IPv4".parse().unwrap(),
            cluster_ip: "10.96.0.1".parse().unwrap(),
            port: NonZeroU16::new(80).unwrap(),
            internal,
            affinity: SessionAffinity::None,
        };
        let target = choose(&wanted, slices.iter(), &node());
        (target.backends.keys().map(|address| address.ip.to_string()).collect(), target.flags)
    }

    fn owned(texts: &[&str]) -> Vec<String> {
        texts.iter().map(ToString::to_string).collect()
    }

    /// Under the policy Cluster.
    fn chosen(slices: &[Slice]) -> Vec<String> {
        let (backends, flags) = target(TrafficPolicy::Cluster, slices);
        assert_eq!(flags, FrontendFlags::default());
        backends
    }

    #[test]
    fn ready_endpoints_suppress_the_terminating() {
        let slices = [slice(&["10.0.0.1 draining", "10.0.0.2", "10.0.0.3 stopping"])];
        assert_eq!(chosen(&slices), ["10.0.0.2", "10.0.0.3"]);
    }

    #[test]
    fn those_that_terminate_and_serve_are_the_last_resort() {
        let slices = [slice(&["10.0.0.1 draining", "10.0.0.2 dead", "10.0.0.3 unready"])];
        assert_eq!(chosen(&slices), ["10.0.0.1"]);
        assert_eq!(chosen(&[slice(&["10.0.0.3 unready", "10.0.0.2 dead"])]), [""; 0]);
    }

    #[test]
    fn ready_beats_terminating_for_the_same_address_in_either_order() {
        let (a, b) = (slice(&["10.0.0.1"]), slice(&["10.0.0.1 draining"]));
        assert_eq!(chosen(&[a.clone(), b.clone()]), ["10.0.0.1"]);
        assert_eq!(chosen(&[b, a]), ["10.0.0.1"]);
    }

    #[test]
    fn the_last_record_that_does_not_terminate_wins_and_the_first_that_does() {
        assert_eq!(chosen(&[slice(&["10.0.0.1", "10.0.0.1 unready"])]), [""; 0]);
        assert_eq!(chosen(&[slice(&["10.0.0.1 unready", "10.0.0.1"])]), ["10.0.0.1"]);
        assert_eq!(chosen(&[slice(&["10.0.0.1 dead", "10.0.0.1 draining"])]), [""; 0]);
    }

    /// The cases of `TestCategorizeEndpoints` that are about conditions, by their names; the last three are ours.
    #[test]
    fn hints_and_conditions() {
        for (name, endpoints, backends) in [
            (
                "unready endpoint",
                &["10.1.2.3 zone-a", "10.1.2.4 zone-b", "10.1.2.5 zone-c", "10.1.2.6 zone-a unready"][..],
                &["10.1.2.3"][..],
            ),
            (
                "only unready endpoints in same zone (should not filter)",
                &["10.1.2.3 zone-a unready", "10.1.2.4 zone-b", "10.1.2.5 zone-c", "10.1.2.6 zone-a unready"],
                &["10.1.2.4", "10.1.2.5"],
            ),
            ("Cluster traffic policy, endpoints not Ready", &["10.0.0.0 unready", "10.0.0.1 unready"], &[]),
            (
                "Cluster traffic policy, some endpoints are Ready",
                &["10.0.0.0 unready", "10.0.0.1"],
                &["10.0.0.1"],
            ),
            (
                "Cluster traffic policy, all endpoints are terminating",
                &["10.0.0.0 local draining", "10.0.0.1 draining"],
                &["10.0.0.0", "10.0.0.1"],
            ),
            (
                "all endpoints are terminating, hints are ignored",
                &["10.0.0.0 draining zone-a", "10.0.0.1 draining zone-b"],
                &["10.0.0.0", "10.0.0.1"],
            ),
            (
                "a terminating endpoint without hints does not matter",
                &["10.0.0.0 zone-a", "10.0.0.1 draining", "10.0.0.2 zone-b"],
                &["10.0.0.0"],
            ),
            (
                "a terminating endpoint that is ready does",
                &["10.0.0.0 zone-a", "10.0.0.1 stopping", "10.0.0.2 zone-b"],
                &["10.0.0.0", "10.0.0.1", "10.0.0.2"],
            ),
        ] {
            assert_eq!(chosen(&[slice(endpoints)]), owned(backends), "{name}");
        }
    }

    /// The cases of `TestCategorizeEndpoints` that set the internal policy alone, by their names; the last five are
    /// ours.
    #[test]
    fn the_policy_local_never_leaves_the_node() {
        let (drop, refuse) = (FrontendFlags::DROP_WHEN_EMPTY, FrontendFlags::default());
        for (name, endpoints, backends, flags) in [
            ("internalTrafficPolicy: Local, with empty endpoints", &[][..], &[][..], refuse),
            (
                "internalTrafficPolicy: Local, but all endpoints are remote",
                &["10.0.0.0", "10.0.0.1"],
                &[],
                drop,
            ),
            (
                "internalTrafficPolicy: Local, all endpoints are local",
                &["10.0.0.0 local", "10.0.0.1 local"],
                &["10.0.0.0", "10.0.0.1"],
                refuse,
            ),
            (
                "internalTrafficPolicy: Local, some endpoints are local",
                &["10.0.0.0 local", "10.0.0.1"],
                &["10.0.0.0"],
                refuse,
            ),
            (
                "no cluster endpoints for iTP:Local internal-only service",
                &["10.0.0.0", "10.0.0.1 local"],
                &["10.0.0.1"],
                refuse,
            ),
            (
                "internalTrafficPolicy: Local, topology ignored for Local endpoints",
                &["10.1.2.3 local zone-a", "10.1.2.4 local zone-b", "10.1.2.5 zone-c", "10.1.2.6 zone-a"],
                &["10.1.2.3", "10.1.2.4"],
                refuse,
            ),
            ("local ones terminate", &["10.0.0.0", "10.0.0.1 local draining"], &["10.0.0.1"], refuse),
            (
                "local ones terminate, but not all",
                &["10.0.0.0 local", "10.0.0.1 local draining"],
                &["10.0.0.0"],
                refuse,
            ),
            ("remote ones terminate", &["10.0.0.0 draining", "10.0.0.1 local dead"], &[], drop),
            ("local ones cannot be used", &["10.0.0.0", "10.0.0.1 local unready"], &[], drop),
            ("none can be used", &["10.0.0.0 unready", "10.0.0.1 local dead"], &[], refuse),
        ] {
            let (found, how) = target(TrafficPolicy::Local, &[slice(endpoints)]);
            assert_eq!((found, how), (owned(backends), flags), "{name}");
        }
    }
}
