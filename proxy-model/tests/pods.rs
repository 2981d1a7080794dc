//! Which pods are served at their sockets: from objects and cgroups to the decision for a process.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use proxy_common::{
    config::{SocketFlags, SocketSettings},
    lb::{Process, Wish, wish},
    pod::{CgroupId, Levels, PodEntry, PodReasons},
    tuple::Protocol,
};
use proxy_model::{Change, Event, Model, ObjectName, Options, PodCgroup, PodUid, Restored};
use serde_json::{Value, json};

use super::common::{
    Memory,
    node::{Node, end},
    objects::{apply, replace, service, slice},
    settle,
};

const VIP: &str = "10.96.0.1";
const START: Duration = Duration::ZERO;

fn following(restored: Restored) -> Model {
    let mut model = Model::new(Options { follow_pods: true, ..Options::on_node("node-a") }, restored);
    replace(&mut model, vec![], vec![]);
    model
}

/// A pod of node-a, whose uid is `uid-<name>`.
fn pod(name: &str, metadata: Value) -> Pod {
    pod_on("node-a", name, metadata)
}

fn pod_on(node: &str, name: &str, metadata: Value) -> Pod {
    let mut metadata = metadata;
    metadata["namespace"] = json!("web");
    metadata["name"] = json!(name);
    metadata["uid"] = json!(format!("uid-{name}"));
    serde_json::from_value(json!({ "metadata": metadata, "spec": { "nodeName": node, "containers": [] } }))
        .unwrap()
}

fn choosing(choice: &str) -> Value {
    json!({ "labels": { "sluice.io/socket-lb": choice } })
}

fn tell(model: &mut Model, event: Event<Pod>) -> Vec<String> {
    model.apply(Change::Pod(event)).iter().map(ToString::to_string).collect()
}

fn cgroup(id: u64, pod: &str, level: u8) -> PodCgroup {
    PodCgroup { id: CgroupId(id), pod: PodUid::new(&format!("uid_{pod}")).unwrap(), level }
}

fn found(model: &mut Model, cgroup: PodCgroup) {
    assert_eq!(model.apply(Change::PodCgroup(Event::Apply(cgroup))), []);
}

fn listed(model: &mut Model, all: Vec<PodCgroup>) {
    assert_eq!(model.apply(Change::PodCgroup(Event::Replace(all))), []);
}

fn name(name: &str) -> ObjectName {
    ObjectName { namespace: "web".to_owned(), name: name.to_owned() }
}

/// The table as text: cgroup, pod, reason.
fn table(memory: &Memory) -> String {
    let row = |(id, entry): (&CgroupId, &PodEntry)| {
        let name = String::from_utf8_lossy(&entry.name);
        format!("{} {} {}", id.0, name.trim_end_matches('\0'), entry.reason.only().unwrap().as_str())
    };
    memory.pods.iter().map(row).collect::<Vec<_>>().join(", ")
}

#[test]
fn a_pod_and_its_cgroup_come_in_any_order() {
    let (mut model, mut memory) = (following(Restored::default()), Memory::default());
    listed(&mut model, vec![cgroup(1, "early", 3)]);
    settle(&mut model, START, &mut memory);
    assert_eq!((table(&memory), model.pod_levels()), (String::new(), Some(Levels::NONE)));
    assert!(!model.knows_pods());
    assert_eq!(
        tell(&mut model, Event::Replace(vec![pod("early", json!({})), pod("late", choosing("off"))])),
        [""; 0]
    );
    assert!(model.knows_pods() && model.is_unfinished());
    settle(&mut model, START, &mut memory);
    assert_eq!(table(&memory), "1 web/early eligible");
    found(&mut model, cgroup(2, "late", 2));
    settle(&mut model, START, &mut memory);
    assert_eq!(table(&memory), "1 web/early eligible, 2 web/late opted-out");
    assert_eq!(model.pod_levels(), Some(Levels::new([2, 3])));
    assert!(!model.is_unfinished());
}

#[test]
fn a_pod_that_changes_its_mind_is_heard_and_one_that_says_the_same_writes_nothing() {
    let (mut model, mut memory) = (following(Restored::default()), Memory::default());
    listed(&mut model, vec![cgroup(1, "a", 3)]);
    tell(&mut model, Event::Apply(pod("a", json!({}))));
    settle(&mut model, START, &mut memory);
    memory.attempts = 0;
    tell(&mut model, Event::Apply(pod("a", json!({ "resourceVersion": "2", "labels": { "app": "x" } }))));
    settle(&mut model, START, &mut memory);
    assert_eq!(memory.attempts, 0);
    let wrong = choosing("of");
    let said = tell(&mut model, Event::Apply(pod("a", wrong.clone())));
    assert_eq!(
        said,
        [
            "Pod web/a: metadata.labels[sluice.io/socket-lb]: \"of\" is neither \"on\" nor \"off\", so the pod is left to \
             packets"
        ]
    );
    assert_eq!(tell(&mut model, Event::Apply(pod("a", wrong))), [""; 0], "told once");
    assert_eq!(model.problems().count(), 1);
    settle(&mut model, START, &mut memory);
    assert_eq!(table(&memory), "1 web/a unknown-choice");
    tell(&mut model, Event::Apply(pod("a", choosing("on"))));
    settle(&mut model, START, &mut memory);
    assert_eq!((table(&memory).as_str(), model.problems().count()), ("1 web/a opted-in", 0));
}

