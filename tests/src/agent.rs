//! The real agent on a node.

mod pins;

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    fs::{self, File, OpenOptions},
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    manifest::ManifestDirectory,
    netns::Namespace,
    sandbox::{self, BPFFS, FILES, Sandbox},
    topology::Node,
    traffic::PATIENCE,
    wait::{wait_at_most, wait_until},
};

/// How long a start may take. It is CPU time of the kernel's verifier, of which a machine that has more to do gives little.
const START: Duration = Duration::from_secs(60);

/// An agent, running or not, and everything of its own: manifests, pins, log.
#[derive(Debug)]
pub struct Agent {
    /// What it is told to serve.
    pub manifests: ManifestDirectory,
    node: String,
    namespace: Namespace,
    binary: PathBuf,
    /// How to reach the API server, if it is to follow one instead of the manifests.
    kubeconfig: Option<PathBuf>,
    pins: PathBuf,
    log: PathBuf,
    /// What it is told on its command line, beside where everything is.
    arguments: Vec<String>,
    /// The capabilities that are left to it, if it is to run as in a container.
    capabilities: Option<BTreeSet<String>>,
    child: Option<Child>,
    /// How often it was asked whether it has caught up.
    marks: AtomicU16,
    /// Lines of the log that belong to earlier lives.
    lines_before: usize,
    /// Lines of the log that belong to earlier tests.
    old_lines: usize,
}

impl Agent {
    /// Starts the agent of a node with these arguments, and with nothing to serve at first, and waits until it has said
    /// so.
    ///
    /// # Errors
    ///
    /// If there is no binary, or the agent does not come up.
    pub fn start(node: &Node, arguments: &[String]) -> Result<Self> {
        let mut agent = Self::prepare(node, arguments)?;
        agent.resume()?;
        agent.wait_until_synced()?;
        Ok(agent)
    }

    /// The agent of a node with these arguments, before its first life.
    ///
    /// # Errors
    ///
    /// If there is no binary, or no place for its files.
    pub fn prepare(node: &Node, arguments: &[String]) -> Result<Self> {
        let unique = unique_name(node)?;
        let files = Path::new(FILES).join(&unique);
        let manifests = ManifestDirectory::create(files.join("manifests"))?;
        manifests.publish_node(node)?;
        Ok(Self {
            manifests,
            node: node.name.clone(),
            namespace: node.namespace.clone(),
            binary: binary()?,
            kubeconfig: None,
            pins: Path::new(BPFFS).join(unique),
            log: files.join("log"),
            arguments: arguments.to_vec(),
            capabilities: None,
            child: None,
            marks: AtomicU16::new(0),
            lines_before: 0,
            old_lines: 0,
        })
    }

    /// Its process, if it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// What is on its command line from its next life on, instead of what was, beside where everything is.
    pub fn tell(&mut self, arguments: &[&str]) {
        self.arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
    }

    /// From its next life on, this program is what runs; see [`Variant`](crate::variant::Variant).
    pub fn run_from(&mut self, binary: PathBuf) {
        self.binary = binary;
    }

