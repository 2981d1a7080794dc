//! Runs the stories in `scenarios/`: objects come and go, and after each step the tables read as the file says.
//!
//! A file consists of sections. `== apply` is followed by YAML documents, `== delete` by lines like `Service
//! default/web`, `== replace` by all the objects that a fresh list contains, `== interfaces` by the addresses that the
//! node has from now on. `== expect` ends a step and is followed by the frontends as text, `== addresses` by the address
//! table (anything, if left out), `== problems` by what the model complains about (nothing, if left out). `== options`
//! comes first, if at all. This node is `node-a`. However the objects of a step arrive, the tables must come out the
//! same, so each file runs in several ways.

use std::{collections::BTreeMap, fs, net::IpAddr, path::Path, time::Duration};

use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use proxy_model::{
    BackendSelection, Change, DetectLocal, Event, ExternalForwarding, Model, ObjectName, Options,
};
use serde_json::Value;

use crate::common::{Memory, settle};

/// How the objects of a step arrive.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// As written.
    Written,
    /// The last first.
    Reversed,
    /// Each twice.
    Duplicated,
    /// All slices before all Services.
    SlicesFirst,
    /// With a commit after each.
    OneByOne,
    /// Reversed, with a commit after each.
    OneByOneReversed,
    /// Within the lists that an agent gets which starts on what the step before left.
    Restarted,
}

const WAYS: [Way; 7] = [
    Way::Written,
    Way::Reversed,
    Way::Duplicated,
    Way::SlicesFirst,
    Way::OneByOne,
    Way::OneByOneReversed,
    Way::Restarted,
];

#[derive(Clone, Debug)]
enum Object {
    Service(Box<Service>),
    Slice(Box<EndpointSlice>),
    Node(Box<Node>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Slice,
    Service,
    Node,
}

type Key = (Kind, ObjectName);
type Objects = BTreeMap<Key, Object>;

#[derive(Default)]
struct Step {
    /// `None` for a deletion.
    changes: Vec<(Key, Option<Object>)>,
    replace: Option<Objects>,
    interfaces: Option<Vec<IpAddr>>,
    expected: String,
    addresses: Option<String>,
    problems: String,
}

#[test]
fn every_scenario_ends_in_the_same_tables_in_every_way() {
    let mut files: Vec<_> = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        let name = file.file_name().unwrap().to_string_lossy();
        let (options, steps) = parse(&name, &fs::read_to_string(&file).unwrap());
        for way in WAYS {
            run(&name, &options, &steps, way);
        }
    }
}

fn run(name: &str, options: &Options, steps: &[Step], way: Way) {
    let mut memory = Memory::default();
    let mut model = Model::new(options.clone(), memory.restored());
    list(&mut model, &Objects::new());
    let mut objects = Objects::new();
    let mut interfaces = None;
    for (at, step) in steps.iter().enumerate() {
        let now = Duration::from_millis(700 * at as u64);
        let mut changes = step.changes.clone();
        for (key, object) in &changes {
            match object {
                Some(object) => objects.insert(key.clone(), object.clone()),
                None => objects.remove(key),
            };
        }
        if let Some(all) = &step.replace {
            objects = all.clone();
        }
        interfaces = step.interfaces.clone().or(interfaces);
        match way {
            Way::Reversed | Way::OneByOneReversed => changes.reverse(),
            Way::SlicesFirst => changes.sort_by_key(|(key, _)| key.0),
            Way::Duplicated => {
                changes = changes.into_iter().flat_map(|change| [change.clone(), change]).collect();
            }
            Way::Restarted => {
                model = Model::new(options.clone(), memory.restored());
                list(&mut model, &objects);
                changes.clear();
            }
            Way::Written | Way::OneByOne => {}
        }
        for (key, object) in changes {
            model.apply(change(key, object));
            if matches!(way, Way::OneByOne | Way::OneByOneReversed) {
                settle(&mut model, now, &mut memory);
            }
        }
        if step.replace.is_some() {
            list(&mut model, &objects);
        }
        if let Some(addresses) = &interfaces {
            model.set_node_addresses(addresses.iter().copied());
        }
        settle(&mut model, now, &mut memory);
        let what = format!("{name}, step {}, {way:?}", at + 1);
        assert_eq!(memory.render(), step.expected, "{what}");
        if let Some(addresses) = &step.addresses {
            assert_eq!(memory.render_addresses(), *addresses, "{what}");
        }
        assert_eq!(memory.marks(), Ok(()), "{what}");
        let problems: String = model.problems().map(|problem| format!("{problem}\n")).collect();
        assert_eq!(problems, step.problems, "{what}");
        assert!(!model.is_unfinished(), "{what}");
        assert_eq!(memory.live(), model.counts().backends, "{what}");
        assert_eq!(memory.names.len(), model.counts().service_ports, "{what}");
    }
}

