//! The end: nothing of this datapath stays in the kernel (LIFE-09).

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use aya::programs::{
    links::{FdLink, PinnedLink},
    loaded_links,
};

use super::pins::{PinError, Pins};

/// Why something may have stayed.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// Pins could not be removed.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// The directory of pins cannot be used.
    #[error("{}: {action}", path.display())]
    Directory {
        /// What was tried.
        action: &'static str,
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Links are still there, though their pins are not.
    #[error(
        "links {0:?} are still attached: another process holds them, or they are pinned elsewhere; `bpftool link` shows them"
    )]
    Held(Vec<u32>),
}

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// How many layouts of tables there were.
    pub layouts: usize,
    /// How many links there were.
    pub links: usize,
}

/// Detaches every program that was pinned below `bpffs`, by whatever version, removes its tables, and waits until the
/// kernel has no such link any more. An agent that runs meanwhile attaches its programs again.
pub fn cleanup(bpffs: &Path) -> Result<Removed, CleanupError> {
    let mut removed = Removed::default();
    let unknown = |source| CleanupError::Directory {
        action: "cannot tell what is there",
        path: bpffs.to_owned(),
        source,
    };
    if !bpffs.try_exists().map_err(unknown)? {
        return Ok(removed);
    }
    let own = Pins::new(bpffs);
    let mut layouts = own.others()?;
    layouts.extend(own.root().exists().then_some(own));
    let mut links = BTreeSet::new();
    for pins in &layouts {
        links.extend(link_ids(pins)?);
        removed.links += pins.remove()?;
        removed.layouts += 1;
    }
    match fs::remove_dir(bpffs) {
        Ok(()) => {}
        // Somebody else's, or gone by now.
        Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound) => {}
        // A file system's root.
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
        Err(source) => {
            let action = "cannot remove the directory";
            return Err(CleanupError::Directory { action, path: bpffs.to_owned(), source });
        }
    }
    expect_gone(links)?;
    Ok(removed)
}

/// The kernel's ids of the pinned links.
fn link_ids(pins: &Pins) -> Result<BTreeSet<u32>, PinError> {
    let id = |path: PathBuf| {
        let link = PinnedLink::from_pin(path).ok().map(FdLink::from)?;
        Some(link.info().ok()?.id())
    };
    Ok(pins.link_pins()?.into_iter().filter_map(id).collect())
}

/// The kernel frees links a moment after the last reference to them is gone (`bpf_link_put`).
fn expect_gone(links: BTreeSet<u32>) -> Result<(), CleanupError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let held: Vec<_> =
            loaded_links().flatten().map(|link| link.id()).filter(|id| links.contains(id)).collect();
        if held.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(CleanupError::Held(held));
        }
        thread::sleep(PAUSE);
    }
}

const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);
