//! The parsed objects, and which Services are affected by what happened to them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    mem,
};

use k8s_openapi::{
    api::{
        core::v1::{Pod, Service},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};

use crate::{
    change::{Change, Event, ObjectName},
    endpoint::{self, Slice},
    error::{Kind, ObjectError, Report},
    journal::Journal,
    node::ThisNode,
    pod,
    pods::{Pods, UidTaken},
    service::{self, ServicePort},
};

/// All objects as far as they matter. Whatever order they arrive in, the same objects give the same state (SVC-12).
#[derive(Debug)]
pub(crate) struct State {
    node: ThisNode,
    /// Services that have service ports.
    services: BTreeMap<ObjectName, ParsedService>,
    /// Slices by their Service and name, known or not.
    slices: BTreeMap<ObjectName, Siblings>,
    /// The Service that each slice was last seen under, so that it leaves there when it moves (EPS-15).
    owners: HashMap<ObjectName, ObjectName>,
    problems: BTreeMap<(Kind, ObjectName), Vec<ObjectError>>,
    /// The pods of this node, and their cgroups.
    pub(crate) pods: Pods,
    /// Services whose ports or slices changed since [`State::take_dirty`].
    dirty: BTreeSet<ObjectName>,
    /// What came in.
    pub(crate) journal: Journal,
    /// Whether this node's addresses changed since [`State::take_node_addresses_changed`].
    node_addresses_changed: bool,
    listed: BTreeSet<Kind>,
}

/// The slices of a Service by name, in order. Most Services have one, and a tree of one entry takes the room of eleven.
#[derive(Debug, Default)]
struct Siblings(Vec<(Box<str>, Slice)>);

impl Siblings {
    fn position(&self, name: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(other, _)| (**other).cmp(name))
    }

    fn iter(&self) -> impl Iterator<Item = &Slice> {
        self.0.iter().map(|(_, slice)| slice)
    }

    fn get(&self, name: &str) -> Option<&Slice> {
        self.position(name).ok().and_then(|at| self.0.get(at)).map(|(_, slice)| slice)
    }

    fn insert(&mut self, name: &str, slice: Slice) {
        let at = match self.position(name) {
            Ok(at) => {
                self.0.remove(at);
                at
            }
            Err(at) => at,
        };
        self.0.reserve_exact(1);
        self.0.insert(at, (name.into(), slice));
    }

    fn remove(&mut self, name: &str) -> Option<Slice> {
        self.position(name).ok().map(|at| self.0.remove(at).1)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A Service that has service ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ParsedService {
    /// When it was created: of two that claim the same address, the older has it. Never changes while it lives.
    pub(crate) created: Option<Time>,
    /// `metadata.uid`: another one is another Service of the same name.
    pub(crate) uid: Option<String>,
    /// Its service ports.
    pub(crate) ports: Vec<ServicePort>,
}

/// A kind of object that the state is made of.
trait Object {
    const KIND: Kind;
    fn metadata(&self) -> &ObjectMeta;
    /// Takes in the parsed form.
    fn store(&self, name: &ObjectName, state: &mut State, report: &mut Report<'_>);
    fn remove(name: &ObjectName, state: &mut State);
    /// The objects that left a trace in the state.
    fn names(state: &State) -> Vec<ObjectName>;
}

impl State {
    pub(crate) fn new(node: ThisNode, pods: Pods) -> Self {
        Self {
            node,
            pods,
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            owners: HashMap::new(),
            problems: BTreeMap::new(),
            dirty: BTreeSet::new(),
            journal: Journal::default(),
            node_addresses_changed: false,
            listed: BTreeSet::new(),
        }
    }

    /// Takes note of a change. Returns what is newly wrong with the objects.
    pub(crate) fn apply(&mut self, change: Change) -> Vec<ObjectError> {
        match change {
            Change::Service(event) => self.take_in(event),
            Change::EndpointSlice(event) => self.take_in(event),
            Change::Node(event) => {
                let (change, news) = self.node.apply(&event);
                if change.zone {
                    self.reconsider_zones();
                }
                if change.addresses {
                    self.reconsider_sources();
                    self.node_addresses_changed = true;
                }
                news
            }
            Change::Pod(event) if self.pods.are_followed() => self.take_in(event),
            Change::PodCgroup(event) if self.pods.are_followed() => {
                self.pods.apply(event);
                Vec::new()
            }
            Change::Pod(_) | Change::PodCgroup(_) => Vec::new(),
        }
    }

    /// Whether both kinds have been listed (SYNC-01). What is said about this node is not waited for.
    pub(crate) fn is_synced(&self) -> bool {
        [Kind::Service, Kind::EndpointSlice].iter().all(|kind| self.listed.contains(kind))
    }

    /// Whether the pods of this node have been listed.
    pub(crate) fn knows_pods(&self) -> bool {
        self.listed.contains(&Kind::Pod)
    }

    /// Whether a plan would find anything changed.
    pub(crate) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty() || self.node_addresses_changed || self.pods.is_dirty()
    }

    /// The Services that are affected by changes since the last call.
    pub(crate) fn take_dirty(&mut self) -> BTreeSet<ObjectName> {
        self.journal.planned();
        mem::take(&mut self.dirty)
    }

    /// Whether the addresses that the Node object names, or whether it names any, changed since the last call.
    pub(crate) fn take_node_addresses_changed(&mut self) -> bool {
        mem::take(&mut self.node_addresses_changed)
    }

    /// The node that the agent runs on.
    pub(crate) const fn node(&self) -> &ThisNode {
        &self.node
    }

    /// A Service by its name.
    pub(crate) fn service(&self, name: &ObjectName) -> Option<&ParsedService> {
        self.services.get(name)
    }

    /// The slices of a Service, in the order of their names.
    pub(crate) fn slices(&self, service: &ObjectName) -> impl Iterator<Item = &Slice> {
        self.slices.get(service).into_iter().flat_map(Siblings::iter)
    }

    /// How many objects something is wrong with.
    pub(crate) fn troubled(&self) -> usize {
        self.problems.len() + usize::from(!self.node.problems().is_empty())
    }

    /// What is wrong with the present objects.
    pub(crate) fn problems(&self) -> impl Iterator<Item = &ObjectError> {
        self.problems.values().flatten().chain(self.node.problems())
    }

    /// This node is in another zone: Services whose endpoints are meant for zones are affected (TOPO-09).
    fn reconsider_zones(&mut self) {
        let Self { slices, dirty, .. } = self;
        let zoned = slices.iter().filter(|(_, slices)| {
            slices.iter().flat_map(|slice| &slice.endpoints).any(|endpoint| !endpoint.hints.zones.is_empty())
        });
        dirty.extend(zoned.map(|(service, _)| service.clone()));
    }

    /// This node has another address: Services whose load balancers admit some sources only are affected (LBSR-07).
    fn reconsider_sources(&mut self) {
        let Self { services, dirty, .. } = self;
        let restricted =
            |service: &ParsedService| service.ports.iter().any(|port| port.external.is_restricted());
        dirty
            .extend(services.iter().filter(|(_, service)| restricted(service)).map(|(name, _)| name.clone()));
    }

    fn set_service(&mut self, name: &ObjectName, service: Option<ParsedService>) {
        if self.services.get(name) == service.as_ref() {
            return;
        }
        match service {
            Some(service) => self.services.insert(name.clone(), service),
            None => self.services.remove(name),
        };
        self.journal.service_changed(name);
        self.dirty.insert(name.clone());
    }

    fn take_in<K: Object>(&mut self, event: Event<K>) -> Vec<ObjectError> {
        match event {
            Event::Apply(object) => self.store(&object),
            Event::Delete(name) => {
                self.forget::<K>(&name);
                Vec::new()
            }
            Event::Replace(objects) => {
                self.listed.insert(K::KIND);
                let listed: HashSet<ObjectName> = objects.iter().map(|o| object_name(o.metadata())).collect();
                let known = K::names(self).into_iter();
                let troubled = self.problems.keys().filter(|key| key.0 == K::KIND).map(|key| key.1.clone());
                let gone: BTreeSet<ObjectName> =
                    known.chain(troubled).filter(|name| !listed.contains(name)).collect();
                for name in &gone {
                    self.forget::<K>(name);
                }
                objects.iter().flat_map(|object| self.store(object)).collect()
            }
        }
    }

    fn store<K: Object>(&mut self, object: &K) -> Vec<ObjectError> {
        let name = object_name(object.metadata());
        let mut report = Report::new(K::KIND, &name);
        object.store(&name, self, &mut report);
        let errors = report.finish();
        let before = self.problems.remove(&(K::KIND, name.clone())).unwrap_or_default();
        let new = errors.iter().filter(|error| !before.contains(error)).cloned().collect();
        if !errors.is_empty() {
            self.problems.insert((K::KIND, name), errors);
        }
        new
    }

    fn forget<K: Object>(&mut self, name: &ObjectName) {
        K::remove(name, self);
        self.problems.remove(&(K::KIND, name.clone()));
    }
}

impl Object for Service {
    const KIND: Kind = Kind::Service;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn store(&self, name: &ObjectName, state: &mut State, report: &mut Report<'_>) {
        state.journal.saw_service();
        let ports = service::parse(name, self, report);
        let ObjectMeta { creation_timestamp, uid, .. } = &self.metadata;
        let parsed = ParsedService { created: creation_timestamp.clone(), uid: uid.clone(), ports };
        state.set_service(name, Some(parsed).filter(|parsed| !parsed.ports.is_empty()));
    }

    fn remove(name: &ObjectName, state: &mut State) {
        state.journal.saw_service();
        state.set_service(name, None);
    }

    fn names(state: &State) -> Vec<ObjectName> {
        state.services.keys().cloned().collect()
    }
}

impl Object for EndpointSlice {
    const KIND: Kind = Kind::EndpointSlice;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn store(&self, name: &ObjectName, state: &mut State, report: &mut Report<'_>) {
        // EPS-04: without either there is no saying which slice this is.
        if name.namespace.is_empty() || name.name.is_empty() {
            return;
        }
        let Some(slice) = endpoint::parse(self, state.node.name(), report) else {
            return Self::remove(name, state);
        };
        let owner = endpoint::owner(&name.namespace, &slice);
        if state.owners.get(name).is_some_and(|before| *before != owner) {
            Self::remove(name, state);
        }
        state.journal.saw_slice();
        let siblings = state.slices.entry(owner.clone()).or_default();
        if siblings.get(&name.name) != Some(&slice) {
            state.journal.slice_changed(&owner, slice.family, self);
            siblings.insert(&name.name, slice);
            state.dirty.insert(owner.clone());
        }
        state.owners.insert(name.clone(), owner);
    }

    fn remove(name: &ObjectName, state: &mut State) {
        let Some(owner) = state.owners.remove(name) else {
            return;
        };
        if let Some(siblings) = state.slices.get_mut(&owner) {
            if let Some(slice) = siblings.remove(&name.name) {
                state.journal.saw_slice();
                state.journal.slice_gone(&owner, slice.family);
            }
            if siblings.is_empty() {
                state.slices.remove(&owner);
            }
        }
        state.dirty.insert(owner);
    }

    fn names(state: &State) -> Vec<ObjectName> {
        state.owners.keys().cloned().collect()
    }
}

impl Object for Pod {
    const KIND: Kind = Kind::Pod;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn store(&self, name: &ObjectName, state: &mut State, report: &mut Report<'_>) {
        let node = self.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        if node != Some(state.node.name()) {
            return Self::remove(name, state);
        }
        let reason = pod::judge(self, report);
        let Some((uid, claim)) = pod::uid(self, report) else {
            return Self::remove(name, state);
        };
        let text = uid.to_string();
        if let Err(UidTaken) = state.pods.store(name, uid, claim, reason) {
            pod::report_stolen_uid(&text, report);
        }
    }

    fn remove(name: &ObjectName, state: &mut State) {
        state.pods.remove(name);
    }

    fn names(state: &State) -> Vec<ObjectName> {
        state.pods.names().cloned().collect()
    }
}

fn object_name(metadata: &ObjectMeta) -> ObjectName {
    ObjectName {
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone().unwrap_or_default(),
    }
}
