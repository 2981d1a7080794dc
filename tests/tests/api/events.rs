//! What the cluster is told, against a server that misbehaves.

use std::{fs, time::Duration};

use k8s_openapi::api::events::v1::Event as Object;
use proxy_agent::{
    datapath::Pins,
    events::{Event, Events, Reporter},
    metrics::{ApiMetrics, Format, Metrics},
    watch::{self, ApiOptions},
};
use proxy_model::ObjectName;
use sluice_tests::apiserver::{ApiServer, Fault, Verb};

use super::log;

async fn events(server: &ApiServer, node: &str) -> (Events, Metrics) {
    log::install();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubeconfig");
    fs::write(&path, server.kubeconfig()).unwrap();
    let metrics = Metrics::default();
    let options = ApiOptions { kubeconfig: Some(path), ..ApiOptions::default() };
    let client = watch::client(&options, &ApiMetrics::default()).await.unwrap();
    let reporter = Reporter { node: node.to_owned(), host: format!("{node}.example.com") };
    (Events::posted(client, reporter, metrics.events.clone()), metrics)
}

fn count(metrics: &Metrics, result: &str) -> u32 {
    let text = metrics.exposition(&Pins::new("/nonexistent".as_ref())).text(Format::Prometheus).unwrap();
    let name = format!("sluice_events_total{{result=\"{result}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&name)).map_or(0, |count| count.parse().unwrap())
}

fn web() -> ObjectName {
    ObjectName { namespace: "shop".to_owned(), name: "web".to_owned() }
}

/// EVT-01, EVT-02.
#[tokio::test]
async fn events_are_posted_as_a_server_wants_them() {
    let server = ApiServer::start().await.unwrap();
    let (events, metrics) = events(&server, "node-a").await;
    events.send(Event::normal("Starting", "StartKubeProxy", String::new()));
    let warning = Event::warning("FailedToStartServiceHealthcheck", "Listen", "port taken".to_owned());
    events.send(warning.about_service(web(), Some("u-1".to_owned())));
    let posted = server.holds::<Object>("both are there", |objects| objects.len() == 2).await;
    let of = |reason: &str| posted.iter().find(|object| object.reason.as_deref() == Some(reason)).unwrap();
    let starting = of("Starting");
    assert_eq!(starting.metadata.namespace.as_deref(), Some("default"));
    assert_eq!(starting.reporting_instance.as_deref(), Some("kube-proxy-node-a.example.com"));
    let warning = of("FailedToStartServiceHealthcheck");
    assert_eq!(warning.metadata.namespace.as_deref(), Some("shop"));
    assert_eq!(warning.regarding.as_ref().unwrap().uid.as_deref(), Some("u-1"));
    assert_eq!(warning.note.as_deref(), Some("port taken"));
    events.flush(Duration::from_secs(60)).await;
    assert_eq!((count(&metrics, "sent"), count(&metrics, "failed")), (2, 0));
}

/// EVT-10.
#[tokio::test]
async fn a_server_that_fails_is_asked_again_and_never_waited_for() {
    let server = ApiServer::start().await.unwrap();
    server.inject::<Object>(Verb::Create, Fault::Status(500), 1);
    server.inject::<Object>(Verb::Create, Fault::Status(429), 1);
    let (events, metrics) = events(&server, "node-a").await;
    events.send(Event::warning("Reason", "Action", "first".to_owned()));
    server.holds::<Object>("it is there", |objects| objects.len() == 1).await;
    events.flush(Duration::from_secs(60)).await;
    assert_eq!(count(&metrics, "sent"), 1);
    // One that is refused for good does not hold up the next.
    server.inject::<Object>(Verb::Create, Fault::Status(403), 1);
    events.send(Event::warning("Reason", "Action", "second".to_owned()));
    events.send(Event::warning("Reason", "Action", "third".to_owned()));
    server.holds::<Object>("the other one is there", |objects| objects.len() == 2).await;
    assert_eq!(count(&metrics, "failed"), 1);
    // Nobody answers, and nobody waits. A queue that is full takes no more.
    server.go_down().await;
    for number in 0..200 {
        events.send(Event::warning("Reason", "Action", number.to_string()));
    }
    assert!(count(&metrics, "dropped") >= 200 - 64 - 1);
    events.flush(Duration::from_millis(1)).await;
}

#[tokio::test]
async fn the_same_is_told_once_and_much_is_told_slowly() {
    let server = ApiServer::start().await.unwrap();
    let (events, metrics) = events(&server, "node-a").await;
    for _ in 0..5 {
        events.send(Event::warning("Reason", "Action", "the same".to_owned()));
    }
    for number in 0..40 {
        events.send(Event::warning("Reason", "Action", number.to_string()));
    }
    events.flush(Duration::from_secs(60)).await;
    assert_eq!((count(&metrics, "sent"), count(&metrics, "suppressed")), (25, 20));
    assert_eq!(server.objects::<Object>().len(), 25);
}

#[tokio::test]
async fn what_every_node_finds_out_is_one_event() {
    let server = ApiServer::start().await.unwrap();
    let misfit =
        |note: &str| Event::warning("AddressTaken", "Program", note.to_owned()).about_service(web(), None);
    for node in ["node-a", "node-b", "node-c"] {
        let (events, metrics) = events(&server, node).await;
        events.send(misfit("for all").everywhere());
        events.send(misfit("for one"));
        events.flush(Duration::from_secs(60)).await;
        assert_eq!((count(&metrics, "sent"), count(&metrics, "failed")), (2, 0));
    }
    let notes: Vec<_> = server.objects::<Object>().into_iter().filter_map(|object| object.note).collect();
    assert_eq!(notes.iter().filter(|note| *note == "for all").count(), 1);
    assert_eq!(notes.len(), 4);
}
