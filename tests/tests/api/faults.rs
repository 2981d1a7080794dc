//! What goes wrong with an API server, one thing at a time.

use std::time::Duration;

use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use sluice_tests::apiserver::{ApiServer, Fault, Request, Verb};

use super::{
    cluster::{NAMESPACE, node, service, slice, truth},
    follow::{Follower, NODE},
    log::Log,
};

/// A server with a few objects.
async fn server() -> ApiServer {
    let server = ApiServer::start().await.unwrap();
    for index in 0..3 {
        server.apply(&service(index, 80));
        server.apply(&slice(index, 8080));
    }
    server.apply(&node(NODE));
    server
}

async fn watched(server: &ApiServer) {
    server.watched::<Service>(1).await;
    server.watched::<EndpointSlice>(1).await;
    server.watched::<Node>(1).await;
}

async fn followed() -> (ApiServer, Follower) {
    let server = server().await;
    let follower = Follower::start(&server.kubeconfig()).await;
    follower.until_listed().await;
    watched(&server).await;
    (server, follower)
}

fn lists(server: &ApiServer, resource: &str) -> usize {
    server.requests().iter().filter(|request| request.is_list(resource)).count()
}

/// The versions that the watches of a kind began at.
fn watches(requests: &[Request], resource: &str) -> Vec<u64> {
    let watches = requests.iter().filter(|request| request.is_watch(resource));
    watches.filter_map(|request| request.parameter("resourceVersion")?.parse().ok()).collect()
}

fn last(server: &ApiServer, wanted: impl Fn(&Request) -> bool) -> Request {
    server.requests().into_iter().rfind(wanted).expect("there is such a request")
}

#[tokio::test]
async fn requests_are_as_the_role_of_kube_proxy_allows_them() {
    let (server, follower) = followed().await;
    assert_eq!(follower.view().changes, 3);
    let labels = "!service.kubernetes.io/service-proxy-name";
    let expected = [
        ("services", "/api/v1/services", Some(labels), Some("spec.clusterIP!=None")),
        (
            "endpointslices",
            "/apis/discovery.k8s.io/v1/endpointslices",
            Some("!service.kubernetes.io/headless"),
            None,
        ),
        ("nodes", "/api/v1/nodes", None, Some("metadata.name=node-a")),
    ];
    for (resource, path, labels, fields) in expected {
        let list = last(&server, |request| request.is_list(resource));
        let watch = last(&server, |request| request.is_watch(resource));
        for request in [&list, &watch] {
            assert_eq!(request.path, path);
            assert_eq!(request.parameter("labelSelector"), labels);
            assert_eq!(request.parameter("fieldSelector"), fields);
            assert_eq!(request.user_agent, format!("sluice/{}", env!("CARGO_PKG_VERSION")));
        }
        assert_eq!(list.parameter("limit"), Some("500"));
        assert_eq!(list.parameter("resourceVersion"), None, "lists are not from a cache that lags");
        assert_eq!(watch.parameter("allowWatchBookmarks"), Some("true"));
        let seconds: u32 = watch.parameter("timeoutSeconds").unwrap().parse().unwrap();
        assert!((200..=290).contains(&seconds), "{seconds}");
    }
    assert_eq!(server.requests().len(), 6);
}

#[tokio::test]
async fn dropped_connections_are_resumed_without_another_list() {
    let (server, follower) = followed().await;
    for port in 81..85 {
        server.apply(&service(0, port));
        server.delete::<Service>(NAMESPACE, "service-00001");
        follower.until_same(&truth(&server)).await;
        let before = watches(&server.requests(), "services");
        server.drop_connections().await;
        server.apply(&service(1, port));
        server.apply(&slice(0, port));
        follower.until_same(&truth(&server)).await;
        let after = watches(&server.requests(), "services");
        assert!(after.len() > before.len() && after.last() > before.last(), "{before:?} {after:?}");
    }
    assert_eq!(follower.view().replaced(), [1; 3]);
    assert_eq!(["services", "endpointslices", "nodes"].map(|resource| lists(&server, resource)), [1; 3]);
}

#[tokio::test]
async fn bookmarks_move_the_version_to_resume_from() {
    let (server, _follower) = followed().await;
    let mut attempts = 0;
    loop {
        // Of another kind, so that only bookmarks tell.
        let version = server.apply(&slice(0, 9000 + attempts)).metadata.resource_version.unwrap();
        server.send_bookmarks();
        tokio::task::yield_now().await;
        let before = watches(&server.requests(), "nodes").len();
        server.drop_connections().await;
        server.requested("the watch is resumed", |requests| watches(requests, "nodes").len() > before).await;
        if watches(&server.requests(), "nodes").last().unwrap().to_string() == version {
            return;
        }
        // The connection may have ended before the bookmark was sent.
        attempts += 1;
        assert!(attempts < 50, "the watch is never resumed from a bookmark");
    }
}

#[tokio::test]
async fn gap_is_closed_by_another_list() {
    let (server, follower) = followed().await;
    server.go_down().await;
    server.delete::<Service>(NAMESPACE, "service-00000");
    server.delete::<EndpointSlice>(NAMESPACE, "slice-00000");
    server.delete::<Node>("", NODE);
    server.apply(&service(7, 80));
    server.compact();
    server.come_up().await.unwrap();
    follower.until_same(&truth(&server)).await;
    assert_eq!(follower.view().replaced(), [2; 3]);
}

#[tokio::test]
async fn gap_that_is_told_by_http_status_is_closed_by_another_list() {
    let (server, follower) = followed().await;
    server.inject::<Service>(Verb::Watch, Fault::Gone, 1);
    server.drop_connections().await;
    server.delete::<Service>(NAMESPACE, "service-00000");
    follower.until("services are listed again", |view| view.services.replaced == 2).await;
    follower.until_same(&truth(&server)).await;
    assert_eq!(follower.view().replaced(), [2, 1, 1]);
}

