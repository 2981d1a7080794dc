//! How often the API server is asked: kube-proxy's `qps` and `burst` (API-13).

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyper::Uri;
use tokio::time::{Instant, Sleep, sleep};

/// So many requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RequestLimit {
    /// In a second, in the long run.
    pub per_second: f32,
    /// At once, after a pause.
    pub burst: u32,
}

/// A bucket that tokens drip into; a request takes one, or waits for the next.
#[derive(Clone, Debug)]
pub(super) struct Limit {
    bucket: Arc<Mutex<Bucket>>,
}

#[derive(Debug)]
struct Bucket {
    per_second: f64,
    burst: f64,
    /// Less than none if requests wait.
    tokens: f64,
    since: Instant,
}

impl Limit {
    pub(super) fn new(limit: RequestLimit) -> Self {
        let burst = f64::from(limit.burst).max(1.0);
        let bucket =
            Bucket { per_second: limit.per_second.into(), burst, tokens: burst, since: Instant::now() };
        Self { bucket: Arc::new(Mutex::new(bucket)) }
    }

    /// Waits until it is the request's turn. The later pages of a list wait for nothing: to kube-proxy, a list is one
    /// request, and a large cluster's must not take minutes.
    pub(super) fn wait_for(&self, request: &Uri) -> Sleep {
        let is_later_page = |query: &str| query.split('&').any(|part| part.starts_with("continue="));
        let wait = match request.query() {
            Some(query) if is_later_page(query) => Duration::ZERO,
            _ => self.bucket.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now()),
        };
        sleep(wait)
    }
}

impl Bucket {
    /// Takes a token, and says how long it takes to drip.
    fn take(&mut self, now: Instant) -> Duration {
        let dripped = now.duration_since(self.since).as_secs_f64() * self.per_second;
        self.since = now;
        self.tokens = (self.tokens + dripped).min(self.burst) - 1.0;
        Duration::try_from_secs_f64(-self.tokens / self.per_second).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(limit: &Limit, after: Duration, requests: usize) -> Vec<u128> {
        let mut bucket = limit.bucket.lock().unwrap();
        let now = bucket.since + after;
        (0..requests).map(|_| bucket.take(now).as_millis()).collect()
    }

    #[test]
    fn a_burst_passes_at_once_and_the_rest_at_the_rate() {
        let limit = Limit::new(RequestLimit { per_second: 5.0, burst: 3 });
        assert_eq!(waits(&limit, Duration::ZERO, 5), [0, 0, 0, 200, 400]);
        assert_eq!(waits(&limit, Duration::from_millis(400), 2), [200, 400]);
        assert_eq!(
            waits(&limit, Duration::from_secs(60), 4),
            [0, 0, 0, 200],
            "no more than a burst is saved up"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn later_pages_wait_for_nothing() {
        let limit = Limit::new(RequestLimit { per_second: 0.001, burst: 1 });
        let request = |query: &str| format!("/api/v1/services?{query}").parse::<Uri>().unwrap();
        let start = Instant::now();
        limit.wait_for(&request("limit=500")).await;
        for _ in 0..10 {
            limit.wait_for(&request("limit=500&continue=x")).await;
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        limit.wait_for(&request("limit=500")).await;
        assert_eq!(start.elapsed(), Duration::from_secs(1000));
    }
}
