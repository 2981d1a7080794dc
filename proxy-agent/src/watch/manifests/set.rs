//! The objects of all files together, and what to tell when one of them changes.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fmt,
    sync::Arc,
};

use proxy_model::{Change, Event};

use super::{
    object::{Key, Object},
    parse::Parsed,
};

/// What each file says, and what was told of it.
#[derive(Default)]
pub(super) struct Set {
    files: BTreeMap<String, Vec<Arc<Object>>>,
    told: Option<BTreeMap<Key, Arc<Object>>>,
    duplicates: BTreeSet<Duplicate>,
}

/// An object that is defined twice; the first file in the order of names has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Duplicate {
    key: Key,
    kept: String,
    ignored: String,
}

impl fmt::Display for Duplicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, kept, ignored } = self;
        if kept == ignored {
            write!(f, "{key} is defined twice in {kept}, the first is used")
        } else {
            write!(f, "{key} is defined in {kept} and in {ignored}, the former is used")
        }
    }
}

impl Set {
    /// Takes over what a file says now.
    ///
    /// If some of it cannot be understood, that may be any of the objects that the file had before and now seems to
    /// lack: those stay as they were.
    pub(super) fn read(&mut self, file: &str, parsed: Parsed) {
        let Parsed { objects, problems, ignored: _ } = parsed;
        let mut objects: Vec<_> = objects.into_iter().map(Arc::new).collect();
        if let (false, Some(before)) = (problems.is_empty(), self.files.get(file)) {
            let now: BTreeSet<Key> = objects.iter().map(|object| object.key()).collect();
            objects.extend(before.iter().filter(|object| !now.contains(&object.key())).cloned());
        }
        self.files.insert(file.to_owned(), objects);
    }

    /// Forgets the files that are not there any more.
    pub(super) fn retain(&mut self, exists: impl Fn(&str) -> bool) {
        self.files.retain(|file, _| exists(file));
    }

    /// What is to be told now, and the duplicates that were not there before.
    ///
    /// The first time that is everything there is, even if it is nothing. Later, objects come before those that go:
    /// a slice that takes over from another must not leave a Service empty in between.
    pub(super) fn changes(&mut self) -> (Vec<Change>, Vec<Duplicate>) {
        let (now, duplicates) = merge(&self.files);
        let changes = match self.told.replace(now.clone()) {
            None => all(&now),
            Some(before) => difference(&before, &now),
        };
        let news = duplicates.difference(&self.duplicates).cloned().collect();
        self.duplicates = duplicates;
        (changes, news)
    }
}

fn merge(files: &BTreeMap<String, Vec<Arc<Object>>>) -> (BTreeMap<Key, Arc<Object>>, BTreeSet<Duplicate>) {
    let mut first = BTreeMap::new();
    let mut duplicates = BTreeSet::new();
    for (file, objects) in files {
        for object in objects {
            match first.entry(object.key()) {
                Entry::Vacant(entry) => {
                    entry.insert((file, object));
                }
                Entry::Occupied(entry) => {
                    let (kept, _) = *entry.get();
                    let (key, kept, ignored) = (entry.key().clone(), kept.clone(), file.clone());
                    duplicates.insert(Duplicate { key, kept, ignored });
                }
            }
        }
    }
    let selected = first.into_iter().filter(|(_, (_, object))| object.is_selected());
    (selected.map(|(key, (_, object))| (key, Arc::clone(object))).collect(), duplicates)
}

fn all(objects: &BTreeMap<Key, Arc<Object>>) -> Vec<Change> {
    let (mut services, mut slices, mut nodes, mut pods) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for object in objects.values() {
        match &**object {
            Object::Service(service) => services.push((**service).clone()),
            Object::EndpointSlice(slice) => slices.push((**slice).clone()),
            Object::Node(node) => nodes.push((**node).clone()),
            Object::Pod(pod) => pods.push((**pod).clone()),
        }
    }
    vec![
        Change::Service(Event::Replace(services)),
        Change::EndpointSlice(Event::Replace(slices)),
        Change::Node(Event::Replace(nodes)),
        Change::Pod(Event::Replace(pods)),
    ]
}

fn difference(before: &BTreeMap<Key, Arc<Object>>, now: &BTreeMap<Key, Arc<Object>>) -> Vec<Change> {
    let is_new = |key: &Key, object: &Arc<Object>| {
        before.get(key).is_none_or(|before| !Arc::ptr_eq(before, object) && before != object)
    };
    let applied = now.iter().filter(|(key, object)| is_new(key, object)).map(|(_, object)| object.apply());
    let deleted = before.keys().filter(|key| !now.contains_key(key)).map(Key::delete);
    applied.chain(deleted).collect()
}

