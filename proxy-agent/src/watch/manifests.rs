//! Objects from a directory of manifests, for machines without a cluster.
//!
//! The files are those that one would give to `kubectl apply`, but `status` is read as well: nobody else fills it in.

mod document;
mod object;
mod parse;
mod set;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ffi::{OsStr, OsString},
    fs::{self, Metadata},
    io, mem,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use futures::{Stream, stream};
use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use proxy_model::Change;
use tokio::{
    sync::mpsc,
    task,
    time::{self, Instant},
};
use tracing::{debug, info, warn};

use self::{
    document::Format,
    parse::{Parsed, parse},
    set::Set,
};

/// Why a directory cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It does not exist, is not a directory, or may not be read.
    #[error("manifests: cannot read the directory {dir}: {source}", dir = dir.display())]
    Read {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system does not tell when it changes.
    #[error("manifests: cannot watch the directory {dir}: {source}", dir = dir.display())]
    Watch {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        source: notify::Error,
    },
}

/// Follows the `*.yaml`, `*.yml` and `*.json` files of a directory, for ever.
///
/// A file, document or list item that cannot be understood is warned about and leaves the last good version in place.
/// Changes are seen in the directory itself, including links swapped as kubelet does for a ConfigMap; not those to a
/// file elsewhere that a link points to.
pub fn manifests(dir: &Path) -> Result<impl Stream<Item = Change> + Send + use<>, ManifestError> {
    let directory = Directory {
        path: dir.into(),
        watch: Some(Watch::start(dir)?),
        unread: Some(Touched::Everything),
        stamps: BTreeMap::new(),
        set: Set::default(),
        pending: VecDeque::new(),
    };
    Ok(stream::unfold(directory, async |mut directory| Some((directory.next().await, directory))))
}

struct Directory {
    path: PathBuf,
    /// None while the directory is away.
    watch: Option<Watch>,
    unread: Option<Touched>,
    stamps: BTreeMap<String, Stamp>,
    set: Set,
    pending: VecDeque<Change>,
}

impl Directory {
    async fn next(&mut self) -> Change {
        loop {
            if let Some(change) = self.pending.pop_front() {
                return change;
            }
            let touched = match self.unread.take() {
                Some(touched) => touched,
                None => self.wait().await,
            };
            match self.scan(touched).await {
                Ok(scan) => self.take(scan),
                Err(error) => {
                    let dir = self.path.display();
                    warn!(%dir, %error, "cannot read the directory of manifests, keeping what is known");
                    self.watch = None;
                }
            }
        }
    }

    async fn wait(&mut self) -> Touched {
        if let Some(watch) = &mut self.watch
            && let Some(touched) = watch.touched().await
        {
            return touched;
        }
        loop {
            match Watch::start(&self.path) {
                Ok(watch) => {
                    info!(dir = %self.path.display(), "watching the directory of manifests again");
                    self.watch = Some(watch);
                    return Touched::Everything;
                }
                Err(error) => debug!(%error, "the directory of manifests is still away"),
            }
            time::sleep(AWAY).await;
        }
    }

    async fn scan(&mut self, touched: Touched) -> io::Result<Scan> {
        let (dir, stamps) = (self.path.clone(), mem::take(&mut self.stamps));
        // A directory can be slow, and a large one takes long to parse.
        task::spawn_blocking(move || scan(&dir, &stamps, &touched)).await.map_err(io::Error::other)?
    }

    fn take(&mut self, scan: Scan) {
        let Scan { identity, stamps, files } = scan;
        for (name, content) in files {
            let file = self.path.join(&name);
            let file = file.display();
            match content {
                Ok(parsed) => {
                    for problem in &parsed.problems {
                        warn!(%file, %problem, "skipped a part of a manifest, what it last said stays");
                    }
                    for kind in &parsed.ignored {
                        debug!(%file, %kind, "ignored an object of a kind that is not followed");
                    }
                    self.set.read(&name, parsed);
                }
                Err(error) => warn!(%file, %error, "cannot read a manifest, what it last said stays"),
            }
        }
        self.set.retain(|file| stamps.contains_key(file));
        self.stamps = stamps;

        let (changes, duplicates) = self.set.changes();
        for duplicate in duplicates {
            warn!(dir = %self.path.display(), %duplicate, "an object is defined twice");
        }
        self.pending.extend(changes);

        if self.watch.as_ref().is_some_and(|watch| watch.identity != identity) {
            // Another directory has taken its place; the watch is still on the old one.
            self.watch = None;
        }
    }
}

