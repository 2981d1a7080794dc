//! A Kubernetes API server in the test's own process, for Services, EndpointSlices, Nodes, Pods and Events.
//!
//! It lists and watches as the real one does, as far as a client can tell, and misbehaves on demand. Tests write
//! through [`ApiServer`] itself; over HTTP it can only be read, and told Events. It plays a server without streaming lists (before
//! 1.32), the harder case for a client.

mod create;
mod fault;
mod hosted;
mod respond;
mod selector;
mod serve;
mod store;

use std::{
    io, mem,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::{
    Metadata,
    api::{
        core::v1::{Node, Pod, Service},
        discovery::v1::EndpointSlice,
        events::v1::Event,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use proxy_model::ObjectName;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time};

pub use fault::{Fault, Verb};
pub use hosted::{Hang, HostedApi};

use fault::Faults;
use store::Store;

/// A kind that the server has.
pub trait Kind: k8s_openapi::Resource + Metadata<Ty = ObjectMeta> + Serialize + DeserializeOwned {}
impl Kind for Service {}
impl Kind for EndpointSlice {}
impl Kind for Node {}
impl Kind for Pod {}
impl Kind for Event {}

/// The server; it ends when this is dropped.
#[derive(Debug)]
pub struct ApiServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Mutex<Option<JoinHandle<()>>>,
}

/// A request that was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Path without query.
    pub path: String,
    /// Decoded, in the order in which they were sent.
    pub query: Vec<(String, String)>,
    /// What the client calls itself.
    pub user_agent: String,
}

impl Request {
    /// The value of a parameter.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether it asks for all objects of a kind, or for a later page of them.
    #[must_use]
    pub fn is_list(&self, resource: &str) -> bool {
        self.is_of(resource) && self.parameter("watch").is_none()
    }

    /// Whether it asks for the changes of a kind.
    #[must_use]
    pub fn is_watch(&self, resource: &str) -> bool {
        self.is_of(resource) && self.parameter("watch").is_some()
    }

    fn is_of(&self, resource: &str) -> bool {
        self.path.rsplit('/').next() == Some(resource)
    }
}

/// What the connections and the test have in common.
#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Counts changes of the state, so that others see them.
    changed: watch::Sender<u64>,
    connections: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct State {
    store: Store,
    faults: Faults,
    requests: Vec<Request>,
    /// Lines for the watches that are open when they are said.
    said: Vec<(String, String)>,
    bookmarks: u64,
    watches: Vec<&'static str>,
}

impl Shared {
    /// The state, whose changes are told to all who wait for one.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.send_modify(|changes| *changes += 1);
        result
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl ApiServer {
    /// Starts a server without objects on a free port of 127.0.0.1.
    ///
    /// # Errors
    ///
    /// If there is no such port.
    pub async fn start() -> io::Result<Self> {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into()).await
    }

    /// The same on an address of this thread's namespace.
    async fn start_at(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let accepting = tokio::spawn(serve::accept(listener, Arc::clone(&shared)));
        Ok(Self { address, shared, accepting: Mutex::new(Some(accepting)) })
    }

    /// The content of a kubeconfig file that leads here.
    #[must_use]
    pub fn kubeconfig(&self) -> String {
        format!(
            "{{apiVersion: v1, kind: Config, current-context: test,\n\
             contexts: [{{name: test, context: {{cluster: test}}}}],\n\
             clusters: [{{name: test, cluster: {{server: 'http://{}'}}}}]}}\n",
            self.address
        )
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Creates the object, or replaces it. It has the new version then.
    ///
    /// # Panics
    ///
    /// If the object has no name.
    pub fn apply<K: Kind>(&self, object: &K) -> K {
        let name = name(object);
        let object = serde_json::to_value(object).expect("an object of the API is JSON");
        let stored = self.shared.change(|state| state.store.put(K::URL_PATH_SEGMENT, name, object));
        typed(&stored)
    }

    /// Deletes the object, if it exists.
    pub fn delete<K: Kind>(&self, namespace: &str, name: &str) -> bool {
        let name = ObjectName { namespace: namespace.to_owned(), name: name.to_owned() };
        self.shared.change(|state| state.store.remove(K::URL_PATH_SEGMENT, name))
    }

    /// All objects of a kind.
    #[must_use]
    pub fn objects<K: Kind>(&self) -> Vec<K> {
        self.shared.lock().store.all(K::URL_PATH_SEGMENT).map(|object| typed(object)).collect()
    }

    /// Waits until the objects of a kind are as wanted.
    ///
    /// # Panics
    ///
    /// If they are not in time.
    pub async fn holds<K: Kind>(&self, what: &str, wanted: impl Fn(&[K]) -> bool) -> Vec<K> {
        let objects = |state: &State| {
            state.store.all(K::URL_PATH_SEGMENT).map(|object| typed(object)).collect::<Vec<K>>()
        };
        self.until(what, |state| wanted(&objects(state))).await;
        self.objects()
    }

    /// The requests so far.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.shared.lock().requests.clone()
    }

