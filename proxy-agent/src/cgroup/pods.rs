//! The cgroups of pods as they come and go.
//!
//! Whatever directory may have pods' cgroups below it is watched, and listed after the watch has begun, so that nothing gets
//! lost in between. A pod's own cgroup is not looked into.

use std::{
    collections::{BTreeMap, VecDeque},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::{Stream, StreamExt as _, stream};
use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{CreateKind, RemoveKind},
};
use proxy_common::pod::CgroupId;
use proxy_model::{Change, Event, PodCgroup};
use tokio::{
    sync::{
        Notify,
        mpsc::{self, UnboundedReceiver, UnboundedSender},
    },
    task, time,
};
use tracing::{debug, info, warn};

use super::name::pod_of;

/// How long to wait before everything is looked at again after something went wrong.
const RETRY: Duration = Duration::from_secs(30);

/// The same changes, and those of the cgroups of pods at and below `dir`, which is at `place` below the root of the hierarchy:
/// from the first pod on, for where none is known nobody need watch.
pub fn with_pod_cgroups(
    changes: impl Stream<Item = Change> + Send,
    dir: PathBuf,
    place: PathBuf,
) -> impl Stream<Item = Change> + Send {
    let wanted = Arc::new(Notify::new());
    let cgroups = {
        let wanted = Arc::clone(&wanted);
        let follow = async move || {
            wanted.notified().await;
            pod_cgroups(dir, place)
        };
        stream::once(follow()).flatten()
    };
    let changes = changes.inspect(move |change| {
        let names_a_pod = match change {
            Change::Pod(Event::Apply(_)) => true,
            Change::Pod(Event::Replace(all)) => !all.is_empty(),
            _ => false,
        };
        if names_a_pod {
            wanted.notify_one();
        }
    });
    stream::select(changes, cgroups)
}

/// Follows the cgroups of pods, for ever. Begins with a `Replace`, as do other sources. What goes wrong is told; until it is
/// right again, what is known stays.
fn pod_cgroups(dir: PathBuf, place: PathBuf) -> impl Stream<Item = Change> + Send {
    let follower = Follower { dir, place, tree: None, pending: VecDeque::new(), failure: None };
    stream::unfold(follower, async |mut follower| {
        let event = follower.next().await;
        Some((Change::PodCgroup(event), follower))
    })
}

type CgroupEvent = Event<PodCgroup, CgroupId>;

struct Follower {
    dir: PathBuf,
    place: PathBuf,
    /// `None` before everything has been looked at, and when track was lost.
    tree: Option<(Tree, UnboundedReceiver<News>)>,
    pending: VecDeque<CgroupEvent>,
    /// What is going wrong, as it was told.
    failure: Option<String>,
}

/// What a watch tells.
#[derive(Debug)]
enum News {
    /// A directory came, went, or both.
    At(PathBuf),
    /// Something happened, and nobody knows what.
    Lost,
}

impl Follower {
    async fn next(&mut self) -> CgroupEvent {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return event;
            }
            let stepped = match self.tree.take() {
                None => self.look_at_all().await,
                Some((tree, mut news)) => match news.recv().await {
                    Some(News::At(path)) if path != self.dir => self.look_again(tree, news, path).await,
                    // The directory itself has gone, perhaps to be made again.
                    Some(News::At(_) | News::Lost) | None => {
                        debug!("lost track of the cgroups of pods, listing them again");
                        Ok(())
                    }
                },
            };
            match stepped {
                Ok(()) => {
                    if self.tree.is_some() && self.failure.take().is_some() {
                        info!(cgroup = %self.dir.display(), "following the cgroups of pods again");
                    }
                }
                Err(error) => {
                    self.tell(&error);
                    time::sleep(RETRY).await;
                }
            }
        }
    }

    /// A directory can have many below it, so others need not wait.
    async fn look_at_all(&mut self) -> Result<(), FollowError> {
        let (dir, place) = (self.dir.clone(), self.place.clone());
        let (sender, news) = mpsc::unbounded_channel();
        let (tree, found) = blocking(move || Tree::grow(dir, place, sender)).await?;
        self.pending.push_back(Event::Replace(found));
        self.tree = Some((tree, news));
        Ok(())
    }

    async fn look_again(
        &mut self,
        mut tree: Tree,
        news: UnboundedReceiver<News>,
        path: PathBuf,
    ) -> Result<(), FollowError> {
        let (tree, events) = blocking(move || {
            let events = tree.look_again(&path)?;
            Ok((tree, events))
        })
        .await?;
        self.pending.extend(events);
        self.tree = Some((tree, news));
        Ok(())
    }

    /// Each failure once, until all is well again.
    fn tell(&mut self, error: &FollowError) {
        let failure = crate::report(error);
        if self.failure.as_ref() != Some(&failure) {
            warn!(
                "{failure}; pods that come are not known, and are left to packets unless --socket-lb=on; will try again"
            );
        }
        self.failure = Some(failure);
    }
}

