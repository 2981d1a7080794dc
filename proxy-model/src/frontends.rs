//! Where clients find a service port, and what each of these frontends does.

use std::{net::IpAddr, num::NonZeroU16};

use proxy_common::{
    endian::Be16,
    frontend::{FrontendFlags, FrontendKey},
    tuple::Endpoint,
};

use crate::{policy::TrafficPolicy, service::ServicePort, sets::Sets};

/// On what terms clients use a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Access {
    /// From within the cluster: the ClusterIP.
    Internal,
    /// From outside, and only from the Service's source ranges: the load balancer's addresses (LBSR-01).
    Restricted,
    /// From outside: node ports, external addresses, and the load balancer's if nothing is said about sources.
    External,
}

impl ServicePort {
    /// What clients address to reach it, each once. Where an address is several things, the ClusterIP comes first, and
    /// source ranges win (LBSR-10, DIFF-08).
    pub(crate) fn frontends(&self, external_ips: bool) -> Vec<(FrontendKey, Access)> {
        let protocol = self.name.transport.protocol();
        let end =
            |ip: IpAddr, port: NonZeroU16| Endpoint { address: ip.into(), port: Be16::from_host(port.get()) };
        let mut found: Vec<(FrontendKey, Access)> = Vec::new();
        let mut add = |key, access| {
            if found.iter().all(|(other, _)| *other != key) {
                found.push((key, access));
            }
        };
        add(FrontendKey::new(end(self.cluster_ip, self.port), protocol), Access::Internal);
        let access = if self.external.is_restricted() { Access::Restricted } else { Access::External };
        for &ip in &self.external.load_balancer_ips {
            add(FrontendKey::new(end(ip, self.port), protocol), access);
        }
        for &ip in self.external.external_ips.iter().filter(|_| external_ips) {
            add(FrontendKey::new(end(ip, self.port), protocol), Access::External);
        }
        if let Some(port) = self.node_port {
            add(FrontendKey::node_port(end(self.cluster_ip, port), protocol), Access::External);
        }
        found
    }

    /// What a frontend with this access does.
    pub(crate) fn flags(&self, access: Access, sets: &Sets, masquerade_all: bool) -> FrontendFlags {
        let policy = match access {
            Access::Internal => self.internal,
            Access::Restricted | Access::External => self.external.policy,
        };
        let local = policy == TrafficPolicy::Local;
        let silent = local && sets.only_elsewhere;
        let facts = match access {
            // DEC-03 to DEC-05, MASQ-01.
            Access::Internal => [
                (local, FrontendFlags::LOCAL_SET),
                (silent, FrontendFlags::DROP_WHEN_EMPTY),
                (masquerade_all, FrontendFlags::MASQUERADE),
            ],
            // DEC-20 to DEC-24: clients inside always get the cluster set.
            Access::Restricted | Access::External => [
                (local, FrontendFlags::BY_ORIGIN),
                (silent, FrontendFlags::DROP_OUTSIDE_WHEN_EMPTY),
                (access == Access::Restricted, FrontendFlags::RESTRICTED),
            ],
        };
        let flags = facts.into_iter().filter(|(holds, _)| *holds).map(|(_, flag)| flag);
        flags.fold(FrontendFlags::default(), FrontendFlags::with)
    }
}
