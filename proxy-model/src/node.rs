//! This node, as far as it matters for choosing endpoints.

use k8s_openapi::api::core::v1::Node;

use crate::change::Event;

/// Where a node is (TOPO-08).
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// The node that the agent runs on.
#[derive(Debug)]
pub(crate) struct ThisNode {
    name: String,
    zone: Option<String>,
}

impl ThisNode {
    /// The node of this name, in no zone as far as anybody has said.
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), zone: None }
    }

    /// Its name, as endpoints and hints write it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its zone, if it has one.
    pub(crate) fn zone(&self) -> Option<&str> {
        self.zone.as_deref()
    }

    /// Takes note of a change of a Node, of interest if it is this one. Returns whether the zone is another now.
    ///
    /// A Node object that is gone, or not among those listed, changes nothing: while this agent runs, the node is
    /// there, and where it was (TOPO-09).
    pub(crate) fn apply(&mut self, event: &Event<Node>) -> bool {
        let nodes = match event {
            Event::Apply(node) => std::slice::from_ref(node),
            Event::Replace(nodes) => nodes,
            Event::Delete(_) => &[],
        };
        let Some(node) = nodes.iter().find(|node| node.metadata.name.as_ref() == Some(&self.name)) else {
            return false;
        };
        let labels = node.metadata.labels.as_ref();
        let zone = labels.and_then(|labels| labels.get(ZONE_LABEL)).filter(|zone| !zone.is_empty());
        if self.zone.as_ref() == zone {
            return false;
        }
        self.zone = zone.cloned();
        true
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::change::ObjectName;

    fn node(name: &str, zone: &str) -> Node {
        let labels = match zone {
            "none" => json!({ "topology.kubernetes.io/region": "r" }),
            zone => json!({ ZONE_LABEL: zone, "topology.kubernetes.io/region": "r" }),
        };
        serde_json::from_value(json!({ "metadata": { "name": name, "labels": labels } })).unwrap()
    }

    #[test]
    fn only_the_zone_of_this_very_node_counts() {
        let mut this = ThisNode::new("node-a");
        assert!(!this.apply(&Event::Apply(node("node-b", "zone-b"))));
        assert!(!this.apply(&Event::Apply(node("node-a", ""))));
        assert_eq!(this.zone(), None);
        assert!(this.apply(&Event::Replace(vec![node("node-b", "zone-b"), node("node-a", "zone-a")])));
        assert_eq!(this.zone(), Some("zone-a"));
        assert!(!this.apply(&Event::Apply(node("node-a", "zone-a"))));
        assert!(this.apply(&Event::Apply(node("node-a", "none"))));
        assert_eq!(this.zone(), None);
    }

    #[test]
    fn a_node_that_is_deleted_stays_in_its_zone() {
        let mut this = ThisNode::new("node-a");
        this.apply(&Event::Apply(node("node-a", "zone-a")));
        let name = ObjectName { namespace: String::new(), name: "node-a".to_owned() };
        assert!(!this.apply(&Event::Delete(name)));
        assert!(!this.apply(&Event::Replace(vec![])));
        assert_eq!(this.zone(), Some("zone-a"));
    }
}
