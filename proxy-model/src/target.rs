//! Everything that a service port should have in the tables.

use proxy_common::{
    addr::Addr,
    frontend::{FrontendFlags, FrontendKey},
};

use crate::{
    cidr::Cidr,
    endpoint::Slice,
    frontends::Access,
    node::ThisNode,
    options::Options,
    policy::SessionAffinity,
    ranges::admitted,
    service::ServicePort,
    sets::{Chosen, choose},
};

/// What a service port should have. By default nothing: it should not be there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Target {
    /// Its frontends, and what each does.
    pub(crate) frontends: Vec<(FrontendKey, FrontendFlags)>,
    /// Who answers.
    pub(crate) backends: Chosen,
    /// Whether clients stay with the one that answered first.
    pub(crate) affinity: SessionAffinity,
    /// Who may use the restricted frontends.
    pub(crate) sources: Vec<Cidr>,
    /// Its ClusterIP, if it is one of the frontends.
    pub(crate) cluster_ip: Option<Addr>,
}

impl Target {
    /// For a service port that may have these of its frontends, and has at least one.
    pub(crate) fn new<'a>(
        wanted: &ServicePort,
        frontends: &[(FrontendKey, Access)],
        slices: impl Iterator<Item = &'a Slice>,
        node: &ThisNode,
        options: &Options,
    ) -> Self {
        let sets = choose(wanted, frontends, slices, node, options);
        let flags = |access| wanted.flags(access, &sets, options);
        Self {
            frontends: frontends.iter().map(|&(key, access)| (key, flags(access))).collect(),
            affinity: wanted.affinity,
            sources: admitted(&wanted.external, node.ip(wanted.name.family)),
            cluster_ip: frontends
                .iter()
                .find(|(_, access)| *access == Access::Internal)
                .map(|(key, _)| key.address),
            backends: sets.backends,
        }
    }
}
