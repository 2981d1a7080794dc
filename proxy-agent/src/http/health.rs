//! Whether the agent keeps up, and whether load balancers may use the node.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use hyper::{Request, StatusCode};
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;

use super::serve::{Answer, JSON, Service, answer, not_found};
use crate::{
    health::{Clock, Progress},
    metrics::HealthMetrics,
};

/// What is known of the agent's health, by everybody who asks.
#[derive(Clone, Debug)]
pub(super) struct Health {
    pub(super) clock: Clock,
    /// How long changes may wait.
    pub(super) limit: Duration,
    pub(super) progress: watch::Receiver<Progress>,
}

impl Health {
    /// Whether the agent keeps up (HZ-05).
    pub(super) fn is_healthy(&self) -> bool {
        self.progress.borrow().is_healthy(self.clock.now(), self.limit)
    }
}

/// Answers `/healthz`, `/livez` and `/readyz`.
#[derive(Clone, Debug)]
pub(super) struct HealthServer {
    pub(super) health: Health,
    pub(super) metrics: Arc<HealthMetrics>,
}

impl Service for HealthServer {
    async fn answer(&self, request: Request<()>) -> Answer {
        let (question, counter) = match request.uri().path() {
            "/healthz" => (Question::Healthz, Some(&self.metrics.healthz)),
            "/livez" => (Question::Livez, Some(&self.metrics.livez)),
            "/readyz" => (Question::Readyz, None),
            _ => return not_found(),
        };
        let Health { clock, limit, progress } = &self.health;
        let times = Times { now: clock.now(), wall: Timestamp::now(), limit: *limit };
        let (is_well, text) = report(question, &progress.borrow(), times);
        counter.inspect(|counter| counter.count(is_well));
        answer(if is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, JSON, text)
    }
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    /// Should load balancers send traffic here?
    Healthz,
    /// Should the agent be restarted?
    Livez,
    /// Is the agent what it should be? A rollout need not go on with one that is not. Not kube-proxy's.
    Readyz,
}

/// When it is asked.
#[derive(Clone, Copy, Debug)]
struct Times {
    now: Duration,
    wall: Timestamp,
    limit: Duration,
}

/// The JSON that kube-proxy answers with (HZ-09).
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
    last_updated: Timestamp,
    current_time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    refused_programs: &'a [&'static str],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    status: BTreeMap<&'static str, FamilyReport>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyReport {
    last_updated: Timestamp,
    healthy: bool,
}

/// Whether all is well, and what is to be said about it.
fn report(question: Question, progress: &Progress, times: Times) -> (bool, String) {
    let Times { now, wall, limit } = times;
    // Others stand in for programs that are refused: neither load balancers nor a restart would do any good.
    let refused_programs = if question == Question::Readyz { progress.refused.as_slice() } else { &[] };
    let healthy = progress.is_healthy(now, limit) && refused_programs.is_empty();
    let node_eligible = (question == Question::Healthz).then_some(progress.node_is_eligible);
    let is_well = healthy && node_eligible != Some(false);
    // The clock on the wall may be set; how long ago something was, stays true.
    let wall_at = |then: Duration| {
        let ago = now.saturating_sub(then);
        wall.checked_sub(ago).unwrap_or(wall)
    };
    // HZ-11: older releases told when the loop went round, and people rely on its being recent.
    let last_updated = if is_well { wall } else { progress.last_written().map_or(year_one(), wall_at) };
    let status = progress.families(now, limit).map(|family| {
        let report = FamilyReport { last_updated: wall_at(family.last_written), healthy: family.healthy };
        (family.family.as_str(), report)
    });
    let status = status.collect();
    let report =
        Report { last_updated, current_time: wall, node_eligible, healthy, refused_programs, status };
    (is_well, serde_json::to_string(&report).unwrap_or_default())
}

