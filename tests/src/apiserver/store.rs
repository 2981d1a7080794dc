//! What etcd and the watch cache do: objects, their versions, and what happened to them.

use std::{collections::BTreeMap, sync::Arc};

use proxy_model::ObjectName;
use serde_json::{Value, json};

use super::selector::Selector;

/// Plural name of a kind, as in a path: `services`.
pub(super) type Resource = &'static str;

#[derive(Debug, Default)]
pub(super) struct Store {
    version: u64,
    objects: BTreeMap<(Resource, ObjectName), Arc<Value>>,
    history: Vec<Event>,
    /// From versions before this nothing can be resumed.
    compacted: u64,
    /// Lists that were begun, by version.
    pages: BTreeMap<u64, Vec<Arc<Value>>>,
}

#[derive(Debug)]
struct Event {
    version: u64,
    resource: Resource,
    before: Option<Arc<Value>>,
    after: Option<Arc<Value>>,
}

/// The list is too old.
#[derive(Debug, PartialEq)]
pub(super) struct Gone;

/// A list, or a page of it.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) version: u64,
    pub(super) items: Vec<Arc<Value>>,
    /// Where the next page begins.
    pub(super) rest: Option<usize>,
}

impl Store {
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn put(&mut self, resource: Resource, name: ObjectName, mut object: Value) -> Arc<Value> {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let object = Arc::new(object);
        let before = self.objects.insert((resource, name), Arc::clone(&object));
        self.record(resource, before, Some(Arc::clone(&object)));
        object
    }

    pub(super) fn remove(&mut self, resource: Resource, name: ObjectName) -> bool {
        let before = self.objects.remove(&(resource, name));
        let existed = before.is_some();
        if existed {
            self.version += 1;
            self.record(resource, before, None);
        }
        existed
    }

    fn record(&mut self, resource: Resource, before: Option<Arc<Value>>, after: Option<Arc<Value>>) {
        self.history.push(Event { version: self.version, resource, before, after });
    }

    /// Makes the past a secret: watches and lists from before cannot be resumed. Those that are open can go on, as
    /// with the watch cache.
    pub(super) fn compact(&mut self) {
        self.compacted = self.version;
        self.pages.clear();
    }

    /// Whether a watch can begin there.
    pub(super) fn is_gone(&self, version: u64) -> bool {
        version < self.compacted
    }

    pub(super) fn get(&self, resource: Resource, name: ObjectName) -> Option<Arc<Value>> {
        self.objects.get(&(resource, name)).cloned()
    }

    pub(super) fn all(&self, resource: Resource) -> impl Iterator<Item = &Arc<Value>> {
        self.objects.iter().filter(move |((of, _), _)| *of == resource).map(|(_, object)| object)
    }

    pub(super) fn list(&mut self, resource: Resource, selector: &Selector, limit: usize) -> Page {
        let items: Vec<_> = self.all(resource).filter(|object| selector.matches(object)).cloned().collect();
        let version = self.version;
        if items.len() <= limit {
            return Page { version, items, rest: None };
        }
        let page = page(version, &items, 0, limit);
        // Two kinds may be listed at one version; the next write tells them apart.
        self.version += 1;
        self.pages.insert(version, items);
        page
    }

    /// The same list as it was when it began.
    pub(super) fn next_page(&self, version: u64, start: usize, limit: usize) -> Result<Page, Gone> {
        self.pages.get(&version).map(|items| page(version, items, start, limit)).ok_or(Gone)
    }

    /// What happened after `version`, as the holder of the selector sees it: type of the event and the object.
    pub(super) fn since(
        &self,
        version: u64,
        resource: Resource,
        selector: &Selector,
    ) -> Vec<(&'static str, Value)> {
        let start = self.history.partition_point(|event| event.version <= version);
        let events = self.history[start..].iter().filter(|event| event.resource == resource);
        events.filter_map(|event| event.seen_by(selector)).collect()
    }
}

fn page(version: u64, items: &[Arc<Value>], start: usize, limit: usize) -> Page {
    let end = start.saturating_add(limit).min(items.len());
    let rest = (end < items.len()).then_some(end);
    Page { version, items: items.get(start..end).unwrap_or_default().to_vec(), rest }
}

impl Event {
    fn seen_by(&self, selector: &Selector) -> Option<(&'static str, Value)> {
        let selected = |object: &Option<Arc<Value>>| object.clone().filter(|object| selector.matches(object));
        match (selected(&self.before), selected(&self.after)) {
            (None, None) => None,
            (None, Some(after)) => Some(("ADDED", (*after).clone())),
            (Some(_), Some(after)) => Some(("MODIFIED", (*after).clone())),
            (Some(before), None) => {
                // As it was when it still matched, but at the version of the event.
                let mut object = (*before).clone();
                object["metadata"]["resourceVersion"] = json!(self.version.to_string());
                Some(("DELETED", object))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICES: Resource = "services";

    fn name(name: &str) -> ObjectName {
        ObjectName { namespace: "default".to_owned(), name: name.to_owned() }
    }

    fn labelled(label: &str) -> Value {
        json!({"metadata": {"labels": {label: ""}}})
    }

    fn seen(store: &Store, version: u64) -> Vec<(&'static str, String)> {
        let selector = Selector::parse(Some("!hidden"), None).unwrap();
        let events = store.since(version, SERVICES, &selector);
        events
            .into_iter()
            .map(|(event, object)| {
                (event, object["metadata"]["resourceVersion"].as_str().unwrap().to_owned())
            })
            .collect()
    }

    #[test]
    fn objects_that_begin_or_cease_to_match_come_and_go() {
        let mut store = Store::default();
        for label in ["hidden", "x", "y", "hidden", "x"] {
            store.put(SERVICES, name("a"), labelled(label));
        }
        assert!(store.remove(SERVICES, name("a")));
        assert!(!store.remove(SERVICES, name("a")));
        let expected = [("ADDED", 2), ("MODIFIED", 3), ("DELETED", 4), ("ADDED", 5), ("DELETED", 6)];
        let expected: Vec<_> = expected.map(|(event, version)| (event, version.to_string())).into();
        assert_eq!(seen(&store, 0), expected);
        assert_eq!(seen(&store, 4), expected[3..]);
        assert_eq!(seen(&store, 6), []);
    }

    #[test]
    fn pages_show_the_list_as_it_was_when_it_began() {
        let mut store = Store::default();
        for n in 0..5 {
            store.put(SERVICES, name(&n.to_string()), json!({}));
        }
        let first = store.list(SERVICES, &Selector::default(), 2);
        assert_eq!((first.version, first.items.len(), first.rest), (5, 2, Some(2)));
        store.remove(SERVICES, name("4"));
        let second = store.next_page(5, 2, 2).unwrap();
        let third = store.next_page(5, 4, 2).unwrap();
        assert_eq!((second.items.len(), second.rest), (2, Some(4)));
        assert_eq!((third.version, third.items.len(), third.rest), (5, 1, None));
        store.compact();
        assert_eq!(store.next_page(5, 4, 2).unwrap_err(), Gone);
    }

    #[test]
    fn only_what_is_up_to_date_survives_compaction() {
        let mut store = Store::default();
        store.put(SERVICES, name("a"), json!({}));
        let old = store.version();
        store.put(SERVICES, name("b"), json!({}));
        store.compact();
        assert!(store.is_gone(old));
        assert!(!store.is_gone(store.version()));
    }
}
