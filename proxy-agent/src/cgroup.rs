//! Where the cgroup2 hierarchy is, and where pods are in it.

mod name;
mod pods;

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

pub use pods::with_pod_cgroups;

/// Why there is no cgroup to serve.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The directory that was given cannot be looked at.
    #[error("--cgroup {}", path.display())]
    Unreadable {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The directory that was given is something else.
    #[error("--cgroup {}: not in a cgroup2 file system", .0.display())]
    NotCgroup2(PathBuf),
    /// There is none.
    #[error("no cgroup2 file system is mounted; mount one and name a directory of it with --cgroup")]
    NotMounted,
}

/// Checks a directory that was given.
pub fn check(dir: &Path) -> Result<(), CgroupError> {
    let kind = statfs(dir)
        .map_err(|errno| CgroupError::Unreadable { path: dir.to_owned(), source: errno.into() })?;
    if kind.filesystem_type() == CGROUP2_SUPER_MAGIC {
        Ok(())
    } else {
        Err(CgroupError::NotCgroup2(dir.to_owned()))
    }
}

/// The root of the hierarchy, wherever it is mounted. In a container, one mount may show the container's own cgroup as the
/// root and another one the host's, which is then the one that is meant.
pub fn find() -> Result<PathBuf, CgroupError> {
    let found = mounts();
    let root = found.iter().find(|dir| is_root(dir)).or(found.first());
    root.cloned().ok_or(CgroupError::NotMounted)
}

/// Whether it is the root of the whole hierarchy: the only cgroup that has no events.
#[must_use]
pub fn is_root(dir: &Path) -> bool {
    !dir.join("cgroup.events").exists()
}

/// Where a directory is below the root of the whole hierarchy; `None` if no mount shows that root, as in a container with a
/// cgroup namespace of its own.
#[must_use]
pub fn place(dir: &Path) -> Option<PathBuf> {
    let dir = dir.canonicalize().ok()?;
    let roots = mounts().into_iter().filter(|mount| is_root(mount));
    roots
        .filter_map(|root| root.canonicalize().ok())
        .find_map(|root| Some(dir.strip_prefix(root).ok()?.to_owned()))
}

/// Every place where cgroup2 is mounted, the usual ones first.
fn mounts() -> Vec<PathBuf> {
    let usual = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounted = table.lines().filter_map(cgroup2_mount);
    usual.into_iter().chain(mounted).filter(|dir| check(dir).is_ok()).collect()
}

/// The mount point of a line of `mountinfo`, if it mounts cgroup2 (proc_pid_mountinfo(5)).
fn cgroup2_mount(line: &str) -> Option<PathBuf> {
    let (mount, source) = line.split_once(" - ")?;
    if source.split(' ').next() != Some("cgroup2") {
        return None;
    }
    // Spaces and the like are written in octal.
    let path = mount.split(' ').nth(4)?;
    Some(PathBuf::from(path.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")))
}

/// The directory of a cgroup with that id, as far as this process can see it.
#[must_use]
pub fn directory_of(id: u64) -> Option<PathBuf> {
    mounts().into_iter().find_map(|mount| below(mount, id))
}

fn below(dir: PathBuf, id: u64) -> Option<PathBuf> {
    if fs::metadata(&dir).is_ok_and(|data| data.ino() == id) {
        return Some(dir);
    }
    let entries = fs::read_dir(&dir).ok()?.filter_map(Result::ok);
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.map(|entry| entry.path()).find_map(|dir| below(dir, id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_point_is_told_from_other_fields() {
        for (line, expected) in [
            (
                "42 32 0:37 / /sys/fs/cgroup/unified rw,relatime shared:18 - cgroup2 cgroup2 rw,nsdelegate",
                Some("/sys/fs/cgroup/unified"),
            ),
            ("42 32 0:37 / /run/c\\040g rw - cgroup2 none rw", Some("/run/c g")),
            ("33 32 0:28 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup2 rw,cpu", None),
        ] {
            assert_eq!(cgroup2_mount(line), expected.map(PathBuf::from), "{line}");
        }
    }

    #[test]
    fn a_directory_elsewhere_is_refused_with_the_flag() {
        let dir = tempfile::tempdir().unwrap();
        let error = check(dir.path()).unwrap_err().to_string();
        assert!(error.contains("--cgroup") && error.contains("cgroup2"), "{error}");
        let error = check(&dir.path().join("absent")).unwrap_err().to_string();
        assert!(error.contains("--cgroup"), "{error}");
    }

    #[test]
    fn what_is_found_can_be_attached_to_and_is_found_again_by_its_number() {
        // Not every machine that builds this has one.
        let Ok(dir) = find() else { return };
        check(&dir).unwrap();
        let id = fs::metadata(&dir).unwrap().ino();
        assert_eq!(fs::metadata(directory_of(id).unwrap()).unwrap().ino(), id);
        assert_eq!(place(&dir), is_root(&dir).then(PathBuf::new));
        assert_eq!(place(Path::new("/proc")), None);
    }
}
