//! A private mount namespace for what tests write to file systems.
//!
//! Pins in bpffs keep programs attached and maps alive for as long as the file system exists; a test that is
//! killed must not leave any behind. So every process that uses the bed gets its own mount namespace with its own
//! bpffs and tmpfs: they end with the last process in them, and no clean-up code has to run.

use std::{
    fs::{self, File},
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::OnceLock,
    thread,
};

use anyhow::{Context as _, Result, anyhow};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};
use proxy_agent::cgroup;

/// Where the bpffs is mounted, as seen from inside. Mounted over the host's, which stays untouched.
pub const BPFFS: &str = "/sys/fs/bpf";
/// Where files go, as seen from inside: a directory that every Linux has and no program is installed in.
pub const FILES: &str = "/dev/shm";

/// The mount namespace that this process's nodes share.
#[derive(Debug)]
pub struct Sandbox {
    namespace: OwnedFd,
    root: OwnedFd,
}

impl Sandbox {
    /// The sandbox of this process, made on first use.
    ///
    /// # Errors
    ///
    /// If the kernel refuses the namespace or one of its mounts; the same error on every later call.
    pub fn shared() -> Result<&'static Self> {
        static SHARED: OnceLock<Result<Sandbox, String>> = OnceLock::new();
        SHARED
            .get_or_init(|| {
                // The thread that unshares is lost to everybody else: it ends here, the descriptors stay.
                let made = thread::scope(|scope| scope.spawn(Self::create).join());
                match made {
                    Ok(result) => result.map_err(|error| format!("{error:#}")),
                    Err(_) => Err("the thread that made the mount namespace panicked".to_owned()),
                }
            })
            .as_ref()
            .map_err(|error| anyhow!("{error}"))
    }

    fn create() -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNS).context("unshare the mount namespace (needs CAP_SYS_ADMIN)")?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
            .context("make all mounts private")?;
        mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), none)
            .with_context(|| format!("mount a bpffs at {BPFFS}"))?;
        mount(Some("tmpfs"), FILES, Some("tmpfs"), MsFlags::empty(), none)
            .with_context(|| format!("mount a tmpfs at {FILES}"))?;
        let namespace =
            File::open("/proc/thread-self/ns/mnt").context("open the new mount namespace")?.into();
        let root = File::open("/").context("open the root directory")?.into();
        Ok(Self { namespace, root })
    }

    /// Moves the calling thread into the sandbox, for good.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn enter(&self) -> Result<()> {
        // A thread that shares its root and working directory with others may not change mount namespace.
        unshare(CloneFlags::CLONE_FS).context("unshare the working directory")?;
        setns(&self.namespace, CloneFlags::CLONE_NEWNS).context("enter the mount namespace")
    }

    /// A path that other programs can open the mount namespace by, for as long as this process lives.
    #[must_use]
    pub fn namespace_path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.namespace.as_raw_fd())
    }

    /// The path by which threads outside the sandbox reach `inside`, an absolute path within it.
    #[must_use]
    pub fn view(&self, inside: &Path) -> PathBuf {
        let root = format!("/proc/self/fd/{}", self.root.as_raw_fd());
        Path::new(&root).join(inside.strip_prefix("/").unwrap_or(inside))
    }
}

/// The cgroup that this process is in from now on, with everything that it starts: one of its own, if it may have one.
///
/// A cgroup takes 64 programs of a kind, and every agent attaches one: those of several test runs at a time must not share
/// the root.
///
/// # Errors
///
/// If there is no cgroup2.
pub fn own_cgroup() -> Result<&'static Path> {
    static OWN: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let own = OWN.get_or_init(|| {
        let root = cgroup::find().map_err(|error| error.to_string())?;
        Ok(enter_own_cgroup(&root).unwrap_or(root))
    });
    own.as_deref().map_err(|error| anyhow!("{error}"))
}

fn enter_own_cgroup(root: &Path) -> Result<PathBuf> {
    const NAME: &str = "sluice-tests-";
    let text = fs::read_to_string("/proc/self/cgroup")?;
    let own = text.lines().find_map(|line| line.strip_prefix("0::/")).context("a cgroup2")?;
    // Beside that of a test that has started this process: below one that has threads apart, none is of any use.
    let parent = own
        .split('/')
        .take_while(|part| !part.starts_with(NAME))
        .fold(root.to_owned(), |dir, part| dir.join(part));
    // Those of processes that have ended, with what these had in them.
    for entry in fs::read_dir(&parent)?.filter_map(Result::ok) {
        let (name, path) = (entry.file_name(), entry.path());
        let is_empty = fs::read_to_string(path.join("cgroup.procs")).is_ok_and(|text| text.is_empty());
        if name.to_string_lossy().starts_with(NAME) && is_empty {
            for inner in fs::read_dir(&path)?.filter_map(Result::ok) {
                drop(fs::remove_dir(inner.path()));
            }
            drop(fs::remove_dir(path));
        }
    }
    let own = parent.join(format!("{NAME}{}", std::process::id()));
    fs::create_dir(&own)?;
    fs::write(own.join("cgroup.procs"), "0")?;
    Ok(own)
}
