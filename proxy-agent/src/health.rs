//! Whether changes reach the kernel in time: what kube-proxy's health server knows (HZ-04 to HZ-06), translated to how
//! this agent programs.
//!
//! - A change that came in, or a write that failed, is pending until everything of its family is in the kernel. One that stays
//!   pending for too long is what makes the agent unhealthy; an agent that has nothing to do is healthy for ever.
//! - The loop shows that it goes round, also when nothing happens. One that hangs is as good as a change that never gets
//!   through.
//!
//! Times are counted from the [`Clock`]'s origin and never go back.

use std::time::{Duration, Instant};

use proxy_model::Family;

/// The time that everything here is told in.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock that starts now.
    #[must_use]
    pub fn start() -> Self {
        Self { origin: Instant::now() }
    }

    /// Time since its start.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.origin.elapsed()
    }
}

/// How far the loop has got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    families: [FamilyProgress; 2],
    /// When the loop was last seen to go round; `None` before it began.
    turned: Option<Duration>,
    /// Whether load balancers may send traffic to this node (HZ-06).
    pub node_is_eligible: bool,
    /// Programs that the kernel has refused. Those of an earlier agent stand in for them, so the node is none the worse, but
    /// this agent is not what it should be.
    pub refused: Vec<&'static str>,
}

/// How far it has got with a family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct FamilyProgress {
    /// When everything was in the kernel last.
    last_written: Option<Duration>,
    /// Since when something has not been.
    pending_since: Option<Duration>,
}

/// What is to be said of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FamilyHealth {
    /// The family.
    pub family: Family,
    /// When everything was in the kernel last.
    pub last_written: Duration,
    /// Whether nothing is late.
    pub healthy: bool,
}

impl Progress {
    /// The loop begins.
    pub fn start(&mut self, now: Duration) {
        self.turned = Some(now);
        self.families = [FamilyProgress { last_written: Some(now), pending_since: None }; 2];
    }

    /// The loop has gone round.
    pub fn turn(&mut self, now: Duration) {
        self.turned = Some(now);
    }

    /// Something has changed.
    pub fn queue(&mut self, now: Duration) {
        for family in &mut self.families {
            family.pending_since.get_or_insert(now);
        }
    }

    /// A round is over; `failing` tells of each family, in the order of [`Family::ALL`], whether writes failed. Returns how
    /// long the oldest change of each family waited that has none any more.
    pub fn finish(&mut self, now: Duration, failing: [bool; 2]) -> [Option<Duration>; 2] {
        let mut waited = [None; 2];
        for ((family, failing), waited) in self.families.iter_mut().zip(failing).zip(&mut waited) {
            if failing {
                family.pending_since.get_or_insert(now);
            } else if let Some(since) = family.pending_since.take() {
                family.last_written = Some(now);
                *waited = Some(now.saturating_sub(since));
            }
        }
        waited
    }

    /// The families about which there is something to say (HZ-05), if nothing may be pending as long as `limit`.
    pub fn families(&self, now: Duration, limit: Duration) -> impl Iterator<Item = FamilyHealth> {
        let is_late =
            move |since: Option<Duration>| since.is_some_and(|since| now.saturating_sub(since) >= limit);
        let hangs = is_late(self.turned);
        Family::ALL.into_iter().zip(&self.families).filter_map(move |(family, progress)| {
            let healthy = !hangs && !is_late(progress.pending_since);
            Some(FamilyHealth { family, last_written: progress.last_written?, healthy })
        })
    }

    /// Whether nothing is late.
    #[must_use]
    pub fn is_healthy(&self, now: Duration, limit: Duration) -> bool {
        self.families(now, limit).all(|family| family.healthy)
    }

    /// When everything of any family was in the kernel last.
    #[must_use]
    pub fn last_written(&self) -> Option<Duration> {
        self.families.iter().filter_map(|family| family.last_written).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Started at second 0, and shown to go round at the second asked about.
    fn started() -> Progress {
        let mut progress = Progress::default();
        progress.start(at(0));
        progress
    }

    fn is_healthy(progress: &mut Progress, seconds: u64) -> bool {
        progress.turn(at(seconds));
        progress.is_healthy(at(seconds), LIMIT)
    }

    #[test]
    fn an_agent_that_has_not_begun_is_healthy_and_has_nothing_to_say() {
        let progress = Progress::default();
        assert!(progress.is_healthy(at(1_000_000), LIMIT));
        assert_eq!(progress.families(at(0), LIMIT).count(), 0);
        assert_eq!(progress.last_written(), None);
    }

    #[test]
    fn an_agent_without_anything_to_do_is_healthy_for_ever() {
        let mut progress = started();
        assert!(is_healthy(&mut progress, 1_000_000));
        assert_eq!(progress.last_written(), Some(at(0)));
    }

    /// HZ-04, HZ-05; VER-25.
    #[test]
    fn a_change_that_waits_too_long_is_unhealthy_until_it_gets_through() {
        let mut progress = started();
        progress.queue(at(10));
        progress.queue(at(50));
        assert!(is_healthy(&mut progress, 69));
        assert!(!is_healthy(&mut progress, 70), "the oldest change counts");
        assert_eq!(progress.finish(at(80), [false; 2]), [Some(at(70)); 2]);
        assert!(is_healthy(&mut progress, 80));
        assert_eq!(progress.last_written(), Some(at(80)));
        // A round without anything to do writes nothing.
        assert_eq!(progress.finish(at(90), [false; 2]), [None; 2]);
        assert_eq!(progress.last_written(), Some(at(80)));
    }

    #[test]
    fn one_family_that_is_late_is_enough() {
        let mut progress = started();
        progress.queue(at(0));
        for seconds in [0, 30, 60] {
            progress.queue(at(seconds));
            assert_eq!(progress.finish(at(seconds), [false, true]), [Some(at(0)), None]);
        }
        assert!(!is_healthy(&mut progress, 60));
        let families: Vec<_> = progress.families(at(60), LIMIT).collect();
        let family = |family, last_written, healthy| FamilyHealth { family, last_written, healthy };
        assert_eq!(families, [family(Family::Ipv4, at(60), true), family(Family::Ipv6, at(0), false)]);
        assert_eq!(progress.finish(at(61), [false; 2]), [None, Some(at(61))]);
        assert!(is_healthy(&mut progress, 61));
    }

    #[test]
    fn a_write_that_fails_is_pending_even_if_nothing_changed() {
        let mut progress = started();
        assert_eq!(progress.finish(at(5), [true, false]), [None; 2]);
        assert!(is_healthy(&mut progress, 64));
        assert!(!is_healthy(&mut progress, 65));
    }

    #[test]
    fn a_loop_that_hangs_is_late() {
        let mut progress = started();
        assert!(is_healthy(&mut progress, 100));
        assert!(progress.is_healthy(at(159), LIMIT));
        assert!(!progress.is_healthy(at(160), LIMIT));
        assert!(progress.families(at(160), LIMIT).all(|family| !family.healthy));
        assert!(is_healthy(&mut progress, 161));
    }
}
