//! What the agent tells the cluster as Events (EVT).
//!
//! Whoever has something to tell hands it over and goes on: a task posts it when it can. Nothing depends on whether that
//! succeeds (EVT-10). Without an API server, Events are logged.
//!
//! This module and `watch` are the only ones that may name `kube`.

mod limits;
mod post;

use std::time::Duration;

use proxy_model::ObjectName;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tracing::{info, warn};

use self::post::Poster;
use crate::{metrics::EventMetrics, watch::Client};

/// Events that may wait to be posted.
const QUEUE: usize = 64;

/// Something to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    severity: Severity,
    /// Why, as one word for machines.
    reason: &'static str,
    /// What was done or tried, as one word for machines.
    action: &'static str,
    /// What there is to say about it, for people.
    note: String,
    subject: Subject,
    scope: Scope,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Severity {
    Normal,
    Warning,
}

/// What it is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Subject {
    /// This node.
    Node,
    /// A Service.
    Service { name: ObjectName, uid: Option<String> },
}

/// Who else would tell the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// Nobody.
    ThisNode,
    /// Every node: it follows from objects alone.
    Everywhere,
}

impl Event {
    /// That something is as it should be, on this node.
    #[must_use]
    pub const fn normal(reason: &'static str, action: &'static str, note: String) -> Self {
        Self {
            severity: Severity::Normal,
            reason,
            action,
            note,
            subject: Subject::Node,
            scope: Scope::ThisNode,
        }
    }

    /// That something is not, on this node.
    #[must_use]
    pub fn warning(reason: &'static str, action: &'static str, note: String) -> Self {
        Self { severity: Severity::Warning, ..Self::normal(reason, action, note) }
    }

    /// The same about a Service.
    #[must_use]
    pub fn about_service(self, name: ObjectName, uid: Option<String>) -> Self {
        Self { subject: Subject::Service { name, uid }, ..self }
    }

    /// The same, which every node of the cluster finds out by itself: one Event is enough for all.
    #[must_use]
    pub fn everywhere(self) -> Self {
        Self { scope: Scope::Everywhere, ..self }
    }

    fn subject_text(&self) -> String {
        match &self.subject {
            Subject::Node => "this node".to_owned(),
            Subject::Service { name, .. } => format!("Service {name}"),
        }
    }
}

/// Who tells it.
#[derive(Clone, Debug)]
pub struct Reporter {
    /// Name of the node.
    pub node: String,
    /// Name of the host, as the system has it.
    pub host: String,
}

/// Where to hand Events over. Clones lead to the same place.
#[derive(Clone, Debug)]
pub struct Events {
    queue: Option<mpsc::Sender<Message>>,
    metrics: EventMetrics,
}

#[derive(Debug)]
enum Message {
    Post(Event),
    /// All that came before has been dealt with.
    Done(oneshot::Sender<()>),
}

impl Events {
    /// Posts Events to the API server.
    #[must_use]
    pub fn posted(client: Client, reporter: Reporter, metrics: EventMetrics) -> Self {
        let (queue, messages) = mpsc::channel(QUEUE);
        tokio::spawn(deal_with(messages, Poster::new(client, reporter, metrics.clone())));
        Self { queue: Some(queue), metrics }
    }

    /// Logs Events: there is no API server.
    #[must_use]
    pub fn logged() -> Self {
        Self { queue: None, metrics: EventMetrics::default() }
    }

    /// Takes an Event over. Never waits: if too many wait already, this one is lost.
    pub fn send(&self, event: Event) {
        match &self.queue {
            None => {
                let (subject, reason, note) = (event.subject_text(), event.reason, &event.note);
                match event.severity {
                    Severity::Normal => info!(subject, reason, note, "event"),
                    Severity::Warning => warn!(subject, reason, note, "event"),
                }
            }
            Some(queue) => {
                if queue.try_send(Message::Post(event)).is_err() {
                    self.metrics.count("dropped");
                }
            }
        }
    }

    /// Waits until everything that was handed over has been dealt with, but no longer than `patience`.
    pub async fn flush(&self, patience: Duration) {
        let Some(queue) = &self.queue else { return };
        let done = async {
            let (sender, receiver) = oneshot::channel();
            if queue.send(Message::Done(sender)).await.is_ok() {
                receiver.await.ok();
            }
        };
        timeout(patience, done).await.ok();
    }
}

async fn deal_with(mut messages: mpsc::Receiver<Message>, mut poster: Poster) {
    while let Some(message) = messages.recv().await {
        match message {
            Message::Post(event) => poster.post(event).await,
            // Whoever asked may have lost patience.
            Message::Done(done) => done.send(()).unwrap_or_default(),
        }
    }
}
