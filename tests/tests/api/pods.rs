//! Pods, which nobody may depend on: kube-proxy's role does not show them (API-11).

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodSpec, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use sluice_tests::apiserver::{ApiServer, Fault, Verb};

use super::{
    cluster::{NAMESPACE, node, service, slice, truth},
    follow::{Follower, NODE, View},
    log::Log,
};

fn pod(name: &str, node: &str) -> Pod {
    Pod {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec { node_name: Some(node.to_owned()), ..PodSpec::default() }),
        status: None,
    }
}

/// A server with one object of each kind, a pod of this node and one of another.
async fn server() -> ApiServer {
    let server = ApiServer::start().await.unwrap();
    server.apply(&service(0, 80));
    server.apply(&slice(0, 8080));
    server.apply(&node(NODE));
    server.apply(&pod("here", NODE));
    server.apply(&pod("there", "node-b"));
    server
}

fn names(view: &View) -> Vec<&str> {
    view.pods.objects.keys().map(|name| name.name.as_str()).collect()
}

#[tokio::test]
async fn pods_of_this_node_are_followed_and_no_others() {
    let server = server().await;
    let follower = Follower::start_with_pods(&server.kubeconfig()).await;
    follower.until("the pod is listed", |view| names(view) == ["here"]).await;
    server.watched::<Pod>(1).await;
    server.apply(&pod("there-2", "node-b"));
    server.apply(&pod("here-2", NODE));
    follower.until("the new pod is seen", |view| names(view) == ["here", "here-2"]).await;
    server.delete::<Pod>(NAMESPACE, "here");
    follower.until("the old pod is gone", |view| names(view) == ["here-2"]).await;
    // A pod that is scheduled comes to be of this node.
    server.apply(&pod("there", NODE));
    follower.until("the scheduled pod is seen", |view| names(view) == ["here-2", "there"]).await;
    let requests = server.requests();
    let of_pods: Vec<_> = requests.iter().filter(|request| request.path.ends_with("/pods")).collect();
    assert_eq!(of_pods.len(), 2, "{requests:#?}");
    for request in of_pods {
        assert_eq!(request.path, "/api/v1/pods");
        assert_eq!(request.parameter("fieldSelector"), Some("spec.nodeName=node-a"));
        assert_eq!(request.parameter("labelSelector"), None);
    }
    assert_eq!(follower.view().pods.replaced, 1);
}

#[tokio::test]
async fn pods_that_are_denied_are_told_once_and_hold_nobody_back() {
    let log = Log::capture();
    let server = server().await;
    server.inject::<Pod>(Verb::List, Fault::Status(403), 2);
    let follower = Follower::start_with_pods(&server.kubeconfig()).await;
    follower.until_listed().await;
    follower.until_same(&truth(&server)).await;
    log.until(1, "cannot follow").await;
    assert_eq!(follower.view().pods.replaced, 0);
    // The others go on meanwhile.
    server.apply(&service(0, 81));
    follower.until_same(&truth(&server)).await;
    // Somebody has thought better of it.
    follower.until("pods are listed after all", |view| names(view) == ["here"]).await;
    assert!(!server.is_about_to_fail());
    log.until(1, "following the API again").await;
    let [told] = &log.lines("cannot follow")[..] else { panic!("{:#?}", log.lines("")) };
    for part in ["WARN", "Pod", "403", "--socket-lb=auto", "list and watch of pods"] {
        assert!(told.contains(part), "{part} is missing: {told}");
    }
    assert_eq!(log.lines("outage: ").len(), 2, "{:#?}", log.lines(""));
}

#[tokio::test]
async fn a_watch_of_pods_that_is_denied_keeps_what_was_listed() {
    let log = Log::capture();
    let server = server().await;
    server.inject::<Pod>(Verb::Watch, Fault::Status(403), 1);
    let follower = Follower::start_with_pods(&server.kubeconfig()).await;
    follower.until("the pod is listed", |view| names(view) == ["here"]).await;
    log.until(1, "cannot follow").await;
    server.apply(&pod("here-2", NODE));
    follower.until("the new pod is seen", |view| names(view) == ["here", "here-2"]).await;
    assert_eq!(follower.view().pods.replaced, 1, "a denial is no gap");
}

#[tokio::test]
async fn pods_that_are_slow_hold_nobody_back() {
    let server = server().await;
    server.inject::<Pod>(Verb::List, Fault::Delay(Duration::from_secs(3600)), 1);
    let follower = Follower::start_with_pods(&server.kubeconfig()).await;
    follower.until_listed().await;
    server.watched::<Service>(1).await;
    server.apply(&service(0, 81));
    follower.until_same(&truth(&server)).await;
    assert_eq!(follower.view().pods.replaced, 0);
}
