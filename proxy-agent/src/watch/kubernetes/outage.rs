//! What to do when one kind of object cannot be followed: how long to wait, and what to say.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use tracing::{debug, info, warn};

use crate::random::random;

/// The failures of one kind since it last worked.
///
/// An outage can last for hours, so each cause is reported once, and then the recovery; the rest is for debugging.
pub(super) struct Outage {
    kind: &'static str,
    need: Need,
    since: Option<Instant>,
    causes: BTreeSet<String>,
    backoff: Backoff,
}

/// What it means if a kind cannot be followed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Need {
    /// Services go wrong, sooner or later.
    Required,
    /// Something is done without it, for as long as it takes.
    Optional {
        /// What.
        without: &'static str,
    },
}

impl Need {
    /// The first wait and the longest.
    const fn waits(self) -> (Duration, Duration) {
        match self {
            Self::Required => (SHORTEST, LONGEST),
            Self::Optional { .. } => (SHORTEST_AT_LEISURE, LONGEST_AT_LEISURE),
        }
    }
}

impl Outage {
    pub(super) fn new(kind: &'static str, need: Need) -> Self {
        Self { kind, need, since: None, causes: BTreeSet::new(), backoff: Backoff::default() }
    }

    /// Takes note of a failure and says how long to wait before the next attempt.
    ///
    /// `class` tells causes apart whose texts differ only in details.
    pub(super) fn failed(&mut self, class: impl Into<String>, cause: &str) -> Duration {
        let Self { kind, need, since, causes, backoff } = self;
        let since = *since.get_or_insert_with(Instant::now);
        let wait = backoff.next(need.waits());
        if causes.insert(class.into()) {
            match need {
                Need::Required => {
                    warn!(kind, cause, "cannot follow the API, keeping what is known and retrying");
                }
                Need::Optional { without } => {
                    warn!(kind, cause, "cannot follow the API, going on without: {without}");
                }
            }
        } else {
            debug!(kind, cause, ?wait, outage = ?since.elapsed(), "still cannot follow the API");
        }
        wait
    }

    /// Failures since the last progress.
    pub(super) fn attempts(&self) -> u32 {
        self.backoff.attempts
    }

    /// The API answers again.
    pub(super) fn recovered(&mut self) {
        if let Some(since) = self.since.take() {
            info!(kind = self.kind, outage = ?since.elapsed(), "following the API again");
            self.causes.clear();
        }
    }

    /// There was progress, so the next failure is a new one, to be retried soon.
    ///
    /// Not the same as [`recovered`](Self::recovered): a server that accepts each watch only to break it would
    /// otherwise be asked ten times a second, by every node.
    pub(super) fn progressed(&mut self) {
        self.backoff = Backoff::default();
    }
}

/// Exponential, with jitter: after a restart of the API server every node of the cluster is here.
#[derive(Default)]
struct Backoff {
    attempts: u32,
}

impl Backoff {
    fn next(&mut self, waits: (Duration, Duration)) -> Duration {
        let wait = jittered(exponential(self.attempts, waits), random());
        self.attempts = self.attempts.saturating_add(1);
        wait
    }
}

fn exponential(attempts: u32, (shortest, longest): (Duration, Duration)) -> Duration {
    shortest.saturating_mul(2_u32.saturating_pow(attempts)).min(longest)
}

/// Between half of `wait` and one and a half, evenly by the bits of `random`.
fn jittered(wait: Duration, random: u32) -> Duration {
    wait / 2 + wait.mul_f64(f64::from(random) / (f64::from(u32::MAX) + 1.0))
}

const SHORTEST: Duration = Duration::from_millis(100);
/// As long as client-go waits at most.
const LONGEST: Duration = Duration::from_secs(30);
/// For what is done without: whoever denies it has mostly meant it.
const SHORTEST_AT_LEISURE: Duration = Duration::from_secs(1);
const LONGEST_AT_LEISURE: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest() {
        let required = Need::Required.waits();
        let waits: Vec<u128> = (0..11).map(|n| exponential(n, required).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000]);
        assert_eq!(exponential(u32::MAX, required), LONGEST);
        let optional = Need::Optional { without: "" }.waits();
        let waits: Vec<u64> = (0..11).map(|n| exponential(n, optional).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
    }

    #[test]
    fn jitter_keeps_within_half_of_the_wait() {
        assert_eq!(jittered(LONGEST, 0), LONGEST / 2);
        assert!(jittered(LONGEST, u32::MAX) < LONGEST * 3 / 2);
        assert!(jittered(LONGEST, u32::MAX) > LONGEST * 149 / 100);
    }

    #[test]
    fn progress_makes_the_next_wait_short() {
        let mut outage = Outage::new("Service", Need::Required);
        for _ in 0..20 {
            outage.failed("refused", "connection refused");
        }
        assert!(outage.failed("refused", "connection refused") >= LONGEST / 2);
        outage.progressed();
        assert!(outage.failed("refused", "connection refused") <= SHORTEST * 3 / 2);
    }
}
