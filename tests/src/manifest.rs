//! A node's directory of manifests.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use serde::Serialize;

use crate::{sandbox::Sandbox, service::Service, topology::Node};

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

    /// Writes the objects of a service: one file for it, one for the slice of each family.
    ///
    /// # Errors
    ///
    /// If the directory does not let it.
    pub fn publish(&self, service: &Service) -> Result<()> {
        // Whole endpoints first or last must make no difference; agents see both orders in one batch anyway.
        let object: core::Service = service.object();
        self.write(&service_file(service), &object)?;
        for (file, slice) in slice_files(service).into_iter().zip(service.slices()) {
            let slice: discovery::EndpointSlice = slice;
            self.write(&file, &slice)?;
        }
        Ok(())
    }

    /// Removes what [`ManifestDirectory::publish`] wrote.
    ///
    /// # Errors
    ///
    /// If the directory does not let it.
    pub fn withdraw(&self, service: &Service) -> Result<()> {
        self.remove(&service_file(service))?;
        slice_files(service).iter().try_for_each(|file| self.remove(file))
    }

    /// Writes the object of a node.
    ///
    /// # Errors
    ///
    /// If the directory does not let it.
    pub fn publish_node(&self, node: &Node) -> Result<()> {
        self.write(&format!("node-{}.yaml", node.name), &node_object(node))
    }
}

fn service_file(service: &Service) -> String {
    format!("{}.yaml", service.name)
}

fn slice_files(service: &Service) -> [String; 2] {
    [format!("{}-ipv4.yaml", service.name), format!("{}-ipv6.yaml", service.name)]
}

fn node_object(node: &Node) -> core::Node {
    let mut object = core::Node::default();
    object.metadata.name = Some(node.name.clone());
    let address = |address: String| core::NodeAddress { address, type_: "InternalIP".to_owned() };
    let addresses = vec![address(node.addresses.v4.to_string()), address(node.addresses.v6.to_string())];
    object.status = Some(core::NodeStatus { addresses: Some(addresses), ..core::NodeStatus::default() });
    object
}
