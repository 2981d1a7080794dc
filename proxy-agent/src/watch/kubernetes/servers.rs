//! API servers that stand in for each other.

use std::{
    collections::BTreeSet,
    error::Error,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hyper::{Method, Request, Response, Uri, body::Incoming};
use kube::client::Body;
use tokio::time::timeout;
use tower::{BoxError, Service, ServiceExt as _};
use tracing::{info, warn};

/// The same API at several addresses. One is asked until it does not answer, then the next.
#[derive(Debug)]
pub(super) struct Servers<S> {
    each: Arc<[(Uri, S)]>,
    turn: Arc<Mutex<Turn>>,
}

/// Whose turn it is.
#[derive(Debug, Default)]
struct Turn {
    current: usize,
    /// Those that have not answered, and not been heard of since.
    silent: BTreeSet<usize>,
    /// How many did not answer one after the other.
    failures: u32,
}

impl<S> Clone for Servers<S> {
    fn clone(&self) -> Self {
        Self { each: Arc::clone(&self.each), turn: Arc::clone(&self.turn) }
    }
}

impl<S> Servers<S>
where
    S: Service<Request<Body>, Response = Response<Incoming>> + Clone + Send + Sync + 'static,
    S::Error: Error + Send + Sync + 'static,
    S::Future: Send,
{
    /// Each with a service that sends there what it is given.
    pub(super) fn new(each: impl Iterator<Item = (Uri, S)>) -> Self {
        Self { each: each.collect(), turn: Arc::default() }
    }

    /// One service that sends to whichever answers.
    pub(super) fn into_service(
        self,
    ) -> impl Service<
        Request<Body>,
        Response = Response<Incoming>,
        Error = BoxError,
        Future = impl Future<Output = Result<Response<Incoming>, BoxError>> + Send,
    > + Clone
    + Send {
        tower::service_fn(move |request| self.clone().ask(request))
    }

    /// Asks one after the other, each once. What cannot be sent twice is sent to one only; the next request goes to the
    /// next then.
    async fn ask(self, mut request: Request<Body>) -> Result<Response<Incoming>, BoxError> {
        let mut left = self.each.len();
        if let [(_, only)] = &*self.each {
            // There is nobody else to ask, and whoever waits knows how long.
            return Ok(only.clone().oneshot(request).await?);
        }
        loop {
            left -= 1;
            let again;
            (request, again) = twice(request);
            let again = again.filter(|_| left > 0);
            let (at, patience) = self.turn().next();
            let asked = self.each[at].1.clone().oneshot(request);
            let answer = match timeout(patience, asked).await {
                Ok(Ok(answer)) if !answer.status().is_server_error() => {
                    self.answered(at);
                    return Ok(answer);
                }
                Ok(Ok(answer)) => {
                    self.failed(at, &answer.status());
                    Ok(answer)
                }
                Ok(Err(error)) => {
                    self.failed(at, &crate::report(&error));
                    Err(error.into())
                }
                Err(silence) => {
                    self.failed(at, &format_args!("no answer in {patience:?}"));
                    Err(silence.into())
                }
            };
            match again {
                Some(again) => request = again,
                None => return answer,
            }
        }
    }

    fn turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answered(&self, at: usize) {
        if self.turn().answered(at) {
            info!(server = %self.each[at].0, "the API server answers again");
        }
    }

    fn failed(&self, at: usize, cause: &dyn std::fmt::Display) {
        let (next, is_news) = self.turn().failed(at, self.each.len());
        if is_news {
            warn!(server = %self.each[at].0, %cause, next = %self.each[next].0, "an API server does not answer, asking the next");
        }
    }
}

impl Turn {
    /// Whom to ask, and how long to wait. All may be slow, so patience grows.
    fn next(&self) -> (usize, Duration) {
        let patience = PATIENCE.saturating_mul(2_u32.saturating_pow(self.failures));
        (self.current, patience.min(LONGEST_PATIENCE))
    }

    /// Returns whether it was thought not to.
    fn answered(&mut self, at: usize) -> bool {
        self.failures = 0;
        self.silent.remove(&at)
    }

    /// Whose turn it is now, of so many, and whether this one was thought to answer. Of several requests to the same one
    /// only the first goes on to the next.
    fn failed(&mut self, at: usize, count: usize) -> (usize, bool) {
        if self.current == at {
            self.current = (at + 1) % count;
            // A round is over before anybody needs more time.
            if self.current == 0 {
                self.failures = self.failures.saturating_add(1);
            }
        }
        (self.current, self.silent.insert(at))
    }
}

/// The request, and once more if it only reads and its body is at hand.
fn twice(request: Request<Body>) -> (Request<Body>, Option<Request<Body>>) {
    let (parts, body) = request.into_parts();
    let again = body.try_clone().filter(|_| parts.method == Method::GET);
    let again = again.map(|body| Request::from_parts(parts.clone(), body));
    (Request::from_parts(parts, body), again)
}

/// How long a server may think before another is asked. Headers of a page, or of a watch, come much sooner.
const PATIENCE: Duration = Duration::from_secs(10);
/// Less than whoever asks is prepared to wait, so that it is known who was silent.
const LONGEST_PATIENCE: Duration = Duration::from_secs(40);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_go_round_and_patience_grows_with_each_round() {
        let mut turn = Turn::default();
        let mut asked = Vec::new();
        for _ in 0..7 {
            let (at, patience) = turn.next();
            asked.push((at, patience.as_secs()));
            turn.failed(at, 2);
        }
        assert_eq!(asked, [(0, 10), (1, 10), (0, 20), (1, 20), (0, 40), (1, 40), (0, 40)]);
        assert!(turn.answered(1), "it answers again");
        assert_eq!(turn.next(), (1, PATIENCE));
        assert!(!turn.answered(1));
    }

    #[test]
    fn requests_that_fail_together_skip_nobody() {
        let mut turn = Turn::default();
        assert_eq!(turn.failed(0, 3), (1, true));
        assert_eq!(turn.failed(0, 3), (1, false), "another request to the same server");
        assert_eq!(turn.failed(1, 3), (2, true));
        assert_eq!(turn.next().0, 2);
    }

    #[test]
    fn only_what_reads_is_sent_again() {
        let get = Request::get("/").body(Body::empty()).unwrap();
        assert!(twice(get).1.is_some());
        let post = Request::post("/").body(Body::from(b"{}".to_vec())).unwrap();
        assert!(twice(post).1.is_none());
    }
}
