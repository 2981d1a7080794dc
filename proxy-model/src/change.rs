//! What the sources of objects (the API, a directory of manifests) tell the model.

use std::fmt;

use k8s_openapi::api::{
    core::v1::{Node, Pod, Service},
    discovery::v1::EndpointSlice,
};
use proxy_common::pod::CgroupId;

use crate::pod::PodUid;

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

/// A cgroup that kubelet has made for a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodCgroup {
    /// Its number.
    pub id: CgroupId,
    /// Whose it is.
    pub pod: PodUid,
    /// Its level in the hierarchy, where the root's is 0.
    pub level: u8,
}

/// Something that happened to the objects of one kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Event<K, N = ObjectName> {
    /// The object exists and looks like this now.
    Apply(K),
    /// The object of this name is gone, or no longer matches the selector.
    Delete(N),
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
    /// A Pod changed; only those of this node are of interest, and only if [`Options`](crate::Options) says so.
    Pod(Event<Pod>),
    /// The cgroup of a pod came or went.
    PodCgroup(Event<PodCgroup, CgroupId>),
}

impl Change {
    /// Whether it is everything there is of its kind.
    #[must_use]
    pub const fn is_list(&self) -> bool {
        matches!(
            self,
            Self::Service(Event::Replace(_))
                | Self::EndpointSlice(Event::Replace(_))
                | Self::Node(Event::Replace(_))
                | Self::Pod(Event::Replace(_))
                | Self::PodCgroup(Event::Replace(_))
        )
    }
}
