//! Health checks over loopback, as a load balancer asks.

use http_body_util::BodyExt as _;
use proxy_model::ObjectName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
};

use super::*;
use crate::health::{Clock, Progress};

fn name(service: &str, family: Family) -> HealthCheckName {
    let service = ObjectName { namespace: "default".to_owned(), name: service.to_owned() };
    HealthCheckName { service, family }
}

fn check(port: u16, local_endpoints: usize) -> HealthCheck {
    HealthCheck { port: NonZeroU16::new(port).unwrap(), local_endpoints, uid: None }
}

fn health() -> (watch::Sender<Progress>, Health) {
    let mut progress = Progress::default();
    progress.start(Duration::ZERO);
    let (sender, progress) = watch::channel(progress);
    (sender, Health { clock: Clock::start(), limit: Duration::from_secs(60), progress })
}

/// Ports that were free a moment ago.
async fn free_ports<const N: usize>() -> [u16; N] {
    let mut held = Vec::new();
    for _ in 0..N {
        held.push(tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap());
    }
    let ports: Vec<u16> = held.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
    ports.try_into().unwrap()
}

/// The status that a port answers with, or `None` if nobody does.
async fn ask(ip: &str, port: u16) -> Option<u16> {
    let mut stream = TcpStream::connect((ip, port)).await.ok()?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    Some(text.split(' ').nth(1).unwrap().parse().unwrap())
}

fn checks() -> (watch::Sender<Progress>, Checks) {
    let (progress, health) = health();
    (progress, Checks::new("node-a".to_owned(), Events::logged(), health))
}

async fn tell(checks: &mut Checks, changes: Vec<(HealthCheckName, Option<HealthCheck>)>) {
    checks.apply(CheckUpdate { checks: changes, addresses: None }).await;
}

async fn at(checks: &mut Checks, v4: Option<&[&str]>) {
    let v4 = v4.map(|ips| ips.iter().map(|ip| ip.parse().unwrap()).collect());
    checks.apply(CheckUpdate { checks: vec![], addresses: Some([v4, None]) }).await;
}

/// HC-03, HC-05 to HC-07.
#[tokio::test]
async fn answers_are_kube_proxys_to_the_byte() {
    let (progress, health) = health();
    let count = Arc::new(AtomicUsize::new(2));
    let server = CheckServer { name: name("web", Family::Ipv4), count: Arc::clone(&count), health };
    let ask = async |method: &str, path: &str| {
        let request = Request::builder().method(method).uri(path).body(()).unwrap();
        let answer = server.answer(request).await;
        let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(header("content-type"), "application/json");
        assert_eq!(header("x-content-type-options"), "nosniff");
        let (status, weight) = (answer.status().as_u16(), header("x-load-balancing-endpoint-weight"));
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, weight, String::from_utf8(body.to_vec()).unwrap())
    };
    let body = |count: usize, healthy: bool| {
        format!(
            "{{\n\t\"service\": {{\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"web\"\n\t}},\n\
             \t\"localEndpoints\": {count},\n\t\"serviceProxyHealthy\": {healthy}\n}}"
        )
    };
    for (method, path) in
        [("GET", "/"), ("GET", "/healthz"), ("HEAD", "/x?y"), ("POST", "/"), ("OPTIONS", "/")]
    {
        assert_eq!(ask(method, path).await, (200, "2".to_owned(), body(2, true)));
    }
    progress.send_modify(|progress| progress.queue(Duration::ZERO));
    assert_eq!(ask("GET", "/").await.0, 200, "not late yet");
    let late = Health { limit: Duration::ZERO, ..server.health.clone() };
    let late = CheckServer { health: late, ..server.clone() };
    let answer = late.answer(Request::new(())).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    let text = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(text, body(2, false).as_bytes());
    count.store(0, Ordering::Relaxed);
    assert_eq!(ask("GET", "/").await, (503, "0".to_owned(), body(0, true)));
}

