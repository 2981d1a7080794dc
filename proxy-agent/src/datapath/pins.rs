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

    /// What agents with other layouts have left beside this layout's pins.
    pub fn others(&self) -> Result<Vec<Self>, PinError> {
        let dir = self.root.parent().unwrap_or(&self.root);
        let failed =
            |source| PinError::Io { action: "cannot list the directory", path: dir.to_owned(), source };
        let mut others = Vec::new();
        for entry in fs::read_dir(dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let version = name.to_str().and_then(|name| name.strip_prefix('v')).map(str::parse::<u32>);
            let other = Self { root: entry.path() };
            // People may keep their own pins in this directory.
            let ours = entry.file_type().is_ok_and(|kind| kind.is_dir()) && other.links().is_dir();
            if matches!(version, Some(Ok(version)) if version != LAYOUT_VERSION) && ours {
                others.push(other);
            }
        }
        others.sort_by(|a, b| a.root.cmp(&b.root));
        Ok(others)
    }

    /// Removes all pins, and with them links and maps that nobody else holds. Returns the number of links.
    pub fn remove(&self) -> Result<usize, PinError> {
        let links = self.link_pins()?.len();
        let failed =
            |source| PinError::Io { action: "cannot remove the directory", path: self.root.clone(), source };
        fs::remove_dir_all(&self.root).map_err(failed)?;
        Ok(links)
    }

    /// The pins of links.
    pub(super) fn link_pins(&self) -> Result<Vec<PathBuf>, PinError> {
        let failed =
            |source| PinError::Io { action: "cannot list its links", path: self.root.clone(), source };
        match fs::read_dir(self.links()) {
            Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>().map_err(failed),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(failed(error)),
        }
    }

    /// The pin of a map.
    #[must_use]
    pub fn map<T: Table>(&self) -> PathBuf {
        self.maps().join(T::NAME)
    }

    /// The pin of the map that is to take the table's place; bpffs keeps names with dots for itself.
    #[must_use]
    pub fn next_map<T: Table>(&self) -> PathBuf {
        self.maps().join(format!("{}-next", T::NAME))
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

/// Removes a pin. Returns whether there was one: whoever else removed it wanted the same.
pub(super) fn unpin(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
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

    #[test]
    fn other_layouts_are_found_and_removed_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let pins = Pins::new(dir.path());
        let make = |name: &str| {
            let root = dir.path().join(name);
            fs::create_dir_all(root.join("maps")).unwrap();
            fs::create_dir_all(root.join("links")).unwrap();
            fs::write(root.join("maps/FLOWS"), "").unwrap();
            fs::write(root.join("links/7-sluice_ingress"), "").unwrap();
            root
        };
        let (own, old) = (make(&format!("v{LAYOUT_VERSION}")), make("v0"));
        let strangers = [make("vault"), make("7"), make("v")];
        fs::create_dir(dir.path().join("v9")).unwrap();
        let others = pins.others().unwrap();
        assert_eq!(others.iter().map(Pins::root).collect::<Vec<_>>(), [old.as_path()]);
        assert_eq!(others[0].remove().unwrap(), 1);
        assert!(!old.exists());
        for kept in strangers.iter().chain([&own]) {
            assert!(kept.join("links/7-sluice_ingress").exists(), "{}", kept.display());
        }
        assert!(pins.others().unwrap().is_empty());
    }
}
