//! kube-proxy itself, where `KUBE_PROXY` names its program.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use sluice_tests::{
    bench::process,
    sandbox::{FILES, Sandbox},
    topology::Node,
};

use crate::{peer::System, rules::CLUSTER_CIDR};

/// Names kube-proxy's program.
const VARIABLE: &str = "KUBE_PROXY";
/// What it calls.
const TOOLS: [&str; 6] =
    ["iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"];
/// How long it has to have done nothing, with its children, until it is idle.
const SILENCE: Duration = Duration::from_millis(1_500);
/// How long it may take until it is.
const PATIENCE: Duration = Duration::from_secs(120);

/// The program, if there is one.
pub(crate) fn program() -> Option<PathBuf> {
    env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// What it says that it is.
pub(crate) fn version() -> Result<Option<String>> {
    let Some(program) = program() else { return Ok(None) };
    let start = || format!("start {VARIABLE}={}", program.display());
    let output = Command::new(&program).arg("--version").output().with_context(start)?;
    ensure!(output.status.success(), "{}: {}", program.display(), output.status);
    Ok(Some(String::from_utf8_lossy(&output.stdout).trim().to_owned()))
}

/// One on a node.
#[derive(Debug)]
pub(crate) struct KubeProxy {
    child: Child,
    log: PathBuf,
}

impl KubeProxy {
    /// Starts it in a mode, as a follower of an API server.
    pub(crate) fn start(system: System, node: &Node, kubeconfig: &str) -> Result<Self> {
        let name = format!("kube-proxy-{}-{}", system.as_str(), node.name);
        let inside = Path::new(FILES).join(name);
        let outside = Sandbox::shared()?.view(&inside);
        if outside.exists() {
            fs::remove_dir_all(&outside)?;
        }
        fs::create_dir_all(&outside)?;
        fs::write(outside.join("kubeconfig"), kubeconfig)?;
        fs::write(outside.join("config"), configuration(system, node, &inside))?;
        let log = outside.join("log");
        let file = fs::File::create(&log)?;
        let mut command = Command::new(program().context("no kube-proxy")?);
        command
            .arg("--config")
            .arg(inside.join("config"))
            .env("PATH", search_path(system, &inside, &outside)?)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        Ok(Self { child: node.namespace.spawn(command)?, log })
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The end of its log.
    pub(crate) fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Waits until neither it nor a child of it does anything.
    pub(crate) fn wait_until_idle(&mut self) -> Result<()> {
        let begin = Instant::now();
        let (mut since, mut used) = (Instant::now(), self.used()?);
        while since.elapsed() < SILENCE {
            if let Some(status) = self.child.try_wait()? {
                bail!("kube-proxy ended: {status}; its log:\n{}", self.last_words());
            }
            ensure!(begin.elapsed() < PATIENCE, "kube-proxy has not come to rest in {PATIENCE:?}");
            thread::sleep(Duration::from_millis(50));
            let now = self.used()?;
            // A tick now and then is its housekeeping.
            if now > used + Duration::from_millis(20) {
                (since, used) = (Instant::now(), now);
            }
        }
        Ok(())
    }

    /// CPU time of it and of its children: those that have ended, and those that have not.
    fn used(&self) -> Result<Duration> {
        let tasks = format!("/proc/{0}/task/{0}/children", self.pid());
        let children = fs::read_to_string(tasks).unwrap_or_default();
        let running = children.split_whitespace().filter_map(|pid| process::cpu_time(pid.parse().ok()?).ok());
        Ok(process::cpu_time(self.pid())? + running.sum())
    }
}

impl Drop for KubeProxy {
    fn drop(&mut self) {
        // It may have ended; either way nobody needs it any more.
        drop(self.child.kill().and_then(|()| self.child.wait()));
    }
}

/// Its defaults, but for limits of connection tracking, which a network namespace may not set, and for periodic work that
/// would fall into somebody's measurement: once an hour.
fn configuration(system: System, node: &Node, inside: &Path) -> String {
    let mode = if system == System::Nftables { "nftables" } else { "iptables" };
    format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: {mode}\n\
         hostnameOverride: {}\nclusterCIDR: {CLUSTER_CIDR}\ndetectLocalMode: ClusterCIDR\n\
         clientConnection: {{kubeconfig: {}}}\nhealthzBindAddress: 127.0.0.1:10256\n\
         metricsBindAddress: 127.0.0.1:10249\niptables: {{syncPeriod: 1h}}\nnftables: {{syncPeriod: 1h}}\n\
         conntrack: {{maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}\n",
        node.name,
        inside.join("kubeconfig").display()
    )
}

/// Where it finds the iptables of its system before any other.
fn search_path(system: System, inside: &Path, outside: &Path) -> Result<String> {
    let path = env::var("PATH").context("PATH")?;
    let variant = match system {
        System::Iptables => "nft",
        System::IptablesLegacy => "legacy",
        _ => return Ok(path),
    };
    fs::create_dir(outside.join("bin"))?;
    for tool in TOOLS {
        // iptables-restore is iptables-nft-restore, and iptables is iptables-nft.
        let (program, rest) =
            tool.split_once('-').map_or((tool, String::new()), |(a, b)| (a, format!("-{b}")));
        let wanted = format!("{program}-{variant}{rest}");
        let found = env::split_paths(&path).map(|dir| dir.join(&wanted)).find(|file| file.exists());
        let found = found.with_context(|| format!("{wanted} is not installed"))?;
        symlink(found, outside.join("bin").join(tool))?;
    }
    Ok(format!("{}:{path}", inside.join("bin").display()))
}