/// HC-01, HC-08, HC-09.
#[tokio::test]
async fn ports_open_and_close_as_they_are_wanted() {
    let (_progress, mut checks) = checks();
    let [first, second] = free_ports().await;
    let (web, web6) = (name("web", Family::Ipv4), name("web", Family::Ipv6));
    tell(&mut checks, vec![(web.clone(), Some(check(first, 1)))]).await;
    assert_eq!(ask("127.0.0.1", first).await, None, "nobody has said at which addresses");
    at(&mut checks, None).await;
    assert_eq!(ask("127.0.0.1", first).await, Some(200));
    assert_eq!(ask("::1", first).await, None, "families have checks of their own");
    tell(&mut checks, vec![(web6.clone(), Some(check(first, 0)))]).await;
    assert_eq!((ask("127.0.0.1", first).await, ask("::1", first).await), (Some(200), Some(503)));
    tell(&mut checks, vec![(web.clone(), Some(check(second, 1)))]).await;
    assert_eq!((ask("127.0.0.1", first).await, ask("127.0.0.1", second).await), (None, Some(200)));
    tell(&mut checks, vec![(web, None), (web6, None)]).await;
    assert_eq!((ask("::1", first).await, ask("127.0.0.1", second).await), (None, None));
    assert!(checks.open.is_empty() && checks.failed.is_empty());
}

#[tokio::test]
async fn a_port_that_closes_takes_its_connections_with_it() {
    let (_progress, mut checks) = checks();
    let [port] = free_ports().await;
    let web = name("web", Family::Ipv4);
    at(&mut checks, None).await;
    tell(&mut checks, vec![(web.clone(), Some(check(port, 1)))]).await;
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = [0; 15];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    tell(&mut checks, vec![(web, None)]).await;
    // What was sent before comes first.
    let mut rest = Vec::new();
    drop(stream.read_to_end(&mut rest).await);
    assert!(!rest.is_empty());
}

/// HC-10.
#[tokio::test]
async fn a_port_that_is_taken_is_tried_again() {
    let (_progress, mut checks) = checks();
    at(&mut checks, None).await;
    let holder = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = holder.local_addr().unwrap().port();
    let web = name("web", Family::Ipv4);
    tell(&mut checks, vec![(web.clone(), Some(check(port, 3)))]).await;
    assert_eq!(checks.failed.keys().collect::<Vec<_>>(), [&web]);
    // Another Service's is none the worse for it.
    let [other] = free_ports().await;
    tell(&mut checks, vec![(name("other", Family::Ipv4), Some(check(other, 1)))]).await;
    assert_eq!(ask("127.0.0.1", other).await, Some(200));
    drop(holder);
    tell(&mut checks, vec![]).await;
    assert_eq!((ask("127.0.0.1", port).await, checks.failed.len()), (Some(200), 0));
    // It may also just go.
    let holder = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = holder.local_addr().unwrap().port();
    tell(&mut checks, vec![(web.clone(), Some(check(taken, 3)))]).await;
    assert_eq!((ask("127.0.0.1", port).await, checks.failed.len()), (None, 1));
    tell(&mut checks, vec![(web, None)]).await;
    assert!(checks.failed.is_empty());
}

#[tokio::test]
async fn a_port_goes_over_from_one_service_to_another() {
    let (_progress, mut checks) = checks();
    let [port] = free_ports().await;
    at(&mut checks, None).await;
    tell(&mut checks, vec![(name("b", Family::Ipv4), Some(check(port, 1)))]).await;
    let handover = vec![(name("a", Family::Ipv4), Some(check(port, 0))), (name("b", Family::Ipv4), None)];
    tell(&mut checks, handover).await;
    assert_eq!((ask("127.0.0.1", port).await, checks.failed.len()), (Some(503), 0));
}

/// HC-02, HC-10.
#[tokio::test]
async fn checks_are_answered_at_the_addresses_that_are_told() {
    let (_progress, mut checks) = checks();
    let [port] = free_ports().await;
    tell(&mut checks, vec![(name("web", Family::Ipv4), Some(check(port, 1)))]).await;
    let seen = async || (ask("127.0.0.1", port).await.is_some(), ask("127.0.0.2", port).await.is_some());
    for (ips, expected) in [
        (Some(&["127.0.0.1"][..]), (true, false)),
        (Some(&["127.0.0.1", "127.0.0.2"]), (true, true)),
        (Some(&["127.0.0.2"]), (false, true)),
        (Some(&[]), (false, false)),
        (None, (true, true)),
        // Nobody's address: none of them is listened on.
        (Some(&["127.0.0.1", "192.0.2.1"]), (false, false)),
        (Some(&["127.0.0.1"]), (true, false)),
    ] {
        at(&mut checks, ips).await;
        assert_eq!(seen().await, expected, "{ips:?}");
    }
}
