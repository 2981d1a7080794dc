//! How many Events are too many: all nodes of a cluster share one API server.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{Event, Subject};

/// How long the same is not told again: as long as API servers keep Events, if nobody tells them otherwise.
const MEMORY: Duration = Duration::from_secs(3600);
/// Events that may follow each other at once.
const BURST: u32 = 25;
/// How long it takes until one more may.
const INTERVAL: Duration = Duration::from_secs(20);

/// Decides which Events are told.
#[derive(Debug)]
pub(super) struct Limits {
    /// What was told, and when.
    told: HashMap<(Subject, &'static str, String), Instant>,
    /// When the allowance will be, or was, whole.
    whole_at: Instant,
}

impl Limits {
    pub(super) fn new(now: Instant) -> Self {
        Self { told: HashMap::new(), whole_at: now }
    }

    /// Whether an Event is told. It counts as told then.
    pub(super) fn admit(&mut self, event: &Event, now: Instant) -> bool {
        self.told.retain(|_, told| now.saturating_duration_since(*told) < MEMORY);
        let key = (event.subject.clone(), event.reason, event.note.clone());
        let whole_at = self.whole_at.max(now) + INTERVAL;
        if self.told.contains_key(&key) || whole_at > now + INTERVAL * BURST {
            return false;
        }
        self.whole_at = whole_at;
        self.told.insert(key, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(note: &str) -> Event {
        Event::warning("Reason", "Action", note.to_owned())
    }

    #[test]
    fn the_same_is_told_once_an_hour() {
        let start = Instant::now();
        let mut limits = Limits::new(start);
        assert!(limits.admit(&event("a"), start));
        assert!(!limits.admit(&event("a"), start + MEMORY - Duration::from_secs(1)));
        assert!(limits.admit(&event("b"), start));
        let name = proxy_model::ObjectName { namespace: "default".to_owned(), name: "web".to_owned() };
        assert!(limits.admit(&event("a").about_service(name, None), start));
        assert!(limits.admit(&event("a"), start + MEMORY));
        assert_eq!(limits.told.len(), 1, "nothing is remembered for longer than it matters");
    }

    #[test]
    fn many_are_told_slowly() {
        let start = Instant::now();
        let mut limits = Limits::new(start);
        let mut admitted = |from: u32, count: u32, now| {
            (from..from + count).filter(|n| limits.admit(&event(&n.to_string()), now)).count()
        };
        assert_eq!(admitted(0, 100, start), 25);
        assert_eq!(admitted(100, 10, start + INTERVAL * 3), 3);
        assert_eq!(admitted(200, 100, start + INTERVAL * 1000), 25);
    }
}
