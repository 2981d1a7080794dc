//! What has to work with any server.

use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};

use sluice_tests::apiserver::ApiServer;

use super::{
    cluster::{Cluster, NAMESPACE, headless, labelled, node, service, slice},
    follow::{Follower, HEADLESS, NODE, PROXY_NAME, View},
    real::RealServer,
};

/// Fills a cluster with some of everything, selected or not.
async fn fill(cluster: &Cluster) {
    for index in 0..4 {
        cluster.apply(&service(index, 80)).await;
        cluster.apply(&slice(index, 8080)).await;
    }
    cluster.apply(&headless(0)).await;
    cluster.apply(&labelled(service(9, 80), PROXY_NAME)).await;
    cluster.apply(&labelled(slice(9, 8080), HEADLESS)).await;
    cluster.apply(&node(NODE)).await;
    cluster.apply(&node("node-b")).await;
}

/// The first lists arrive whole, each as one replacement.
async fn first_lists(cluster: &Cluster) {
    fill(cluster).await;
    let follower = Follower::start(&cluster.kubeconfig()).await;
    let view = follower.until_listed().await;
    assert_eq!(view.replaced(), [1; 3]);
    assert_eq!(view.nodes.objects.len(), 1, "only the own node");
    follower.until_same(&cluster.truth().await).await;
}

/// More than one page of a kind is still one replacement.
async fn pages(cluster: &Cluster) {
    for index in 0..1203 {
        cluster.apply(&slice(index, 8080)).await;
    }
    let follower = Follower::start(&cluster.kubeconfig()).await;
    let view = follower.until_listed().await;
    assert_eq!(view.slices.replaced, 1);
    assert!(view.slices.objects.len() >= 1203);
    follower.until_same(&cluster.truth().await).await;
    for index in 0..1203 {
        cluster.delete::<EndpointSlice>(NAMESPACE, &format!("slice-{index:05}")).await;
    }
    follower.until_same(&cluster.truth().await).await;
}

/// Objects that come, change and go do so in the view.
async fn changes(cluster: &Cluster) {
    fill(cluster).await;
    let follower = Follower::start(&cluster.kubeconfig()).await;
    follower.until_listed().await;
    cluster.apply(&service(1, 81)).await;
    cluster.apply(&service(7, 80)).await;
    cluster.delete::<Service>(NAMESPACE, "service-00002").await;
    cluster.apply(&slice(1, 8081)).await;
    cluster.apply(&slice(7, 8080)).await;
    cluster.delete::<EndpointSlice>(NAMESPACE, "slice-00002").await;
    cluster.apply(&labelled(node(NODE), "zone")).await;
    follower.until_same(&cluster.truth().await).await;
    cluster.delete::<Node>("", NODE).await;
    follower.until_same(&cluster.truth().await).await;
    let view = follower.view();
    assert_eq!((view.replaced(), view.nodes.objects.len()), ([1; 3], 0));
}

/// An object that gets the label of another proxy is gone, and back when it loses it.
async fn labels(cluster: &Cluster) {
    fill(cluster).await;
    let follower = Follower::start(&cluster.kubeconfig()).await;
    follower.until_listed().await;
    let has =
        |name: &'static str| move |view: &View| view.services.objects.keys().any(|key| key.name == name);
    cluster.apply(&labelled(service(1, 80), PROXY_NAME)).await;
    follower.until("the service is gone", |view| !has("service-00001")(view)).await;
    cluster.apply(&service(1, 80)).await;
    follower.until("the service is back", has("service-00001")).await;
    cluster.apply(&service(9, 80)).await;
    follower.until("the other is there", has("service-00009")).await;
    cluster.apply(&labelled(slice(1, 8080), HEADLESS)).await;
    cluster.apply(&slice(9, 8080)).await;
    follower.until_same(&cluster.truth().await).await;
    assert_eq!(follower.view().replaced(), [1; 3]);
}

/// A crash of the server, and what happens around it, is made good for.
async fn crash(cluster: &mut Cluster) {
    fill(cluster).await;
    let follower = Follower::start(&cluster.kubeconfig()).await;
    follower.until_listed().await;
    let before = follower.view().changes;
    cluster.apply(&service(1, 83)).await;
    cluster.crash().await;
    cluster.apply(&service(2, 83)).await;
    cluster.delete::<Service>(NAMESPACE, "service-00003").await;
    cluster.apply(&slice(1, 8083)).await;
    cluster.delete::<EndpointSlice>(NAMESPACE, "slice-00003").await;
    follower.until_same(&cluster.truth().await).await;
    assert!(follower.view().changes > before);
}

async fn in_process() -> Cluster {
    Cluster::InProcess(ApiServer::start().await.unwrap())
}

#[tokio::test]
async fn first_lists_arrive_whole() {
    first_lists(&in_process().await).await;
}

#[tokio::test]
async fn pages_are_one_list() {
    pages(&in_process().await).await;
}

#[tokio::test]
async fn changes_are_followed() {
    changes(&in_process().await).await;
}

#[tokio::test]
async fn labels_take_objects_away_and_bring_them_back() {
    labels(&in_process().await).await;
}

#[tokio::test]
async fn crash_of_the_server_loses_nothing() {
    crash(&mut in_process().await).await;
}

#[tokio::test]
async fn real_kube_apiserver_is_followed() {
    let Some(server) = RealServer::start().await else {
        eprintln!("skipped: real kube-apiserver: KUBEBUILDER_ASSETS not set");
        return;
    };
    let mut cluster = Cluster::Real(server);
    first_lists(&cluster).await;
    changes(&cluster).await;
    labels(&cluster).await;
    crash(&mut cluster).await;
    pages(&cluster).await;
}
