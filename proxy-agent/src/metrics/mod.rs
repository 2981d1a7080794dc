//! Every metric of the agent: what it is called, who counts it, and how it is written down.
//!
//! Others are handed what they count ([`LoopMetrics`], [`ApiMetrics`], ...) and know nothing of names. What the kernel counts
//! is read when somebody asks, and nowhere else.
//!
//! Names that begin with `kubeproxy_` mean what they mean in kube-proxy (MET); all others are Sluice's own.

mod api;
mod audits;
mod exposition;
mod kernel;
mod process;
mod rounds;
mod servers;

use prometheus_client::{
    metrics::{family::Family, histogram::Histogram, info::Info},
    registry::Registry,
};
use proxy_common::LAYOUT_VERSION;
use proxy_model::Family as IpFamily;

use crate::datapath::Pins;

pub use self::{
    api::{ApiMetrics, KindMetrics},
    audits::Verdict,
    exposition::{Exposition, Format},
    rounds::{Devices, LoopMetrics, Standing},
    servers::{EventMetrics, HealthMetrics},
};

/// Labels, by name and value.
type Labels<const N: usize> = [(&'static str, &'static str); N];

/// A metric for each IP family, in the order of [`IpFamily::ALL`].
type ByFamily<M> = [M; 2];

/// What everybody counts.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// The loop.
    pub rounds: LoopMetrics,
    /// Those who follow the API.
    pub api: ApiMetrics,
    /// The health server.
    pub health: HealthMetrics,
    /// Those who tell the cluster.
    pub events: EventMetrics,
}

impl Metrics {
    /// All of it under its names, with what the kernel counts below `pins`.
    #[must_use]
    pub fn exposition(&self, pins: &Pins) -> Exposition {
        let Self { rounds, api, health, events } = self;
        let mut registry = Registry::default();
        rounds.register(&mut registry);
        api.register(&mut registry);
        health.register(&mut registry);
        events.register(&mut registry);
        registry.register_collector(Box::new(kernel::Kernel::new(pins.clone())));
        registry.register_collector(Box::new(process::Process));
        let build = Info::new([
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("layout", LAYOUT_VERSION.to_string()),
        ]);
        registry.register("sluice_build", "Version of the agent, and of the tables' layout", build);
        Exposition::new(registry, rounds.fills.clone(), pins.clone())
    }
}

/// The label that kube-proxy has for a family.
fn ip_family(family: IpFamily) -> Labels<1> {
    [("ip_family", family.as_str())]
}

/// A histogram for each IP family.
#[derive(Clone, Debug)]
struct Histograms {
    all: Family<Labels<1>, Histogram>,
    by_family: ByFamily<Histogram>,
}

impl Histograms {
    fn new(constructor: fn() -> Histogram) -> Self {
        let all = Family::new_with_constructor(constructor);
        let by_family = IpFamily::ALL.map(|family| all.get_or_create_owned(&ip_family(family)));
        Self { all, by_family }
    }
}

/// Buckets of kube-proxy's durations of work, in seconds (MET-30).
fn work_buckets() -> Histogram {
    Histogram::new(prometheus_client::metrics::histogram::exponential_buckets(0.001, 2.0, 15))
}

/// Buckets of kube-proxy's programming latency, in seconds (MET-31).
fn latency_buckets() -> Histogram {
    let steps = |from: u16, to: u16, step: u16| (from..=to).step_by(step.into()).map(f64::from);
    let buckets = [0.25, 0.5].into_iter().chain(steps(1, 59, 1)).chain(steps(60, 115, 5));
    Histogram::new(buckets.chain(steps(120, 300, 30)))
}
