//! The source under test, and what a consumer makes of what it tells.

use std::{collections::BTreeMap, fmt::Debug, fs, path::Path, time::Duration};

use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use k8s_openapi::api::{
    core::v1::{Node, Pod, Service},
    discovery::v1::EndpointSlice,
};
use proxy_agent::{
    metrics::ApiMetrics,
    watch::{self, ApiOptions},
};
use proxy_model::{Change, Event, ObjectName};
use sluice_tests::apiserver::Kind;
use tokio::{sync, task::JoinHandle, time};

use super::log;

/// The node that the source follows.
pub(crate) const NODE: &str = "node-a";

/// The objects of one kind as the changes left them.
#[derive(Clone, Debug)]
pub(crate) struct Objects<K> {
    pub(crate) objects: BTreeMap<ObjectName, K>,
    /// How often they were replaced.
    pub(crate) replaced: usize,
}

/// All that was told.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    pub(crate) services: Objects<Service>,
    pub(crate) slices: Objects<EndpointSlice>,
    pub(crate) nodes: Objects<Node>,
    pub(crate) pods: Objects<Pod>,
    pub(crate) changes: usize,
}

impl<K> Default for Objects<K> {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), replaced: 0 }
    }
}

impl<K: Kind> Objects<K> {
    fn fold(&mut self, event: Event<K>) {
        match event {
            Event::Apply(object) => {
                self.objects.insert(name(&object), object);
            }
            Event::Delete(name) => {
                // The server deletes once what it told once: an unknown object means a lost or invented event.
                assert!(
                    self.objects.remove(&name).is_some(),
                    "{} {name} is deleted but was not there",
                    K::KIND
                );
            }
            Event::Replace(objects) => {
                let count = objects.len();
                self.objects = objects.into_iter().map(|object| (name(&object), object)).collect();
                assert_eq!(self.objects.len(), count, "each {} is listed once", K::KIND);
                self.replaced += 1;
            }
        }
    }
}

impl View {
    pub(crate) fn fold(&mut self, change: Change) {
        self.changes += 1;
        match change {
            Change::Service(event) => self.services.fold(event),
            Change::EndpointSlice(event) => self.slices.fold(event),
            Change::Node(event) => self.nodes.fold(event),
            Change::Pod(event) => self.pods.fold(event),
            Change::PodCgroup(event) => panic!("the API tells of no cgroups: {event:?}"),
        }
    }

    /// How often the Services, slices and nodes were replaced.
    pub(crate) fn replaced(&self) -> [usize; 3] {
        [self.services.replaced, self.slices.replaced, self.nodes.replaced]
    }
}

pub(crate) fn name<K: Kind>(object: &K) -> ObjectName {
    let meta = object.metadata();
    ObjectName {
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
    }
}

/// The source, consumed in the background.
pub(crate) struct Follower {
    view: sync::watch::Receiver<View>,
    task: JoinHandle<()>,
}

impl Follower {
    pub(crate) async fn start(kubeconfig: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::with(&options(dir.path(), kubeconfig)).await
    }

    pub(crate) async fn with(options: &ApiOptions) -> Self {
        let metrics = ApiMetrics::default();
        let client = client(options, &metrics).await;
        Self::consume(watch::kubernetes(client, NODE, &metrics).boxed())
    }

    /// With the pods as well.
    pub(crate) async fn start_with_pods(kubeconfig: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let metrics = ApiMetrics::default();
        let client = client(&options(dir.path(), kubeconfig), &metrics).await;
        let pods = watch::pods(client.clone(), NODE, &metrics);
        Self::consume(stream::select(watch::kubernetes(client, NODE, &metrics), pods).boxed())
    }

    fn consume(mut changes: BoxStream<'static, Change>) -> Self {
        let (sender, view) = sync::watch::channel(View::default());
        let task = tokio::spawn(async move {
            while let Some(change) = changes.next().await {
                sender.send_modify(|view| view.fold(change));
            }
            panic!("the source ended");
        });
        Self { view, task }
    }