#[test]
fn pods_of_other_nodes_and_of_no_node_are_nobodys_business() {
    let (mut model, mut memory) = (following(Restored::default()), Memory::default());
    listed(&mut model, vec![cgroup(1, "a", 3), cgroup(2, "b", 3)]);
    let mut unscheduled = pod("b", choosing("of"));
    unscheduled.spec.as_mut().unwrap().node_name = None;
    let all = vec![pod_on("node-b", "a", choosing("of")), unscheduled];
    assert_eq!(tell(&mut model, Event::Replace(all)), [""; 0]);
    settle(&mut model, START, &mut memory);
    assert_eq!(table(&memory), "");
}

#[test]
fn a_row_goes_with_its_cgroup_and_not_with_its_pod() {
    let (mut model, mut memory) = (following(Restored::default()), Memory::default());
    listed(&mut model, vec![cgroup(1, "a", 3), cgroup(2, "b", 3)]);
    tell(&mut model, Event::Replace(vec![pod("a", choosing("off")), pod("b", json!({}))]));
    settle(&mut model, START, &mut memory);
    tell(&mut model, Event::Delete(name("a")));
    settle(&mut model, START, &mut memory);
    assert_eq!(table(&memory), "1 web/a opted-out, 2 web/b eligible");
    model.apply(Change::PodCgroup(Event::Delete(CgroupId(1))));
    tell(&mut model, Event::Replace(vec![]));
    settle(&mut model, START, &mut memory);
    assert_eq!(table(&memory), "2 web/b eligible");
    listed(&mut model, vec![]);
    settle(&mut model, START, &mut memory);
    assert_eq!(table(&memory), "");
}

/// While the API is out of reach, or for ever if it does not tell of pods.
#[test]
fn what_an_earlier_run_knew_stays_while_nobody_knows_better() {
    let (mut model, mut memory) = (following(Restored::default()), Memory::default());
    listed(&mut model, vec![cgroup(1, "a", 3), cgroup(2, "b", 3), cgroup(3, "c", 3)]);
    tell(
        &mut model,
        Event::Replace(vec![pod("a", choosing("off")), pod("b", json!({})), pod("c", json!({}))]),
    );
    settle(&mut model, START, &mut memory);

    let mut model = following(memory.restored());
    settle(&mut model, START, &mut memory);
    assert_eq!(model.pod_levels(), None, "those of the earlier run are still right");
    assert_eq!(table(&memory), "1 web/a opted-out, 2 web/b eligible, 3 web/c eligible");
    // b has gone meanwhile.
    listed(&mut model, vec![cgroup(1, "a", 3), cgroup(3, "c", 3)]);
    settle(&mut model, START, &mut memory);
    assert_eq!(table(&memory), "1 web/a opted-out, 3 web/c eligible");
    assert_eq!(model.pod_levels(), Some(Levels::new([3])));
    tell(&mut model, Event::Replace(vec![pod("a", choosing("off")), pod("c", choosing("off"))]));
    memory.attempts = 0;
    settle(&mut model, START, &mut memory);
    assert_eq!(table(&memory), "1 web/a opted-out, 3 web/c opted-out");
    assert_eq!(memory.attempts, 1);
}

#[test]
fn nobody_asks_about_pods_that_are_not_followed() {
    let (mut model, mut memory) = (following(Restored::default()), Memory::default());
    listed(&mut model, vec![cgroup(1, "a", 3)]);
    tell(&mut model, Event::Replace(vec![pod("a", json!({}))]));
    settle(&mut model, START, &mut memory);

    let mut model = Model::new(Options::on_node("node-a"), memory.restored());
    replace(&mut model, vec![], vec![]);
    assert_eq!(model.pod_levels(), Some(Levels::NONE));
    assert_eq!(tell(&mut model, Event::Replace(vec![pod("a", choosing("of"))])), [""; 0]);
    listed(&mut model, vec![cgroup(1, "a", 3)]);
    settle(&mut model, START, &mut memory);
    assert_eq!(table(&memory), "");
    assert!(!model.is_unfinished());
}

