//! The demo ends as it says, and leaves nothing behind however it ends.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader, Read as _},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sluice_tests::{
    agent,
    harness::{requirements, skipped},
    wait::wait_until,
};

#[test]
fn the_demo_succeeds_and_says_so() {
    with_demo(&["--connections", "200"], |demo| {
        let (status, text) = demo.finish()?;
        ensure!(status.success(), "{status}:\n{text}");
        ensure!(text.contains("200 TCP connections") && text.contains("default/echo"), "{text}");
        ensure!(!text.contains('\x1b'), "colour in a pipe:\n{text}");
        Ok(())
    });
}

#[test]
fn an_interrupted_demo_says_so_and_leaves_nothing_behind() {
    with_demo(&["--connections", "100", "--hold"], |demo| {
        let namespaces = demo.namespaces()?;
        demo.signal(Signal::SIGINT)?;
        let (status, text) = demo.finish()?;
        ensure!(status.code() == Some(130) && text.contains("interrupted"), "{status}:\n{text}");
        wait_until("the namespaces are empty", || Ok(inhabited(&namespaces)?.is_empty().then_some(())))
    });
}

#[test]
fn a_killed_demo_leaves_nothing_behind() {
    with_demo(&["--connections", "100", "--hold"], |demo| {
        let namespaces = demo.namespaces()?;
        demo.signal(Signal::SIGKILL)?;
        demo.finish()?;
        wait_until("the namespaces are empty", || Ok(inhabited(&namespaces)?.is_empty().then_some(())))
    });
}

fn with_demo(arguments: &[&str], test: impl FnOnce(&mut Demo) -> Result<()>) {
    if let Err(reason) = requirements() {
        return skipped(&reason);
    }
    let result = Demo::start(arguments).and_then(|mut demo| test(&mut demo));
    result.unwrap_or_else(|error| panic!("{error:#}"));
}

struct Demo {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
    before: BTreeSet<PathBuf>,
}

impl Demo {
    fn start(arguments: &[&str]) -> Result<Self> {
        let before = traces()?;
        let mut child = Command::new(env!("CARGO_BIN_EXE_demo"))
            .args(arguments)
            .env("SLUICE_BIN", agent::binary()?)
            .stdout(Stdio::piped())
            .spawn()
            .context("start the demo")?;
        let output = BufReader::new(child.stdout.take().context("the demo's output")?);
        Ok(Self { child, output, before })
    }

    /// The namespaces that a held demo tells how to enter, once it has come that far.
    fn namespaces(&mut self) -> Result<BTreeSet<PathBuf>> {
        let mut seen = String::new();
        let mut found = BTreeSet::new();
        while found.len() < 3 {
            let mut line = String::new();
            let length = self.output.read_line(&mut line)?;
            ensure!(length > 0, "the demo ended:\n{seen}");
            let paths = line.split_whitespace().filter_map(|word| word.split_once("=/proc/"));
            for (_, path) in paths {
                found.insert(fs::read_link(format!("/proc/{path}"))?);
            }
            seen.push_str(&line);
        }
        ensure!(inhabited(&found)? == found, "agents live in the namespaces of nodes, and in the sandbox");
        Ok(found)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).context("signal the demo")
    }

    /// Waits for the end, and makes sure that the host looks as before.
    fn finish(&mut self) -> Result<(ExitStatus, String)> {
        let mut text = String::new();
        self.output.read_to_string(&mut text)?;
        let status = self.child.wait()?;
        let left: Vec<_> = traces()?.difference(&self.before).cloned().collect();
        ensure!(left.is_empty(), "left behind: {left:?}");
        Ok((status, text))
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill().and_then(|()| self.child.wait()));
    }
}

/// What the host has where the demo could leave something.
fn traces() -> Result<BTreeSet<PathBuf>> {
    let mut traces = BTreeSet::new();
    for directory in ["/sys/fs/bpf", "/dev/shm", "/sys/class/net", "/run/netns"] {
        for entry in fs::read_dir(directory).into_iter().flatten() {
            traces.insert(entry?.path());
        }
    }
    Ok(traces)
}

/// Those of some namespaces that a process lives in.
fn inhabited(namespaces: &BTreeSet<PathBuf>) -> Result<BTreeSet<PathBuf>> {
    let mut inhabited = BTreeSet::new();
    for process in fs::read_dir("/proc")? {
        let process = process?.path();
        // Processes end while they are looked at, and most entries here are no processes.
        let links =
            ["net", "mnt"].into_iter().filter_map(|kind| fs::read_link(process.join("ns").join(kind)).ok());
        inhabited.extend(links.filter(|link| namespaces.contains(link)));
    }
    Ok(inhabited)
}
