//! The connection to the API server.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use hyper::{
    Request, Response, Uri,
    body::Incoming,
    header::{HeaderValue, USER_AGENT},
};
use hyper_util::{
    client::legacy::{
        Client as HttpClient,
        connect::{Connect, HttpConnector},
    },
    rt::TokioExecutor,
};
use kube::{
    Client, Config,
    client::{Body, ConfigExt, middleware::BaseUriLayer},
    config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use tower::{BoxError, Layer as _, Service, ServiceBuilder, service_fn};
use tracing::{info, warn};

use super::{
    limit::{Limit, RequestLimit},
    servers::Servers,
};
use crate::metrics::ApiMetrics;

/// How the API is reached.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ApiOptions {
    /// Where that and credentials are written; without it, the pod's service account says so.
    pub kubeconfig: Option<PathBuf>,
    /// Servers to ask instead of the one that is written there, in this order. The certificates of all are compared with the
    /// same authority, and with the name by which they are asked unless `tls-server-name` is another one.
    pub servers: Vec<Uri>,
    /// How often they may be asked.
    pub limit: Option<RequestLimit>,
}

/// Why there is no client for the API server.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The file cannot be read.
    #[error("kubeconfig {path}: cannot read it: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not a kubeconfig.
    #[error("kubeconfig {path}: cannot parse it: {cause}", path = path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong and where.
        cause: String,
    },
    /// The file does not say which of its contexts to use.
    #[error("kubeconfig {path}: no current-context is set", path = path.display())]
    NoCurrentContext {
        /// The file.
        path: PathBuf,
    },
    /// The file names something that it does not define, or that cannot be loaded.
    #[error("kubeconfig {path}: {source}", path = path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// The missing or bad part.
        source: KubeconfigError,
    },
    /// No file was named and this is not a pod with a service account.
    #[error(
        "there is neither a kubeconfig (--kubeconfig, clientConnection.kubeconfig) nor --manifests, and this is not a pod of a \
         cluster: {source}"
    )]
    NotInCluster {
        /// What a pod would have.
        source: InClusterError,
    },
    /// Proxies are not supported.
    #[error(
        "the API server {server} is configured to be reached through the proxy {proxy}, which is not supported"
    )]
    Proxy {
        /// Address of the API server.
        server: String,
        /// Address of the proxy.
        proxy: String,
    },
    /// Keys, certificates or tokens cannot be used.
    #[error("the API server {server}: cannot set up the connection: {source}")]
    Setup {
        /// Address of the API server.
        server: String,
        /// The bad part.
        source: Box<kube::Error>,
    },
}

/// Makes a client from a kubeconfig file, or from the pod's service account when no file is named.
///
/// This only reads local files: an API server that is out of reach is not an error, the streams wait for it.
pub async fn client(options: &ApiOptions, metrics: &ApiMetrics) -> Result<Client, ClientError> {
    let ApiOptions { kubeconfig, servers, limit } = options;
    let mut config = match kubeconfig {
        Some(path) => from_file(path).await?,
        None => match (Config::incluster(), servers.first()) {
            (Ok(config), None) => {
                warn!(
                    server = %config.cluster_url,
                    "the API server is asked where the pod's environment says (KUBERNETES_SERVICE_HOST); if that is its \
                     ClusterIP, which this agent is to serve, a node without tables cannot fetch them: name the servers \
                     themselves with --api-servers, or in a kubeconfig"
                );
                config
            }
            (Ok(config), Some(_)) => config,
            // As kube-proxy with --master: without credentials.
            (Err(_), Some(server)) => Config::new(server.clone()),
            (Err(source), None) => return Err(ClientError::NotInCluster { source }),
        },
    };
    config.headers.push((USER_AGENT, HeaderValue::from_static(USER_AGENT_VALUE)));
    let servers = if servers.is_empty() { vec![config.cluster_url.clone()] } else { servers.clone() };
    connect(config, servers, *limit, metrics)
}

async fn from_file(path: &Path) -> Result<Config, ClientError> {
    let failed = |source| match source {
        KubeconfigError::ReadConfig(source, _) => ClientError::Read { path: path.into(), source },
        KubeconfigError::Parse(cause) => {
            ClientError::Parse { path: path.into(), cause: first_line(&cause.to_string()) }
        }
        KubeconfigError::CurrentContextNotSet => ClientError::NoCurrentContext { path: path.into() },
        source => ClientError::Kubeconfig { path: path.into(), source },
    };
    let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(failed)
}

