//! The bodies of the answers, as the API server writes them.

use std::{io, sync::Arc, time::Duration};

use futures::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Response, StatusCode,
    body::{Bytes, Frame},
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use proxy_model::ObjectName;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{self, Instant},
};

use super::{Request, Shared, State, selector::Selector, store::Resource};

pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// What a path stands for.
pub(super) struct Scope {
    pub(super) resource: Resource,
    pub(super) api_version: &'static str,
    pub(super) kind: &'static str,
    pub(super) namespace: Option<String>,
    name: Option<String>,
}

impl Scope {
    pub(super) fn parse(path: &str) -> Result<Self, Refusal> {
        let found = KINDS.iter().find_map(|(root, resource, api_version, kind)| {
            let path = path.strip_prefix(root)?;
            let parts: Vec<&str> = path.split('/').collect();
            let (namespace, name) = match parts[..] {
                [of] if of == *resource => (None, None),
                [of, name] if of == *resource && *kind == "Node" => (None, Some(name)),
                ["namespaces", namespace, of] if of == *resource => (Some(namespace), None),
                ["namespaces", namespace, of, name] if of == *resource => (Some(namespace), Some(name)),
                _ => return None,
            };
            let (namespace, name) = (namespace.map(str::to_owned), name.map(str::to_owned));
            Some(Self { resource, api_version, kind, namespace, name })
        });
        // What the role of kube-proxy allows, or less.
        let message = format!("this user may not use {path}");
        found.ok_or_else(|| Refusal::new(StatusCode::FORBIDDEN, "Forbidden", &message))
    }
}

/// A list, a page of one, or an object.
pub(super) fn read(
    scope: &Scope,
    request: &Request,
    shared: &Shared,
    is_cut: bool,
) -> Result<Response<Body>, Refusal> {
    let text = match &scope.name {
        Some(name) => {
            let namespace = scope.namespace.clone().unwrap_or_default();
            let object =
                shared.lock().store.get(scope.resource, ObjectName { namespace, name: name.clone() });
            object.ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, "NotFound", name))?.to_string()
        }
        None => list(scope, request, shared)?.to_string(),
    };
    let text = Bytes::from(text);
    let body = if is_cut {
        let half = text.slice(..text.len() / 2);
        StreamBody::new(stream::iter([Ok(Frame::data(half)), Err(io::Error::other("cut"))])).boxed_unsync()
    } else {
        Full::new(text).map_err(|never| match never {}).boxed_unsync()
    };
    Ok(json_response(StatusCode::OK, body))
}

fn list(scope: &Scope, request: &Request, shared: &Shared) -> Result<Value, Refusal> {
    let number = |name| request.parameter(name).map(str::parse::<usize>).transpose();
    let limit = match number("limit").map_err(|error| Refusal::bad(&error.to_string()))? {
        None | Some(0) => usize::MAX,
        Some(limit) => limit,
    };
    let page = match request.parameter("continue") {
        None => {
            let selector = selector(scope, request)?;
            shared.lock().store.list(scope.resource, &selector, limit)
        }
        Some(token) => {
            let (version, start) = token
                .split_once('-')
                .and_then(|(version, start)| Some((version.parse().ok()?, start.parse().ok()?)))
                .ok_or_else(|| Refusal::bad("continue key is not valid"))?;
            shared.lock().store.next_page(version, start, limit).map_err(|_| Refusal::gone())?
        }
    };
    let items: Vec<Value> = page.items.iter().map(|object| untyped(object)).collect();
    let mut metadata = json!({"resourceVersion": page.version.to_string()});
    if let Some(start) = page.rest {
        metadata["continue"] = json!(format!("{}-{start}", page.version));
    }
    let kind = format!("{}List", scope.kind);
    Ok(json!({"kind": kind, "apiVersion": scope.api_version, "metadata": metadata, "items": items}))
}

/// In a list of one kind the items do not repeat what they are.
fn untyped(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(fields) = object.as_object_mut() {
        fields.remove("apiVersion");
        fields.remove("kind");
    }
    object
}

pub(super) fn watch(
    scope: &Scope,
    request: &Request,
    shared: &Arc<Shared>,
    is_cut: bool,
) -> Result<Response<Body>, Refusal> {
    if request.parameter("sendInitialEvents").is_some() {
        let message = "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList \
                       feature gate is enabled";
        return Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message));
    }
    let version = request.parameter("resourceVersion").and_then(|version| version.parse().ok());
    let seconds =
        request.parameter("timeoutSeconds").and_then(|seconds| seconds.parse().ok()).unwrap_or(1800);
    let version = version.ok_or_else(|| Refusal::bad("a watch here needs the version of a list"))?;
    let (said, bookmarks, is_gone) = {
        let state = shared.lock();
        (state.said.len(), state.bookmarks, state.store.is_gone(version))
    };
    let watch = Watch {
        shared: Arc::clone(shared),
        changes: shared.changed.subscribe(),
        resource: scope.resource,
        api_version: scope.api_version,
        kind: scope.kind,
        selector: selector(scope, request)?,
        version,
        is_gone,
        said,
        bookmarks: request.parameter("allowWatchBookmarks").map(|_| bookmarks),
        ends: Instant::now() + Duration::from_secs(seconds),
        is_over: false,
    };
    shared.change(|state| state.watches.push(scope.resource));
    let lines = stream::unfold(watch, async |mut watch| {
        watch.next().await.map(|lines| (Ok(Frame::data(lines)), watch))
    });
    let body = if is_cut {
        // As far as the first lines, and half of them.
        let half = |lines: io::Result<Frame<Bytes>>| {
            lines.map(|frame| frame.map_data(|lines: Bytes| lines.slice(..lines.len() / 2)))
        };
        let cut = stream::iter([Err(io::Error::other("cut"))]);
        StreamBody::new(lines.take(1).map(half).chain(cut)).boxed_unsync()
    } else {
        StreamBody::new(lines).boxed_unsync()
    };
    Ok(json_response(StatusCode::OK, body))
}

