//! What the sources of objects (the API, a directory of manifests) tell the model.

use std::fmt;

use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};

/// Namespace and name of an object; the namespace is empty for cluster-scoped kinds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// Something that happened to the objects of one kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Event<K> {
    /// The object exists and looks like this now.
    Apply(K),
    /// The object is gone, or no longer matches the selector.
    Delete(ObjectName),
    /// These are all the objects there are: the first list, or a fresh one after a gap in the watch.
    Replace(Vec<K>),
}

/// An event of any of the kinds that Sluice follows.
#[expect(
    clippy::large_enum_variant,
    reason = "changes are moved once, from the watch to the model, and not kept"
)]
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A Service changed.
    Service(Event<Service>),
    /// An EndpointSlice changed.
    EndpointSlice(Event<EndpointSlice>),
    /// A Node changed; only this node's own object is of interest.
    Node(Event<Node>),
}