#[test]
fn a_row_that_could_not_be_written_is_written_later_and_holds_nobody_back() {
    let (mut model, mut memory) = (following(Restored::default()), Memory::default());
    listed(&mut model, vec![cgroup(1, "a", 3), cgroup(2, "b", 3)]);
    tell(&mut model, Event::Replace(vec![pod("a", json!({})), pod("b", json!({}))]));
    memory.failures = [0].into();
    assert_eq!(model.plan(START), []);
    let errors = model.commit(START, &mut memory);
    assert_eq!(errors.iter().map(ToString::to_string).collect::<Vec<_>>(), ["PODS: write refused"]);
    assert_eq!(table(&memory), "2 web/b eligible");
    assert!(model.is_unfinished());
    settle(&mut model, START, &mut memory);
    assert_eq!(table(&memory), "1 web/a eligible, 2 web/b eligible");
}

/// A node with a service, and with pods in cgroups 31 to 34 at the third level.
fn node_with_pods() -> Node {
    let mut node = Node::with(Options { follow_pods: true, ..Options::on_node("node-a") });
    replace(&mut node.model, vec![service("web", VIP)], vec![]);
    apply(&mut node.model, slice("web", &["10.0.0.1"]));
    let cgroups = [(31, "plain"), (32, "meshed"), (33, "out"), (34, "in")];
    listed(&mut node.model, cgroups.map(|(id, pod)| cgroup(id, pod, 3)).into());
    let mesh = json!({ "annotations": { "sidecar.istio.io/status": "{}" } });
    let pods = vec![
        pod("plain", json!({})),
        pod("meshed", mesh),
        pod("out", choosing("off")),
        pod("in", choosing("on")),
    ];
    tell(&mut node.model, Event::Replace(pods));
    node.settle();
    node.settings.sockets = SocketSettings {
        host_namespace: [HOST, 0],
        flags: SocketFlags::HOST,
        levels: node.model.pod_levels().unwrap(),
        ..SocketSettings::OFF
    };
    node
}

const HOST: u32 = 7;
const POD: u32 = 8;

/// Whether a process is given a backend for its connection, and how many of its cgroups were asked about.
fn connect(node: &mut Node, served: PodReasons, namespace: u32, cgroup: u64, to: &str) -> (bool, usize) {
    ask(node, served, Process { protocol: Protocol::TCP, ..process(node, namespace, to) }, cgroup)
}

fn process(node: &Node, namespace: u32, to: &str) -> Process {
    let namespace = u64::from(namespace);
    let is_host = node.settings.sockets.is_host(namespace);
    Process { end: end(to), protocol: Protocol::UDP, socket: 1, namespace, is_host }
}

fn ask(node: &mut Node, served: PodReasons, process: Process, cgroup: u64) -> (bool, usize) {
    node.settings.sockets.pods = served;
    node.cgroups = [1, 10, 20, cgroup, 99].map(CgroupId).into();
    node.cgroups_asked.set(0);
    let is_served = match wish(node, node, &process) {
        Wish::Instead(backend) => {
            assert_eq!(backend, end("10.0.0.1:8080"));
            true
        }
        Wish::Granted => false,
        other => panic!("{other:?}"),
    };
    (is_served, node.cgroups_asked.get())
}

#[test]
fn processes_are_served_by_what_is_known_of_their_pod() {
    const AUTO: PodReasons = PodReasons::KNOWN;
    const ON: PodReasons = PodReasons::ALL_BUT_OPTED_OUT;
    let mut node = node_with_pods();
    let to = "10.96.0.1:80";
    for (cgroup, auto, on) in
        [(31, true, true), (32, false, true), (33, false, false), (34, true, true), (35, false, true)]
    {
        let node = &mut node;
        assert_eq!(connect(node, AUTO, POD, cgroup, to), (auto, 1), "auto, cgroup {cgroup}");
        assert_eq!(connect(node, ON, POD, cgroup, to), (on, 1), "on, cgroup {cgroup}");
        assert_eq!(
            connect(node, PodReasons::NONE, POD, cgroup, to),
            (false, 0),
            "host-only, cgroup {cgroup}"
        );
        for served in [AUTO, ON] {
            let datagram = process(node, POD, to);
            assert_eq!(ask(node, served, datagram, cgroup), (false, 0), "packets decide about datagrams");
        }
        for served in [AUTO, ON, PodReasons::NONE] {
            assert_eq!(connect(node, served, HOST, cgroup, to), (true, 0), "host, cgroup {cgroup}");
        }
    }
    assert_eq!(
        connect(&mut node, AUTO, POD, 31, "203.0.113.9:80"),
        (false, 0),
        "no service has that address"
    );
}

#[test]
fn without_known_pods_nothing_is_looked_up() {
    let mut node = node_with_pods();
    let to = "10.96.0.1:80";
    node.settings.sockets.levels = Levels::NONE;
    assert_eq!(connect(&mut node, PodReasons::KNOWN, POD, 31, to), (false, 0));
    assert_eq!(connect(&mut node, PodReasons::ALL_BUT_OPTED_OUT, POD, 31, to), (true, 0));
    node.settings.sockets.levels = Levels::new([2, 3]);
    assert_eq!(connect(&mut node, PodReasons::KNOWN, POD, 31, to), (true, 2));
}
