//! Where maps and links are pinned, so that they outlive the agent.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use proxy_common::{LAYOUT_VERSION, tables::Table};

/// Why the pin directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The directory lies on another file system.
    #[error(
        "{}: not on a BPF file system; mount one with `mount -t bpf bpf /sys/fs/bpf` or name another with --bpffs",
        .0.display()
    )]
    NotBpffs(PathBuf),
    /// The file system said no.
    #[error("{}: {action}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// The directory of one node's pins: `<dir>/v<layout>/{maps,links}`. The layout version keeps an agent from
/// adopting maps that it would misread.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// The pins below `dir`; nothing is touched yet.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { root: dir.join(format!("v{LAYOUT_VERSION}")) }
    }

    /// Creates the directories. Fails if they are not on a BPF file system, where nothing could be pinned.
    pub fn create(&self) -> Result<(), PinError> {
        let existing = self.root.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let kind = statfs(existing).map_err(|errno| PinError::Io {
            action: "cannot tell its file system",
            path: existing.to_owned(),
            source: errno.into(),
        })?;
        if kind.filesystem_type() != BPF_FS_MAGIC {
            return Err(PinError::NotBpffs(existing.to_owned()));
        }
        for path in [self.maps(), self.links()] {
            fs::create_dir_all(&path).map_err(|source| PinError::Io {
                action: "cannot create the directory",
                path,
                source,
            })?;
        }
        Ok(())
    }

    /// Where this layout's pins lie.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The pin of a map.
    #[must_use]
    pub fn map<T: Table>(&self) -> PathBuf {
        self.maps().join(T::NAME)
    }

    /// The directory of map pins.
    #[must_use]
    pub fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    /// The directory of link pins.
    #[must_use]
    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_directory_is_refused_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let error = Pins::new(&dir.path().join("sluice")).create().unwrap_err();
        assert!(matches!(error, PinError::NotBpffs(_)));
        assert!(error.to_string().contains("mount -t bpf"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was left behind");
    }
}