    /// From its next life on, it follows the API server that this kubeconfig leads to.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub fn follow(&mut self, kubeconfig: &str) -> Result<()> {
        let inside = self.log.with_file_name("kubeconfig");
        fs::write(Sandbox::shared()?.view(&inside), kubeconfig)?;
        self.kubeconfig = Some(inside);
        Ok(())
    }

    /// From its next life on, it and its commands run as in a container with these capabilities and no others: they have
    /// no way to get more, and cannot write to the root file system.
    pub fn contain(&mut self, capabilities: &BTreeSet<String>) {
        self.capabilities = Some(capabilities.clone());
    }

    /// Its program, with what it is run by.
    fn program(&self) -> Command {
        let Some(capabilities) = &self.capabilities else { return Command::new(&self.binary) };
        let kept: String = capabilities.iter().map(|name| format!(",+{}", name.to_lowercase())).collect();
        let mut command = Command::new("unshare");
        // Root's program gets what is left of the bounding set, whatever root had before.
        command
            .args(["--mount", "--propagation=private", "sh", "-c"])
            .args(["mount -o remount,bind,ro / && exec \"$@\"", "sh"])
            .args(["setpriv", "--no-new-privs", "--inh-caps=-all", &format!("--bounding-set=-all{kept}")])
            .arg(&self.binary);
        command
    }

    /// Starts it, the first time or after [`Agent::kill`] or [`Agent::terminate`].
    ///
    /// # Errors
    ///
    /// If it runs, or cannot be started.
    pub fn resume(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "the agent of {} runs already", self.node);
        let log = OpenOptions::new().create(true).append(true).open(Sandbox::shared()?.view(&self.log))?;
        self.lines_before = self.log()?.lines().count();
        let mut command = self.program();
        let source = match &self.kubeconfig {
            Some(file) => [OsStr::new("--kubeconfig"), file.as_os_str()],
            None => [OsStr::new("--manifests"), self.manifests.path().as_os_str()],
        };
        command
            .arg("run")
            .args(source)
            .arg("--hostname-override")
            .arg(&self.node)
            .arg("--bpffs")
            .arg(&self.pins)
            .args(self.cgroup()?)
            .args(&self.arguments)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.child = Some(self.namespace.spawn(command)?);
        Ok(())
    }

    /// The flag that says whose sockets it serves, unless it is told already: this process's. There it
    /// leaves alone what is in other network namespaces than its node's, unless it is told to serve pods.
    fn cgroup(&self) -> Result<Vec<OsString>> {
        if self.arguments.iter().any(|argument| argument.starts_with("--cgroup")) {
            return Ok(Vec::new());
        }
        Ok(vec!["--cgroup".into(), sandbox::own_cgroup()?.into()])
    }

    /// Waits until everything there was to serve when it started is served.
    ///
    /// # Errors
    ///
    /// If the agent ends instead, or takes too long.
    pub fn wait_until_synced(&mut self) -> Result<()> {
        // The kernel's tables cannot tell whether more is to come; only the agent can.
        self.wait_at_most_until_said(START, " synced ")
    }

    /// Waits until it has logged these words since it started.
    ///
    /// # Errors
    ///
    /// If the agent ends instead, or takes too long.
    pub fn wait_until_said(&mut self, words: &str) -> Result<()> {
        self.wait_at_most_until_said(PATIENCE, words)
    }

    fn wait_at_most_until_said(&mut self, patience: Duration, words: &str) -> Result<()> {
        let what = format!("the agent of {} says {words:?}", self.node);
        let said = wait_at_most(patience, &what, || {
            let log = self.log()?;
            let said = log.lines().skip(self.lines_before).any(|line| line.contains(words));
            self.expect_alive()?;
            Ok(said.then_some(()))
        });
        said.map_err(|error| anyhow!("{error:#}; its log:\n{}", self.log().unwrap_or_default()))
    }

    /// Writes a manifest of no other use than to see when it has been served: see [`Deployment::settle`].
    ///
    /// [`Deployment::settle`]: crate::deployment::Deployment::settle
    ///
    /// # Errors
    ///
    /// If the directory does not let it.
    pub(crate) fn mark(&self) -> Result<Mark> {
        let port = self.marks.fetch_add(1, Ordering::Relaxed) + 1;
        self.manifests.write_text(
            "mark.yaml",
            &format!(
                "{{apiVersion: v1, kind: Service, metadata: {{name: mark, namespace: default}}, \
                 spec: {{clusterIP: {MARKS}, clusterIPs: [{MARKS}], ipFamilies: [IPv4], ports: [{{port: {port}}}]}}}}\n"
            ),
        )?;
        Ok(Mark(SocketAddr::from((MARKS, port))))
    }

    fn expect_alive(&mut self) -> Result<()> {
        let Some(child) = &mut self.child else {
            bail!("the agent of {} is not running", self.node);
        };
        if let Some(status) = child.try_wait()? {
            self.child = None;
            bail!("the agent of {} ended: {status}", self.node);
        }
        Ok(())
    }

    /// Ends it without warning.
    ///
    /// # Errors
    ///
    /// If it was not running.
    pub fn kill(&mut self) -> Result<()> {
        self.expect_alive()?;
        let mut child = self.child.take().context("a running agent")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Asks it to end, and waits until it has.
    ///
    /// # Errors
    ///
    /// If it was not running, or does not end.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.expect_alive()?;
        let mut child = self.child.take().context("a running agent")?;
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM)?;
        let ended = wait_until("the agent ends after SIGTERM", || Ok(child.try_wait()?));
        if ended.is_err() {
            self.child = Some(child);
        }
        ended
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    ///
    /// If it was not running, or does not end.
    pub fn wait_until_ended(&mut self) -> Result<ExitStatus> {
        let mut child = self.child.take().context("a running agent")?;
        let ended = wait_until("the agent ends", || Ok(child.try_wait()?));
        if ended.is_err() {
            self.child = Some(child);
        }
        ended
    }

    /// Everything it has logged, over all its lives.
    ///
    /// # Errors
    ///
    /// If the log cannot be read.
    pub fn log(&self) -> Result<String> {
        fs::read_to_string(Sandbox::shared()?.view(&self.log)).context("read the agent's log")
    }

    /// What is logged from now on is another test's.
    pub(crate) fn begin_story(&mut self) -> Result<()> {
        self.old_lines = self.log()?.lines().count();
        Ok(())
    }

    /// What `sluice COMMAND` prints about this node, as a person would call it.
    ///
    /// # Errors
    ///
    /// If the command fails.
    pub fn ask(&self, arguments: &[&str]) -> Result<String> {
        self.namespace.output(&mut self.command(arguments))
    }

    /// What `sluice COMMAND -o json` prints.
    ///
    /// # Errors
    ///
    /// If the command fails, or prints something else.
    pub fn ask_json(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let text = self.ask(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("the answer of sluice {arguments:?}:\n{text}"))
    }

    /// `sluice COMMAND` about this node.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.program();
        command.args(arguments).env("SLUICE_BPFFS", &self.pins);
        command
    }

    /// The directory of its pins, as seen from inside the sandbox.
    #[must_use]
    pub fn bpffs(&self) -> &Path {
        &self.pins
    }

    /// Name of its node.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The namespace of its node.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }
}