fn list(model: &mut Model, objects: &Objects) {
    let (mut services, mut slices, mut nodes) = (Vec::new(), Vec::new(), Vec::new());
    for object in objects.values() {
        match object {
            Object::Service(service) => services.push(Service::clone(service)),
            Object::Slice(slice) => slices.push(EndpointSlice::clone(slice)),
            Object::Node(node) => nodes.push(Node::clone(node)),
        }
    }
    model.apply(Change::Node(Event::Replace(nodes)));
    model.apply(Change::EndpointSlice(Event::Replace(slices)));
    model.apply(Change::Service(Event::Replace(services)));
}

fn change((kind, name): Key, object: Option<Object>) -> Change {
    match (kind, object) {
        (_, Some(Object::Service(service))) => Change::Service(Event::Apply(*service)),
        (_, Some(Object::Slice(slice))) => Change::EndpointSlice(Event::Apply(*slice)),
        (_, Some(Object::Node(node))) => Change::Node(Event::Apply(*node)),
        (Kind::Service, None) => Change::Service(Event::Delete(name)),
        (Kind::Slice, None) => Change::EndpointSlice(Event::Delete(name)),
        (Kind::Node, None) => Change::Node(Event::Delete(name)),
    }
}

fn parse(file: &str, text: &str) -> (Options, Vec<Step>) {
    let mut options = Options::on_node("node-a");
    let mut steps = vec![Step::default()];
    let mut ended = false;
    for section in text.split("\n== ").skip(1) {
        let (title, body) = section.split_once('\n').unwrap_or((section, ""));
        if ended && !["problems", "addresses"].contains(&title.trim()) {
            steps.push(Step::default());
            ended = false;
        }
        let step = steps.last_mut().unwrap();
        match title.trim() {
            "options" => lines(body).for_each(|line| option(line, &mut options)),
            "interfaces" => step.interfaces = Some(lines(body).map(|line| line.parse().unwrap()).collect()),
            "apply" => step.changes.extend(objects(file, body).map(|(key, object)| (key, Some(object)))),
            "delete" => step.changes.extend(lines(body).map(|line| (key_of_line(line), None))),
            "replace" => step.replace = Some(objects(file, body).collect()),
            "expect" => {
                step.expected = lines(body).map(|line| format!("{line}\n")).collect();
                ended = true;
            }
            "addresses" => step.addresses = Some(lines(body).map(|line| format!("{line}\n")).collect()),
            "problems" => step.problems = lines(body).map(|line| format!("{line}\n")).collect(),
            other => panic!("{file}: what is a section {other:?}?"),
        }
    }
    (options, steps)
}

/// A line as in kube-proxy's configuration.
fn option(line: &str, options: &mut Options) {
    let (name, value) = line.split_once(' ').unwrap_or((line, ""));
    match name {
        "nodePortAddresses" => options.node_port_addresses = value.parse().unwrap(),
        "clusterCIDR" => options.detect_local = DetectLocal::cluster_cidr(value).unwrap(),
        "bindAddress" => options.bind_address = Some(value.parse().unwrap()),
        "externalForwardingDsr" => options.external_forwarding = ExternalForwarding::Dsr,
        "backendSelectionMaglev" => options.backend_selection = BackendSelection::Maglev,
        "masqueradeAll" => options.masquerade_all = true,
        "withoutExternalIPs" => options.external_ips = false,
        other => panic!("what is an option {other:?}?"),
    }
}

fn lines(body: &str) -> impl Iterator<Item = &str> {
    body.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn key_of_line(line: &str) -> Key {
    let (kind, name) = line.split_once(' ').unwrap();
    let (namespace, name) = name.split_once('/').unwrap();
    key(kind, namespace, name)
}

fn key(kind: &str, namespace: &str, name: &str) -> Key {
    let kind = match kind {
        "Service" => Kind::Service,
        "EndpointSlice" => Kind::Slice,
        "Node" => Kind::Node,
        other => panic!("what is a {other}?"),
    };
    (kind, ObjectName { namespace: namespace.to_owned(), name: name.to_owned() })
}

fn objects(file: &str, body: &str) -> impl Iterator<Item = (Key, Object)> {
    body.split("\n---").map(str::trim).filter(|document| !document.is_empty()).map(move |document| {
        let value: Value =
            serde_saphyr::from_str(document).unwrap_or_else(|error| panic!("{file}: {error}\n{document}"));
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let metadata = &value["metadata"];
        let key = key(&text(&value["kind"]), &text(&metadata["namespace"]), &text(&metadata["name"]));
        let object = match key.0 {
            Kind::Service => serde_json::from_value(value).map(|service| Object::Service(Box::new(service))),
            Kind::Slice => serde_json::from_value(value).map(|slice| Object::Slice(Box::new(slice))),
            Kind::Node => serde_json::from_value(value).map(|node| Object::Node(Box::new(node))),
        };
        (key, object.unwrap_or_else(|error| panic!("{file}: {error}\n{document}")))
    })
}
