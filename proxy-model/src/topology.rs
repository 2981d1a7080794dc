//! Which ready endpoints this node should prefer, by the hints that they carry.
//!
//! The slice controller turns what a Service asks for into hints; nothing else is looked at (TOPO-01).

use k8s_openapi::api::discovery::v1::EndpointHints;

use crate::{node::ThisNode, reasons::Exclusion};

/// For whom an endpoint is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hints {
    /// `forNodes`. The name of this node does not change, so the names are not kept.
    pub(crate) nodes: NodeHints,
    /// `forZones`; empty without such hints.
    pub(crate) zones: Vec<String>,
}

/// For which nodes an endpoint is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum NodeHints {
    /// Nothing is said about nodes.
    #[default]
    None,
    /// For others.
    Others,
    /// For this node, and maybe others.
    ThisNode,
}

impl Hints {
    /// From an endpoint's `hints`.
    pub(crate) fn parse(hints: Option<&EndpointHints>, node_name: &str) -> Self {
        let Some(EndpointHints { for_nodes, for_zones }) = hints else {
            return Self::default();
        };
        let nodes = for_nodes.as_deref().unwrap_or_default();
        let zones = for_zones.as_deref().unwrap_or_default();
        Self {
            nodes: match nodes {
                [] => NodeHints::None,
                nodes if nodes.iter().any(|node| node.name == node_name) => NodeHints::ThisNode,
                _ => NodeHints::Others,
            },
            zones: zones.iter().map(|zone| zone.name.clone()).collect(),
        }
    }
}

/// Which endpoints this node prefers, for one service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Preference<'a> {
    /// Those that are meant for this node.
    SameNode,
    /// Those that are meant for this zone.
    SameZone(&'a str),
    /// None.
    Anywhere,
}

impl<'a> Preference<'a> {
    /// What the hints of the ready endpoints come to. A kind of hint counts only if every endpoint carries it and one
    /// is meant for this node or zone, so nobody is left without endpoints, and none is overlooked while the
    /// controller has not got to it yet (TOPO-02 to TOPO-06).
    pub(crate) fn of<'h>(ready: impl Iterator<Item = &'h Hints> + Clone, node: &'a ThisNode) -> Self {
        let all = |carries: fn(&Hints) -> bool| ready.clone().all(carries);
        let any = |preference: Self| ready.clone().any(|hints| preference.admits(hints));
        if any(Self::SameNode) && all(|hints| hints.nodes != NodeHints::None) {
            return Self::SameNode;
        }
        match node.zone().map(Self::SameZone) {
            Some(same_zone) if any(same_zone) && all(|hints| !hints.zones.is_empty()) => same_zone,
            _ => Self::Anywhere,
        }
    }

    /// Whether an endpoint is among those preferred. It may be meant for several nodes or zones (TOPO-07).
    fn admits(self, hints: &Hints) -> bool {
        self.judge(hints).is_ok()
    }

    /// The same, with the reason.
    pub(crate) fn judge(self, hints: &Hints) -> Result<(), Exclusion> {
        let (is_meant, exclusion) = match self {
            Self::SameNode => (hints.nodes == NodeHints::ThisNode, Exclusion::MeantForOtherNodes),
            Self::SameZone(zone) => {
                (hints.zones.iter().any(|hinted| hinted == zone), Exclusion::MeantForOtherZones)
            }
            Self::Anywhere => return Ok(()),
        };
        if is_meant { Ok(()) } else { Err(exclusion) }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Node;
    use serde_json::json;

    use super::*;
    use crate::change::Event;

    const A: &str = "zone-a";

    fn this_node(zone: Option<&str>) -> ThisNode {
        let mut this = ThisNode::new("node-a", None);
        let labels = zone.map(|zone| json!({ "topology.kubernetes.io/zone": zone })).unwrap_or_default();
        let metadata = json!({ "name": "node-a", "labels": labels });
        let node: Node = serde_json::from_value(json!({ "metadata": metadata })).unwrap();
        this.apply(&Event::Apply(node));
        this
    }

    /// Hints in words: names of nodes and zones.
    fn hints(text: &str) -> Hints {
        let of = |kind: &str| -> Vec<_> {
            text.split_whitespace()
                .filter(|word| word.starts_with(kind))
                .map(|name| json!({ "name": name }))
                .collect()
        };
        let hints = json!({ "forNodes": of("node-"), "forZones": of("zone-") });
        Hints::parse(Some(&serde_json::from_value(hints).unwrap()), "node-a")
    }

    /// The endpoints, by their position, that a node in `zone` prefers.
    fn preferred(zone: Option<&str>, endpoints: &[&str]) -> Vec<usize> {
        let node = this_node(zone);
        let all: Vec<Hints> = endpoints.iter().map(|text| hints(text)).collect();
        let preference = Preference::of(all.iter(), &node);
        (0..all.len()).filter(|&at| preference.admits(&all[at])).collect()
    }

    /// The cases of `TestCategorizeEndpoints` about hints, by their names. Those with endpoints that are not ready are
    /// in `select`; those about an annotation do not apply, as nothing reads it (TOPO-01).
    #[test]
    fn hints_for_zones() {
        for (name, zone, endpoints, expected) in [
            ("empty node labels", None, &["zone-a"][..], &[0][..]),
            ("empty zone label", Some(""), &["zone-a"], &[0]),
            ("node in different zone, no endpoint filtering", Some("zone-b"), &["zone-a"], &[0]),
            ("normal endpoint filtering", Some(A), &["zone-a", "zone-b", "zone-c", "zone-a"], &[0, 3]),
            (
                "missing hints, no filtering applied",
                Some(A),
                &["zone-a", "zone-b", "", "zone-a"],
                &[0, 1, 2, 3],
            ),
            (
                "multiple hints per endpoint, filtering includes any endpoint with zone included",
                Some("zone-c"),
                &["zone-a zone-b zone-c", "zone-b zone-c", "zone-b zone-d", "zone-c"],
                &[0, 1, 3],
            ),
        ] {
            assert_eq!(preferred(zone, endpoints), expected, "{name}");
        }
    }

    #[test]
    fn hints_for_nodes_come_first_and_fall_back_to_zones() {
        for (name, zone, endpoints, expected) in [
            ("this node", None, &["node-a", "node-b", "node-b node-a"][..], &[0, 2][..]),
            ("this node before its zone", Some(A), &["node-a zone-b", "node-b zone-a"], &[0]),
            ("no endpoint for this node, zone", Some(A), &["node-b zone-a", "node-c zone-b"], &[0]),
            ("a hint for a node is missing, zone", Some(A), &["node-a zone-b", "zone-a"], &[1]),
            ("no endpoint for this node or zone", Some(A), &["node-b zone-b", "node-c zone-c"], &[0, 1]),
            ("a hint of either kind is missing", Some(A), &["node-a", "zone-a"], &[0, 1]),
            ("no endpoint for this node, no zone", None, &["node-b zone-a", "node-c"], &[0, 1]),
            ("no endpoints", Some(A), &[], &[]),
        ] {
            assert_eq!(preferred(zone, endpoints), expected, "{name}");
        }
    }

    #[test]
    fn hints_that_name_nobody_are_none() {
        assert_eq!(Hints::parse(None, "node-a"), Hints::default());
        assert_eq!(hints(""), Hints::default());
        assert_eq!(hints("node-b node-a").nodes, NodeHints::ThisNode);
        assert_eq!(hints("node-b").nodes, NodeHints::Others);
    }
}