/// The address of marks: out of the way of services.
const MARKS: Ipv4Addr = Ipv4Addr::new(10, 96, 255, 254);

/// A frontend that an agent was told to serve after everything else.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark(pub(crate) SocketAddr);

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log().unwrap_or_else(|error| format!("{error:#}"));
            let news: Vec<_> = log.lines().skip(self.old_lines).collect();
            println!("--- log of the agent of {}\n{}\n---", self.node, news.join("\n"));
        }
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself; either way nobody needs it any more.
            drop(child.kill().and_then(|()| child.wait()));
        }
        // Pinned links outlive it, and a cgroup takes 64 programs of a kind: those of agents that have gone must not count.
        if let Ok(sandbox) = Sandbox::shared() {
            drop(fs::remove_dir_all(sandbox.view(&self.pins)));
        }
    }
}

/// The node's name, or something like it if another cluster of this process has a node of that name.
fn unique_name(node: &Node) -> Result<String> {
    let files = Sandbox::shared()?.view(Path::new(FILES));
    let mut name = node.name.clone();
    for number in 2.. {
        match fs::create_dir(files.join(&name)) {
            // (No dots: bpffs reserves them.)
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                name = format!("{}-{number}", node.name);
            }
            result => {
                result.with_context(|| format!("make a directory for {name}"))?;
                break;
            }
        }
    }
    Ok(name)
}

/// The agent's binary: `$SLUICE_BIN`, or next to this program, where Cargo builds it.
///
/// # Errors
///
/// If it is in neither place.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("SLUICE_BIN") {
        // The agent starts in another directory.
        return fs::canonicalize(&path).with_context(|| format!("SLUICE_BIN={}", path.display()));
    }
    let own = std::env::current_exe().context("find this program's own path")?;
    let found = own.ancestors().skip(1).take(2).map(|directory| directory.join("sluice"));
    let missing = "the agent is not built: `cargo xtask build`, or set SLUICE_BIN to its path";
    found.filter(|path| File::open(path).is_ok()).last().context(missing)
}
