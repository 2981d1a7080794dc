//! From whom to where.

use serde::Serialize;

/// Who asks, and where the pod is that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Path {
    /// A pod asks a cluster IP; the backend is on its node.
    PodToSame,
    /// A pod asks a cluster IP; the backend is on the other node.
    PodToOther,
    /// A process of the node asks a cluster IP; the backend is on the other node.
    HostToOther,
    /// A client outside asks a node's port; the backend is on that node.
    OutsideToSame,
    /// A client outside asks a node's port; the backend is on the other node.
    OutsideToOther,
}

impl Path {
    pub(crate) const ALL: [Self; 5] =
        [Self::PodToSame, Self::PodToOther, Self::HostToOther, Self::OutsideToSame, Self::OutsideToOther];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::PodToSame => "pod to ClusterIP, same node",
            Self::PodToOther => "pod to ClusterIP, other node",
            Self::HostToOther => "node to ClusterIP, other node",
            Self::OutsideToSame => "outside to NodePort, same node",
            Self::OutsideToOther => "outside to NodePort, other node",
        }
    }
}
