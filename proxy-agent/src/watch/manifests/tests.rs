//! Real directories, and what is told of them.

use std::{os::unix::fs::symlink, pin::pin};

use futures::StreamExt;
use proxy_model::Event;
use tempfile::TempDir;
use tokio::sync::mpsc::{self, UnboundedReceiver};

use super::*;

/// A directory that is followed.
struct Followed {
    dir: TempDir,
    told: UnboundedReceiver<String>,
}

impl Followed {
    /// After the first lists.
    async fn new(fill: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path());
        let (sender, told) = mpsc::unbounded_channel();
        let changes = manifests(dir.path()).unwrap();
        tokio::spawn(async move {
            let mut changes = pin!(changes);
            while let Some(change) = changes.next().await {
                sender.send(describe(change)).unwrap();
            }
        });
        let mut this = Self { dir, told };
        let first = this.next().await;
        assert!(first.starts_with("services"), "{first}");
        assert_eq!([this.next().await, this.next().await, this.next().await], ["slices", "nodes", "pods"]);
        this
    }

    async fn next(&mut self) -> String {
        time::timeout(Duration::from_secs(20), self.told.recv()).await.unwrap().unwrap()
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    /// Writes a file, and one after it whose object shows that nothing else was told before.
    async fn tells_nothing_of(&mut self, file: &str, content: &str) {
        fs::write(self.path(file), content).unwrap();
        // Both may be read at once, but the second only with or after the first.
        fs::write(self.path("zz.yaml"), service("zz", 1)).unwrap();
        assert_eq!(self.next().await, "zz=1");
        fs::remove_file(self.path("zz.yaml")).unwrap();
        assert_eq!(self.next().await, "-zz");
    }
}

fn describe(change: Change) -> String {
    match change {
        Change::Service(Event::Apply(service)) => {
            let port = service.spec.unwrap().ports.unwrap()[0].port;
            format!("{}={port}", service.metadata.name.unwrap())
        }
        Change::Service(Event::Delete(name)) => format!("-{}", name.name),
        Change::Service(Event::Replace(services)) => services
            .into_iter()
            .fold("services".to_owned(), |all, service| all + " " + &service.metadata.name.unwrap()),
        Change::EndpointSlice(Event::Replace(slices)) if slices.is_empty() => "slices".to_owned(),
        Change::Node(Event::Replace(nodes)) if nodes.is_empty() => "nodes".to_owned(),
        Change::Pod(Event::Replace(pods)) if pods.is_empty() => "pods".to_owned(),
        other => format!("{other:?}"),
    }
}

fn service(name: &str, port: u16) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{ports: [{{port: {port}}}]}}}}\n"
    )
}

#[tokio::test]
async fn missing_directory_is_an_error_that_names_it() {
    let error = manifests(Path::new("/nonexistent/manifests")).err().unwrap().to_string();
    assert_eq!(
        error,
        "manifests: cannot read the directory /nonexistent/manifests: No such file or directory (os error 2)"
    );
}

#[tokio::test]
async fn file_in_place_of_the_directory_is_an_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = manifests(file.path()).err().unwrap().to_string();
    assert!(error.contains("Not a directory"), "{error}");
}

#[tokio::test]
async fn files_come_change_and_go() {
    let mut followed = Followed::new(|dir| {
        fs::write(dir.join("a.yaml"), service("a", 1)).unwrap();
        fs::write(dir.join("notes.txt"), service("text", 1)).unwrap();
        fs::write(dir.join(".b.yaml"), service("hidden", 1)).unwrap();
        fs::create_dir(dir.join("c.yaml")).unwrap();
    })
    .await;
    // Written elsewhere and renamed.
    fs::write(followed.path("b.yml.new"), service("b", 2)).unwrap();
    fs::rename(followed.path("b.yml.new"), followed.path("b.yml")).unwrap();
    assert_eq!(followed.next().await, "b=2");
    // In place, with the same length.
    fs::write(followed.path("a.yaml"), service("a", 3)).unwrap();
    assert_eq!(followed.next().await, "a=3");
    fs::rename(followed.path("b.yml"), followed.path("b.yml.old")).unwrap();
    assert_eq!(followed.next().await, "-b");
    fs::remove_file(followed.path("a.yaml")).unwrap();
    assert_eq!(followed.next().await, "-a");
    fs::write(followed.path("a.json"), r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "j"}, "spec": {"ports": [{"port": 4}]}}"#).unwrap();
    assert_eq!(followed.next().await, "j=4");
}

#[tokio::test]
async fn broken_file_keeps_what_it_said() {
    let mut followed = Followed::new(|dir| {
        fs::write(dir.join("a.yaml"), service("a", 1)).unwrap();
        fs::write(dir.join("b.yaml"), service("b", 1)).unwrap();
    })
    .await;
    followed.tells_nothing_of("a.yaml", "{apiVersion: v1, kind: Serv").await;
    fs::write(followed.path("b.yaml"), service("b", 2)).unwrap();
    assert_eq!(followed.next().await, "b=2");
    fs::write(followed.path("a.yaml"), service("a", 2)).unwrap();
    assert_eq!(followed.next().await, "a=2");
}

#[tokio::test]
async fn writes_without_effect_are_not_told() {
    let mut followed = Followed::new(|dir| fs::write(dir.join("a.yaml"), service("a", 1)).unwrap()).await;
    followed.tells_nothing_of("a.yaml", &format!("# the same\n{}", service("a", 1))).await;
}

/// As kubelet updates a volume: the files are links through `..data`, which is swapped.
#[tokio::test]
async fn swapped_links_are_followed() {
    let version = |dir: &Path, name: &str, port| {
        fs::create_dir(dir.join(name)).unwrap();
        fs::write(dir.join(name).join("a.yaml"), service("a", port)).unwrap();
        symlink(name, dir.join("..data_tmp")).unwrap();
        fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    };
    let mut followed = Followed::new(|dir| {
        version(dir, "..1", 1);
        symlink("..data/a.yaml", dir.join("a.yaml")).unwrap();
    })
    .await;
    version(followed.dir.path(), "..2", 2);
    fs::remove_dir_all(followed.path("..1")).unwrap();
    assert_eq!(followed.next().await, "a=2");
}

#[tokio::test]
async fn directory_that_is_away_keeps_what_it_said_until_it_is_back() {
    let mut followed = Followed::new(|dir| {
        fs::write(dir.join("a.yaml"), service("a", 1)).unwrap();
        fs::write(dir.join("b.yaml"), service("b", 1)).unwrap();
    })
    .await;
    let dir = followed.dir.path().to_owned();
    let aside = tempfile::tempdir().unwrap();
    for (round, expected) in [(2, ["b=2", "-a"]), (3, ["b=3", "c=3"])] {
        let (old, new) = (aside.path().join("old"), aside.path().join("new"));
        fs::create_dir(&new).unwrap();
        fs::write(new.join("b.yaml"), service("b", round)).unwrap();
        if round == 3 {
            fs::write(new.join("c.yaml"), service("c", round)).unwrap();
        }
        fs::rename(&dir, &old).unwrap();
        fs::rename(&new, &dir).unwrap();
        assert_eq!([followed.next().await, followed.next().await], expected);
        fs::remove_dir_all(&old).unwrap();
        // The watch is on the new one.
        fs::write(dir.join("z.yaml"), service("z", round)).unwrap();
        assert_eq!(followed.next().await, format!("z={round}"));
        fs::remove_file(dir.join("z.yaml")).unwrap();
        assert_eq!(followed.next().await, "-z");
    }
}
