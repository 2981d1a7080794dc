//! Which service port has which frontend, when several want it.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proxy_common::frontend::FrontendKey;

use crate::{change::ObjectName, frontends::Access, name::ServicePortName};

/// Who claims which frontend.
///
/// A ClusterIP comes before anything else: it is given to its Service alone, while external addresses are whatever
/// somebody wrote. Then the oldest Service has it, by its creation time; those without one come last, and names break
/// ties (SVC-15). So the winner follows from the objects alone, whatever order they came in, and a new Service cannot
/// take an address away from one that lives.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    /// In order of precedence.
    by_key: HashMap<FrontendKey, Vec<Claim>>,
    by_port: BTreeMap<ServicePortName, Vec<FrontendKey>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Claim {
    access: Access,
    created: Option<Time>,
    port: ServicePortName,
}

impl Claim {
    /// Sorts by precedence.
    fn rank(&self) -> (bool, bool, Option<&Time>, &ServicePortName) {
        (self.access != Access::Internal, self.created.is_none(), self.created.as_ref(), &self.port)
    }
}

impl Claims {
    /// The port claims these frontends and no others. Returns the other ports that lost or gained one by it.
    pub(crate) fn set(
        &mut self,
        port: &ServicePortName,
        created: Option<&Time>,
        frontends: &[(FrontendKey, Access)],
    ) -> Vec<ServicePortName> {
        let before = self.by_port.remove(port).unwrap_or_default();
        let mut touched = before.clone();
        touched.extend(frontends.iter().map(|(key, _)| *key).filter(|key| !before.contains(key)));
        let holders: Vec<_> = touched.iter().map(|key| self.holder(key).cloned()).collect();
        for key in &before {
            if let Some(claims) = self.by_key.get_mut(key) {
                claims.retain(|claim| claim.port != *port);
                if claims.is_empty() {
                    self.by_key.remove(key);
                }
            }
        }
        for &(key, access) in frontends {
            let claim = Claim { access, created: created.cloned(), port: port.clone() };
            let claims = self.by_key.entry(key).or_default();
            let at = claims.partition_point(|other| other.rank() < claim.rank());
            // Hardly any has more than one, and there is one for each frontend.
            claims.reserve_exact(1);
            claims.insert(at, claim);
        }
        if !frontends.is_empty() {
            self.by_port.insert(port.clone(), frontends.iter().map(|(key, _)| *key).collect());
        }
        let mut affected = Vec::new();
        for (key, before) in touched.iter().zip(holders) {
            let after = self.holder(key).cloned();
            if before != after {
                affected.extend([before, after].into_iter().flatten().filter(|other| other != port));
            }
        }
        affected
    }

    /// The port that has a frontend.
    pub(crate) fn holder(&self, key: &FrontendKey) -> Option<&ServicePortName> {
        self.by_key.get(key)?.first().map(|claim| &claim.port)
    }

    /// The ports of a Service that claim anything.
    pub(crate) fn ports(&self, service: &ObjectName) -> impl Iterator<Item = &ServicePortName> {
        of_service(&self.by_port, service).map(|(port, _)| port)
    }
}

/// The entries of a map that belong to the ports of a Service.
pub(crate) fn of_service<'a, V>(
    map: &'a BTreeMap<ServicePortName, V>,
    service: &ObjectName,
) -> impl Iterator<Item = (&'a ServicePortName, &'a V)> {
    let first = ServicePortName::first_of(service);
    map.range(first..).take_while(move |(port, _)| port.service == *service)
}

#[cfg(test)]
mod tests {
    use proxy_common::{
        endian::Be16,
        tuple::{Endpoint, Protocol},
    };

    use super::*;

    fn port(text: &str) -> ServicePortName {
        format!("default/{text}/TCP/IPv4").parse().unwrap()
    }

    fn key(number: u16) -> FrontendKey {
        let end = Endpoint { port: Be16::from_host(number), ..Endpoint::default() };
        FrontendKey::new(end, Protocol::TCP)
    }

    fn external(number: u16) -> (FrontendKey, Access) {
        (key(number), Access::External)
    }

    fn at(text: &str) -> Time {
        serde_json::from_value(text.into()).unwrap()
    }

    #[test]
    fn the_older_service_has_it_whoever_comes_first() {
        let (old, new) = (at("2024-01-01T00:00:00Z"), at("2025-01-01T00:00:00Z"));
        let mut claims = Claims::default();
        assert_eq!(claims.set(&port("a"), Some(&new), &[external(80)]), []);
        assert_eq!(claims.set(&port("b"), Some(&old), &[external(80)]), [port("a")]);
        assert_eq!(claims.set(&port("0"), None, &[external(80)]), []);
        assert_eq!(claims.holder(&key(80)), Some(&port("b")));
    }

    #[test]
    fn the_next_takes_over_when_the_winner_goes() {
        let mut claims = Claims::default();
        assert_eq!(claims.set(&port("a"), None, &[external(80), external(81)]), []);
        assert_eq!(claims.set(&port("b"), None, &[external(80)]), []);
        assert_eq!(claims.set(&port("a"), None, &[external(81)]), [port("b")]);
        assert_eq!(claims.holder(&key(80)), Some(&port("b")));
        assert_eq!(claims.set(&port("a"), None, &[]), []);
        assert_eq!(claims.holder(&key(81)), None);
        let service = port("a").service;
        assert_eq!(claims.ports(&service).count(), 0);
    }

    #[test]
    fn nobody_takes_a_cluster_ip_away() {
        let (old, new) = (at("2024-01-01T00:00:00Z"), at("2025-01-01T00:00:00Z"));
        let mut claims = Claims::default();
        assert_eq!(claims.set(&port("a"), Some(&old), &[external(80)]), []);
        assert_eq!(claims.set(&port("b"), Some(&new), &[(key(80), Access::Internal)]), [port("a")]);
        assert_eq!(claims.holder(&key(80)), Some(&port("b")));
    }
}