struct Watch {
    shared: Arc<Shared>,
    changes: watch::Receiver<u64>,
    resource: Resource,
    api_version: &'static str,
    kind: &'static str,
    selector: Selector,
    /// Up to this all is sent.
    version: u64,
    is_gone: bool,
    said: usize,
    /// How many there were, if they are wanted.
    bookmarks: Option<u64>,
    ends: Instant,
    is_over: bool,
}

impl Watch {
    /// The next lines, as soon as there are any.
    async fn next(&mut self) -> Option<Bytes> {
        while !self.is_over {
            self.changes.mark_unchanged();
            let shared = Arc::clone(&self.shared);
            let lines = self.lines(&shared.lock());
            if !lines.is_empty() {
                return Some(lines.into());
            }
            match time::timeout_at(self.ends, self.changes.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => self.is_over = true,
            }
        }
        None
    }

    fn lines(&mut self, state: &State) -> String {
        let mut lines = String::new();
        let mut line = |event: &str, object: &Value| {
            lines.push_str(&json!({"type": event, "object": object}).to_string());
            lines.push('\n');
        };
        if self.is_gone {
            line("ERROR", &Refusal::gone().status());
            self.is_over = true;
            return lines;
        }
        for (event, object) in state.store.since(self.version, self.resource, &self.selector) {
            line(event, &object);
        }
        self.version = state.store.version();
        if let Some(bookmarks) = &mut self.bookmarks
            && *bookmarks != state.bookmarks
        {
            *bookmarks = state.bookmarks;
            let metadata = json!({"resourceVersion": self.version.to_string(), "creationTimestamp": null});
            line(
                "BOOKMARK",
                &json!({"kind": self.kind, "apiVersion": self.api_version, "metadata": metadata}),
            );
        }
        for (_, said) in state.said.iter().skip(self.said).filter(|(resource, _)| resource == self.resource) {
            lines.push_str(said);
            lines.push('\n');
        }
        self.said = state.said.len();
        lines
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.change(|state| {
            if let Some(at) = state.watches.iter().position(|open| *open == self.resource) {
                state.watches.swap_remove(at);
            }
        });
    }
}

fn selector(scope: &Scope, request: &Request) -> Result<Selector, Refusal> {
    let selector = Selector::parse(request.parameter("labelSelector"), request.parameter("fieldSelector"));
    selector
        .map(|selector| selector.within(scope.namespace.as_deref()))
        .map_err(|message| Refusal::bad(&message))
}

/// An answer that is a `Status`.
#[derive(Debug)]
pub(super) struct Refusal {
    code: StatusCode,
    reason: &'static str,
    message: String,
}

impl Refusal {
    pub(super) fn new(code: StatusCode, reason: &'static str, message: &str) -> Self {
        Self { code, reason, message: message.to_owned() }
    }

    pub(super) fn fault(code: u16) -> Self {
        let code = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self::new(code, "InternalError", "the test wants this to fail")
    }

    pub(super) fn gone() -> Self {
        Self::new(StatusCode::GONE, "Expired", "too old resource version")
    }

    pub(super) fn bad(message: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    fn status(&self) -> Value {
        let Self { code, reason, message } = self;
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "code": code.as_u16(),
        })
    }

    pub(super) fn into_response(self) -> Response<Body> {
        let body =
            Full::new(Bytes::from(self.status().to_string())).map_err(|never| match never {}).boxed_unsync();
        let mut response = json_response(self.code, body);
        if self.code == StatusCode::TOO_MANY_REQUESTS {
            response.headers_mut().insert(RETRY_AFTER, 1.into());
        }
        response
    }
}

pub(super) fn json_response(code: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    response
}

/// Where each kind is found, and what it is called.
const KINDS: [(&str, Resource, &str, &str); 5] = [
    ("/api/v1/", "services", "v1", "Service"),
    ("/api/v1/", "nodes", "v1", "Node"),
    ("/api/v1/", "pods", "v1", "Pod"),
    ("/apis/discovery.k8s.io/v1/", "endpointslices", "discovery.k8s.io/v1", "EndpointSlice"),
    ("/apis/events.k8s.io/v1/", "events", "events.k8s.io/v1", "Event"),
];
