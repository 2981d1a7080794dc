//! What is answered, and what is told the cluster.

use prometheus_client::{
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::Labels;

/// Answers of the health server (MET-12, MET-13).
#[derive(Clone, Debug, Default)]
pub struct HealthMetrics {
    /// To `/healthz`, by status code.
    pub healthz: StatusCounter,
    /// To `/livez`, by status code.
    pub livez: StatusCounter,
}

/// Answers that say whether something is well.
#[derive(Clone, Debug, Default)]
pub struct StatusCounter(Family<Labels<1>, Counter>);

impl StatusCounter {
    /// One more: 200 if all is well, 503 if not.
    pub fn count(&self, well: bool) {
        self.0.get_or_create(&[("code", if well { "200" } else { "503" })]).inc();
    }
}

impl HealthMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("kubeproxy_proxy_healthz", "Answers to /healthz", self.healthz.0.clone());
        registry.register("kubeproxy_proxy_livez", "Answers to /livez", self.livez.0.clone());
    }
}

/// What became of Events.
#[derive(Clone, Debug, Default)]
pub struct EventMetrics(Family<Labels<1>, Counter>);

impl EventMetrics {
    /// One more that became this: `sent`, `suppressed`, `failed` or `dropped`.
    pub fn count(&self, result: &'static str) {
        self.0.get_or_create(&[("result", result)]).inc();
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("sluice_events", "Events by what became of them", self.0.clone());
    }
}
