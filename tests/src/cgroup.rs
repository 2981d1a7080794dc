//! Cgroups for threads of this process: a pod whose connections a test opens is a thread in one.

use std::{
    fs, panic,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context as _, Result};

use crate::sandbox::own_cgroup;

/// A cgroup for threads, gone with this value. Those below it must be gone by then.
#[derive(Debug)]
pub struct Threads(PathBuf);

impl Threads {
    /// A cgroup below that of this process.
    ///
    /// # Errors
    ///
    /// If there is no cgroup2, or one of that name already.
    pub fn create(name: &str) -> Result<Self> {
        Self::at(own_cgroup()?.join(name))
    }

    /// A cgroup below this one.
    ///
    /// # Errors
    ///
    /// If there is one of that name already.
    pub fn below(&self, name: &str) -> Result<Self> {
        Self::at(self.0.join(name))
    }

    fn at(dir: PathBuf) -> Result<Self> {
        fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
        let threads = Self(dir);
        fs::write(threads.0.join("cgroup.type"), "threaded").context("make a threaded cgroup")?;
        Ok(threads)
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Does something on a thread in it, and with it those threads that this one starts.
    ///
    /// # Errors
    ///
    /// Whatever `work` returns, or that the cgroup could not be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let inside = || {
            fs::write(self.0.join("cgroup.threads"), "0").context("enter the cgroup")?;
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join())
            .unwrap_or_else(|panicked| panic::resume_unwind(panicked))
    }

    /// Removes it now.
    ///
    /// # Errors
    ///
    /// If there is still a thread in it, or a cgroup below it.
    pub fn remove(self) -> Result<()> {
        fs::remove_dir(&self.0).with_context(|| format!("remove {}", self.0.display()))
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // At worst it stays, and is empty.
        drop(fs::remove_dir(&self.0));
    }
}
