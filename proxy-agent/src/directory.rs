//! A directory, and when it changes.
//!
//! Files are watched by their directory: editors put new ones in their place, and kubelet swaps links.

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use tokio::{
    sync::mpsc,
    time::{self, Instant},
};
use tracing::debug;

/// Why a directory cannot be followed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DirectoryError {
    /// It does not exist, is not a directory, or may not be read.
    #[error("cannot read the directory {dir}: {source}", dir = dir.display())]
    Read {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system does not tell when it changes.
    #[error("cannot watch the directory {dir}: {source}", dir = dir.display())]
    Watch {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        source: notify::Error,
    },
}

/// Tells when the directory changes.
pub(crate) struct Watch {
    /// Ends with this.
    _watcher: RecommendedWatcher,
    events: mpsc::UnboundedReceiver<notify::Result<notify::Event>>,
    identity: Identity,
}

/// What may have changed.
pub(crate) enum Touched {
    Everything,
    /// And whatever looks different.
    Files(BTreeSet<OsString>),
}

impl Watch {
    /// Begins to watch.
    pub(crate) fn start(dir: &Path) -> Result<Self, DirectoryError> {
        let unreadable = |source| DirectoryError::Read { dir: dir.into(), source };
        let unwatchable = |source| DirectoryError::Watch { dir: dir.into(), source };
        fs::read_dir(dir).map_err(unreadable)?;
        let (sender, events) = mpsc::unbounded_channel();
        let mut watcher = notify::recommended_watcher(move |event| {
            // Nobody listens when the stream is dropped, and then the watcher ends too.
            sender.send(event).ok();
        })
        .map_err(unwatchable)?;
        watcher.watch(dir, RecursiveMode::NonRecursive).map_err(unwatchable)?;
        let identity = Identity::of(&fs::metadata(dir).map_err(unreadable)?);
        Ok(Self { _watcher: watcher, events, identity })
    }

    /// Which directory it was when this began.
    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    /// Waits for changes, and then until there are none for a moment: editors save in several steps.
    ///
    /// None if the watch has died.
    pub(crate) async fn touched(&mut self) -> Option<Touched> {
        let mut files = BTreeSet::new();
        let mut first = None;
        let mut until = None;
        loop {
            let event = match until {
                None => self.events.recv().await?,
                Some(until) => match time::timeout_at(until, self.events.recv()).await {
                    Ok(event) => event?,
                    Err(_) => return Some(Touched::Files(files)),
                },
            };
            match event {
                // Also our own.
                Ok(event) if is_reading(event.kind) => continue,
                Ok(event) if !event.need_rescan() => {
                    files.extend(event.paths.iter().filter_map(|path| path.file_name()).map(OsStr::to_owned));
                }
                Ok(_) => return Some(Touched::Everything),
                Err(error) => {
                    debug!(%error, "lost track of a directory");
                    return Some(Touched::Everything);
                }
            }
            let now = Instant::now();
            until = Some((now + QUIET).min(*first.get_or_insert(now) + LONGEST_UNREST));
        }
    }
}

fn is_reading(event: EventKind) -> bool {
    matches!(event, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write))
}

impl Touched {
    pub(crate) fn includes(&self, file: &str) -> bool {
        match self {
            Self::Everything => true,
            Self::Files(files) => files.contains(OsStr::new(file)),
        }
    }
}

/// Which directory has the name now.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// How long nothing must happen before changed files are read.
const QUIET: Duration = Duration::from_millis(50);
/// How long to wait for that at most.
const LONGEST_UNREST: Duration = Duration::from_secs(1);
