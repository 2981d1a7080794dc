//! Objects from a directory of manifests, for machines without a cluster.
//!
//! The files are those that one would give to `kubectl apply`, but `status` is read as well: nobody else fills it in.

mod object;
mod parse;
mod set;

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, Metadata},
    io, mem,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use futures::{Stream, stream};
use proxy_model::Change;
use tokio::{task, time};
use tracing::{debug, info, warn};

use self::{
    parse::{Parsed, parse},
    set::Set,
};
use crate::{
    directory::{DirectoryError, Identity, Touched, Watch},
    document::Format,
};

/// The directory of manifests cannot be followed.
#[derive(Debug, thiserror::Error)]
#[error("manifests: {0}")]
pub struct ManifestError(#[from] DirectoryError);

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

        if self.watch.as_ref().is_some_and(|watch| watch.identity() != identity) {
            // Another directory has taken its place; the watch is still on the old one.
            self.watch = None;
        }
    }
}

/// What was found in the directory.
struct Scan {
    identity: Identity,
    /// All files that are there; without a stamp those that could not be read.
    stamps: BTreeMap<String, Stamp>,
    /// Those that were read.
    files: Vec<(String, io::Result<Parsed>)>,
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

fn is_missing<T>(content: &io::Result<T>) -> bool {
    content.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// How often to look for a directory that is away: there may be nothing that could be watched for it.
const AWAY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