    /// Waits until the requests so far are as wanted.
    ///
    /// # Panics
    ///
    /// If they are not in time.
    pub async fn requested(&self, what: &str, wanted: impl Fn(&[Request]) -> bool) {
        self.until(what, |state| wanted(&state.requests)).await;
    }

    /// Waits until so many watches of a kind are open.
    ///
    /// # Panics
    ///
    /// If there are not in time.
    pub async fn watched<K: Kind>(&self, count: usize) {
        let open = |state: &State| state.watches.iter().filter(|open| **open == K::URL_PATH_SEGMENT).count();
        self.until("watches are open", |state| open(state) == count).await;
    }

    /// Waits until all faults have happened.
    ///
    /// # Panics
    ///
    /// If they have not in time.
    pub async fn failed(&self) {
        self.until("faults happened", |state| state.faults.is_empty()).await;
    }

    async fn until(&self, what: &str, reached: impl Fn(&State) -> bool) {
        let mut changes = self.shared.changed.subscribe();
        let reached = changes.wait_for(|_| reached(&self.shared.lock()));
        let waited = time::timeout(PATIENCE, reached).await;
        assert!(waited.is_ok(), "waited in vain until {what}; requests: {:#?}", self.requests());
    }

    /// Lets the next `times` such requests go wrong.
    pub fn inject<K: Kind>(&self, verb: Verb, fault: Fault, times: usize) {
        self.shared.change(|state| state.faults.arm(K::URL_PATH_SEGMENT, verb, fault, times));
    }

    /// Whether faults are still to happen.
    #[must_use]
    pub fn is_about_to_fail(&self) -> bool {
        !self.shared.lock().faults.is_empty()
    }

    /// Sends a line to all open watches of a kind, whatever it is.
    pub fn say<K: Kind>(&self, line: &str) {
        self.shared.change(|state| state.said.push((K::URL_PATH_SEGMENT.to_owned(), line.to_owned())));
    }

    /// Tells the watches that asked for it which version they have reached.
    pub fn send_bookmarks(&self) {
        self.shared.change(|state| state.bookmarks += 1);
    }

    /// Forgets the past, so that nothing can be resumed that is not up to date.
    pub fn compact(&self) {
        self.shared.change(|state| state.store.compact());
    }

    /// Breaks all connections. Nothing that happens after this is sent on any of them.
    pub async fn drop_connections(&self) {
        let connections = mem::take(&mut *lock(&self.shared.connections));
        for connection in connections {
            end(connection).await;
        }
    }

    /// Breaks all connections and refuses new ones.
    pub async fn go_down(&self) {
        let accepting = lock(&self.accepting).take();
        if let Some(accepting) = accepting {
            end(accepting).await;
        }
        self.drop_connections().await;
    }

    /// Accepts connections again, on the same port.
    ///
    /// # Errors
    ///
    /// If the port has been taken meanwhile.
    pub async fn come_up(&self) -> io::Result<()> {
        let listener = TcpListener::bind(self.address).await?;
        let accepting = tokio::spawn(serve::accept(listener, Arc::clone(&self.shared)));
        *lock(&self.accepting) = Some(accepting);
        Ok(())
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        lock(&self.accepting).iter().for_each(JoinHandle::abort);
        lock(&self.shared.connections).iter().for_each(JoinHandle::abort);
    }
}

/// The socket of a task is closed when it has ended, by itself or not.
async fn end(task: JoinHandle<()>) {
    task.abort();
    task.await.ok();
}

/// A test that panicked while it held a lock fails anyway.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn name<K: Kind>(object: &K) -> ObjectName {
    let meta = object.metadata();
    ObjectName {
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().expect("the object has a name"),
    }
}

fn typed<K: Kind>(object: &serde_json::Value) -> K {
    K::deserialize(object).expect("what was stored is of the kind")
}

/// How long to wait for what should happen at once.
const PATIENCE: Duration = Duration::from_secs(60);