#[tokio::test]
async fn interrupted_lists_tell_nothing() {
    let server = server().await;
    for index in 0..1203 {
        server.apply(&slice(index, 8080));
    }
    server.inject::<EndpointSlice>(Verb::NextPage, Fault::Cut, 1);
    server.inject::<EndpointSlice>(Verb::NextPage, Fault::Status(500), 1);
    server.inject::<Service>(Verb::List, Fault::Cut, 2);
    let follower = Follower::start(&server.kubeconfig()).await;
    follower.until_listed().await;
    server.failed().await;
    follower.until_same(&truth(&server)).await;
    assert_eq!(follower.view().replaced(), [1; 3]);
    assert_eq!(follower.view().changes, 3);
}

#[tokio::test]
async fn list_that_outlives_its_version_is_taken_in_one_piece() {
    let server = server().await;
    for index in 0..1203 {
        server.apply(&slice(index, 8080));
    }
    server.inject::<EndpointSlice>(Verb::NextPage, Fault::Gone, 1);
    let follower = Follower::start(&server.kubeconfig()).await;
    follower.until_listed().await;
    follower.until_same(&truth(&server)).await;
    assert_eq!(follower.view().slices.replaced, 1);
    let lists: Vec<_> =
        server.requests().into_iter().filter(|request| request.is_list("endpointslices")).collect();
    let limits: Vec<_> = lists.iter().map(|request| request.parameter("limit")).collect();
    assert_eq!(limits, [Some("500"), Some("500"), None]);
}

#[tokio::test]
async fn server_errors_are_outlived_and_told_once() {
    let log = Log::capture();
    let server = server().await;
    server.inject::<Service>(Verb::List, Fault::Status(500), 3);
    server.inject::<EndpointSlice>(Verb::Watch, Fault::Status(429), 3);
    let follower = Follower::start(&server.kubeconfig()).await;
    follower.until_listed().await;
    server.failed().await;
    watched(&server).await;
    follower.until_same(&truth(&server)).await;
    assert_eq!(follower.view().replaced(), [1; 3]);
    assert_eq!(log.lines("cannot follow").len(), 2, "{:#?}", log.lines(""));
    log.until(2, "following the API again").await;
    let [services] = &log.lines("WARN")[..1] else { panic!("{:#?}", log.lines("")) };
    assert!(services.contains("Service") && services.contains("the test wants this to fail"), "{services}");
}

#[tokio::test]
async fn server_that_is_not_there_yet_is_waited_for_and_told_once() {
    let log = Log::capture();
    let server = server().await;
    server.go_down().await;
    let follower = Follower::start(&server.kubeconfig()).await;
    log.until(3, "cannot follow").await;
    assert_eq!(log.lines("Connection refused").len(), 3, "{:#?}", log.lines(""));
    assert_eq!(follower.view().changes, 0);
    server.come_up().await.unwrap();
    follower.until_same(&truth(&server)).await;
    log.until(3, "following the API again").await;
    // And whom it asks.
    assert_eq!(log.lines("").len(), 7, "{:#?}", log.lines(""));
}

#[tokio::test]
async fn server_that_goes_away_changes_nothing() {
    let (server, follower) = followed().await;
    let log = Log::capture();
    let before = follower.view().changes;
    server.go_down().await;
    log.until(3, "cannot follow").await;
    assert_eq!(follower.view().changes, before);
    server.apply(&service(5, 80));
    server.come_up().await.unwrap();
    follower.until_same(&truth(&server)).await;
    assert_eq!(follower.view().replaced(), [1; 3]);
}

#[tokio::test]
async fn garbage_in_a_watch_is_followed_by_another_list() {
    for garbage in
        ["} this is no event {", r#"{"type": "ADDED", "object": {"metadata": []}}"#, r#"{"kind": "Other"}"#]
    {
        let (server, follower) = followed().await;
        server.say::<Service>(garbage);
        follower.until("services are listed again", |view| view.services.replaced == 2).await;
        server.apply(&service(0, 81));
        follower.until_same(&truth(&server)).await;
        assert_eq!(follower.view().replaced(), [2, 1, 1]);
    }
}

#[tokio::test]
async fn error_of_the_server_in_a_watch_is_no_gap() {
    let (server, follower) = followed().await;
    server.say::<Service>(
        r#"{"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "storage is (re)initializing", "reason": "InternalError", "code": 500}}"#
            .replace('\n', " ")
            .as_str(),
    );
    server.requested("the watch is resumed", |requests| watches(requests, "services").len() == 2).await;
    server.apply(&service(0, 81));
    follower.until_same(&truth(&server)).await;
    assert_eq!(follower.view().replaced(), [1; 3]);
}

#[tokio::test]
async fn server_that_keeps_failing_at_a_version_is_asked_for_all_anew() {
    let (server, follower) = followed().await;
    server.inject::<Service>(Verb::Watch, Fault::Status(500), 20);
    server.drop_connections().await;
    follower.until("services are listed again", |view| view.services.replaced == 2).await;
    assert_eq!(follower.view().replaced(), [2, 1, 1]);
}

#[tokio::test]
async fn slow_kind_does_not_delay_the_others() {
    let server = server().await;
    server.inject::<EndpointSlice>(Verb::List, Fault::Delay(Duration::from_secs(3600)), 1);
    let follower = Follower::start(&server.kubeconfig()).await;
    follower.until("the others are listed", |view| view.replaced() == [1, 0, 1]).await;
    server.apply(&service(0, 81));
    follower.until("and followed", |view| view.changes == 3).await;
}
