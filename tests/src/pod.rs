//! Pods as the API tells of them.

use serde_json::{Value, json};

/// A Pod of the first node, with a container of its own.
#[derive(Clone, Debug)]
pub struct PodObject(Value);

impl PodObject {
    /// In the namespace `web`.
    #[must_use]
    pub fn new(name: &str, uid: &str) -> Self {
        Self(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": "web", "name": name, "uid": uid, "labels": {}, "annotations": {} },
            "spec": { "nodeName": "node-1", "containers": [{ "name": "app" }] },
        }))
    }

    /// With its choice, by label.
    #[must_use]
    pub fn choosing(mut self, choice: &str) -> Self {
        self.0["metadata"]["labels"]["sluice.io/socket-lb"] = json!(choice);
        self
    }

    /// With an annotation.
    #[must_use]
    pub fn annotated(mut self, name: &str, value: &str) -> Self {
        self.0["metadata"]["annotations"][name] = json!(value);
        self
    }

    /// With another container beside its own.
    #[must_use]
    pub fn beside(mut self, container: &str) -> Self {
        self.0["spec"]["containers"] = json!([{ "name": "app" }, { "name": container }]);
        self
    }

    /// With a field of its spec.
    #[must_use]
    pub fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.0["spec"][field] = value.into();
        self
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0["metadata"]["name"].as_str().unwrap_or_default()
    }

    /// The whole.
    #[must_use]
    pub const fn object(&self) -> &Value {
        &self.0
    }
}
