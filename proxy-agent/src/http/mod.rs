//! What the agent answers over HTTP.
//!
//! ```text
//! loop --Progress-----> health   /healthz, /livez        (HZ)
//!      --CheckUpdate--> checks   a port per Service      (HC)
//!      --Metrics------> metrics  /metrics and the like   (MAPI, MET)
//! ```
//!
//! The loop tells and never waits; what is answered is the latest that it has told. Every server listens in the network
//! namespace of the agent, which is the node's.

mod address;
mod checks;
mod health;
mod listen;
mod metrics;
mod serve;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use serde_json::Value;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinHandle,
    time::sleep,
};
use tracing::{debug, info, warn};

pub use self::{
    address::{ParseAddressError, bind_address},
    checks::{CheckAddresses, CheckUpdate},
};
use self::{
    checks::Checks,
    health::{Health, HealthServer},
    listen::listen,
    metrics::MetricsServer,
    serve::{Server, Service},
};
use crate::{
    events::{Event, Events},
    health::{Clock, Progress},
    metrics::{Exposition, HealthMetrics},
};

/// How long after a failure to try to listen again (HZ-03).
const RETRY: Duration = Duration::from_secs(5);

/// What is served where.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpOptions {
    /// Where `/healthz` and `/livez` are; `None`: nowhere.
    pub healthz: Option<SocketAddr>,
    /// Where `/metrics` is; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// Whether the agent ends if it cannot listen at one of these (HZ-03).
    pub hard_fail: bool,
    /// kube-proxy's `syncPeriod`: changes that wait twice as long make the agent unhealthy (HZ-05).
    pub sync_period: Duration,
    /// What `/configz` tells: a `KubeProxyConfiguration`.
    pub configuration: Value,
}

/// Where the answers come from.
#[derive(Debug)]
pub struct Sources {
    /// Name of this node.
    pub node: String,
    /// The clock that progress is told by.
    pub clock: Clock,
    /// How far the loop has got.
    pub progress: watch::Receiver<Progress>,
    /// What is to be answered for Services.
    pub checks: mpsc::UnboundedReceiver<CheckUpdate>,
    /// All metrics.
    pub exposition: Exposition,
    /// Counts answers of the health server.
    pub health_metrics: HealthMetrics,
    /// Whom to tell if a server cannot be started.
    pub events: Events,
}

/// A server could not be started, and that is not to be put up with.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen at {address} ({flag}; --bind-address-hard-fail is set)")]
pub struct BindError {
    /// Where.
    address: SocketAddr,
    /// The flag that says so.
    flag: &'static str,
    #[source]
    source: io::Error,
}

/// The servers. They end when this is dropped.
#[derive(Debug)]
pub struct Servers {
    _servers: Vec<Server>,
    checks: JoinHandle<()>,
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.checks.abort();
    }
}

/// What a server is for, to those who are told that it cannot be started (EVT-03).
#[derive(Clone, Copy)]
struct Purpose {
    flag: &'static str,
    reason: &'static str,
    what: &'static str,
}

const HEALTHZ: Purpose = Purpose {
    flag: "--healthz-bind-address",
    reason: "FailedToStartProxierHealthcheck",
    what: "proxy healthz",
};
const METRICS: Purpose =
    Purpose { flag: "--metrics-bind-address", reason: "FailedToStartMetricServer", what: "metrics server" };

/// Starts all servers. One whose address is taken starts as soon as it is free, unless it is to be an error.
///
/// # Errors
///
/// If `hard_fail` is set and an address cannot be listened at.
pub fn start(options: HttpOptions, sources: Sources) -> Result<Servers, BindError> {
    let HttpOptions { healthz, metrics, hard_fail, sync_period, configuration } = options;
    let Sources { node, clock, progress, checks, exposition, health_metrics, events } = sources;
    let health = Health { clock, limit: sync_period * 2, progress };
    let mut servers = Vec::new();
    if let Some(address) = healthz {
        let service = HealthServer { health: health.clone(), metrics: Arc::new(health_metrics) };
        servers.push(serve(address, HEALTHZ, hard_fail, service, &events)?);
    }
    if let Some(address) = metrics {
        let service = MetricsServer::new(exposition, &configuration);
        servers.push(serve(address, METRICS, hard_fail, service, &events)?);
    }
    let checks = tokio::spawn(Checks::new(node, events, health).run(checks));
    Ok(Servers { _servers: servers, checks })
}

fn serve(
    address: SocketAddr,
    purpose: Purpose,
    hard_fail: bool,
    service: impl Service,
    events: &Events,
) -> Result<Server, BindError> {
    let Purpose { flag, reason, what } = purpose;
    let source = match listen(address) {
        Ok(listener) => {
            debug!(%address, what, "listening");
            return Ok(Server::start(listener, service));
        }
        Err(source) => source,
    };
    let note = format!("failed to start {what} on {address}: {source}");
    events.send(Event::warning(reason, "StartKubeProxy", note));
    if hard_fail {
        return Err(BindError { address, flag, source });
    }
    warn!(%address, what, error = %source, "cannot listen; will try again");
    Ok(Server::start_later(listen_at_last(address, what), service))
}

/// Listens as soon as that is possible.
async fn listen_at_last(address: SocketAddr, what: &'static str) -> TcpListener {
    loop {
        sleep(RETRY).await;
        match listen(address) {
            Ok(listener) => {
                info!(%address, what, "listening at last");
                return listener;
            }
            Err(error) => debug!(%address, what, %error, "still cannot listen"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };

    use super::*;
    use crate::{datapath::Pins, metrics::Metrics};

    fn started(options: HttpOptions) -> (Result<Servers, BindError>, watch::Sender<Progress>) {
        let (sender, progress) = watch::channel(Progress::default());
        let (_, checks) = mpsc::unbounded_channel();
        let metrics = Metrics::default();
        let sources = Sources {
            node: "node-a".to_owned(),
            clock: Clock::start(),
            progress,
            checks,
            exposition: metrics.exposition(&Pins::new(Path::new("/nonexistent"))),
            health_metrics: metrics.health,
            events: Events::logged(),
        };
        (start(options, sources), sender)
    }

    fn options(healthz: Option<SocketAddr>, metrics: Option<SocketAddr>) -> HttpOptions {
        HttpOptions {
            healthz,
            metrics,
            hard_fail: false,
            sync_period: Duration::from_secs(30),
            configuration: Value::Null,
        }
    }

    async fn get(address: SocketAddr, path: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(text)
    }

    /// HZ-03.
    #[tokio::test(start_paused = true)]
    async fn an_address_that_is_taken_is_served_once_it_is_free() {
        let holder = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = holder.local_addr().unwrap();
        let (servers, _progress) = started(options(Some(address), None));
        let _servers = servers.unwrap();
        drop(holder);
        // Time passes by itself while everybody waits, up to the next attempt.
        let text = loop {
            match get(address, "/livez").await {
                Ok(text) => break text,
                Err(_) => sleep(Duration::from_millis(500)).await,
            }
        };
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    }

    #[tokio::test]
    async fn an_address_that_is_taken_is_an_error_if_it_is_to_be_one() {
        let holder = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = holder.local_addr().unwrap();
        for (healthz, metrics, flag) in
            [(Some(address), None, "--healthz-bind-address"), (None, Some(address), "--metrics-bind-address")]
        {
            let (servers, _progress) = started(HttpOptions { hard_fail: true, ..options(healthz, metrics) });
            let error = servers.unwrap_err();
            let text = crate::report(&error);
            assert!(text.contains(flag) && text.contains(&address.to_string()), "{text}");
            assert!(text.contains("in use"), "{text}");
        }
    }
}
