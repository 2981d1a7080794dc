//! API servers that stand in for each other, and how often they are asked.

use std::time::Duration;

use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use proxy_agent::watch::{ApiOptions, RequestLimit};
use sluice_tests::apiserver::ApiServer;
use tokio::time::Instant;

use super::{
    cluster::{node, service, slice, truth},
    follow::{Follower, NODE},
    gate::{Gate, Way},
    log::Log,
};

async fn server() -> ApiServer {
    let server = ApiServer::start().await.unwrap();
    server.apply(&service(0, 80));
    server.apply(&slice(0, 8080));
    server.apply(&node(NODE));
    server
}

async fn follow(gates: &[&Gate]) -> Follower {
    let servers = gates.iter().map(|gate| gate.uri()).collect();
    Follower::with(&ApiOptions { servers, ..ApiOptions::default() }).await
}

async fn watched(server: &ApiServer) {
    server.watched::<Service>(1).await;
    server.watched::<EndpointSlice>(1).await;
    server.watched::<Node>(1).await;
}

const SILENT: &str = "an API server does not answer";

#[tokio::test]
async fn a_server_that_is_not_there_is_passed_over_and_told_once() {
    let log = Log::capture();
    let server = server().await;
    let (mut dead, mut gone) =
        (Gate::open(&server, Way::Through).await, Gate::open(&server, Way::Through).await);
    dead.shut().await;
    gone.shut().await;
    let alive = Gate::open(&server, Way::Through).await;
    let follower = follow(&[&dead, &gone, &alive]).await;
    follower.until_same(&truth(&server)).await;
    watched(&server).await;
    for silent in [&dead, &gone] {
        let lines = log.lines(&format!("server={}", silent.uri()));
        assert_eq!(lines.len(), 1, "{lines:#?}");
        assert!(lines[0].contains(SILENT) && lines[0].contains("Connection refused"), "{lines:#?}");
    }
    // Nobody was without an answer.
    assert_eq!(log.lines("cannot follow"), [""; 0]);
}

#[tokio::test]
async fn a_server_that_is_unavailable_is_passed_over() {
    let log = Log::capture();
    let server = server().await;
    let down = Gate::open(&server, Way::Unavailable).await;
    let alive = Gate::open(&server, Way::Through).await;
    let follower = follow(&[&down, &alive]).await;
    follower.until_same(&truth(&server)).await;
    assert!(log.lines(SILENT)[0].contains("503"), "{:#?}", log.lines(""));
    assert_eq!(log.lines("cannot follow"), [""; 0]);
}

#[tokio::test]
async fn a_server_that_hangs_is_passed_over() {
    let log = Log::capture();
    let server = server().await;
    let hanging = Gate::open(&server, Way::Nowhere).await;
    let alive = Gate::open(&server, Way::Through).await;
    let follower = follow(&[&hanging, &alive]).await;
    follower.until_same(&truth(&server)).await;
    assert!(log.lines(SILENT)[0].contains("no answer in 10s"), "{:#?}", log.lines(""));
}

#[tokio::test]
async fn watches_resume_at_another_server_and_come_back_when_that_goes() {
    let server = server().await;
    let mut first = Gate::open(&server, Way::Through).await;
    let mut second = Gate::open(&server, Way::Through).await;
    second.shut().await;
    let follower = follow(&[&first, &second]).await;
    follower.until_listed().await;
    watched(&server).await;
    for port in [81, 82, 83, 84] {
        let (open, shut) = if port % 2 == 1 { (&mut second, &mut first) } else { (&mut first, &mut second) };
        open.reopen(Way::Through).await;
        shut.shut().await;
        server.apply(&service(0, port));
        server.apply(&slice(1, port));
        follower.until_same(&truth(&server)).await;
    }
    // Versions are the same everywhere, so nothing has to be listed again.
    assert_eq!(follower.view().replaced(), [1; 3]);
}

#[tokio::test]
async fn servers_that_are_all_away_are_waited_for() {
    let log = Log::capture();
    let server = server().await;
    let (mut first, mut second) =
        (Gate::open(&server, Way::Through).await, Gate::open(&server, Way::Through).await);
    first.shut().await;
    second.shut().await;
    let follower = follow(&[&first, &second]).await;
    log.until(3, "cannot follow").await;
    assert_eq!((log.lines(SILENT).len(), follower.view().changes), (2, 0), "{:#?}", log.lines(""));
    second.reopen(Way::Through).await;
    follower.until_same(&truth(&server)).await;
    log.until(1, "the API server answers again").await;
    log.until(3, "following the API again").await;
}

/// API-13.
#[tokio::test]
async fn requests_beyond_the_burst_wait_for_their_turn() {
    let server = server().await;
    // Lists of several pages, which count once.
    for index in 0..1100 {
        server.apply(&slice(index, 8080));
    }
    let gate = Gate::open(&server, Way::Through).await;
    let limit = Some(RequestLimit { per_second: 2.0, burst: 1 });
    let begin = Instant::now();
    let follower =
        Follower::with(&ApiOptions { servers: vec![gate.uri()], limit, ..ApiOptions::default() }).await;
    follower.until_same(&truth(&server)).await;
    watched(&server).await;
    // Three lists and three watches, of which the first request waits for nothing.
    assert!(begin.elapsed() >= Duration::from_millis(2450), "{:?}", begin.elapsed());
    assert_eq!(server.requests().iter().filter(|request| request.is_list("endpointslices")).count(), 3);
}
