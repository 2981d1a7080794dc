//! The cgroups of pods as they come and go.
//!
//! Whatever directory may have pods' cgroups below it is watched, and listed after the watch has begun, so that nothing gets
//! lost in between. A pod's own cgroup is not looked into.

use std::{
    collections::{BTreeMap, VecDeque},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use futures::{Stream, stream};
use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{CreateKind, RemoveKind},
};
use proxy_common::pod::CgroupId;
use proxy_model::{Change, Event, PodCgroup};
use tokio::{
    sync::mpsc::{self, UnboundedReceiver, UnboundedSender},
    task, time,
};
use tracing::{debug, info, warn};

use super::name::pod_of;

/// How long to wait before everything is looked at again after something went wrong.
const RETRY: Duration = Duration::from_secs(30);

/// Follows the cgroups of pods at and below `dir`, which is at `place` below the root of the hierarchy, for ever. Begins with
/// a `Replace`, as do other sources. What goes wrong is told; until it is right again, what is known stays.
pub fn pod_cgroups(dir: PathBuf, place: PathBuf) -> impl Stream<Item = Change> + Send {
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
mod tests {
    use std::pin::Pin;

    use futures::StreamExt as _;
    use tempfile::TempDir;

    use super::*;

    /// Directories like those of cgroups, followed.
    struct Followed {
        dir: TempDir,
        events: Pin<Box<dyn Stream<Item = Change> + Send>>,
    }

    impl Followed {
        fn new(paths: &[&str]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            for path in paths {
                fs::create_dir_all(dir.path().join(path)).unwrap();
            }
            let events = Box::pin(pod_cgroups(dir.path().canonicalize().unwrap(), PathBuf::from("a/b")));
            Self { dir, events }
        }

        fn path(&self, path: &str) -> PathBuf {
            self.dir.path().join(path)
        }

        fn make(&self, path: &str) -> u64 {
            fs::create_dir_all(self.path(path)).unwrap();
            fs::metadata(self.path(path)).unwrap().ino()
        }

        async fn next(&mut self) -> CgroupEvent {
            let next = time::timeout(Duration::from_secs(60), self.events.next()).await;
            match next.expect("an event comes").unwrap() {
                Change::PodCgroup(event) => event,
                other => panic!("{other:?}"),
            }
        }

        /// Pods and levels of the next event, which lists all.
        async fn all(&mut self) -> Vec<(String, u8)> {
            match self.next().await {
                Event::Replace(all) => all.iter().map(|one| (one.pod.to_string(), one.level)).collect(),
                other => panic!("{other:?}"),
            }
        }
    }

    fn cgroup(id: u64, pod: &str, level: u8) -> CgroupEvent {
        Event::Apply(PodCgroup { id: CgroupId(id), pod: proxy_model::PodUid::new(pod).unwrap(), level })
    }

    #[tokio::test]
    async fn pods_that_are_there_come_go_and_come_back_are_told() {
        let mut followed = Followed::new(&[
            "kubepods/burstable/pod1/c1",
            "kubepods/pod2",
            "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod3_3.slice/c3.scope",
            "system.slice/cron.service",
        ]);
        let mut all = followed.all().await;
        all.sort();
        // Below the root, `a`, `b`, and so on.
        assert_eq!(all, [("1".to_owned(), 5), ("2".to_owned(), 4), ("3-3".to_owned(), 5)]);

        let id = followed.make("kubepods/burstable/pod4");
        assert_eq!(followed.next().await, cgroup(id, "4", 5));
        fs::remove_dir(followed.path("kubepods/burstable/pod4")).unwrap();
        assert_eq!(followed.next().await, Event::Delete(CgroupId(id)));
        // What happens inside a pod is its own business: the next event is of another one.
        fs::create_dir(followed.path("kubepods/burstable/pod1/c2")).unwrap();
        let id = followed.make("kubepods/pod5");
        assert_eq!(followed.next().await, cgroup(id, "5", 4));
    }

    #[tokio::test]
    async fn directories_that_come_with_pods_in_them_are_looked_into() {
        let mut followed = Followed::new(&[]);
        assert_eq!(followed.all().await, []);
        // By the time that the first one is heard of, all are there.
        let id = followed
            .make("x.slice/x-kubepods.slice/x-kubepods-besteffort.slice/x-kubepods-besteffort-pod7.slice");
        assert_eq!(followed.next().await, cgroup(id, "7", 6));
        fs::remove_dir_all(followed.path("x.slice")).unwrap();
        assert_eq!(followed.next().await, Event::Delete(CgroupId(id)));
        let id = followed.make("x.slice/x-kubepods.slice/x-kubepods-pod8.slice");
        assert_eq!(followed.next().await, cgroup(id, "8", 5));
    }

    #[tokio::test]
    async fn a_directory_that_is_replaced_is_another() {
        let mut followed = Followed::new(&["kubepods/pod1"]);
        assert_eq!(followed.all().await.len(), 1);
        let before = fs::metadata(followed.path("kubepods/pod1")).unwrap().ino();
        // Kept, so that its number is not given away again.
        let kept = followed.dir.path().join("kept");
        fs::rename(followed.path("kubepods/pod1"), &kept).unwrap();
        fs::create_dir(followed.path("kubepods/pod1")).unwrap();
        let after = fs::metadata(followed.path("kubepods/pod1")).unwrap().ino();
        assert_eq!(followed.next().await, Event::Delete(CgroupId(before)));
        assert_eq!(followed.next().await, cgroup(after, "1", 4));
    }

    #[tokio::test]
    async fn lost_events_are_made_up_for_by_looking_at_everything() {
        let followed = Followed::new(&["kubepods/pod1"]);
        let dir = followed.dir.path().canonicalize().unwrap();
        let mut follower =
            Follower { dir, place: PathBuf::new(), tree: None, pending: VecDeque::new(), failure: None };
        assert!(matches!(follower.next().await, Event::Replace(all) if all.len() == 1));
        let (tree, _) = follower.tree.take().unwrap();
        let (sender, news) = mpsc::unbounded_channel();
        sender.send(News::Lost).unwrap();
        follower.tree = Some((tree, news));
        followed.make("kubepods/pod2");
        assert!(matches!(follower.next().await, Event::Replace(all) if all.len() == 2));
    }

    #[test]
    fn only_directories_that_come_and_go_matter() {
        use notify::event::{AccessKind, AccessMode, Flag, MetadataKind, ModifyKind};
        let event = |kind| notify::Event::new(kind).add_path(PathBuf::from("/c"));
        for kind in [
            EventKind::Access(AccessKind::Open(AccessMode::Any)),
            EventKind::Create(CreateKind::File),
            EventKind::Remove(RemoveKind::File),
            EventKind::Modify(ModifyKind::Metadata(MetadataKind::Any)),
        ] {
            assert!(told(Ok(event(kind))).is_none(), "{kind:?}");
        }
        for kind in [EventKind::Create(CreateKind::Folder), EventKind::Remove(RemoveKind::Folder)] {
            assert!(
                matches!(told(Ok(event(kind))), Some(News::At(path)) if path == Path::new("/c")),
                "{kind:?}"
            );
        }
        let rescan = notify::Event::new(EventKind::Other).set_flag(Flag::Rescan);
        assert!(matches!(told(Ok(rescan)), Some(News::Lost)));
        assert!(matches!(told(Err(notify::Error::generic("gone"))), Some(News::Lost)));
    }
}
