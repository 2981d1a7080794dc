//! The end: nothing of this datapath stays in the kernel (LIFE-09).

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use aya::programs::{
    links::{FdLink, LinkError, PinnedLink},
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// How many layouts of tables there were.
    pub layouts: usize,
    /// How many links there were.
    pub links: usize,
    /// Why it could not be seen that the kernel has none of the links any more, if so. Looking takes more capabilities
    /// than detaching.
    pub unseen: Option<String>,
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
        for pin in pins.link_pins()? {
            match link_id(&pin) {
                Ok(id) => {
                    links.insert(id);
                }
                Err(error) => removed.unseen = Some(format!("{}: {}", pin.display(), crate::report(&error))),
            }
        }
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
    match expect_gone(&links)? {
        Ok(()) => {}
        Err(error) => removed.unseen = Some(crate::report(&error)),
    }
    Ok(removed)
}

/// The kernel's id of a pinned link.
fn link_id(pin: &Path) -> Result<u32, LinkError> {
    Ok(FdLink::from(PinnedLink::from_pin(pin)?).info()?.id())
}

/// The kernel frees links a moment after the last reference to them is gone (`bpf_link_put`). Fails if it does not; the
/// inner result is an error if the kernel does not let this process look (`CAP_SYS_ADMIN`).
fn expect_gone(links: &BTreeSet<u32>) -> Result<Result<(), LinkError>, CleanupError> {
    let deadline = Instant::now() + PATIENCE;
    while !links.is_empty() {
        let all: Vec<u32> = match loaded_links().map(|link| Ok(link?.id())).collect() {
            Ok(all) => all,
            // One of them went while they were counted.
            Err(error) if is_absence(&error) && Instant::now() < deadline => continue,
            Err(error) => return Ok(Err(error)),
        };
        let held: Vec<_> = all.into_iter().filter(|id| links.contains(id)).collect();
        if held.is_empty() {
            break;
        }
        if Instant::now() >= deadline {
            return Err(CleanupError::Held(held));
        }
        thread::sleep(PAUSE);
    }
    Ok(Ok(()))
}

fn is_absence(error: &LinkError) -> bool {
    let LinkError::SyscallError(error) = error else { return false };
    error.io_error.kind() == io::ErrorKind::NotFound
}

const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);
