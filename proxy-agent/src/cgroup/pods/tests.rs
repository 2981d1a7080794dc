use std::pin::Pin;

use k8s_openapi::api::core::v1::Pod;
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

#[tokio::test]
async fn nobody_looks_before_there_is_a_pod() {
    let followed = Followed::new(&["kubepods/pod1"]);
    let (sender, mut changes) = mpsc::unbounded_channel();
    let changes = stream::poll_fn(move |context| changes.poll_recv(context));
    let dir = followed.dir.path().canonicalize().unwrap();
    let mut all = Box::pin(with_pod_cgroups(changes, dir, PathBuf::new()));
    let none = [Change::Service(Event::Replace(vec![])), Change::Pod(Event::Replace(vec![]))];
    for change in none {
        sender.send(change.clone()).unwrap();
        assert_eq!(all.next().await, Some(change));
    }
    assert!(futures::poll!(all.next()).is_pending());
    sender.send(Change::Pod(Event::Apply(Pod::default()))).unwrap();
    assert!(matches!(all.next().await, Some(Change::Pod(Event::Apply(_)))));
    assert!(matches!(all.next().await, Some(Change::PodCgroup(Event::Replace(found))) if found.len() == 1));
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
        assert!(matches!(told(Ok(event(kind))), Some(News::At(path)) if path == Path::new("/c")), "{kind:?}");
    }
    let rescan = notify::Event::new(EventKind::Other).set_flag(Flag::Rescan);
    assert!(matches!(told(Ok(rescan)), Some(News::Lost)));
    assert!(matches!(told(Err(notify::Error::generic("gone"))), Some(News::Lost)));
}
