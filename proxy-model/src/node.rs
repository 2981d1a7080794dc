//! This node, as far as it matters for choosing endpoints and addresses.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Node;

use crate::{
    address::{parse_ip, unusable},
    change::{Event, ObjectName},
    cidr::{Cidr, NOT_A_NETWORK},
    error::{Kind, ObjectError, Report},
    name::Family,
};

/// The cluster autoscaler is about to delete the node (HZ-06).
const DOOMED_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// Where a node is (TOPO-08).
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// The node that the agent runs on.
#[derive(Debug)]
pub(crate) struct ThisNode {
    name: String,
    /// Its address of one family, whatever the Node object says (NODE-04).
    bound: Option<IpAddr>,
    facts: Facts,
    /// Whether its Node object has been seen.
    seen: bool,
    /// Whether load balancers may send it traffic.
    eligible: bool,
    problems: Vec<ObjectError>,
}

/// What a Node object says about the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Facts {
    zone: Option<String>,
    /// In order of preference.
    addresses: Vec<IpAddr>,
    pod_networks: Vec<Cidr>,
}

/// What is new about the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeChange {
    /// It is in another zone (TOPO-09).
    pub(crate) zone: bool,
    /// It has other addresses, or they have become known.
    pub(crate) addresses: bool,
}

impl ThisNode {
    /// The node of this name, of which nothing is known yet but the address that the agent was told to use.
    pub(crate) fn new(name: &str, bound: Option<IpAddr>) -> Self {
        Self {
            name: name.to_owned(),
            bound: bound.filter(|ip| !ip.is_unspecified()),
            facts: Facts::default(),
            seen: false,
            eligible: false,
            problems: Vec::new(),
        }
    }

    /// Its name, as endpoints and hints write it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its zone, if it has one.
    pub(crate) fn zone(&self) -> Option<&str> {
        self.facts.zone.as_deref()
    }

    /// Whether anybody has said what its addresses are.
    pub(crate) const fn is_known(&self) -> bool {
        self.seen
    }

    /// Whether load balancers may send it traffic: its Node object is there, and nobody is about to delete it (HZ-06).
    pub(crate) const fn is_eligible(&self) -> bool {
        self.eligible
    }

    /// Its address of a family: the first that the Node object names (NODE-02), unless the agent was told which.
    pub(crate) fn ip(&self, family: Family) -> Option<IpAddr> {
        let mut candidates = self.bound.iter().chain(&self.facts.addresses);
        candidates.find(|ip| Family::of(**ip) == family).copied()
    }

    /// The first of its pod networks of a family (DLOC-02).
    pub(crate) fn pod_network(&self, family: Family) -> Option<Cidr> {
        self.facts.pod_networks.iter().find(|network| network.family() == family).copied()
    }

    /// What is wrong with its Node object.
    pub(crate) fn problems(&self) -> &[ObjectError] {
        &self.problems
    }

    /// Takes note of a change of a Node, of interest if it is this one. Returns what is new, and what is newly wrong.
    ///
    /// A Node object that is gone, or not among those listed, changes nothing but that load balancers should send their
    /// traffic elsewhere: while this agent runs, the node is there, and where it was (TOPO-09).
    pub(crate) fn apply(&mut self, event: &Event<Node>) -> (NodeChange, Vec<ObjectError>) {
        let (nodes, gone) = match event {
            Event::Apply(node) => (std::slice::from_ref(node), false),
            Event::Replace(nodes) => (&nodes[..], true),
            Event::Delete(object) => (&[][..], object.name == self.name),
        };
        let Some(node) = nodes.iter().find(|node| node.metadata.name.as_ref() == Some(&self.name)) else {
            self.eligible &= !gone;
            return (NodeChange::default(), Vec::new());
        };
        self.eligible = is_eligible(node);
        let object = ObjectName { namespace: String::new(), name: self.name.clone() };
        let mut report = Report::new(Kind::Node, &object);
        let facts = Facts::parse(node, &mut report);
        let change = NodeChange {
            zone: facts.zone != self.facts.zone,
            addresses: facts.addresses != self.facts.addresses || !self.seen,
        };
        self.facts = facts;
        self.seen = true;
        let problems = report.finish();
        let news = problems.iter().filter(|problem| !self.problems.contains(problem)).cloned().collect();
        self.problems = problems;
        (change, news)
    }
}

fn is_eligible(node: &Node) -> bool {
    let mut taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    node.metadata.deletion_timestamp.is_none() && taints.all(|taint| taint.key != DOOMED_TAINT)
}

