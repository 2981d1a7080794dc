//! Network namespaces without names.
//!
//! A namespace here is a file descriptor and what runs inside. Nothing is bound below `/run/netns`, so when this
//! process and its children end, by whatever signal, the namespaces and all their devices are gone.

use std::{
    fs::File,
    io::{self, Write as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    panic,
    process::{Child, Command, Stdio},
    sync::{Arc, OnceLock, mpsc},
    thread,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::{
    ifaddrs::getifaddrs,
    sched::{CloneFlags, setns, unshare},
    sys::{prctl, signal::Signal},
};

use crate::sandbox::Sandbox;

/// A network namespace. Clones are the same namespace.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: Arc<str>,
    fd: Arc<OwnedFd>,
}

impl Namespace {
    /// An empty namespace with `lo` up. The name is for error messages.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, which it does to all but root.
    pub fn new(name: &str) -> Result<Self> {
        let make = || -> Result<OwnedFd> {
            unshare(CloneFlags::CLONE_NEWNET).context("unshare the network namespace (needs root)")?;
            let fd = File::open("/proc/thread-self/ns/net").context("open the new network namespace")?;
            Ok(fd.into())
        };
        let fd = thread::scope(|scope| scope.spawn(make).join())
            .unwrap_or_else(|panicked| panic::resume_unwind(panicked))
            .with_context(|| format!("make namespace {name}"))?;
        let namespace = Self { name: name.into(), fd: Arc::new(fd) };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// What it was called when it was made.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path that other programs can open the namespace by, for as long as it is held here.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd())
    }

    /// Executes `work` on a thread inside, and in the sandbox, and waits for it.
    ///
    /// A socket belongs for ever to the namespace it was made in, so `work` may return sockets for use outside.
    ///
    /// # Errors
    ///
    /// Whatever `work` returns, or that the namespace could not be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let inside = || {
            self.enter()?;
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join())
            .unwrap_or_else(|panicked| panic::resume_unwind(panicked))
            .with_context(|| format!("in namespace {}", self.name))
    }

    /// Moves the calling thread inside, and into the sandbox, for good.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn enter(&self) -> Result<()> {
        Sandbox::shared()?.enter()?;
        setns(&*self.fd, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter namespace {}", self.name))
    }

    /// Starts a program inside, and in the sandbox, that the kernel kills when this process ends.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn spawn(&self, command: Command) -> Result<Child> {
        let (reply, result) = mpsc::channel();
        spawner()
            .send(SpawnRequest { namespace: self.clone(), command, reply })
            .map_err(|_| anyhow!("the thread that starts programs is gone"))?;
        result.recv().context("the thread that starts programs is gone")?
    }

    /// Runs a program inside to its end and returns what it printed.
    ///
    /// # Errors
    ///
    /// If it cannot be started or fails; the error carries what it printed to standard error.
    pub fn output(&self, command: &mut Command) -> Result<String> {
        self.run(|| {
            let output = command.output().with_context(|| format!("start {command:?}"))?;
            let errors = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "{command:?}: {}: {}", output.status, errors.trim_end());
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        })
    }

    /// The link-layer address of a device inside.
    ///
    /// # Errors
    ///
    /// If there is no such device, or it has none.
    pub fn link_address(&self, device: &str) -> Result<[u8; 6]> {
        self.run(|| {
            let mut all = getifaddrs()?.filter(|known| known.interface_name == device);
            let found = all.find_map(|known| known.address?.as_link_addr()?.addr());
            found.with_context(|| format!("{device} has no link-layer address"))
        })
    }

    /// Executes lines of `ip` commands inside, in one process.
    ///
    /// # Errors
    ///
    /// If one fails; the lines after it are not executed.
    pub fn ip(&self, script: &str) -> Result<()> {
        self.feed(Command::new("ip").args(["-batch", "-"]), script).context("ip is of iproute2")
    }

    /// Runs a program inside to its end, with a text on its standard input.
    ///
    /// # Errors
    ///
    /// If it cannot be started or fails; the error carries what it printed to standard error, and the text unless it is long.
    pub fn feed(&self, command: &mut Command, text: &str) -> Result<()> {
        self.run(|| {
            let program = command.get_program().to_string_lossy().into_owned();
            let mut child = command
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .with_context(|| format!("start {program}"))?;
            // Taken out of the child, so that it is closed, and the program sees the end, when it is dropped.
            let mut stdin = child.stdin.take().context("its standard input")?;
            let written = stdin.write_all(text.as_bytes());
            drop(stdin);
            let output = child.wait_with_output().with_context(|| format!("wait for {program}"))?;
            let errors = String::from_utf8_lossy(&output.stderr);
            let text = if text.len() > MUCH { "" } else { text.trim_end() };
            ensure!(output.status.success(), "{program}: {}\n{text}", errors.trim_end());
            written.with_context(|| format!("write to {program}"))
        })
    }

    /// Sets kernel parameters inside: path below `/proc/sys/net`, value.
    ///
    /// # Errors
    ///
    /// If one does not exist or refuses the value.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (path, value) in settings {
                std::fs::write(format!("/proc/sys/net/{path}"), value)
                    .with_context(|| format!("set net/{path} to {value}"))?;
            }
            Ok(())
        })
    }
}

/// Bytes of a text that nobody reads in an error message.
const MUCH: usize = 1 << 14;

struct SpawnRequest {
    namespace: Namespace,
    command: Command,
    reply: mpsc::Sender<Result<Child>>,
}

/// The thread that starts all long-running programs.
///
/// The kernel sends the parent death signal when the *thread* that forked ends, so a program must not be started
/// from one of the short-lived threads of [`Namespace::run`].
fn spawner() -> mpsc::Sender<SpawnRequest> {
    static SPAWNER: OnceLock<mpsc::Sender<SpawnRequest>> = OnceLock::new();
    SPAWNER
        .get_or_init(|| {
            let (sender, requests) = mpsc::channel::<SpawnRequest>();
            thread::spawn(move || {
                for SpawnRequest { namespace, command, reply } in requests {
                    // Nobody waits for the answer if the asking thread has panicked meanwhile; the program is
                    // then dropped with the answer and dies with this process.
                    drop(reply.send(namespace.enter().and_then(|()| start(command))));
                }
            });
            sender
        })
        .clone()
}

fn start(mut command: Command) -> Result<Child> {
    let die_with_parent = || prctl::set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from);
    // SAFETY: the closure runs between fork and exec, where only async-signal-safe calls are allowed. It makes
    // one system call and allocates nothing.
    unsafe { command.pre_exec(die_with_parent) };
    // Its own process group: Ctrl-C reaches this process only, which then decides what happens.
    command.process_group(0);
    command.spawn().with_context(|| format!("start {command:?}"))
}