#[cfg(test)]
mod tests {
    use super::{super::parse::parse, *};
    use crate::document::Format;

    /// Services by name, with their only port; `!` for a document that cannot be read.
    fn file(services: &[(&str, u16)]) -> Parsed {
        let documents = services.iter().map(|(name, port)| match *name {
            "!" => "---\n[".to_owned(),
            _ => format!("---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{ports: [{{port: {port}}}]}}}}"),
        });
        parse(Format::Yaml, &documents.collect::<Vec<_>>().join("\n"))
    }

    fn told(set: &mut Set) -> Vec<String> {
        let tell = |change: Change| match change {
            Change::Service(Event::Apply(service)) => {
                let port = service.spec.unwrap().ports.unwrap()[0].port;
                format!("{}={port}", service.metadata.name.unwrap())
            }
            Change::Service(Event::Delete(name)) => format!("-{}", name.name),
            Change::Service(Event::Replace(services)) => format!("all {}", services.len()),
            Change::EndpointSlice(Event::Replace(slices)) => format!("all {} slices", slices.len()),
            Change::Node(Event::Replace(nodes)) => format!("all {} nodes", nodes.len()),
            Change::Pod(Event::Replace(pods)) => format!("all {} pods", pods.len()),
            other => panic!("{other:?}"),
        };
        set.changes().0.into_iter().map(tell).collect()
    }

    fn set(files: &[(&str, &[(&str, u16)])]) -> Set {
        let mut set = Set::default();
        for (name, services) in files {
            set.read(name, file(services));
        }
        set
    }

    #[test]
    fn first_everything_is_told_even_if_it_is_nothing() {
        assert_eq!(told(&mut set(&[])), ["all 0", "all 0 slices", "all 0 nodes", "all 0 pods"]);
        assert_eq!(
            told(&mut set(&[("f", &[("a", 1)])])),
            ["all 1", "all 0 slices", "all 0 nodes", "all 0 pods"]
        );
    }

    #[test]
    fn later_only_differences_are_told_and_what_comes_before_what_goes() {
        let mut set = set(&[("f", &[("a", 1), ("b", 2)]), ("g", &[("c", 3)])]);
        told(&mut set);
        set.read("f", file(&[("d", 4), ("b", 2)]));
        assert_eq!(told(&mut set), ["d=4", "-a"]);
        set.read("f", file(&[("d", 4), ("b", 5)]));
        assert_eq!(told(&mut set), ["b=5"]);
        set.retain(|file| file == "g");
        assert_eq!(told(&mut set), ["-b", "-d"]);
        assert_eq!(told(&mut set), [""; 0]);
    }

    #[test]
    fn moving_an_object_to_another_file_changes_nothing() {
        let mut set = set(&[("f", &[("a", 1)])]);
        told(&mut set);
        set.read("g", file(&[("a", 1)]));
        set.retain(|file| file == "g");
        assert_eq!(told(&mut set), [""; 0]);
    }

    #[test]
    fn what_cannot_be_read_leaves_the_last_good_version() {
        let mut set = set(&[("f", &[("a", 1), ("b", 2), ("c", 3)])]);
        told(&mut set);
        set.read("f", file(&[("a", 7), ("!", 0), ("d", 4)]));
        assert_eq!(told(&mut set), ["a=7", "d=4"]);
        set.read("f", file(&[("a", 7), ("b", 2)]));
        assert_eq!(told(&mut set), ["-c", "-d"]);
    }

    #[test]
    fn first_file_wins_and_the_other_takes_over() {
        let mut set = set(&[("g", &[("a", 2)]), ("f", &[("a", 1), ("a", 9)])]);
        let (_, duplicates) = set.changes();
        let messages: Vec<String> = duplicates.iter().map(ToString::to_string).collect();
        assert_eq!(
            messages,
            [
                "Service default/a is defined twice in f, the first is used",
                "Service default/a is defined in f and in g, the former is used"
            ]
        );
        assert_eq!(set.changes(), (vec![], vec![]), "told once");
        set.retain(|file| file == "g");
        assert_eq!(told(&mut set), ["a=2"]);
    }

    #[test]
    fn label_of_another_proxy_takes_the_service_away() {
        let mut set = set(&[("f", &[("a", 1)])]);
        told(&mut set);
        let labelled = "{apiVersion: v1, kind: Service, metadata: {name: a, labels: \
                        {service.kubernetes.io/service-proxy-name: ''}}}";
        set.read("f", parse(Format::Yaml, labelled));
        assert_eq!(told(&mut set), ["-a"]);
    }
}