/// Runs what may take long.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FollowError> + Send + 'static,
) -> Result<T, FollowError> {
    task::spawn_blocking(work).await.map_err(|error| FollowError::Task(io::Error::other(error)))?
}

/// Why cgroups cannot be followed.
#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error("cgroup {}: cannot watch it", path.display())]
    Watch { path: PathBuf, source: notify::Error },
    #[error("cgroup {}: cannot look at it", path.display())]
    Look { path: PathBuf, source: io::Error },
    #[error("cannot look at the cgroups of pods")]
    Task(#[source] io::Error),
}

/// The watched directories.
struct Tree {
    watcher: RecommendedWatcher,
    dir: PathBuf,
    place: PathBuf,
    pods: BTreeMap<PathBuf, PodCgroup>,
}

impl Tree {
    /// With everything that is there.
    fn grow(
        dir: PathBuf,
        place: PathBuf,
        news: UnboundedSender<News>,
    ) -> Result<(Self, Vec<PodCgroup>), FollowError> {
        let watcher = notify::recommended_watcher(move |event| {
            if let Some(event) = told(event) {
                // Nobody listens when the stream is dropped, and then the watcher ends too.
                news.send(event).ok();
            }
        });
        let watcher = watcher.map_err(|source| FollowError::Watch { path: dir.clone(), source })?;
        // Nothing may ever be found below a directory that is not there.
        fs::metadata(&dir).map_err(|source| FollowError::Look { path: dir.clone(), source })?;
        let mut tree = Self { watcher, dir: dir.clone(), place, pods: BTreeMap::new() };
        tree.look(&dir)?;
        let found = tree.pods.values().cloned().collect();
        Ok((tree, found))
    }

    /// Looks what is at a path now, where something else may have been before.
    fn look_again(&mut self, path: &Path) -> Result<Vec<CgroupEvent>, FollowError> {
        let known: Vec<PathBuf> = self.pods.keys().filter(|pod| pod.starts_with(path)).cloned().collect();
        let before: Vec<PodCgroup> = known.iter().filter_map(|pod| self.pods.remove(pod)).collect();
        self.look(path)?;
        let here: Vec<&PodCgroup> =
            self.pods.iter().filter(|(pod, _)| pod.starts_with(path)).map(|(_, cgroup)| cgroup).collect();
        let gone = before.iter().filter(|cgroup| !here.iter().any(|other| other.id == cgroup.id));
        let come = here.iter().filter(|cgroup| !before.contains(cgroup));
        let come = come.map(|&cgroup| Event::Apply(cgroup.clone()));
        Ok(gone.map(|cgroup| Event::Delete(cgroup.id)).chain(come).collect())
    }

    /// Watches a directory and finds the pods at and below it. One that is gone by now has none.
    fn look(&mut self, path: &Path) -> Result<(), FollowError> {
        let failed = |source| FollowError::Look { path: path.to_owned(), source };
        let below = path.strip_prefix(&self.dir).unwrap_or(path);
        let place = self.place.join(below);
        if let Some(pod) = pod_of(&place) {
            let level = place.iter().count();
            let found = found(fs::metadata(path)).map_err(failed)?;
            if let (Some(data), Ok(level)) = (found, level.try_into()) {
                self.pods.insert(path.to_owned(), PodCgroup { id: CgroupId(data.ino()), pod, level });
            }
            return Ok(());
        }
        match self.watcher.watch(path, RecursiveMode::NonRecursive) {
            Err(error) if is_gone(&error) => return Ok(()),
            watched => {
                watched.map_err(|source| FollowError::Watch { path: path.to_owned(), source })?;
            }
        }
        for entry in found(fs::read_dir(path)).map_err(failed)?.into_iter().flatten() {
            let Some(entry) = found(entry).map_err(failed)? else { continue };
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.look(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// What an event is about, if it is about directories. Those that are opened and read, by others or by the listing itself,
/// are the most.
fn told(event: notify::Result<notify::Event>) -> Option<News> {
    let Ok(event) = event else { return Some(News::Lost) };
    if event.need_rescan() {
        return Some(News::Lost);
    }
    match event.kind {
        EventKind::Create(CreateKind::Folder) | EventKind::Remove(RemoveKind::Folder) => {
            event.paths.into_iter().next().map(News::At)
        }
        _ => None,
    }
}

/// `None` for what is not there, or not any more: cgroups that have been removed also say `ENODEV`.
fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(nix::libc::ENODEV) => Ok(None),
        result => result.map(Some),
    }
}

fn is_gone(error: &notify::Error) -> bool {
    match &error.kind {
        notify::ErrorKind::PathNotFound => true,
        notify::ErrorKind::Io(error) => error.kind() == io::ErrorKind::NotFound,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
