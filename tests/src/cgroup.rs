//! Cgroups for threads of this process: a pod whose connections a test opens is a thread in one.

use std::{
    collections::BTreeMap,
    fs, panic,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
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

    /// Moves the calling thread there, and with it those that it starts.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn enter(&self) -> Result<()> {
        fs::write(self.0.join("cgroup.threads"), "0").context("enter the cgroup")
    }

    /// Does something on a thread in it, and with it those threads that this one starts.
    ///
    /// # Errors
    ///
    /// Whatever `work` returns, or that the cgroup could not be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let inside = || {
            self.enter()?;
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

/// The cgroups of a node, from that which its agent serves down to its pods'.
#[derive(Debug)]
pub struct PodCgroups {
    pods: BTreeMap<String, Threads>,
    /// Those between, by their path below the served one. The deepest come first, so that they are dropped first.
    above: Vec<(String, Threads)>,
    served: Threads,
}

impl PodCgroups {
    /// A cgroup of its own to serve, with nothing in it.
    ///
    /// # Errors
    ///
    /// If there is no cgroup2.
    pub fn new() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let name = format!("served-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        Ok(Self { pods: BTreeMap::new(), above: Vec::new(), served: Threads::create(&name)? })
    }

    /// Makes a pod's cgroup at a path, and what is missing above it, as kubelet does.
    ///
    /// # Errors
    ///
    /// If there is one already.
    pub fn make(&mut self, path: &str) -> Result<()> {
        let mut names: Vec<&str> = path.split('/').collect();
        let pod = names.pop().context("a name")?;
        for depth in 1..=names.len() {
            let above = names[..depth].join("/");
            if !self.above.iter().any(|(known, _)| *known == above) {
                let threads = self.get(&names[..depth - 1].join("/"))?.below(names[depth - 1])?;
                self.above.insert(0, (above, threads));
            }
        }
        let threads = self.get(&names.join("/"))?.below(pod)?;
        self.pods.insert(path.to_owned(), threads);
        Ok(())
    }

    /// The cgroup at a path.
    ///
    /// # Errors
    ///
    /// If nobody has made it.
    pub fn get(&self, path: &str) -> Result<&Threads> {
        if path.is_empty() {
            return Ok(&self.served);
        }
        let above = self.above.iter().find(|(known, _)| known == path).map(|(_, threads)| threads);
        above.or_else(|| self.pods.get(path)).with_context(|| format!("no cgroup {path}"))
    }

    /// Removes a pod's cgroup.
    ///
    /// # Errors
    ///
    /// If it is not there, or somebody is still in it.
    pub fn remove(&mut self, path: &str) -> Result<()> {
        self.pods.remove(path).with_context(|| format!("no cgroup {path}"))?.remove()
    }

    /// The one whose processes are served, which is no pod's.
    #[must_use]
    pub const fn served(&self) -> &Threads {
        &self.served
    }

    /// What the agent is told, so that it serves it.
    #[must_use]
    pub fn flag(&self) -> String {
        format!("--cgroup={}", self.served.path().display())
    }
}
