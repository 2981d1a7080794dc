//! Where clients find a service port, and what each of these frontends does.

use std::{net::IpAddr, num::NonZeroU16};

use proxy_common::{
    endian::Be16,
    frontend::{FrontendFlags, FrontendKey},
    tuple::Endpoint,
};

use crate::{
    name::Transport,
    options::Options,
    policy::{BackendSelection, ExternalForwarding, OnRemoval, TrafficPolicy},
    runs::Set,
    service::ServicePort,
    sets::Sets,
};

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

    /// The policy for clients with this access.
    fn policy(&self, access: Access) -> TrafficPolicy {
        match access {
            Access::Internal => self.internal,
            Access::Restricted | Access::External => self.external.policy,
        }
    }

    /// Whether a frontend with this access leads to the set (SP-09, upstream `UsesClusterEndpoints` and
    /// `UsesLocalEndpoints`). Those of outside always lead to the cluster set, which serves clients inside; and other nodes lead
    /// to the local one by DSR.
    pub(crate) fn uses(&self, set: Set, access: Access, options: &Options) -> bool {
        let policy = self.policy(access);
        match set {
            Set::Cluster => policy == TrafficPolicy::Cluster || access != Access::Internal,
            Set::Local => policy == TrafficPolicy::Local || self.is_answered_directly(access, options),
        }
    }

    /// Whether backends on other nodes answer clients of a frontend with this access themselves. Where a policy keeps traffic on
    /// this node, none goes there; SCTP's would not be told from others by the nodes in between.
    fn is_answered_directly(&self, access: Access, options: &Options) -> bool {
        self.forwarding.unwrap_or(options.external_forwarding) == ExternalForwarding::Dsr
            && access != Access::Internal
            && self.policy(access) == TrafficPolicy::Cluster
            && self.name.transport != Transport::Sctp
    }

    /// What a frontend with this access does.
    pub(crate) fn flags(&self, access: Access, sets: &Sets, options: &Options) -> FrontendFlags {
        let local = self.policy(access) == TrafficPolicy::Local;
        let silent = local && sets.only_elsewhere;
        let facts = match access {
            // DEC-03 to DEC-05, MASQ-01.
            Access::Internal => [
                (local, FrontendFlags::LOCAL_SET),
                (silent, FrontendFlags::DROP_WHEN_EMPTY),
                (options.masquerade_all, FrontendFlags::MASQUERADE),
            ],
            // DEC-20 to DEC-24: clients inside always get the cluster set.
            Access::Restricted | Access::External => [
                (local, FrontendFlags::BY_ORIGIN),
                (silent, FrontendFlags::DROP_OUTSIDE_WHEN_EMPTY),
                (access == Access::Restricted, FrontendFlags::RESTRICTED),
            ],
        };
        let resets = (self.on_removal == OnRemoval::Reset, FrontendFlags::RESET);
        let selection = self.selection.unwrap_or(options.backend_selection);
        let by_hash = access != Access::Internal && selection == BackendSelection::Maglev;
        let direct = self.is_answered_directly(access, options);
        let always = [resets, (by_hash, FrontendFlags::MAGLEV), (direct, FrontendFlags::DSR)];
        let flags = facts.into_iter().chain(always).filter(|(holds, _)| *holds).map(|(_, flag)| flag);
        flags.fold(FrontendFlags::default(), FrontendFlags::with)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proxy_common::tuple::Protocol;

    use super::*;
    use crate::{external::External, policy::SessionAffinity};

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn port(family: &str, cluster_ip: &str, external: External) -> ServicePort {
        ServicePort {
            name: format!("default/web:http/TCP/{family}").parse().unwrap(),
            cluster_ip: cluster_ip.parse().unwrap(),
            port: NonZeroU16::new(80).unwrap(),
            node_port: NonZeroU16::new(30_080),
            internal: TrafficPolicy::Cluster,
            external: Arc::new(external),
            affinity: SessionAffinity::None,
            on_removal: OnRemoval::Keep,
            selection: None,
            forwarding: None,
        }
    }

    fn shown(port: &ServicePort, external_ips: bool) -> Vec<String> {
        let frontends = port.frontends(external_ips);
        assert!(frontends.iter().all(|(key, _)| key.protocol == Protocol::TCP));
        frontends
            .iter()
            .map(|(key, access)| format!("{} {} {access:?}", key.address, key.port.to_host()))
            .collect()
    }

    /// SP-01, SP-02, SP-05, XIP-03, LBSR-10, DIFF-08.
    #[test]
    fn an_address_that_is_several_things_is_one_frontend() {
        let external = External {
            external_ips: ips(&["192.0.2.1", "192.0.2.2", "10.96.0.1"]),
            load_balancer_ips: ips(&["192.0.2.1", "192.0.2.3"]),
            source_ranges: vec!["10.0.0.0/8".parse().unwrap()],
            ..External::default()
        };
        let restricted = port("IPv4", "10.96.0.1", external.clone());
        let all = [
            "10.96.0.1 80 Internal",
            "192.0.2.1 80 Restricted",
            "192.0.2.3 80 Restricted",
            "192.0.2.2 80 External",
            "0.0.0.0 30080 External",
        ];
        assert_eq!(shown(&restricted, true), all);
        assert_eq!(shown(&restricted, false), [all[0], all[1], all[2], all[4]]);
        let open = port("IPv4", "10.96.0.1", External { source_ranges: vec![], ..external });
        assert_eq!(shown(&open, true)[1], "192.0.2.1 80 External");
        let v6 = port("IPv6", "fd00::1", External::default());
        assert_eq!(shown(&v6, true), ["fd00::1 80 Internal", ":: 30080 External"]);
    }

    /// DEC-01 to DEC-05, DEC-20 to DEC-24, MASQ-01, LBSR-01.
    #[test]
    fn each_frontend_obeys_the_policy_of_its_clients() {
        use TrafficPolicy::{Cluster, Local};
        for (internal, policy, only_elsewhere, expected) in [
            (Cluster, Cluster, false, [&[][..], &["restricted"][..], &[][..]]),
            (Local, Cluster, false, [&["local-set"], &["restricted"], &[]]),
            (Local, Cluster, true, [&["drop-when-empty", "local-set"], &["restricted"], &[]]),
            (Cluster, Local, false, [&[], &["by-origin", "restricted"], &["by-origin"]]),
            (
                Cluster,
                Local,
                true,
                [
                    &[],
                    &["drop-outside-when-empty", "by-origin", "restricted"],
                    &["drop-outside-when-empty", "by-origin"],
                ],
            ),
        ] {
            let port = ServicePort {
                internal,
                ..port("IPv4", "10.96.0.1", External { policy, ..External::default() })
            };
            let sets = Sets { only_elsewhere, ..Sets::default() };
            let masquerade_all = Options { masquerade_all: true, ..Options::default() };
            let found = [Access::Internal, Access::Restricted, Access::External]
                .map(|access| port.flags(access, &sets, &Options::default()).names().collect::<Vec<_>>());
            assert_eq!(found, expected.map(<[_]>::to_vec), "{internal:?} {policy:?}");
            let masquerades = [Access::Internal, Access::Restricted, Access::External]
                .map(|access| port.flags(access, &sets, &masquerade_all).contains(FrontendFlags::MASQUERADE));
            assert_eq!(masquerades, [true, false, false]);
        }
    }

    /// Only who comes from outside is led by a table, and what the Service says comes first.
    #[test]
    fn external_frontends_choose_as_the_service_or_the_administrator_says() {
        use BackendSelection::{Maglev, Random};
        for (own, default, expected) in [
            (None, Random, false),
            (None, Maglev, true),
            (Some(Random), Maglev, false),
            (Some(Maglev), Random, true),
        ] {
            let port = ServicePort { selection: own, ..port("IPv4", "10.96.0.1", External::default()) };
            let options = Options { backend_selection: default, ..Options::default() };
            let found = [Access::Internal, Access::Restricted, Access::External]
                .map(|access| port.flags(access, &Sets::default(), &options).contains(FrontendFlags::MAGLEV));
            assert_eq!(found, [false, expected, expected], "{own:?} {default:?}");
        }
    }

    /// Who comes from outside for any backend, by a protocol with answers that can be told apart.
    #[test]
    fn external_frontends_are_answered_directly_as_the_service_or_the_administrator_says() {
        use ExternalForwarding::{Dsr, Snat};
        use TrafficPolicy::{Cluster, Local};
        for (transport, policy, own, default, expected) in [
            ("TCP", Cluster, None, Snat, false),
            ("TCP", Cluster, None, Dsr, true),
            ("UDP", Cluster, Some(Snat), Dsr, false),
            ("UDP", Cluster, Some(Dsr), Snat, true),
            ("TCP", Local, Some(Dsr), Dsr, false),
            ("SCTP", Cluster, Some(Dsr), Dsr, false),
        ] {
            let external = External { policy, ..External::default() };
            let name = format!("default/web:http/{transport}/IPv4").parse().unwrap();
            let port = ServicePort { name, forwarding: own, ..port("IPv4", "10.96.0.1", external) };
            let options = Options { external_forwarding: default, ..Options::default() };
            let ways = [Access::Internal, Access::Restricted, Access::External];
            let found = ways
                .map(|access| port.flags(access, &Sets::default(), &options).contains(FrontendFlags::DSR));
            let context = format!("{transport} {policy:?} {own:?} {default:?}");
            assert_eq!(found, [false, expected, expected], "{context}");
            let needed = ways.map(|access| port.uses(Set::Local, access, &options));
            let by_policy = policy == Local;
            assert_eq!(needed, [false, expected || by_policy, expected || by_policy], "{context}");
        }
    }
}