    /// Waits until the view is as wanted, which it need not remain.
    pub(crate) async fn until(&self, what: &str, wanted: impl Fn(&View) -> bool) -> View {
        let mut view = self.view.clone();
        match time::timeout(PATIENCE, view.wait_for(&wanted)).await {
            Ok(Ok(view)) => view.clone(),
            Ok(Err(_)) => panic!("the source ended, or was wrong, before {what}"),
            Err(_) => panic!("waited in vain until {what}: {}", summary(&self.view.borrow())),
        }
    }

    /// Waits until all kinds have been listed.
    pub(crate) async fn until_listed(&self) -> View {
        self.until("all is listed", |view| view.replaced().iter().all(|replaced| *replaced > 0)).await
    }

    /// Waits until the view is this.
    pub(crate) async fn until_same(&self, truth: &Truth) {
        let same = |view: &View| {
            view.services.objects == truth.services
                && view.slices.objects == truth.slices
                && view.nodes.objects == truth.nodes
        };
        let mut view = self.view.clone();
        if time::timeout(PATIENCE, view.wait_for(same)).await.is_ok_and(|seen| seen.is_ok()) {
            return;
        }
        let view = self.view();
        panic!(
            "the view differs from the server's: {}\n{}{}{}",
            summary(&view),
            difference(&view.services.objects, &truth.services),
            difference(&view.slices.objects, &truth.slices),
            difference(&view.nodes.objects, &truth.nodes)
        );
    }

    pub(crate) fn view(&self) -> View {
        self.view.borrow().clone()
    }
}

/// What is asked by a kubeconfig that says this, once it is in that directory.
fn options(dir: &Path, kubeconfig: &str) -> ApiOptions {
    let path = dir.join("kubeconfig");
    fs::write(&path, kubeconfig).unwrap();
    ApiOptions { kubeconfig: Some(path), ..ApiOptions::default() }
}

async fn client(options: &ApiOptions, metrics: &ApiMetrics) -> watch::Client {
    log::install();
    watch::client(options, metrics).await.unwrap()
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The objects that the source should tell of.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    pub(crate) services: BTreeMap<ObjectName, Service>,
    pub(crate) slices: BTreeMap<ObjectName, EndpointSlice>,
    pub(crate) nodes: BTreeMap<ObjectName, Node>,
}

impl Truth {
    /// Selects by other code than the server's.
    pub(crate) fn new(services: Vec<Service>, slices: Vec<EndpointSlice>, nodes: Vec<Node>) -> Self {
        let services = services.into_iter().filter(|service| {
            let address = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref());
            !has_label(service, PROXY_NAME) && address != Some("None")
        });
        let slices = slices.into_iter().filter(|slice| !has_label(slice, HEADLESS));
        let nodes = nodes.into_iter().filter(|node| node.metadata.name.as_deref() == Some(NODE));
        Self { services: by_name(services), slices: by_name(slices), nodes: by_name(nodes) }
    }
}

fn has_label<K: Kind>(object: &K, label: &str) -> bool {
    object.metadata().labels.as_ref().is_some_and(|labels| labels.contains_key(label))
}

/// The source leaves out who wrote what.
fn by_name<K: Kind>(objects: impl Iterator<Item = K>) -> BTreeMap<ObjectName, K> {
    objects
        .map(|mut object| {
            object.metadata_mut().managed_fields = None;
            (name(&object), object)
        })
        .collect()
}

fn difference<K: PartialEq + Debug>(
    seen: &BTreeMap<ObjectName, K>,
    truth: &BTreeMap<ObjectName, K>,
) -> String {
    let names: std::collections::BTreeSet<_> = seen.keys().chain(truth.keys()).collect();
    names
        .into_iter()
        .filter(|name| seen.get(name) != truth.get(name))
        .map(|name| format!("{name}: seen {:?}\n  but is {:?}\n", seen.get(name), truth.get(name)))
        .collect()
}

fn summary(view: &View) -> String {
    format!(
        "{} services, {} slices, {} nodes, replaced {:?}, {} changes",
        view.services.objects.len(),
        view.slices.objects.len(),
        view.nodes.objects.len(),
        view.replaced(),
        view.changes
    )
}

pub(crate) const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
pub(crate) const HEADLESS: &str = "service.kubernetes.io/headless";

/// How long to wait for what takes at most some seconds of backoff.
const PATIENCE: Duration = Duration::from_secs(60);
