//! A node's directory of manifests.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use serde::Serialize;

use crate::{
    pod::PodObject,
    sandbox::Sandbox,
    service::Service,
    topology::{Family, Node},
};

/// A directory that an agent reads. It lies in the sandbox and is written from outside.
#[derive(Debug)]
pub struct ManifestDirectory {
    inside: PathBuf,
    outside: PathBuf,
}

impl ManifestDirectory {
    /// Makes one at a path inside the sandbox.
    ///
    /// # Errors
    ///
    /// If that is not possible.
    pub fn create(inside: PathBuf) -> Result<Self> {
        let outside = Sandbox::shared()?.view(&inside);
        fs::create_dir_all(&outside).with_context(|| format!("make {}", inside.display()))?;
        Ok(Self { inside, outside })
    }

    /// The path that the agent knows it by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.inside
    }

    /// Writes a file in one step: a reader sees the old text, then the new, never half of it.
    ///
    /// # Errors
    ///
    /// If the directory does not let it.
    pub fn write_text(&self, file: &str, text: &str) -> Result<()> {
        let hidden = self.outside.join(format!(".{file}.new"));
        fs::write(&hidden, text)
            .and_then(|()| fs::rename(&hidden, self.outside.join(file)))
            .with_context(|| format!("write {}", self.inside.join(file).display()))
    }

    /// Writes an object as YAML.
    ///
    /// # Errors
    ///
    /// If the object has no YAML form or the directory does not let it.
    pub fn write(&self, file: &str, object: &impl Serialize) -> Result<()> {
        let text = serde_saphyr::to_string(object).with_context(|| format!("{file} as YAML"))?;
        self.write_text(file, &text)
    }

    /// Removes a file, if it is there.
    ///
    /// # Errors
    ///
    /// If it is there and cannot be removed.
    pub fn remove(&self, file: &str) -> Result<()> {
        match fs::remove_file(self.outside.join(file)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", self.inside.join(file).display()))
            }
            _ => Ok(()),
        }
    }

    /// Removes all manifests.
    pub(crate) fn clear(&self) -> Result<()> {
        let list = || format!("list {}", self.inside.display());
        for entry in fs::read_dir(&self.outside).with_context(list)? {
            self.remove(&entry.with_context(list)?.file_name().to_string_lossy())?;
        }
        Ok(())
    }

    /// Writes the objects of a service, in one file.
    ///
    /// # Errors
    ///
    /// If the directory does not let it.
    pub fn publish(&self, service: &Service) -> Result<()> {
        let object: core::Service = service.object();
        let slices = Family::ALL.into_iter().flat_map(|family| service.slices(family));
        let slices: Vec<discovery::EndpointSlice> = slices.collect();
        let mut text = serde_saphyr::to_string(&object).context("a Service as YAML")?;
        for slice in slices {
            text += "---\n";
            text += &serde_saphyr::to_string(&slice).context("an EndpointSlice as YAML")?;
        }
        self.write_text(&service_file(service), &text)
    }

    /// Removes what [`ManifestDirectory::publish`] wrote.
    ///
    /// # Errors
    ///
    /// If the directory does not let it.
    pub fn withdraw(&self, service: &Service) -> Result<()> {
        self.remove(&service_file(service))
    }

    /// Writes the object of a pod.
    ///
    /// # Errors
    ///
    /// If the directory does not let it.
    pub fn publish_pod(&self, pod: &PodObject) -> Result<()> {
        self.write(&pod_file(pod), pod.object())
    }

    /// Removes what [`ManifestDirectory::publish_pod`] wrote.
    ///
    /// # Errors
    ///
    /// If the directory does not let it.
    pub fn withdraw_pod(&self, pod: &PodObject) -> Result<()> {
        self.remove(&pod_file(pod))
    }

    /// Writes the object of a node.
    ///
    /// # Errors
    ///
    /// If the directory does not let it.
    pub fn publish_node(&self, node: &Node) -> Result<()> {
        self.write(&node_file(node), &node_object(node))
    }

    /// Writes the object of a node that is in a zone.
    ///
    /// # Errors
    ///
    /// If the directory does not let it.
    pub fn publish_node_in(&self, node: &Node, zone: &str) -> Result<()> {
        let label = ("topology.kubernetes.io/zone".to_owned(), zone.to_owned());
        self.publish_node_as(node, |object| object.metadata.labels = Some([label].into()))
    }

    /// Writes the object of a node with changes.
    ///
    /// # Errors
    ///
    /// If the directory does not let it.
    pub fn publish_node_as(&self, node: &Node, change: impl FnOnce(&mut core::Node)) -> Result<()> {
        let mut object = node_object(node);
        change(&mut object);
        self.write(&node_file(node), &object)
    }

    /// Removes the object of a node.
    ///
    /// # Errors
    ///
    /// If it is there and cannot be removed.
    pub fn withdraw_node(&self, node: &Node) -> Result<()> {
        self.remove(&node_file(node))
    }
}

fn service_file(service: &Service) -> String {
    format!("{}.yaml", service.name)
}

fn pod_file(pod: &PodObject) -> String {
    format!("pod-{}.yaml", pod.name())
}

fn node_file(node: &Node) -> String {
    format!("node-{}.yaml", node.name)
}

/// The object of a node.
#[must_use]
pub fn node_object(node: &Node) -> core::Node {
    let mut object = core::Node::default();
    object.metadata.name = Some(node.name.clone());
    let address = |address: String| core::NodeAddress { address, type_: "InternalIP".to_owned() };
    let addresses = vec![address(node.addresses.v4.to_string()), address(node.addresses.v6.to_string())];
    object.status = Some(core::NodeStatus { addresses: Some(addresses), ..core::NodeStatus::default() });
    object
}