/// Tells when the directory changes.
struct Watch {
    /// Ends with this.
    _watcher: RecommendedWatcher,
    events: mpsc::UnboundedReceiver<notify::Result<notify::Event>>,
    identity: Identity,
}

enum Touched {
    Everything,
    /// And whatever looks different.
    Files(BTreeSet<OsString>),
}

impl Watch {
    fn start(dir: &Path) -> Result<Self, ManifestError> {
        let unreadable = |source| ManifestError::Read { dir: dir.into(), source };
        let unwatchable = |source| ManifestError::Watch { dir: dir.into(), source };
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

    /// Waits for changes, and then until there are none for a moment: editors save in several steps.
    ///
    /// None if the watch has died.
    async fn touched(&mut self) -> Option<Touched> {
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
                    debug!(%error, "lost track of the directory of manifests");
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

/// What was found in the directory.
struct Scan {
    identity: Identity,
    /// All files that are there; without a stamp those that could not be read.
    stamps: BTreeMap<String, Stamp>,
    /// Those that were read.
    files: Vec<(String, io::Result<Parsed>)>,
}

/// Which directory has the name now.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// Changes when the file does, or when another takes its place, if only behind a link.
///
/// Two changes in the same tick of the clock look the same, so files that the watch names are read in any case.
#[derive(PartialEq, Eq)]
enum Stamp {
    Read { device: u64, inode: u64, size: u64, modified: (i64, i64), changed: (i64, i64) },
    Unreadable,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self::Read {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

fn scan(dir: &Path, before: &BTreeMap<String, Stamp>, touched: &Touched) -> io::Result<Scan> {
    let mut scan =
        Scan { identity: Identity::of(&fs::metadata(dir)?), stamps: BTreeMap::new(), files: Vec::new() };
    for entry in fs::read_dir(dir)? {
        let Ok(name) = entry?.file_name().into_string() else { continue };
        let Some(format) = Format::of(&name) else { continue };
        let path = dir.join(&name);
        let found = fs::metadata(&path).map(|metadata| metadata.is_file().then(|| Stamp::of(&metadata)));
        let (stamp, content) = match found {
            Ok(None) => continue,
            Ok(Some(stamp)) if !touched.includes(&name) && before.get(&name) == Some(&stamp) => (stamp, None),
            Ok(Some(stamp)) => match fs::read_to_string(&path) {
                Ok(text) => (stamp, Some(Ok(parse(format, &text)))),
                Err(error) => (Stamp::Unreadable, Some(Err(error))),
            },
            Err(error) => (Stamp::Unreadable, Some(Err(error))),
        };
        // Gone since the directory was read, or a link to nowhere.
        if content.as_ref().is_some_and(is_missing) {
            continue;
        }
        scan.files.extend(content.map(|content| (name.clone(), content)));
        scan.stamps.insert(name, stamp);
    }
    Ok(scan)
}

impl Touched {
    fn includes(&self, file: &str) -> bool {
        match self {
            Self::Everything => true,
            Self::Files(files) => files.contains(OsStr::new(file)),
        }
    }
}

fn is_missing<T>(content: &io::Result<T>) -> bool {
    content.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// How long nothing must happen before changed files are read.
const QUIET: Duration = Duration::from_millis(50);
/// How long to wait for that at most.
const LONGEST_UNREST: Duration = Duration::from_secs(1);
/// How often to look for a directory that is away: there may be nothing that could be watched for it.
const AWAY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