/// What Go writes for a time that nobody has set.
fn year_one() -> Timestamp {
    const SECONDS: i64 = -62_135_596_800;
    Timestamp::from_second(SECONDS).unwrap_or(Timestamp::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asked a number of seconds after the origin, which was at midnight.
    fn asked(question: Question, progress: &Progress, seconds: u64) -> (bool, String) {
        let midnight: Timestamp = "2026-01-02T00:00:00.5Z".parse().unwrap();
        let now = Duration::from_secs(seconds);
        report(question, progress, Times { now, wall: midnight + now, limit: Duration::from_secs(60) })
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn started() -> Progress {
        let mut progress = Progress::default();
        progress.node_is_eligible = true;
        progress.start(at(5));
        progress
    }

    /// HZ-05, HZ-06: nobody has said that the node is there.
    #[test]
    fn before_anything_happened_the_agent_is_healthy_and_the_node_not_eligible() {
        let (is_well, text) = asked(Question::Livez, &Progress::default(), 1);
        assert!(is_well);
        let expected = r#"{"lastUpdated":"2026-01-02T00:00:01.5Z","currentTime":"2026-01-02T00:00:01.5Z","healthy":true}"#;
        assert_eq!(text, expected);
        let (is_well, text) = asked(Question::Healthz, &Progress::default(), 1);
        assert!(!is_well);
        let expected = r#"{"lastUpdated":"0001-01-01T00:00:00Z","currentTime":"2026-01-02T00:00:01.5Z","nodeEligible":false,"healthy":true}"#;
        assert_eq!(text, expected);
    }

    /// HZ-07, HZ-09, HZ-11.
    #[test]
    fn a_healthy_agent_was_always_updated_just_now() {
        let status = r#""status":{"IPv4":{"lastUpdated":"2026-01-02T00:00:05.5Z","healthy":true},"IPv6":{"lastUpdated":"2026-01-02T00:00:05.5Z","healthy":true}}"#;
        let now = r#""lastUpdated":"2026-01-02T00:00:30.5Z","currentTime":"2026-01-02T00:00:30.5Z""#;
        let expected = (true, format!(r#"{{{now},"nodeEligible":true,"healthy":true,{status}}}"#));
        assert_eq!(asked(Question::Healthz, &started(), 30), expected);
        assert_eq!(
            asked(Question::Livez, &started(), 30),
            (true, format!(r#"{{{now},"healthy":true,{status}}}"#))
        );
    }

    /// HZ-07, HZ-10, HZ-11.
    #[test]
    fn a_node_that_is_to_go_makes_the_agent_no_less_alive() {
        let mut progress = started();
        progress.node_is_eligible = false;
        let (is_well, text) = asked(Question::Healthz, &progress, 30);
        let times = r#"{"lastUpdated":"2026-01-02T00:00:05.5Z","currentTime":"2026-01-02T00:00:30.5Z","#;
        assert!(!is_well && text.starts_with(times), "{text}");
        assert!(text.contains(r#""nodeEligible":false,"healthy":true"#), "{text}");
        let (is_well, text) = asked(Question::Livez, &progress, 30);
        assert!(is_well && !text.contains("nodeEligible"), "{text}");
    }

    #[test]
    fn a_late_family_is_named() {
        let mut progress = started();
        progress.queue(at(10));
        progress.finish(at(11), [false, true]);
        progress.turn(at(70));
        for question in [Question::Healthz, Question::Livez] {
            assert!(asked(question, &progress, 69).0);
            let (is_well, text) = asked(question, &progress, 70);
            assert!(!is_well && text.contains(r#""healthy":false,"status""#), "{text}");
            let status = r#"{"IPv4":{"lastUpdated":"2026-01-02T00:00:11.5Z","healthy":true},"IPv6":{"lastUpdated":"2026-01-02T00:00:05.5Z","healthy":false}}"#;
            assert!(text.contains(status), "{text}");
            assert!(text.starts_with(r#"{"lastUpdated":"2026-01-02T00:00:11.5Z""#), "{text}");
        }
    }

    #[test]
    fn refused_programs_make_the_agent_unready_and_nothing_else() {
        let mut progress = started();
        assert!(asked(Question::Readyz, &progress, 30).0);
        progress.node_is_eligible = false;
        assert!(asked(Question::Readyz, &progress, 30).0, "a node that is to go is no less ready");
        progress.node_is_eligible = true;
        progress.refused = vec!["sluice_egress"];
        let (is_well, text) = asked(Question::Readyz, &progress, 30);
        assert!(
            !is_well && text.contains(r#""healthy":false,"refusedPrograms":["sluice_egress"],"#),
            "{text}"
        );
        for question in [Question::Healthz, Question::Livez] {
            let (is_well, text) = asked(question, &progress, 30);
            assert!(is_well && !text.contains("refused"), "{text}");
        }
    }

    /// HZ-01, HZ-08, HZ-12.
    #[tokio::test]
    async fn two_paths_are_answered_and_counted() {
        let mut progress = started();
        progress.node_is_eligible = false;
        let (sender, receiver) = watch::channel(progress);
        let health = Health { clock: Clock::start(), limit: Duration::from_secs(60), progress: receiver };
        let metrics = crate::metrics::Metrics::default();
        let server = HealthServer { health, metrics: Arc::new(metrics.health.clone()) };
        let ask = async |method: &str, path: &str| {
            let request = Request::builder().method(method).uri(path).body(()).unwrap();
            let answer = server.answer(request).await;
            let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
            (answer.status().as_u16(), header("content-type"), header("x-content-type-options"))
        };
        let said = |status, kind: &str| (status, kind.to_owned(), "nosniff".to_owned());
        assert_eq!(ask("GET", "/healthz").await, said(503, "application/json"));
        sender.send_modify(|progress| progress.node_is_eligible = true);
        assert_eq!(ask("POST", "/healthz?verbose").await, said(200, "application/json"));
        assert_eq!(ask("DELETE", "/livez").await, said(200, "application/json"));
        assert_eq!(ask("GET", "/readyz").await, said(200, "application/json"));
        for path in ["/", "/healthz/", "/healthz/ping", "/Healthz", "/metrics"] {
            assert_eq!(ask("GET", path).await.0, 404, "{path}");
        }
        let pins = crate::datapath::Pins::new(std::path::Path::new("/nonexistent"));
        let text = metrics.exposition(&pins).text(crate::metrics::Format::Prometheus).unwrap();
        for line in [
            r#"kubeproxy_proxy_healthz_total{code="503"} 1"#,
            r#"kubeproxy_proxy_healthz_total{code="200"} 1"#,
            r#"kubeproxy_proxy_livez_total{code="200"} 1"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        assert!(!text.contains("kubeproxy_proxy_livez_total{code=\"503\"}"));
    }
}
