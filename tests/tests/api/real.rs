//! A real kube-apiserver with its etcd, if there are binaries.

use std::{
    env, fs, io,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use hyper::{
    Method, Request,
    header::{CONTENT_TYPE, HeaderValue},
};
use k8s_openapi::ByteString;
use proxy_agent::{
    metrics::ApiMetrics,
    watch::{self, ApiOptions, Client},
};
use proxy_model::ObjectName;
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use serde_json::{Value, json};
use sluice_tests::apiserver::Kind;
use tempfile::TempDir;
use tokio::time::{self, Instant};

use super::follow::name;

/// kube-apiserver and etcd on loopback, with their data in a directory of their own.
pub(crate) struct RealServer {
    client: Client,
    apiserver: Process,
    _etcd: Process,
    etcd_port: u16,
    port: u16,
    binaries: PathBuf,
    /// Goes last, when nobody writes there any more.
    dir: TempDir,
}

/// Ends with its owner.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl RealServer {
    /// None if nobody says where the binaries are.
    pub(crate) async fn start() -> Option<Self> {
        let binaries = PathBuf::from(env::var_os("KUBEBUILDER_ASSETS")?);
        let dir = tempfile::tempdir().unwrap();
        let [etcd_port, peer_port, port] = free_ports();
        fs::write(dir.path().join("tokens.csv"), format!("{TOKEN},test,test,system:masters\n")).unwrap();
        fs::write(dir.path().join("service-accounts.pem"), keys()).unwrap();
        let etcd = Command::new(binaries.join("etcd"))
            .arg(format!("--data-dir={}", dir.path().join("etcd").display()))
            .arg(format!("--listen-client-urls=http://127.0.0.1:{etcd_port}"))
            .arg(format!("--advertise-client-urls=http://127.0.0.1:{etcd_port}"))
            .arg(format!("--listen-peer-urls=http://127.0.0.1:{peer_port}"))
            .arg("--unsafe-no-fsync")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log(dir.path(), "etcd.log"))
            .spawn()
            .expect("KUBEBUILDER_ASSETS has etcd");
        let apiserver = apiserver(&binaries, dir.path(), etcd_port, port);
        let path = dir.path().join("kubeconfig");
        fs::write(&path, kubeconfig(port)).unwrap();
        let options = ApiOptions { kubeconfig: Some(path), ..ApiOptions::default() };
        let client = watch::client(&options, &ApiMetrics::default()).await.unwrap();
        let mut server = Self { client, apiserver, _etcd: Process(etcd), etcd_port, port, binaries, dir };
        server.ready().await;
        Some(server)
    }

    pub(crate) fn kubeconfig(&self) -> String {
        kubeconfig(self.port)
    }

    pub(crate) async fn apply<K: Kind>(&self, object: &K) {
        let path = format!("{}?fieldManager=test&force=true", path::<K>(Some(&name(object))));
        self.send(Method::PATCH, &path, serde_json::to_vec(object).unwrap()).await.unwrap();
    }

    pub(crate) async fn delete<K: Kind>(&self, namespace: &str, name: &str) {
        let name = ObjectName { namespace: namespace.to_owned(), name: name.to_owned() };
        self.send(Method::DELETE, &path::<K>(Some(&name)), Vec::new()).await.unwrap();
    }

    pub(crate) async fn objects<K: Kind>(&self) -> Vec<K> {
        let mut list = self.send(Method::GET, &path::<K>(None), Vec::new()).await.unwrap();
        let Value::Array(items) = list["items"].take() else { panic!("{list}") };
        items.into_iter().map(|item| serde_json::from_value(item).unwrap()).collect()
    }

    /// SIGKILL, and the same again on the same port.
    pub(crate) async fn crash(&mut self) {
        self.apiserver.0.kill().unwrap();
        self.apiserver.0.wait().unwrap();
        self.apiserver = apiserver(&self.binaries, self.dir.path(), self.etcd_port, self.port);
        self.ready().await;
    }

    async fn ready(&mut self) {
        let start = Instant::now();
        while self.send(Method::GET, "/readyz", Vec::new()).await.is_err() {
            let ended = self.apiserver.0.try_wait().unwrap();
            if ended.is_some() || start.elapsed() > PATIENCE {
                let log = fs::read_to_string(self.dir.path().join("kube-apiserver.log")).unwrap_or_default();
                let end: Vec<&str> = log.lines().rev().take(30).collect();
                panic!(
                    "kube-apiserver is not ready, {ended:?}, its last lines backwards:\n{}",
                    end.join("\n")
                );
            }
            time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn send(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Value, String> {
        let mut request = Request::builder().method(&method).uri(path).body(body).unwrap();
        if method == Method::PATCH {
            let apply = HeaderValue::from_static("application/apply-patch+yaml");
            request.headers_mut().insert(CONTENT_TYPE, apply);
        }
        let text = self.client.request_text(request).await.map_err(|error| error.to_string())?;
        Ok(serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }
}

fn kubeconfig(port: u16) -> String {
    let cluster = json!({"server": format!("https://127.0.0.1:{port}"), "insecure-skip-tls-verify": true});
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "test", "user": {"token": TOKEN}}],
    })
    .to_string()
}

