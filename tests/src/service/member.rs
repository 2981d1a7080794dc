//! Endpoints of a service.

use k8s_openapi::api::{
    core::v1::ObjectReference,
    discovery::v1::{Endpoint, EndpointConditions, EndpointHints, EndpointPort, ForNode, ForZone},
};

use crate::{
    topology::{Addresses, Family, Pod},
    traffic::Protocol,
};

/// How an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Ready.
    Ready,
    /// Not ready yet, or any more.
    Unready,
    /// On its way out, and still answering (COND-03).
    Terminating,
    /// On its way out, and no longer answering (COND-05).
    TerminatingUnready,
    /// On its way out, of a Service that publishes its pods ready or not (COND-02).
    TerminatingPublished,
}

impl Condition {
    fn object(self) -> EndpointConditions {
        let (ready, serving, terminating) = match self {
            Self::Ready => (true, true, false),
            Self::Unready => (false, false, false),
            Self::Terminating => (false, true, true),
            Self::TerminatingUnready => (false, false, true),
            Self::TerminatingPublished => (true, false, true),
        };
        EndpointConditions { ready: Some(ready), serving: Some(serving), terminating: Some(terminating) }
    }
}

/// An endpoint.
#[derive(Clone, Debug)]
pub struct Member {
    /// Name of its pod.
    pub name: String,
    /// How it is.
    pub condition: Condition,
    pub(super) addresses: Addresses,
    pub(super) targets: Option<Vec<(String, u16)>>,
    node: String,
    hints: Option<EndpointHints>,
}

impl Member {
    /// A pod that is ready.
    #[must_use]
    pub fn of(pod: &Pod) -> Self {
        Self::at(pod.name(), &pod.node, pod.machine.addresses)
    }

    /// Something else that is ready.
    #[must_use]
    pub fn at(name: &str, node: &str, addresses: Addresses) -> Self {
        let (name, node) = (name.to_owned(), node.to_owned());
        Self { name, node, addresses, condition: Condition::Ready, targets: None, hints: None }
    }

    /// In a condition.
    #[must_use]
    pub fn being(mut self, condition: Condition) -> Self {
        self.condition = condition;
        self
    }

    /// With these of the service's ports only, by name, and with numbers of its own.
    #[must_use]
    pub fn with_targets(mut self, targets: &[(&str, u16)]) -> Self {
        self.targets = Some(targets.iter().map(|&(name, number)| (name.to_owned(), number)).collect());
        self
    }

    /// Meant for clients in a zone.
    #[must_use]
    pub fn for_zone(mut self, zone: &str) -> Self {
        let hints = self.hints.get_or_insert_default();
        hints.for_zones.get_or_insert_default().push(ForZone { name: zone.to_owned() });
        self
    }

    /// Meant for clients on a node.
    #[must_use]
    pub fn for_node(mut self, node: &str) -> Self {
        let hints = self.hints.get_or_insert_default();
        hints.for_nodes.get_or_insert_default().push(ForNode { name: node.to_owned() });
        self
    }

    pub(super) fn object(&self, family: Family) -> Endpoint {
        Endpoint {
            addresses: vec![self.addresses.of(family).to_string()],
            conditions: Some(self.condition.object()),
            node_name: Some(self.node.clone()),
            hints: self.hints.clone(),
            target_ref: Some(ObjectReference {
                kind: Some("Pod".to_owned()),
                namespace: Some("default".to_owned()),
                name: Some(self.name.clone()),
                ..ObjectReference::default()
            }),
            ..Endpoint::default()
        }
    }
}

pub(super) fn slice_port(name: &str, protocol: Option<Protocol>, number: u16) -> EndpointPort {
    EndpointPort {
        name: Some(name.to_owned()),
        protocol: protocol.map(|protocol| protocol.as_str().to_owned()),
        port: Some(number.into()),
        app_protocol: None,
    }
}