/// The stack of `kube::Client::try_from`, less its retries and its error line for each failed request (the streams
/// do both, knowing what is at stake), and with probes: an API server or a load balancer that vanished without a
/// word would otherwise go unnoticed until the watch is due to end, minutes later.
fn connect(
    config: Config,
    servers: Vec<Uri>,
    limit: Option<RequestLimit>,
    metrics: &ApiMetrics,
) -> Result<Client, ClientError> {
    let server = servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if let Some(proxy) = &config.proxy_url {
        return Err(ClientError::Proxy { server, proxy: proxy.to_string() });
    }
    let failed = |source| ClientError::Setup { server: server.clone(), source: Box::new(source) };

    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    tcp.set_keepalive(Some(PROBE_AFTER));
    tcp.set_keepalive_interval(Some(PROBE_INTERVAL));
    tcp.set_keepalive_retries(Some(PROBES));
    // Probes are not sent while a request waits for its acknowledgement.
    tcp.set_tcp_user_timeout(Some(PROBE_AFTER));
    let https = config.rustls_https_connector_with_connector(tcp).map_err(failed)?;

    let http = counted(HttpClient::builder(TokioExecutor::new()).build(https), metrics.clone());
    info!(servers = server, "following the API");
    let servers = Servers::new(servers.into_iter().map(|uri| {
        let service = BaseUriLayer::new(uri.clone()).layer(http.clone());
        (uri, service)
    }));
    let limit = limit.map(Limit::new);
    let service = ServiceBuilder::new()
        .filter_async(move |request: Request<Body>| {
            let turn = limit.as_ref().map(|limit| limit.wait_for(request.uri()));
            async move {
                if let Some(turn) = turn {
                    turn.await;
                }
                Ok::<_, BoxError>(request)
            }
        })
        .option_layer(config.auth_layer().map_err(failed)?)
        .layer(config.extra_headers_layer().map_err(failed)?)
        .map_err(BoxError::from)
        .service(servers.into_service());
    Ok(Client::new(service, config.default_namespace))
}

/// Counts requests by what came of them.
fn counted<C>(
    client: HttpClient<C, Body>,
    metrics: ApiMetrics,
) -> impl Service<
    Request<Body>,
    Response = Response<Incoming>,
    Error = hyper_util::client::legacy::Error,
    Future: Send,
> + Clone
+ Send
+ Sync
where
    C: Connect + Clone + Send + Sync + 'static,
{
    service_fn(move |request: Request<Body>| {
        let (client, metrics) = (client.clone(), metrics.clone());
        async move {
            let (method, uri) = (request.method().clone(), request.uri().clone());
            let answer = client.request(request).await;
            let status = answer.as_ref().ok().map(|answer| answer.status().as_u16());
            let host = uri.authority().map_or("", |authority| authority.as_str());
            metrics.request(method.as_str(), host, status);
            answer
        }
    })
}

/// The parser adds an excerpt of the file, which may hold secrets.
fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().to_owned()
}

const USER_AGENT_VALUE: &str = concat!("sluice/", env!("CARGO_PKG_VERSION"));
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const PROBE_AFTER: Duration = Duration::from_secs(30);
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
const PROBES: u32 = 3;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn with(path: &Path) -> ApiOptions {
        ApiOptions { kubeconfig: Some(path.to_owned()), ..ApiOptions::default() }
    }

    async fn message(content: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        fs::write(&path, content).unwrap();
        let error = client(&with(&path), &ApiMetrics::default()).await.err().unwrap().to_string();
        error.replace(&*path.to_string_lossy(), "PATH")
    }

    #[tokio::test]
    async fn missing_file_is_named() {
        let options = with(Path::new("/nonexistent/config"));
        let error = client(&options, &ApiMetrics::default()).await.err().unwrap();
        assert_eq!(
            error.to_string(),
            "kubeconfig /nonexistent/config: cannot read it: No such file or directory (os error 2)"
        );
    }

    #[tokio::test]
    async fn unparsable_file_is_named_with_the_position() {
        let error = message("apiVersion: v1\nclusters: [\n").await;
        assert!(error.starts_with("kubeconfig PATH: cannot parse it: "), "{error}");
        assert!(error.contains("line "), "{error}");
    }

    #[tokio::test]
    async fn file_without_current_context_is_named() {
        let error = message("apiVersion: v1\nkind: Config\nclusters: []\n").await;
        assert_eq!(error, "kubeconfig PATH: no current-context is set");
    }

    #[tokio::test]
    async fn undefined_context_is_named() {
        let error = message("apiVersion: v1\nkind: Config\ncurrent-context: here\n").await;
        assert_eq!(error, "kubeconfig PATH: failed to load current context: here");
    }

    #[tokio::test]
    async fn missing_certificate_is_named() {
        let error = message(
            "{kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}],\n\
             clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1', certificate-authority: /nonexistent/ca}}]}",
        )
        .await;
        assert!(error.contains("PATH") && error.contains("/nonexistent/ca"), "{error}");
    }

    #[tokio::test]
    async fn outside_a_cluster_a_kubeconfig_is_asked_for() {
        let error = client(&ApiOptions::default(), &ApiMetrics::default()).await.err().unwrap().to_string();
        assert!(error.contains("--kubeconfig") && error.contains("not a pod"), "{error}");
    }
}
