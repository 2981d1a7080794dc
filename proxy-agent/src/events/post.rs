//! Events as the API has them, and how they get there.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event as Object},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, Error, api::PostParams};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::{Event, Reporter, Scope, Severity, Subject, limits::Limits};
use crate::{metrics::EventMetrics, random::random};

/// Who reports, to those who look for kube-proxy's Events.
const CONTROLLER: &str = "kube-proxy";
/// The API refuses longer notes.
const LONGEST_NOTE: usize = 1024;
/// How often an Event is tried to be posted.
const ATTEMPTS: u32 = 5;
/// How long to wait before the second attempt; each further one waits twice as long.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(10);
/// What all nodes tell at the same moment is spread over this time.
const SPREAD: Duration = Duration::from_secs(2);

/// Posts Events.
pub(super) struct Poster {
    client: Client,
    reporter: Reporter,
    metrics: EventMetrics,
    limits: Limits,
}

/// What became of an attempt.
#[derive(Debug)]
enum Outcome {
    Sent,
    Refused(Error),
    Unanswered(String),
}

impl Poster {
    pub(super) fn new(client: Client, reporter: Reporter, metrics: EventMetrics) -> Self {
        Self { client, reporter, metrics, limits: Limits::new(Instant::now()) }
    }

    /// Posts an Event, unless it is one too many, and returns when it is there or given up.
    pub(super) async fn post(&mut self, event: Event) {
        if !self.limits.admit(&event, Instant::now()) {
            debug!(?event, "an Event is not told: it was lately, or there were too many");
            return self.metrics.count("suppressed");
        }
        if event.scope == Scope::Everywhere {
            sleep(SPREAD.mul_f64(f64::from(random()) / f64::from(u32::MAX))).await;
        }
        let object = object(&event, &self.reporter, Timestamp::now());
        let namespace = object.metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
        let api = Api::<Object>::namespaced(self.client.clone(), namespace);
        let mut wait = FIRST_WAIT;
        for attempt in 1..=ATTEMPTS {
            let cause = match attempt_to_post(&api, &object).await {
                Outcome::Sent => return self.metrics.count("sent"),
                Outcome::Refused(error) => {
                    warn!(reason = event.reason, %error, "the API server refuses an Event");
                    return self.metrics.count("failed");
                }
                Outcome::Unanswered(cause) => cause,
            };
            debug!(reason = event.reason, attempt, cause, "cannot post an Event");
            if attempt < ATTEMPTS {
                sleep(wait).await;
                wait *= 2;
            }
        }
        self.metrics.count("failed");
    }
}

async fn attempt_to_post(api: &Api<Object>, object: &Object) -> Outcome {
    match timeout(ANSWER, api.create(&PostParams::default(), object)).await {
        Ok(Ok(_)) => Outcome::Sent,
        Ok(Err(Error::Api(status))) => match status.code {
            // Another node was faster, or the answer to an earlier attempt got lost.
            409 => Outcome::Sent,
            429 | 500.. => Outcome::Unanswered(status.to_string()),
            _ => Outcome::Refused(Error::Api(status)),
        },
        Ok(Err(error)) => Outcome::Unanswered(error.to_string()),
        Err(_) => Outcome::Unanswered(format!("no answer in {ANSWER:?}")),
    }
}

/// Where Events about objects without a namespace are.
const DEFAULT_NAMESPACE: &str = "default";

fn object(event: &Event, reporter: &Reporter, now: Timestamp) -> Object {
    let Event { severity, reason, action, note, subject, scope } = event;
    let regarding = regarding(subject, reporter);
    let namespace = regarding.namespace.clone().unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
    let mut hasher = DefaultHasher::new();
    (subject, reason, note).hash(&mut hasher);
    if *scope == Scope::ThisNode {
        (&reporter.node, now.as_nanosecond()).hash(&mut hasher);
    }
    // Whoever tells the same of the same object gives it the same name, so that the first one's stays the only one.
    let name = format!("{}.{:016x}", regarding.name.as_deref().unwrap_or_default(), hasher.finish());
    let mut note = note.clone();
    note.truncate(note.floor_char_boundary(LONGEST_NOTE));
    Object {
        metadata: ObjectMeta { name: Some(name), namespace: Some(namespace), ..ObjectMeta::default() },
        event_time: Some(MicroTime(now)),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(format!("{CONTROLLER}-{}", reporter.host)),
        action: Some((*action).to_owned()),
        reason: Some((*reason).to_owned()),
        regarding: Some(regarding),
        note: (!note.is_empty()).then_some(note),
        type_: Some(
            match severity {
                Severity::Normal => "Normal",
                Severity::Warning => "Warning",
            }
            .to_owned(),
        ),
        ..Object::default()
    }
}

