//! Configuration that changes while the agent runs (LIFE-12).

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use futures::future::select_all;
use tokio::time::sleep;
use tracing::error;

use super::{Configuration, Host, RunArgs};
use crate::directory::Watch;

/// Completes when the files say something else than what is in force, in whatever way they got there: edited, replaced, or
/// swapped by kubelet, which kube-proxy does not notice. Comments are nothing else. What cannot be used is logged and
/// waited out: an agent that ended now could not start again.
///
/// Never completes if there are no files.
pub async fn changed(args: &RunArgs, host: Host, current: &Configuration) {
    let mut told = None;
    loop {
        let directories = directories(&current.files);
        let mut watches: Vec<_> = directories.iter().filter_map(|dir| Watch::start(dir).ok()).collect();
        let is_blind = watches.len() < directories.len();
        // After the watch has begun, so that nothing is missed in between.
        match Configuration::load(args, host) {
            Ok(next) if next.says_the_same(current) => told = None,
            Ok(_) => return,
            Err(error) => {
                let error = crate::report(&error);
                if told.as_ref() != Some(&error) {
                    error!("{error}; the agent goes on as before, but could not start again");
                }
                told = Some(error);
            }
        }
        let touched = async {
            if watches.is_empty() {
                std::future::pending::<()>().await;
            }
            select_all(watches.iter_mut().map(|watch| Box::pin(watch.touched()))).await;
        };
        let looked_for = async { if is_blind { sleep(AWAY).await } else { std::future::pending().await } };
        tokio::select! {
            () = touched => {}
            () = looked_for => {}
        }
    }
}

impl Configuration {
    /// Whether the agent would do the same.
    fn says_the_same(&self, other: &Self) -> bool {
        let Self { task, kube_proxy, sluice, api_servers, log, notes: _, files: _ } = self;
        *task == other.task
            && *kube_proxy == other.kube_proxy
            && *sluice == other.sluice
            && *api_servers == other.api_servers
            && *log == other.log
    }
}

/// Where files are, and where they are if that is a link.
fn directories(files: &[PathBuf]) -> BTreeSet<PathBuf> {
    let target = |file: &PathBuf| fs::canonicalize(file).ok();
    let all = files.iter().cloned().chain(files.iter().filter_map(target));
    all.map(|file| match file.parent() {
        Some(dir) if dir != Path::new("") => dir.to_owned(),
        _ => ".".into(),
    })
    .collect()
}

/// How often to look for a directory that is away.
const AWAY: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use tokio::{task::JoinHandle, time::timeout};

    use super::*;

    const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
    const HOST: Host = Host { has_ipv6: true };

    /// A change must be seen, and nothing else.
    async fn follow(file: &Path) -> JoinHandle<()> {
        let args = RunArgs { config: Some(file.to_owned()), ..RunArgs::default() };
        let current = Configuration::load(&args, HOST).unwrap();
        tokio::spawn(async move { changed(&args, HOST, &current).await })
    }

    async fn ends(following: JoinHandle<()>) {
        timeout(Duration::from_secs(60), following).await.expect("the change is noticed").unwrap();
    }

    #[tokio::test]
    async fn edits_in_place_and_replacements_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.conf");
        fs::write(&file, HEAD).unwrap();
        let following = follow(&file).await;
        fs::write(&file, format!("{HEAD}mode: nftables\n")).unwrap();
        ends(following).await;

        let following = follow(&file).await;
        fs::write(dir.path().join("new"), format!("{HEAD}clusterCIDR: 10.0.0.0/8\n")).unwrap();
        fs::rename(dir.path().join("new"), &file).unwrap();
        ends(following).await;
    }

    /// As kubelet updates a ConfigMap's volume.
    #[tokio::test]
    async fn swapped_links_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let write = |version: &str, text: &str| {
            fs::create_dir(dir.path().join(version)).unwrap();
            fs::write(dir.path().join(version).join("config.conf"), text).unwrap();
        };
        write("..1", HEAD);
        symlink("..1", dir.path().join("..data")).unwrap();
        let file = dir.path().join("config.conf");
        symlink("..data/config.conf", &file).unwrap();
        let following = follow(&file).await;
        write("..2", &format!("{HEAD}clusterCIDR: 10.0.0.0/8\n"));
        symlink("..2", dir.path().join("..next")).unwrap();
        fs::rename(dir.path().join("..next"), dir.path().join("..data")).unwrap();
        fs::remove_dir_all(dir.path().join("..1")).unwrap();
        ends(following).await;
    }

    #[tokio::test]
    async fn a_file_behind_a_link_to_elsewhere_is_watched_there() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let target = there.path().join("proxy.yaml");
        fs::write(&target, HEAD).unwrap();
        let file = here.path().join("config.conf");
        symlink(&target, &file).unwrap();
        let following = follow(&file).await;
        fs::write(&target, format!("{HEAD}mode: nftables\n")).unwrap();
        ends(following).await;
    }

    #[tokio::test]
    async fn what_says_the_same_or_cannot_be_used_ends_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.conf");
        fs::write(&file, HEAD).unwrap();
        let args = RunArgs { config: Some(file.clone()), ..RunArgs::default() };
        let current = Configuration::load(&args, HOST).unwrap();
        for text in [
            format!("# nothing new\n{HEAD}mode: \"\"\n"),
            format!("{HEAD}mode: nonsense\n"),
            String::new(),
            "[".to_owned(),
        ] {
            fs::write(&file, text).unwrap();
            let checked = Configuration::load(&args, HOST);
            assert!(checked.is_err() || checked.is_ok_and(|next| next.says_the_same(&current)));
        }
        // What comes after that still does.
        let following = tokio::spawn(async move { changed(&args, HOST, &current).await });
        fs::write(&file, format!("{HEAD}mode: nftables\n")).unwrap();
        ends(following).await;
    }

    #[test]
    fn directories_are_those_of_links_and_of_what_they_lead_to() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir(root.join("real")).unwrap();
        fs::write(root.join("real/file"), "").unwrap();
        symlink("real/file", root.join("link")).unwrap();
        let found = directories(&[root.join("link"), "relative".into()]);
        assert_eq!(found, BTreeSet::from([root.clone(), root.join("real"), ".".into()]));
    }
}