fn apiserver(binaries: &Path, dir: &Path, etcd_port: u16, port: u16) -> Process {
    let keys = dir.join("service-accounts.pem");
    let child = Command::new(binaries.join("kube-apiserver"))
        .arg(format!("--etcd-servers=http://127.0.0.1:{etcd_port}"))
        .arg(format!("--secure-port={port}"))
        .args([
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            "--service-cluster-ip-range=10.0.0.0/16",
        ])
        .args(["--authorization-mode=AlwaysAllow", "--disable-admission-plugins=ServiceAccount"])
        .arg(format!("--cert-dir={}", dir.join("certificates").display()))
        .arg(format!("--token-auth-file={}", dir.join("tokens.csv").display()))
        .arg("--service-account-issuer=https://127.0.0.1/")
        .arg(format!("--service-account-key-file={}", keys.display()))
        .arg(format!("--service-account-signing-key-file={}", keys.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log(dir, "kube-apiserver.log"))
        .spawn()
        .expect("KUBEBUILDER_ASSETS has kube-apiserver");
    Process(child)
}

fn log(dir: &Path, name: &str) -> Stdio {
    fs::File::options().create(true).append(true).open(dir.join(name)).unwrap().into()
}

fn path<K: Kind>(name: Option<&ObjectName>) -> String {
    let root = if K::GROUP.is_empty() {
        format!("/api/{}", K::VERSION)
    } else {
        format!("/apis/{}/{}", K::GROUP, K::VERSION)
    };
    let kind = K::URL_PATH_SEGMENT;
    match name {
        None => format!("{root}/{kind}"),
        Some(ObjectName { namespace, name }) if namespace.is_empty() => format!("{root}/{kind}/{name}"),
        Some(ObjectName { namespace, name }) => format!("{root}/namespaces/{namespace}/{kind}/{name}"),
    }
}

/// Held together, so that they differ; free again when this returns.
fn free_ports() -> [u16; 3] {
    let listeners: io::Result<Vec<TcpListener>> =
        (0..3).map(|_| TcpListener::bind(("127.0.0.1", 0))).collect();
    let ports: Vec<u16> =
        listeners.unwrap().iter().map(|listener| listener.local_addr().unwrap().port()).collect();
    ports.try_into().unwrap()
}

/// For the tokens of service accounts, of which there are none, but the server insists: both halves in one file.
fn keys() -> String {
    let random = SystemRandom::new();
    let private = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, private.as_ref(), &random).unwrap();
    let public = [&PUBLIC_KEY_PREFIX, pair.public_key().as_ref()].concat();
    pem("PRIVATE KEY", private.as_ref()) + &pem("PUBLIC KEY", &public)
}

fn pem(label: &str, der: &[u8]) -> String {
    let base64 = serde_json::to_value(ByteString(der.to_vec())).unwrap();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", base64.as_str().unwrap())
}

/// A `SubjectPublicKeyInfo` for P-256 up to the point itself (RFC 5480 section 2).
const PUBLIC_KEY_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

const TOKEN: &str = "for-this-test-only";
/// The first start creates a lot.
const PATIENCE: Duration = Duration::from_secs(120);
