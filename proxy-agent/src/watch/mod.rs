//! Where the objects come from: the Kubernetes API, or a directory of manifests.
//!
//! Both are endless streams of [`Change`](proxy_model::Change), so the rest of the agent cannot tell them apart.
//! Every kind starts with one `Replace`, and nothing is taken back because a source is out of reach: a source that
//! knows nothing says nothing.
//!
//! This module and `events` are the only ones that may name `kube`. It does not know what the objects mean; it filters only
//! what the API server would filter for it.

mod kubernetes;
mod manifests;

pub use kube::Client;
pub use kubernetes::{ApiOptions, ClientError, RequestLimit, client, kubernetes, pods};
pub use manifests::{ManifestError, manifests};

/// Services with this label, whatever its value, belong to another proxy.
const SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

/// Slices with this label belong to headless Services, which have no address to balance.
const HEADLESS: &str = "service.kubernetes.io/headless";
