//! Objects from the Kubernetes API, by list and watch.
//!
//! `kube::runtime::watcher` is not used, for what a proxy cannot accept: it drops an event that it cannot decode and
//! goes on, it asks for ever for a version that the server answers with HTTP status 410, and it does not tell when a
//! watch works again. The streaming list of Kubernetes 1.32+ is not used either: a server that does not have it must
//! be asked again the old way, and all that it saves is memory of the server, which pages limit on all releases.

mod client;
mod failure;
mod limit;
mod outage;
mod servers;

use std::{fmt::Debug, mem, pin::Pin, time::Duration};

use futures::{Stream, StreamExt, stream};
use k8s_openapi::api::{
    core::v1::{Node, Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, Resource,
    api::{ListParams, WatchEvent, WatchParams},
};
use proxy_model::{Change, Event, ObjectName};
use serde::de::DeserializeOwned;
use tokio::time::{self, Instant};
use tracing::warn;

use self::{
    failure::{Continuity, Failure},
    outage::{Need, Outage},
};
use super::{HEADLESS, SERVICE_PROXY_NAME};
use crate::{
    metrics::{ApiMetrics, KindMetrics},
    random::random,
};

pub use self::{
    client::{ApiOptions, ClientError, client},
    limit::RequestLimit,
};

/// Follows the Services, the EndpointSlices and this node's own Node, for ever.
///
/// Each kind begins with a `Replace` once its first list is complete, and is replaced again when the server cannot
/// say what happened in a gap. Kinds do not wait for each other. Lists are consistent reads, never from a cache that
/// may lag behind what was seen before.
pub fn kubernetes(
    client: Client,
    node: &str,
    metrics: &ApiMetrics,
) -> impl Stream<Item = Change> + Send + use<> {
    let ApiMetrics { services: of_services, slices: of_slices, nodes: of_nodes, .. } = metrics.clone();
    let services = Selection {
        labels: Some(format!("!{SERVICE_PROXY_NAME}")),
        fields: Some("spec.clusterIP!=None".to_owned()),
    };
    let slices = Selection { labels: Some(format!("!{HEADLESS}")), fields: None };
    let nodes = Selection { labels: None, fields: Some(format!("metadata.name={node}")) };
    stream::select(
        follow::<Service>(client.clone(), services, of_services).map(Change::Service),
        stream::select(
            follow::<EndpointSlice>(client.clone(), slices, of_slices).map(Change::EndpointSlice),
            follow::<Node>(client, nodes, of_nodes).map(Change::Node),
        ),
    )
}

/// Follows the Pods of this node, for ever, by themselves: nothing else waits for them. kube-proxy's role does not let it
/// see Pods (API-11), so that they cannot be listed is told once and tried again at leisure.
pub fn pods(client: Client, node: &str, metrics: &ApiMetrics) -> impl Stream<Item = Change> + Send + use<> {
    let here = Selection { labels: None, fields: Some(format!("spec.nodeName={node}")) };
    follow::<Pod>(client, here, metrics.pods.clone()).map(Change::Pod)
}

/// Which objects of a kind, as the API server is to filter them.
struct Selection {
    labels: Option<String>,
    fields: Option<String>,
}

fn follow<K: Kind>(
    client: Client,
    selection: Selection,
    metrics: KindMetrics,
) -> impl Stream<Item = Event<K>> + Send {
    let follower = Follower {
        api: Api::<K>::all(client),
        selection,
        pages: Pages::Limited,
        state: State::Unlisted,
        outage: Outage::new(K::KIND, K::NEED),
        metrics,
    };
    stream::unfold(follower, async |mut follower| Some((follower.next().await, follower)))
}

trait Kind:
    Resource<DynamicType = ()> + k8s_openapi::Resource + Clone + Debug + DeserializeOwned + Send + 'static
{
    /// What it means if there are none of them.
    const NEED: Need = Need::Required;
}
impl Kind for Service {}
impl Kind for EndpointSlice {}
impl Kind for Node {}
impl Kind for Pod {
    const NEED: Need = Need::Optional {
        without: "pods that need the service's address or have opted out of sockets are not told from others \
                  (--socket-lb=auto leaves them all to packets, --socket-lb=on serves them all); it takes list and watch \
                  of pods",
    };
}

struct Follower<K> {
    api: Api<K>,
    selection: Selection,
    pages: Pages,
    state: State<K>,
    outage: Outage,
    metrics: KindMetrics,
}

#[derive(Clone, Copy)]
enum Pages {
    Limited,
    /// The server forgot the version of the first page before it was asked for the last: take it in one piece.
    Unlimited,
}

enum State<K> {
    Unlisted,
    /// All is known up to this version.
    Listed {
        version: String,
    },
    Watching {
        version: String,
        watch: Watch<K>,
    },
}

struct Watch<K> {
    events: Pin<Box<dyn Stream<Item = kube::Result<WatchEvent<K>>> + Send>>,
    started: Instant,
    /// Silence up to here is what was asked for; after it the connection is dead.
    ends: Instant,
}

impl<K: Kind> Follower<K> {
    async fn next(&mut self) -> Event<K> {
        loop {
            match self.step().await {
                Ok(Some(event)) => return event,
                Ok(None) => {}
                Err(failure) => {
                    self.metrics.failures.inc();
                    let wait = self.outage.failed(failure.class(), &failure.chain());
                    match failure.continuity() {
                        Continuity::Kept => {}
                        Continuity::Doubtful if self.outage.attempts() < PATIENCE => {}
                        Continuity::Doubtful | Continuity::Lost => self.state = State::Unlisted,
                    }
                    time::sleep(wait).await;
                }
            }
        }
    }

    /// One request or one event. A failure leaves the state from which to resume.
    async fn step(&mut self) -> Result<Option<Event<K>>, Failure> {
        match mem::replace(&mut self.state, State::Unlisted) {
            State::Unlisted => {
                // Nobody says when a list was true, but not before it was asked for.
                let asked = Instant::now();
                let (version, objects) = self.list().await?;
                self.metrics.confirm(asked.into_std());
                self.metrics.lists.inc();
                self.state = State::Listed { version };
                Ok(Some(Event::Replace(objects)))
            }
            State::Listed { version } => {
                let watch = self.watch(&version).await;
                self.state = State::Listed { version: version.clone() };
                let watch = watch?;
                self.metrics.watches.inc();
                self.outage.recovered();
                self.state = State::Watching { version, watch };
                Ok(None)
            }
            State::Watching { version, mut watch } => {
                let event = time::timeout_at(watch.ends, watch.events.next()).await;
                self.state = State::Listed { version };
                let event = match event {
                    Ok(Some(event)) => event.map_err(Failure::Broken)?,
                    // Watches end after the time that was asked for, or with their server.
                    Ok(None) if watch.started.elapsed() >= SHORT => return Ok(None),
                    Ok(None) => return Err(Failure::Short),
                    Err(_) => return Err(Failure::Silent(watch.started.elapsed())),
                };
                let (version, event) = decode(event)?;
                // Bookmarks among them: nothing else has happened up to here.
                self.metrics.confirm(Instant::now().into_std());
                self.outage.progressed();
                self.state = State::Watching { version, watch };
                Ok(event)
            }
        }
    }

    async fn list(&mut self) -> Result<(String, Vec<K>), Failure> {
        let mut params = ListParams {
            label_selector: self.selection.labels.clone(),
            field_selector: self.selection.fields.clone(),
            limit: match self.pages {
                Pages::Limited => Some(PAGE),
                Pages::Unlimited => None,
            },
            ..ListParams::default()
        };
        let mut objects = Vec::new();
        loop {
            let page = answered(self.api.list(&params)).await?.map_err(Failure::List);
            if page.as_ref().is_err_and(Failure::is_gone) && params.continue_token.is_some() {
                self.pages = Pages::Unlimited;
            }
            let page = page?;
            objects.extend(page.items.into_iter().filter_map(checked));
            params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if params.continue_token.is_none() {
                self.pages = Pages::Limited;
                let version = page.metadata.resource_version.filter(|version| !version.is_empty());
                return Ok((version.ok_or(Failure::NoVersion("the list"))?, objects));
            }
        }
    }

    async fn watch(&mut self, version: &str) -> Result<Watch<K>, Failure> {
        // Spread, so that not all watches of all nodes are renewed at once.
        let seconds = LONGEST_WATCH - random() % (LONGEST_WATCH / 4);
        let params = WatchParams {
            label_selector: self.selection.labels.clone(),
            field_selector: self.selection.fields.clone(),
            timeout: Some(seconds),
            ..WatchParams::default()
        };
        let events = answered(self.api.watch(&params, version)).await?.map_err(Failure::Watch)?;
        let started = Instant::now();
        let ends = started + Duration::from_secs(seconds.into()) + GRACE;
        Ok(Watch { events: events.boxed(), started, ends })
    }
}

/// A server that accepted the connection may still never answer.
async fn answered<F: Future>(request: F) -> Result<F::Output, Failure> {
    time::timeout(ANSWER, request).await.map_err(|_| Failure::Silent(ANSWER))
}

/// The version that is known after the event, and what to tell of it.
fn decode<K: Kind>(event: WatchEvent<K>) -> Result<(String, Option<Event<K>>), Failure> {
    let version = |object: &K| {
        let version = object.meta().resource_version.clone().filter(|version| !version.is_empty());
        version.ok_or(Failure::NoVersion("an event"))
    };
    match event {
        WatchEvent::Added(object) | WatchEvent::Modified(object) => {
            Ok((version(&object)?, checked(object).map(Event::Apply)))
        }
        WatchEvent::Deleted(object) => {
            Ok((version(&object)?, checked(object).map(|object| Event::Delete(name(&object)))))
        }
        WatchEvent::Bookmark(bookmark) => Ok((bookmark.metadata.resource_version, None)),
        WatchEvent::Error(status) => Err(Failure::Ended(status)),
    }
}

/// The object without what nobody here reads, unless it has no name, which no server should send.
fn checked<K: Kind>(mut object: K) -> Option<K> {
    let meta = object.meta_mut();
    // Often more than half of the object.
    meta.managed_fields = None;
    if meta.name.as_deref().is_none_or(str::is_empty) {
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        warn!(kind = K::KIND, namespace, "skipped an object without metadata.name");
        return None;
    }
    Some(object)
}

fn name<K: Kind>(object: &K) -> ObjectName {
    let meta = object.meta();
    ObjectName {
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
    }
}

/// As large as client-go's.
const PAGE: u32 = 500;
/// Seconds. A server may end a watch earlier; most allow at least 5 minutes.
const LONGEST_WATCH: u32 = 280;
/// How late the end of a watch may arrive.
const GRACE: Duration = Duration::from_secs(10);
/// The default `--request-timeout` of the API server is a minute.
const ANSWER: Duration = Duration::from_secs(60);
/// How many attempts to resume before all is asked anew, if the server answers with errors: seven seconds.
const PATIENCE: u32 = 7;
/// A watch that ends sooner was refused rather than interrupted.
const SHORT: Duration = Duration::from_secs(1);
