//! Metrics, and what else kube-proxy says on their port (MAPI).

use std::sync::Arc;

use hyper::{
    Request, StatusCode,
    body::Bytes,
    header::{ACCEPT, HeaderMap},
};
use serde_json::{Value, json};
use tokio::{sync::Semaphore, task::spawn_blocking};
use tracing::warn;

use super::serve::{Answer, JSON, Service, TEXT, answer, not_found};
use crate::metrics::{Exposition, Format};

/// What `/proxyMode` says. Neither `iptables` nor `nftables`: whoever asks, does it to find their rules, and there are none
/// (MAPI-02).
const PROXY_MODE: &str = "sluice";
/// The only key of `/configz`, as kube-proxy has it (MAPI-04).
const CONFIGURATION: &str = "kubeproxy.config.k8s.io";

/// Answers on the metrics address.
#[derive(Clone, Debug)]
pub(super) struct MetricsServer {
    exposition: Arc<Exposition>,
    /// Reading the kernel's tables takes a CPU; who asks at the same time, waits.
    turns: Arc<Semaphore>,
    configuration: Bytes,
}

impl MetricsServer {
    /// One that tells these metrics, and this configuration.
    pub(super) fn new(exposition: Exposition, configuration: &Value) -> Self {
        Self {
            exposition: Arc::new(exposition),
            turns: Arc::new(Semaphore::new(1)),
            configuration: json!({ CONFIGURATION: configuration }).to_string().into(),
        }
    }

    async fn metrics(&self, headers: &HeaderMap) -> Answer {
        // Several headers mean the same as one.
        let accept: Vec<&str> =
            headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
        let format = Format::accepted(&accept.join(","));
        // It is never closed.
        let _turn = self.turns.acquire().await;
        let exposition = Arc::clone(&self.exposition);
        match spawn_blocking(move || exposition.text(format)).await {
            Ok(Ok(text)) => answer(StatusCode::OK, format.content_type(), text),
            Ok(Err(error)) => failed(&error),
            Err(error) => failed(&error),
        }
    }
}

fn failed(error: &dyn std::error::Error) -> Answer {
    warn!(%error, "cannot tell metrics");
    answer(StatusCode::INTERNAL_SERVER_ERROR, TEXT, "cannot tell metrics\n")
}

impl Service for MetricsServer {
    async fn answer(&self, request: Request<()>) -> Answer {
        match request.uri().path() {
            "/metrics" => self.metrics(request.headers()).await,
            "/proxyMode" => answer(StatusCode::OK, TEXT, PROXY_MODE),
            "/healthz" | "/healthz/ping" => answer(StatusCode::OK, TEXT, "ok"),
            "/configz" => answer(StatusCode::OK, JSON, self.configuration.clone()),
            _ => not_found(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use http_body_util::BodyExt as _;

    use super::*;
    use crate::{datapath::Pins, metrics::Metrics};

    /// MAPI-01 to MAPI-04, MAPI-07.
    #[tokio::test]
    async fn paths_are_answered_as_kube_proxy_answers_them() {
        let pins = Pins::new(Path::new("/nonexistent"));
        let configuration = json!({ "kind": "KubeProxyConfiguration" });
        let server = MetricsServer::new(Metrics::default().exposition(&pins), &configuration);
        let ask = async |path: &str, accept: &str| {
            let request = Request::builder().uri(path).header("accept", accept).body(()).unwrap();
            let answer = server.answer(request).await;
            let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
            assert_eq!(header("x-content-type-options"), "nosniff");
            let (status, kind) = (answer.status().as_u16(), header("content-type"));
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            (status, kind, String::from_utf8(body.to_vec()).unwrap())
        };
        let said = |kind: &str, body: &str| (200, kind.to_owned(), body.to_owned());
        assert_eq!(ask("/proxyMode", "*/*").await, said("text/plain; charset=utf-8", "sluice"));
        assert_eq!(ask("/healthz", "*/*").await, said("text/plain; charset=utf-8", "ok"));
        let configz = r#"{"kubeproxy.config.k8s.io":{"kind":"KubeProxyConfiguration"}}"#;
        assert_eq!(ask("/configz", "*/*").await, said("application/json", configz));
        for path in ["/", "/livez", "/metrics/", "/debug/pprof/", "/flagz", "/statusz"] {
            assert_eq!(ask(path, "*/*").await.0, 404, "{path}");
        }
        let (status, kind, text) = ask("/metrics", "*/*").await;
        assert_eq!((status, kind.as_str()), (200, "text/plain; version=0.0.4; charset=utf-8"));
        assert!(text.contains("\nkubeproxy_sync_proxy_rules_endpoint_changes_total 0\n"), "{text}");
        assert!(text.contains("\nprocess_resident_memory_bytes "), "{text}");
        let (_, kind, text) = ask("/metrics", "application/openmetrics-text; version=1.0.0, */*;q=0.1").await;
        assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
        assert!(text.ends_with("# EOF\n"));
    }
}
