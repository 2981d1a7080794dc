//! Why each endpoint of a service port is in or out of each set: the policy's own answers, for people.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

/// Why an endpoint is not in a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exclusion {
    /// It is not ready, and does not serve while it terminates either (COND-01 to COND-03).
    NotReady,
    /// It terminates, and others in its place do not (SEL-02 to SEL-05).
    Terminating,
    /// It is meant for other nodes, and others are meant for this one (TOPO-02).
    MeantForOtherNodes,
    /// It is meant for other zones, and others are meant for this node's (TOPO-03).
    MeantForOtherZones,
    /// It runs on another node, and the set is for those who must stay on this one (SEL-04).
    OnAnotherNode,
    /// No frontend leads to the set.
    NobodyAsks,
}

impl fmt::Display for Exclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotReady => "not ready",
            Self::Terminating => "terminates, and others are ready",
            Self::MeantForOtherNodes => "its hints name other nodes, and those of others this one",
            Self::MeantForOtherZones => "its hints name other zones, and those of others this node's",
            Self::OnAnotherNode => "on another node",
            Self::NobodyAsks => "no frontend leads to this set",
        })
    }
}

/// What the policy says of an endpoint of a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointVerdict {
    /// Address and port.
    pub address: SocketAddr,
    /// Whether it runs on this node.
    pub is_local: bool,
    /// Its condition of that name (COND-01).
    pub ready: bool,
    /// The same.
    pub serving: bool,
    /// The same.
    pub terminating: bool,
    /// Whether it is given to clients that may reach any node.
    pub cluster_set: Result<(), Exclusion>,
    /// Whether it is given to those whom a policy keeps on this node.
    pub local_set: Result<(), Exclusion>,
}

/// What the objects say of a service port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explanation {
    /// Its endpoints, by address.
    pub endpoints: Vec<EndpointVerdict>,
    /// Addresses in slices of its Service and family that have no port of its name and protocol (EPS-06).
    pub without_port: Vec<IpAddr>,
}
