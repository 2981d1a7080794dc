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

/// The directory of one node's pins: `<dir>/v<layout>/{maps,links,programs}`. The layout version keeps an agent from
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
        self.set_aside_retired()?;
        for path in [self.maps(), self.links(), self.programs()] {
            fs::create_dir_all(&path).map_err(|source| PinError::Io {
                action: "cannot create the directory",
                path,
                source,
            })?;
        }
        Ok(())
    }

    /// Moves pins out of the way whose programs begin no flows any more: an agent of another layout was here meanwhile,
    /// and is ahead of them on every device.
    fn set_aside_retired(&self) -> Result<(), PinError> {
        if !self.retired().exists() {
            return Ok(());
        }
        let aside = (1..).map(|number| self.root.with_file_name(format!("v{LAYOUT_VERSION}-{number}")));
        let free = aside.into_iter().find(|path| !path.exists()).unwrap_or_default();
        fs::rename(&self.root, free).map_err(|source| PinError::Io {
            action: "cannot set the directory aside",
            path: self.root.clone(),
            source,
        })
    }

    /// Where this layout's pins lie.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What agents with other layouts have left beside this layout's pins, and what was set aside.
    pub fn others(&self) -> Result<Vec<Self>, PinError> {
        let dir = self.root.parent().unwrap_or(&self.root);
        let failed =
            |source| PinError::Io { action: "cannot list the directory", path: dir.to_owned(), source };
        let mut others = Vec::new();
        for entry in fs::read_dir(dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let version = name.to_str().and_then(|name| name.strip_prefix('v'));
            let version = version.and_then(|version| version.split('-').next()).map(str::parse::<u32>);
            let other = Self { root: entry.path() };
            // People may keep their own pins in this directory.
            let ours = entry.file_type().is_ok_and(|kind| kind.is_dir()) && other.links().is_dir();
            if matches!(version, Some(Ok(_))) && other.root != self.root && ours {
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

    /// The pin of a program that has served.
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.programs().join(name)
    }

    /// The directory that says, by being there, that these programs begin no flows, and since when.
    pub(super) fn retired(&self) -> PathBuf {
        self.root.join("retired")
    }

    /// The directory of programs that have served, and of the clock.
    pub(super) fn programs(&self) -> PathBuf {
        self.root.join("programs")
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
    fn pins_that_were_retired_are_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let pins = Pins::new(dir.path());
        for aside in ["-1", "-2"] {
            pins.set_aside_retired().unwrap();
            fs::create_dir_all(pins.links()).unwrap();
            pins.set_aside_retired().unwrap();
            assert!(pins.root().exists());
            fs::create_dir(pins.retired()).unwrap();
            pins.set_aside_retired().unwrap();
            assert!(!pins.root().exists());
            assert!(dir.path().join(format!("v{LAYOUT_VERSION}{aside}/links")).exists());
        }
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
        let aside = make(&format!("v{LAYOUT_VERSION}-1"));
        fs::create_dir(dir.path().join("v9")).unwrap();
        let others = pins.others().unwrap();
        assert_eq!(others.iter().map(Pins::root).collect::<Vec<_>>(), [old.as_path(), aside.as_path()]);
        for other in others {
            assert_eq!(other.remove().unwrap(), 1);
        }
        assert!(!old.exists() && !aside.exists());
        for kept in strangers.iter().chain([&own]) {
            assert!(kept.join("links/7-sluice_ingress").exists(), "{}", kept.display());
        }
        assert!(pins.others().unwrap().is_empty());
    }
}
