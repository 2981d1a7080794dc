//! Much happens, and much goes wrong, at random.

use std::env;

use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use sluice_tests::apiserver::{ApiServer, Fault, Kind, Verb};

use super::{
    cluster::{NAMESPACE, headless, labelled, node, service, slice, truth},
    follow::{Follower, HEADLESS, NODE, PROXY_NAME},
};

/// The sequence that a seed gives.
struct Random(u64);

impl Random {
    /// Of `SLUICE_SEED`, or another each time.
    fn new() -> Self {
        let seed = match env::var("SLUICE_SEED") {
            Ok(seed) => seed.parse().expect("SLUICE_SEED is a number"),
            Err(_) => std::process::id().into(),
        };
        eprintln!("SLUICE_SEED={seed}");
        Self(seed)
    }

    /// SplitMix64: a line, and good enough for any seed.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u16) -> u16 {
        u16::try_from(self.next() % u64::from(limit)).expect("it is below the limit")
    }
}

/// Whatever happens in between, in the end the view is the server's.
#[tokio::test]
async fn churn_with_random_faults_ends_in_the_servers_state() {
    let mut random = Random::new();
    let server = ApiServer::start().await.unwrap();
    for index in 0..OBJECTS {
        server.apply(&service(index, 80));
        server.apply(&slice(index, 8080));
    }
    server.apply(&node(NODE));
    let follower = Follower::start(&server.kubeconfig()).await;
    for round in 0..ROUNDS {
        for _ in 0..random.below(CHANGES_PER_ROUND) {
            change(&server, &mut random);
            if random.below(10) == 0 {
                tokio::task::yield_now().await;
            }
        }
        fault(&server, &mut random).await;
        // Sometimes all settles, sometimes one fault meets the consequences of another.
        if random.below(3) == 0 || round + 1 == ROUNDS {
            follower.until_same(&truth(&server)).await;
        }
    }
}

fn change(server: &ApiServer, random: &mut Random) {
    let index = random.below(OBJECTS);
    let port = i32::from(random.below(60_000)) + 1;
    match random.below(12) {
        0 => server.delete::<Service>(NAMESPACE, &format!("service-{index:05}")),
        1 => server.delete::<EndpointSlice>(NAMESPACE, &format!("slice-{index:05}")),
        2 => apply(server, &labelled(service(index, port), PROXY_NAME)),
        3 => apply(server, &labelled(slice(index, port), HEADLESS)),
        4 => apply(server, &headless(index)),
        5 => apply(server, &labelled(node(NODE), &format!("label-{port}"))),
        6 => apply(server, &node("node-b")),
        7 if index.is_multiple_of(10) => server.delete::<Node>("", NODE),
        n if n % 2 == 0 => apply(server, &service(index, port)),
        _ => apply(server, &slice(index, port)),
    };
}

fn apply<K: Kind>(server: &ApiServer, object: &K) -> bool {
    server.apply(object);
    true
}

async fn fault(server: &ApiServer, random: &mut Random) {
    let times = usize::from(random.below(2)) + 1;
    let fault = match random.below(12) {
        // One at a time of those that wait for their request: else the source does what it should, and backs off.
        fault @ 3..=7 if server.is_about_to_fail() => fault + 5,
        fault => fault,
    };
    match fault {
        0 => server.compact(),
        1 => {
            server.compact();
            server.drop_connections().await;
        }
        2 => {
            server.go_down().await;
            for _ in 0..random.below(CHANGES_PER_ROUND) {
                change(server, random);
                tokio::task::yield_now().await;
            }
            server.come_up().await.unwrap();
        }
        3 => server.inject::<Service>(Verb::Watch, Fault::Status(500), times),
        4 => server.inject::<EndpointSlice>(Verb::List, Fault::Status(429), times),
        5 => server.inject::<EndpointSlice>(Verb::NextPage, Fault::Cut, 1),
        6 => server.inject::<Service>(Verb::NextPage, Fault::Gone, 1),
        7 => server.inject::<EndpointSlice>(Verb::Watch, Fault::Cut, times),
        8 => server.say::<EndpointSlice>("} this is no event {"),
        9 => server.say::<Service>(r#"{"type": "ADDED", "object": {"metadata": []}}"#),
        10 => server.send_bookmarks(),
        _ => server.drop_connections().await,
    }
}

/// Of each of two kinds.
const OBJECTS: u16 = 1000;
const ROUNDS: u16 = 60;
const CHANGES_PER_ROUND: u16 = 100;
