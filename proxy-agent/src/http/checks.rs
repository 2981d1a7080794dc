//! Health checks of load balancers: a port for every Service that asks for one, in every family (HC).
//!
//! One task owns the sockets. It is told what to listen on and what to answer, in this order, after the tables are written
//! (HC-08).

mod open;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::NonZeroU16,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hyper::{
    Request, StatusCode,
    header::{HeaderName, HeaderValue},
};
use proxy_model::{Family, HealthCheck, HealthCheckName};
use serde::Serialize;
use serde_json::{Serializer, ser::PrettyFormatter};
use tokio::{sync::mpsc, time::sleep};

use self::open::Open;
use super::{
    health::Health,
    serve::{Answer, JSON, Service, answer},
};
use crate::events::{Event, Events};

/// How long after a failure to try again, if nothing else happens.
const RETRY: Duration = Duration::from_secs(5);

/// Which addresses checks are answered at, in the order of [`Family::ALL`]; `None`: at all.
pub type CheckAddresses = [Option<BTreeSet<IpAddr>>; 2];

/// What is to be another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckUpdate {
    /// Checks that are new or changed, or gone.
    pub checks: Vec<(HealthCheckName, Option<HealthCheck>)>,
    /// Where they are answered, if that is new.
    pub addresses: Option<CheckAddresses>,
}

/// All checks.
pub(super) struct Checks {
    node: String,
    events: Events,
    health: Health,
    addresses: CheckAddresses,
    wanted: BTreeMap<HealthCheckName, HealthCheck>,
    open: BTreeMap<HealthCheckName, Open>,
    /// Checks that cannot be answered, and why.
    failed: BTreeMap<HealthCheckName, String>,
}

impl Checks {
    /// None at first, and no address to answer at.
    pub(super) fn new(node: String, events: Events, health: Health) -> Self {
        Self {
            node,
            events,
            health,
            addresses: [const { Some(BTreeSet::new()) }; 2],
            wanted: BTreeMap::new(),
            open: BTreeMap::new(),
            failed: BTreeMap::new(),
        }
    }

    /// Does what it is told until nobody is left who could.
    pub(super) async fn run(mut self, mut updates: mpsc::UnboundedReceiver<CheckUpdate>) {
        loop {
            let update = tokio::select! {
                update = updates.recv() => match update {
                    Some(update) => update,
                    None => return,
                },
                () = sleep(RETRY), if !self.failed.is_empty() => CheckUpdate::default(),
            };
            self.apply(update).await;
        }
    }

    /// Closes, opens, and then says how many endpoints there are. What failed before is tried again.
    async fn apply(&mut self, update: CheckUpdate) {
        let CheckUpdate { checks, addresses } = update;
        let mut touched: BTreeSet<HealthCheckName> = self.failed.keys().cloned().collect();
        if let Some(addresses) = addresses {
            self.addresses = addresses;
            touched.extend(self.wanted.keys().cloned());
        }
        for (name, check) in checks {
            match check {
                Some(check) => self.wanted.insert(name.clone(), check),
                None => self.wanted.remove(&name),
            };
            touched.insert(name);
        }
        // All that is to be closed first: one Service may get the port of another.
        for name in &touched {
            self.close(name).await;
        }
        for name in &touched {
            self.open(name).await;
        }
        for name in &touched {
            if let (Some(open), Some(check)) = (self.open.get(name), self.wanted.get(name)) {
                open.count(check.local_endpoints);
            }
        }
    }

    async fn close(&mut self, name: &HealthCheckName) {
        let wanted = self.wanted.get(name).map(|check| check.port);
        let addresses = listened(&self.addresses, name.family);
        let Some(open) = self.open.get_mut(name) else { return };
        if Some(open.port()) == wanted {
            open.close_others(&addresses).await;
        } else if let Some(open) = self.open.remove(name) {
            open.close().await;
        }
    }

    async fn open(&mut self, name: &HealthCheckName) {
        let before = self.failed.remove(name);
        let Some(HealthCheck { port, uid, .. }) = self.wanted.get(name).cloned() else { return };
        let open = self.open.entry(name.clone()).or_insert_with(|| Open::new(port));
        let server = CheckServer { name: name.clone(), count: open.counter(), health: self.health.clone() };
        let Err((address, error)) = open.open(&listened(&self.addresses, name.family), &server) else {
            if before.is_some() {
                tracing::info!(service = %name.service, %port, "the health check is answered again");
            }
            return;
        };
        // HC-10: a check that is answered at some addresses only would be taken for a dead node at the others.
        if let Some(open) = self.open.remove(name) {
            open.close().await;
        }
        let failure = format!("{address}: {error}");
        if before.as_ref() != Some(&failure) {
            tracing::warn!(service = %name.service, %address, %error, "cannot answer health checks; will try again");
            self.events.send(self.failure(name, port, uid, &failure));
        }
        self.failed.insert(name.clone(), failure);
    }

    /// EVT-02.
    fn failure(&self, name: &HealthCheckName, port: NonZeroU16, uid: Option<String>, cause: &str) -> Event {
        let note = format!(
            "node {} failed to start healthcheck {:?} on port {port}: {cause}",
            self.node,
            name.service.to_string()
        );
        Event::warning("FailedToStartServiceHealthcheck", "Listen", note)
            .about_service(name.service.clone(), uid)
    }
}

/// The addresses to listen on: the wildcard if it is all.
fn listened(addresses: &CheckAddresses, family: Family) -> BTreeSet<IpAddr> {
    let [v4, v6] = addresses;
    let (own, wildcard) = match family {
        Family::Ipv4 => (v4, IpAddr::from([0; 4])),
        Family::Ipv6 => (v6, IpAddr::from([0; 16])),
    };
    own.clone().unwrap_or_else(|| BTreeSet::from([wildcard]))
}

/// Answers for one Service, whatever the path and method (HC-03).
#[derive(Clone, Debug)]
struct CheckServer {
    name: HealthCheckName,
    count: Arc<AtomicUsize>,
    health: Health,
}

/// How many endpoints there are, also for load balancers that send traffic in proportion (HC-06).
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// The JSON that kube-proxy answers with (HC-07).
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
    service: Name<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct Name<'a> {
    namespace: &'a str,
    name: &'a str,
}

impl Service for CheckServer {
    async fn answer(&self, _: Request<()>) -> Answer {
        let count = self.count.load(Ordering::Relaxed);
        let healthy = self.health.is_healthy();
        let service = Name { namespace: &self.name.service.namespace, name: &self.name.service.name };
        let report = Report { service, local_endpoints: count, service_proxy_healthy: healthy };
        // HC-05
        let status = if count > 0 && healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let mut answer = answer(status, JSON, with_tabs(&report));
        answer.headers_mut().insert(WEIGHT, HeaderValue::from(count));
        answer
    }
}

fn with_tabs(value: &impl Serialize) -> Vec<u8> {
    let mut text = Vec::new();
    let written =
        value.serialize(&mut Serializer::with_formatter(&mut text, PrettyFormatter::with_indent(b"\t")));
    debug_assert!(written.is_ok(), "plain data has a JSON form, and memory takes it");
    text
}

#[cfg(test)]
mod tests;
