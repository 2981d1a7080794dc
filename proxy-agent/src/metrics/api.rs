//! How well the API server is followed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::Counter, family::Family, gauge::ConstGauge},
    registry::Registry,
};

use super::Labels;

/// What those count who talk to the API server.
#[derive(Clone, Debug)]
pub struct ApiMetrics {
    /// About Services.
    pub services: KindMetrics,
    /// About EndpointSlices.
    pub slices: KindMetrics,
    /// About this node's Node.
    pub nodes: KindMetrics,
    /// About this node's Pods, if they are followed.
    pub pods: KindMetrics,
    lists: Family<Labels<1>, Counter>,
    watches: Family<Labels<1>, Counter>,
    failures: Family<Labels<1>, Counter>,
    /// Requests by method, host and answer, as client-go counts them.
    requests: Family<Vec<(&'static str, String)>, Counter>,
}

/// What is counted about the objects of a kind.
#[derive(Clone, Debug)]
pub struct KindMetrics {
    /// When the newest view was confirmed.
    confirmed: Arc<Confirmation>,
    /// Complete lists.
    pub lists: Counter,
    /// Watches that began.
    pub watches: Counter,
    /// Requests and watches that failed.
    pub failures: Counter,
}

impl Default for ApiMetrics {
    fn default() -> Self {
        let [lists, watches, failures] = [(); 3].map(|()| Family::<Labels<1>, Counter>::default());
        let [services, slices, nodes, pods] = KINDS.map(|kind| KindMetrics {
            confirmed: Arc::default(),
            lists: lists.get_or_create_owned(&kind),
            watches: watches.get_or_create_owned(&kind),
            failures: failures.get_or_create_owned(&kind),
        });
        Self { services, slices, nodes, pods, lists, watches, failures, requests: Family::default() }
    }
}

/// The label of each kind.
const KINDS: [Labels<1>; 4] =
    [[("kind", "Service")], [("kind", "EndpointSlice")], [("kind", "Node")], [("kind", "Pod")]];

/// A time that only moves forward; `None` while it has not begun.
#[derive(Debug)]
struct Confirmation {
    origin: Instant,
    /// Microseconds after the origin, plus one.
    since: AtomicU64,
}

impl Default for Confirmation {
    fn default() -> Self {
        Self { origin: Instant::now(), since: AtomicU64::new(0) }
    }
}

impl KindMetrics {
    /// The server has said how the objects are, or were at this time, no earlier.
    pub fn confirm(&self, at: Instant) {
        let since = at.saturating_duration_since(self.confirmed.origin).as_micros();
        let since = u64::try_from(since).unwrap_or(u64::MAX - 1) + 1;
        self.confirmed.since.fetch_max(since, Ordering::Relaxed);
    }

    /// How old the newest view is that the server has confirmed, if there is one.
    #[must_use]
    pub fn age(&self, now: Instant) -> Option<Duration> {
        let since = self.confirmed.since.load(Ordering::Relaxed).checked_sub(1)?;
        Some(now.saturating_duration_since(self.confirmed.origin + Duration::from_micros(since)))
    }
}

impl ApiMetrics {
    /// A request was answered with this HTTP status, or not at all.
    pub fn request(&self, method: &str, host: &str, status: Option<u16>) {
        let code = status.map_or_else(|| "<error>".to_owned(), |status| status.to_string());
        let labels = vec![("code", code), ("host", host.to_owned()), ("method", method.to_owned())];
        self.requests.get_or_create(&labels).inc();
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let Self { lists, watches, failures, requests, .. } = self;
        registry.register("sluice_api_lists", "Complete lists of objects", lists.clone());
        let help = "Watches that began, resumed ones among them";
        registry.register("sluice_api_watches", help, watches.clone());
        registry.register("sluice_api_failures", "Lists and watches that failed", failures.clone());
        registry.register_collector(Box::new(Ages(self.clone())));
        let help = "Requests to the API server by HTTP status code, host and method";
        registry.register("rest_client_requests", help, requests.clone());
    }
}

/// The ages of views.
#[derive(Debug)]
struct Ages(ApiMetrics);

impl Collector for Ages {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let help = "Age of the newest view of the API that the server has confirmed.";
        let now = Instant::now();
        let mut metric =
            encoder.encode_descriptor("sluice_api_view_age_seconds", help, None, MetricType::Gauge)?;
        let ApiMetrics { services, slices, nodes, pods, .. } = &self.0;
        for (kind, labels) in [services, slices, nodes, pods].into_iter().zip(&KINDS) {
            if let Some(age) = kind.age(now) {
                ConstGauge::new(age.as_secs_f64()).encode(metric.encode_family(labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_ages_from_its_newest_confirmation() {
        let kind = ApiMetrics::default().services;
        let start = kind.confirmed.origin;
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(kind.age(at(9)), None);
        kind.confirm(at(0));
        assert_eq!(kind.age(at(9)), Some(Duration::from_secs(9)));
        kind.confirm(at(5));
        kind.confirm(at(3));
        assert_eq!(kind.age(at(9)), Some(Duration::from_secs(4)));
        assert_eq!(kind.age(at(4)), Some(Duration::ZERO));
    }
}