impl Facts {
    fn parse(node: &Node, report: &mut Report<'_>) -> Self {
        let labels = node.metadata.labels.as_ref();
        let zone = labels.and_then(|labels| labels.get(ZONE_LABEL)).filter(|zone| !zone.is_empty());
        Self {
            zone: zone.cloned(),
            addresses: addresses(node, report),
            pod_networks: pod_networks(node, report),
        }
    }
}

/// The InternalIPs, then the ExternalIPs (NODE-02, upstream `GetNodeHostIPs`).
fn addresses(node: &Node, report: &mut Report<'_>) -> Vec<IpAddr> {
    let listed = node.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    let mut found = Vec::new();
    for kind in ["InternalIP", "ExternalIP"] {
        for (at, address) in listed.iter().enumerate().filter(|(_, address)| address.type_ == kind) {
            match parse_ip(&address.address).ok_or("is not an IP address").and_then(usable) {
                Ok(ip) => found.push(ip),
                Err(reason) => {
                    report.text(format!("status.addresses[{at}].address"), &address.address, reason);
                }
            }
        }
    }
    found
}

fn usable(ip: IpAddr) -> Result<IpAddr, &'static str> {
    unusable(ip).map_or(Ok(ip), Err)
}

fn pod_networks(node: &Node, report: &mut Report<'_>) -> Vec<Cidr> {
    let texts = node.spec.as_ref().and_then(|spec| spec.pod_cidrs.as_deref()).unwrap_or_default();
    let mut found = Vec::new();
    for (at, text) in texts.iter().enumerate() {
        match text.parse() {
            Ok(network) => found.push(network),
            Err(_) => report.text(format!("spec.podCIDRs[{at}]"), text, NOT_A_NETWORK),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(name: &str, zone: &str) -> Node {
        let labels = match zone {
            "none" => json!({ "topology.kubernetes.io/region": "r" }),
            zone => json!({ ZONE_LABEL: zone, "topology.kubernetes.io/region": "r" }),
        };
        serde_json::from_value(json!({ "metadata": { "name": name, "labels": labels } })).unwrap()
    }

    /// Applies an event; whether the zone is another now.
    fn moves(this: &mut ThisNode, event: Event<Node>) -> bool {
        let (change, problems) = this.apply(&event);
        assert_eq!(problems, []);
        change.zone
    }

    #[test]
    fn only_the_zone_of_this_very_node_counts() {
        let mut this = ThisNode::new("node-a", None);
        assert!(!moves(&mut this, Event::Apply(node("node-b", "zone-b"))));
        assert!(!this.is_known());
        assert!(!moves(&mut this, Event::Apply(node("node-a", ""))));
        assert!(this.is_known());
        assert_eq!(this.zone(), None);
        assert!(moves(&mut this, Event::Replace(vec![node("node-b", "zone-b"), node("node-a", "zone-a")])));
        assert_eq!(this.zone(), Some("zone-a"));
        assert!(!moves(&mut this, Event::Apply(node("node-a", "zone-a"))));
        assert!(moves(&mut this, Event::Apply(node("node-a", "none"))));
        assert_eq!(this.zone(), None);
    }

    #[test]
    fn a_node_that_is_deleted_stays_in_its_zone() {
        let mut this = ThisNode::new("node-a", None);
        this.apply(&Event::Apply(node("node-a", "zone-a")));
        let name = ObjectName { namespace: String::new(), name: "node-a".to_owned() };
        assert!(!moves(&mut this, Event::Delete(name)));
        assert!(!moves(&mut this, Event::Replace(vec![])));
        assert_eq!(this.zone(), Some("zone-a"));
    }

    /// HZ-06; VER-25.
    #[test]
    fn load_balancers_may_use_a_node_that_is_there_and_to_stay() {
        let this_node = |metadata: &Value, taints: &Value| -> Node {
            let mut node = json!({ "metadata": { "name": "node-a" }, "spec": { "taints": taints } });
            node["metadata"].as_object_mut().unwrap().extend(metadata.as_object().unwrap().clone());
            serde_json::from_value(node).unwrap()
        };
        let good = this_node(
            &json!({}),
            &json!([{ "key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule" }]),
        );
        let dying = this_node(&json!({ "deletionTimestamp": "2026-01-01T00:00:00Z" }), &json!([]));
        let doomed = |effect: &str| {
            this_node(&json!({}), &json!([{ "key": DOOMED_TAINT, "value": "1", "effect": effect }]))
        };
        let name = |name: &str| ObjectName { namespace: String::new(), name: name.to_owned() };
        let mut this = ThisNode::new("node-a", None);
        assert!(!this.is_eligible(), "nobody has seen it");
        for (event, eligible) in [
            (Event::Apply(node("node-b", "")), false),
            (Event::Apply(good.clone()), true),
            (Event::Apply(node("node-b", "")), true),
            (Event::Apply(doomed("NoSchedule")), false),
            (Event::Apply(good.clone()), true),
            (Event::Apply(doomed("NoExecute")), false),
            (Event::Replace(vec![node("node-b", ""), good.clone()]), true),
            (Event::Apply(dying), false),
            (Event::Apply(good.clone()), true),
            (Event::Delete(name("node-b")), true),
            (Event::Delete(name("node-a")), false),
            (Event::Apply(good), true),
            (Event::Replace(vec![node("node-b", "")]), false),
        ] {
            let text = format!("{event:?}");
            this.apply(&event);
            assert_eq!(this.is_eligible(), eligible, "{text}");
        }
    }

    fn with(addresses: &[(&str, &str)], pod_cidrs: &Value) -> Event<Node> {
        let addresses: Vec<Value> =
            addresses.iter().map(|(kind, address)| json!({ "type": kind, "address": address })).collect();
        let node = json!({
            "metadata": { "name": "node-a" }, "status": { "addresses": addresses }, "spec": { "podCIDRs": pod_cidrs },
        });
        Event::Apply(serde_json::from_value(node).unwrap())
    }

    fn ips(this: &ThisNode) -> [Option<String>; 2] {
        Family::ALL.map(|family| this.ip(family).map(|ip| ip.to_string()))
    }

    fn some(texts: [&str; 2]) -> [Option<String>; 2] {
        texts.map(|text| (!text.is_empty()).then(|| text.to_owned()))
    }

    /// NODE-02, NODE-04; VER-27.
    #[test]
    fn internal_addresses_come_before_external_ones() {
        for (bound, addresses, expected) in [
            (None, &[][..], ["", ""]),
            (None, &[("Hostname", "node-a"), ("InternalIP", "10.0.0.1")], ["10.0.0.1", ""]),
            (None, &[("ExternalIP", "192.0.2.1"), ("InternalIP", "10.0.0.01")], ["10.0.0.1", ""]),
            (None, &[("InternalIP", "10.0.0.1"), ("InternalIP", "10.0.0.2")], ["10.0.0.1", ""]),
            (None, &[("InternalIP", "10.0.0.1"), ("ExternalIP", "2001:db8::1")], ["10.0.0.1", "2001:db8::1"]),
            (Some("0.0.0.0"), &[("InternalIP", "10.0.0.1")], ["10.0.0.1", ""]),
            (
                Some("10.9.0.1"),
                &[("InternalIP", "fd00::1"), ("InternalIP", "10.0.0.1")],
                ["10.9.0.1", "fd00::1"],
            ),
        ] {
            let mut this = ThisNode::new("node-a", bound.map(|ip: &str| ip.parse().unwrap()));
            let (change, problems) = this.apply(&with(addresses, &json!(null)));
            assert!(change.addresses);
            assert_eq!(problems, []);
            assert_eq!(ips(&this), some(expected), "{addresses:?}");
            assert_eq!(this.apply(&with(addresses, &json!(["10.1.0.0/24"]))).0, NodeChange::default());
        }
    }

    /// DLOC-02, SP-06.
    #[test]
    fn the_first_pod_network_of_each_family_counts() {
        let mut this = ThisNode::new("node-a", None);
        let networks = json!(["fd00:1::/64", "10.244.1.000/024", "10.244.2.0/24"]);
        assert_eq!(this.apply(&with(&[], &networks)).1, []);
        let found = Family::ALL.map(|family| this.pod_network(family).map(|network| network.to_string()));
        assert_eq!(found, some(["10.244.1.0/24", "fd00:1::/64"]));
    }

    #[test]
    fn what_is_illegal_is_named_once_and_costs_only_itself() {
        let mut this = ThisNode::new("node-a", None);
        let addresses =
            [("InternalIP", "10.0.0.256"), ("InternalIP", "127.0.0.1"), ("ExternalIP", "10.0.0.1")];
        let event = with(&addresses, &json!(["10.0.0.0", "10.1.0.0/16"]));
        let problems: Vec<_> = this.apply(&event).1.iter().map(ToString::to_string).collect();
        assert_eq!(
            problems,
            [
                "Node node-a: status.addresses[0].address: \"10.0.0.256\" is not an IP address",
                "Node node-a: status.addresses[1].address: \"127.0.0.1\" is a loopback address",
                "Node node-a: spec.podCIDRs[0]: \"10.0.0.0\" is not a network, such as 10.0.0.0/8 or fd00::/8",
            ]
        );
        assert_eq!(ips(&this), some(["10.0.0.1", ""]));
        assert!(this.pod_network(Family::Ipv4).is_some());
        assert_eq!((this.apply(&event).1.len(), this.problems().len()), (0, 3));
        this.apply(&with(&[], &json!(null)));
        assert_eq!(this.problems(), []);
    }
}
