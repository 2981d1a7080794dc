//! Which endpoints become the backends of a service port.

use std::collections::BTreeMap;

use crate::{
    address::BackendAddress,
    endpoint::{Endpoint, Location, Slice},
    name::ServicePortName,
    policy::SessionAffinity,
};

/// How the frontends of a service port are served.
#[derive(Clone, Debug, Default)]
pub(crate) struct Target {
    /// Who answers.
    pub(crate) backends: Chosen,
    /// Whether clients stay with the one that answered first.
    pub(crate) affinity: SessionAffinity,
}

/// The backends of a service port, each once, with where it runs.
pub(crate) type Chosen = BTreeMap<BackendAddress, Location>;

/// The ready endpoints, or else those that terminate but still serve (SEL-02, SEL-03, SEL-08).
///
/// `slices` are those of the Service, in the order of their names: where duplicates contradict each other, upstream
/// lets the order decide (EPS-11).
pub(crate) fn choose<'a>(port: &ServicePortName, slices: impl Iterator<Item = &'a Slice>) -> Chosen {
    let endpoints = merge(port, slices);
    let chosen_if = |usable: fn(&Endpoint) -> bool| -> Chosen {
        endpoints
            .iter()
            .filter(|(_, endpoint)| usable(endpoint))
            .map(|(&address, endpoint)| (address, endpoint.location))
            .collect()
    };
    let ready = chosen_if(|endpoint| endpoint.conditions.ready);
    if !ready.is_empty() {
        return ready;
    }
    chosen_if(|endpoint| endpoint.conditions.serving && endpoint.conditions.terminating)
}

/// The endpoints that serve a port of this name, protocol and family, over all slices (EPS-06, EPS-07).
fn merge<'a>(
    port: &ServicePortName,
    slices: impl Iterator<Item = &'a Slice>,
) -> BTreeMap<BackendAddress, &'a Endpoint> {
    let mut merged = BTreeMap::new();
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

    use super::*;
    use crate::{
        endpoint::{Conditions, SlicePort},
        name::{Family, Transport},
    };

    const READY: Conditions = Conditions { ready: true, serving: true, terminating: false };
    const DRAINING: Conditions = Conditions { ready: false, serving: true, terminating: true };
    const DEAD: Conditions = Conditions { ready: false, serving: false, terminating: true };
    const UNREADY: Conditions = Conditions { ready: false, serving: true, terminating: false };
    const READY_DRAINING: Conditions = Conditions { ready: true, serving: true, terminating: true };

    fn slice(endpoints: &[(&str, Conditions)]) -> Slice {
        let endpoints = endpoints.iter().map(|&(ip, conditions)| Endpoint {
            ip: ip.parse().unwrap(),
            location: Location::Remote,
            conditions,
        });
        let port = SlicePort {
            name: "http".to_owned(),
            transport: Transport::Tcp,
            port: NonZeroU16::new(8080).unwrap(),
        };
        Slice {
            service: "web".to_owned(),
            family: Family::Ipv4,
            endpoints: endpoints.collect(),
            ports: vec![port],
        }
    }

    fn chosen(slices: &[Slice]) -> Vec<String> {
        let port = "default/web:http/TCP/IPv4".parse().unwrap();
        choose(&port, slices.iter()).keys().map(ToString::to_string).collect()
    }

    #[test]
    fn ready_endpoints_suppress_the_terminating() {
        let slices = [slice(&[("10.0.0.1", DRAINING), ("10.0.0.2", READY), ("10.0.0.3", READY_DRAINING)])];
        assert_eq!(chosen(&slices), ["10.0.0.2:8080", "10.0.0.3:8080"]);
    }

    #[test]
    fn those_that_terminate_and_serve_are_the_last_resort() {
        let slices = [slice(&[("10.0.0.1", DRAINING), ("10.0.0.2", DEAD), ("10.0.0.3", UNREADY)])];
        assert_eq!(chosen(&slices), ["10.0.0.1:8080"]);
        assert_eq!(chosen(&[slice(&[("10.0.0.3", UNREADY), ("10.0.0.2", DEAD)])]), [""; 0]);
    }

    #[test]
    fn ready_beats_terminating_for_the_same_address_in_either_order() {
        let (a, b) = (slice(&[("10.0.0.1", READY)]), slice(&[("10.0.0.1", DRAINING)]));
        assert_eq!(chosen(&[a.clone(), b.clone()]), ["10.0.0.1:8080"]);
        assert_eq!(chosen(&[b, a]), ["10.0.0.1:8080"]);
    }

    #[test]
    fn the_last_record_that_does_not_terminate_wins_and_the_first_that_does() {
        assert_eq!(chosen(&[slice(&[("10.0.0.1", READY), ("10.0.0.1", UNREADY)])]), [""; 0]);
        assert_eq!(chosen(&[slice(&[("10.0.0.1", UNREADY), ("10.0.0.1", READY)])]), ["10.0.0.1:8080"]);
        assert_eq!(chosen(&[slice(&[("10.0.0.1", DEAD), ("10.0.0.1", DRAINING)])]), [""; 0]);
    }
}
