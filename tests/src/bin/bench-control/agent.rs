//! The agent as a process, and what it costs.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use proxy_agent::datapath::Pins;
use sluice_tests::{
    agent::binary,
    bench::process::{self, Memory},
    netns::Namespace,
    sandbox::{self, BPFFS, FILES},
};

use crate::cluster::NODE;

/// How long an agent may take to say that it is in sync.
const PATIENCE: Duration = Duration::from_secs(120);

/// An agent that follows an API server. Only threads in the sandbox can ask it anything.
#[derive(Debug)]
pub(crate) struct Agent {
    child: Child,
    log: PathBuf,
    pins: PathBuf,
}

impl Agent {
    /// Starts it in a namespace, with files and pins of that name.
    pub(crate) fn start(namespace: &Namespace, name: &str, kubeconfig: &str) -> Result<Self> {
        let files = Path::new(FILES).join(name);
        fs::create_dir_all(&files)?;
        let (log, pins) = (files.join("log"), Path::new(BPFFS).join(name));
        let config = files.join("kubeconfig");
        fs::write(&config, kubeconfig)?;
        let output = File::create(&log)?;
        let mut command = Command::new(binary()?);
        command
            .arg("run")
            .arg("--kubeconfig")
            .arg(config)
            .args(["--hostname-override", NODE, "--bpffs"])
            .arg(&pins)
            .arg("--cgroup")
            .arg(sandbox::own_cgroup()?)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        Ok(Self { child: namespace.spawn(command)?, log, pins })
    }

    /// Its tables.
    pub(crate) fn pins(&self) -> Pins {
        Pins::new(&self.pins)
    }

    /// Waits until it says that everything is in the kernel.
    pub(crate) fn wait_until_synced(&mut self) -> Result<()> {
        let start = Instant::now();
        loop {
            let log = fs::read_to_string(&self.log)?;
            if log.lines().any(|line| line.contains(" synced ")) {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the agent ended: {status}; its log:\n{log}");
            }
            ensure!(start.elapsed() < PATIENCE, "not in sync after {PATIENCE:?}; the agent's log:\n{log}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends it as the kubelet would, and leaves what it has pinned.
    pub(crate) fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM)?;
        self.child.wait()?;
        Ok(())
    }

    /// What it holds in memory.
    pub(crate) fn memory(&self) -> Result<Memory> {
        process::memory(self.child.id())
    }

    /// CPU time that it has used.
    pub(crate) fn cpu_time(&self) -> Result<Duration> {
        process::cpu_time(self.child.id())
    }

    /// Bytes of kernel memory behind the tables that it holds open, as the kernel accounts for them.
    pub(crate) fn table_memory(&self) -> Result<u64> {
        let mut tables = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{}/fdinfo", self.child.id()))? {
            let info = fs::read_to_string(entry?.path())?;
            let value = |name: &str| {
                info.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok())
            };
            if let (Some(id), Some(bytes)) = (value("map_id:"), value("memlock:")) {
                tables.insert(id, bytes);
            }
        }
        ensure!(!tables.is_empty(), "the agent holds no tables open");
        Ok(tables.into_values().sum())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended; either way nobody needs it any more.
        drop(self.child.kill().and_then(|()| self.child.wait()));
    }
}
