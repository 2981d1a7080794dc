//! What audits of the tables have found.

use std::{collections::BTreeMap, sync::atomic::AtomicU64};

use k8s_openapi::jiff::Timestamp;
use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::Labels;

/// What an audit has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// How many entries were not as they had been written, by table. They are again.
    pub repaired: BTreeMap<&'static str, usize>,
    /// Whether every table could be looked at.
    pub is_complete: bool,
}

impl Verdict {
    /// Whether the tables contain what was written.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.is_complete && self.repaired.is_empty()
    }

    fn as_str(&self) -> &'static str {
        match (self.is_complete, self.repaired.is_empty()) {
            (true, true) => "sound",
            (true, false) => "repaired",
            (false, _) => "incomplete",
        }
    }
}

/// What is counted of audits.
#[derive(Clone, Debug)]
pub(super) struct Audits {
    audits: Family<Labels<1>, Counter>,
    repairs: Family<Labels<1>, Counter>,
    last: Gauge<f64, AtomicU64>,
    sound: Gauge,
}

impl Default for Audits {
    fn default() -> Self {
        let sound = Gauge::default();
        // Nothing is known to be wrong before the first one.
        sound.set(1);
        Self { audits: Family::default(), repairs: Family::default(), last: Gauge::default(), sound }
    }
}

impl Audits {
    pub(super) fn note(&self, verdict: &Verdict, wall: Timestamp) {
        self.audits.get_or_create(&[("verdict", verdict.as_str())]).inc();
        for (table, entries) in &verdict.repaired {
            self.repairs.get_or_create(&[("table", table)]).inc_by(*entries as u64);
        }
        self.last.set(wall.as_duration().as_secs_f64());
        self.sound.set(verdict.is_sound().into());
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let Self { audits, repairs, last, sound } = self;
        registry.register("sluice_audits", "Audits of the tables by what they found", audits.clone());
        let help = "Entries of tables that somebody else had changed, and that were restored";
        registry.register("sluice_audit_repairs", help, repairs.clone());
        registry.register(
            "sluice_audit_last_timestamp_seconds",
            "Unix time of the latest audit",
            last.clone(),
        );
        let help = "Whether the latest audit found in every table what was written";
        registry.register("sluice_audit_sound", help, sound.clone());
    }
}
