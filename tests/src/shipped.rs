//! `deploy/sluice.yaml`, as an API server and a runtime understand it.

use std::{collections::BTreeSet, fs, path::PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::{
    Resource,
    api::{
        apps::v1::DaemonSet,
        core::v1::{ConfigMap, Container, PodSpec, SecurityContext, ServiceAccount},
        rbac::v1::{ClusterRole, ClusterRoleBinding},
    },
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// What there is to be applied to a cluster.
#[derive(Clone, Debug)]
pub struct Shipped {
    /// Who the agents are.
    pub account: ServiceAccount,
    /// What they may do.
    pub role: ClusterRole,
    /// Who may do that.
    pub binding: ClusterRoleBinding,
    /// The agents.
    pub daemon_set: DaemonSet,
    /// The agents' configuration, if it comes along.
    pub config: Option<ConfigMap>,
}

impl Shipped {
    /// The plain manifest.
    ///
    /// # Errors
    ///
    /// If it cannot be read, or is wrong: see [`Shipped::parse`].
    pub fn read() -> Result<Self> {
        let path = directory().join("sluice.yaml");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    /// Reads objects as strictly as an API server that validates: each field exists and has a value of its type.
    ///
    /// # Errors
    ///
    /// If the text is no YAML, an object is wrong, or there is none or more than one of a kind.
    pub fn parse(text: &str) -> Result<Self> {
        let mut objects: Vec<Value> = serde_saphyr::from_multiple(text)?;
        let shipped = Self {
            account: take(&mut objects)?.context("no ServiceAccount")?,
            role: take(&mut objects)?.context("no ClusterRole")?,
            binding: take(&mut objects)?.context("no ClusterRoleBinding")?,
            daemon_set: take(&mut objects)?.context("no DaemonSet")?,
            config: take(&mut objects)?,
        };
        ensure!(objects.is_empty(), "of these, nobody knows what they are for: {objects:?}");
        Ok(shipped)
    }

    /// What the pods are.
    ///
    /// # Errors
    ///
    /// If they are nothing.
    pub fn pod(&self) -> Result<&PodSpec> {
        self.daemon_set.spec.template.spec.as_ref().context("the DaemonSet's template has no spec")
    }

    /// The one container of a pod.
    ///
    /// # Errors
    ///
    /// If there are others.
    pub fn container(&self) -> Result<&Container> {
        let pod = self.pod()?;
        ensure!(pod.init_containers.is_none() && pod.ephemeral_containers.is_none(), "there are others");
        match &pod.containers[..] {
            [container] => Ok(container),
            other => bail!("{} containers", other.len()),
        }
    }

    /// What the container is allowed.
    ///
    /// # Errors
    ///
    /// If nothing is said.
    pub fn security(&self) -> Result<&SecurityContext> {
        self.container()?.security_context.as_ref().context("no securityContext")
    }

    /// The capabilities that the container has, all of them, as Kubernetes names them.
    ///
    /// # Errors
    ///
    /// If it has the runtime's besides.
    pub fn capabilities(&self) -> Result<BTreeSet<String>> {
        let capabilities = self.security()?.capabilities.clone().context("no capabilities")?;
        let dropped = capabilities.drop.unwrap_or_default();
        ensure!(dropped == ["ALL"], "of those that every container has, only {dropped:?} are dropped");
        Ok(capabilities.add.unwrap_or_default().into_iter().collect())
    }
}

/// The directory of all that ships.
#[must_use]
pub fn directory() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy"))
}

/// Takes the one object of a kind out of the list.
fn take<K: Resource + Serialize + DeserializeOwned>(objects: &mut Vec<Value>) -> Result<Option<K>> {
    let is_of_kind = |object: &Value| object["apiVersion"] == K::API_VERSION && object["kind"] == K::KIND;
    let Some(at) = objects.iter().position(is_of_kind) else { return Ok(None) };
    let object = objects.remove(at);
    ensure!(!objects.iter().any(is_of_kind), "more than one {}", K::KIND);
    strict(object).context(K::KIND).map(Some)
}

/// What the type does not know it leaves out, and what it understands otherwise it writes otherwise.
fn strict<K: Serialize + DeserializeOwned>(object: Value) -> Result<K> {
    let typed: K = serde_json::from_value(object.clone())?;
    let known = serde_json::to_value(&typed)?;
    let mut lost = Vec::new();
    differences("", &object, &known, &mut lost);
    ensure!(lost.is_empty(), "no such field, or not with that value: {}", lost.join(", "));
    Ok(typed)
}

fn differences(path: &str, written: &Value, known: &Value, lost: &mut Vec<String>) {
    match (written, known) {
        (Value::Object(written), Value::Object(known)) => {
            for (name, value) in written {
                differences(&format!("{path}.{name}"), value, known.get(name).unwrap_or(&Value::Null), lost);
            }
        }
        (Value::Array(written), Value::Array(known)) if written.len() == known.len() => {
            for (at, (written, known)) in written.iter().zip(known).enumerate() {
                differences(&format!("{path}[{at}]"), written, known, lost);
            }
        }
        (written, known) if written == known => {}
        _ => lost.push(path.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_and_wrong_values_are_refused_with_their_paths() {
        let wrong = |from: &str, to: &str| {
            let text = fs::read_to_string(directory().join("sluice.yaml")).unwrap();
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text, "there is no {from:?}");
            format!("{:#}", Shipped::parse(&changed).unwrap_err())
        };
        let error = wrong("hostNetwork: true", "hostNetworks: true");
        assert!(error.contains(".spec.template.spec.hostNetworks"), "{error}");
        let error = wrong("readOnlyRootFilesystem:", "readonlyRootFilesystem:");
        assert!(error.contains(".containers[0].securityContext.readonlyRootFilesystem"), "{error}");
        let error = wrong("hostNetwork: true", "hostNetwork: \"yes\"");
        assert!(error.contains("invalid type"), "{error}");
        let error = wrong("kind: ServiceAccount", "kind: Secret");
        assert!(error.contains("no ServiceAccount"), "{error}");
    }
}
