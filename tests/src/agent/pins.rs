//! What an agent has pinned.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::Agent;
use crate::sandbox::Sandbox;

impl Agent {
    /// Removes all that it has left in the kernel, so that its next life begins from nothing.
    ///
    /// # Errors
    ///
    /// If that is not possible.
    pub fn forget_everything(&self) -> Result<()> {
        fs::remove_dir_all(Sandbox::shared()?.view(&self.pins)).context("remove the pins")
    }

    /// Takes its programs off all devices and sockets, as somebody might who cleans up too much.
    ///
    /// # Errors
    ///
    /// If there is nothing to take off, or it cannot be.
    pub fn detach_all(&self) -> Result<()> {
        self.links("")?.iter().try_for_each(|link| fs::remove_file(link).context("remove a link"))
    }

    /// The pins of its links whose names begin so, in order, as threads outside the sandbox reach them.
    ///
    /// # Errors
    ///
    /// If there are none, or the directory cannot be read.
    pub fn links(&self, prefix: &str) -> Result<Vec<PathBuf>> {
        let is_link = |pin: &PathBuf| {
            let name = pin.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            pin.parent().is_some_and(|parent| parent.ends_with("links")) && name.starts_with(prefix)
        };
        let root = Sandbox::shared()?.view(&self.pins);
        let links: Vec<_> = self.pins()?.into_iter().filter(is_link).map(|link| root.join(link)).collect();
        ensure!(!links.is_empty(), "no links {prefix}* of {}", self.node);
        Ok(links)
    }

    /// Every pin, relative to [`Agent::bpffs`], in order.
    ///
    /// # Errors
    ///
    /// If a directory cannot be read.
    pub fn pins(&self) -> Result<Vec<PathBuf>> {
        let root = Sandbox::shared()?.view(&self.pins);
        let mut pins = Vec::new();
        let mut directories = vec![root.clone()];
        while let Some(directory) = directories.pop() {
            let list = || format!("list {}", directory.display());
            for entry in fs::read_dir(&directory).with_context(list)? {
                let entry = entry.with_context(list)?;
                if entry.file_type()?.is_dir() {
                    directories.push(entry.path());
                } else {
                    pins.push(entry.path().strip_prefix(&root)?.to_owned());
                }
            }
        }
        pins.sort();
        Ok(pins)
    }
}