fn regarding(subject: &Subject, reporter: &Reporter) -> ObjectReference {
    let of = |kind: &str, name: &str| ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some(kind.to_owned()),
        name: Some(name.to_owned()),
        ..ObjectReference::default()
    };
    match subject {
        // Events about Nodes are looked for by the name in the place of the uid, as kubelet writes them.
        Subject::Node => ObjectReference { uid: Some(reporter.node.clone()), ..of("Node", &reporter.node) },
        Subject::Service { name, uid } => ObjectReference {
            namespace: Some(name.namespace.clone()),
            uid: uid.clone(),
            ..of("Service", &name.name)
        },
    }
}

#[cfg(test)]
mod tests {
    use proxy_model::ObjectName;
    use serde_json::json;

    use super::*;

    fn reporter(node: &str) -> Reporter {
        Reporter { node: node.to_owned(), host: format!("{node}.example.com") }
    }

    fn posted(event: &Event, node: &str) -> serde_json::Value {
        let now: Timestamp = "2026-01-02T03:04:05.678901234Z".parse().unwrap();
        serde_json::to_value(object(event, &reporter(node), now)).unwrap()
    }

    fn web() -> ObjectName {
        ObjectName { namespace: "shop".to_owned(), name: "web".to_owned() }
    }

    /// EVT-01.
    #[test]
    fn events_about_the_node_are_kube_proxys() {
        let event = Event::normal("Starting", "StartKubeProxy", String::new());
        let mut posted = posted(&event, "node-a");
        let name = posted["metadata"]["name"].take();
        assert!(name.as_str().is_some_and(|name| name.starts_with("node-a.") && name.len() == 23), "{name}");
        let expected = json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": { "name": null, "namespace": "default" },
            "eventTime": "2026-01-02T03:04:05.678901Z",
            "reportingController": "kube-proxy", "reportingInstance": "kube-proxy-node-a.example.com",
            "reason": "Starting", "action": "StartKubeProxy", "type": "Normal",
            "regarding": { "apiVersion": "v1", "kind": "Node", "name": "node-a", "uid": "node-a" },
        });
        assert_eq!(posted, expected);
    }

    /// EVT-02.
    #[test]
    fn events_about_a_service_are_in_its_namespace() {
        let event =
            Event::warning("Reason", "Listen", "n".repeat(2000)).about_service(web(), Some("u-1".to_owned()));
        let posted = posted(&event, "node-a");
        assert_eq!(posted["metadata"]["namespace"], "shop");
        let service = json!({ "apiVersion": "v1", "kind": "Service", "namespace": "shop", "name": "web", "uid": "u-1" });
        assert_eq!((&posted["regarding"], &posted["type"]), (&service, &json!("Warning")));
        assert_eq!(posted["note"].as_str().unwrap().len(), 1024);
    }

    #[test]
    fn what_all_nodes_tell_has_one_name() {
        let event = Event::warning("Reason", "Action", "note".to_owned()).about_service(web(), None);
        let name = |event: &Event, node| posted(event, node)["metadata"]["name"].clone();
        assert_ne!(name(&event, "node-a"), name(&event, "node-b"));
        let event = event.everywhere();
        assert_eq!(name(&event, "node-a"), name(&event, "node-b"));
        let other = Event { note: "another note".to_owned(), ..event.clone() };
        assert_ne!(name(&event, "node-a"), name(&other, "node-a"));
    }
}
