//! A command that goes on printing.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{agent::Agent, traffic::PATIENCE};

/// A running `sluice COMMAND -o json` that prints one object a line.
#[derive(Debug)]
pub struct Listener {
    child: Child,
    lines: Receiver<String>,
}

impl Listener {
    /// Starts it.
    ///
    /// # Errors
    ///
    /// If it does not start.
    pub fn start(agent: &Agent, arguments: &[&str]) -> Result<Self> {
        let mut command = agent.command(&[arguments, &["-o", "json"]].concat());
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = agent.namespace().spawn(command)?;
        let stdout = child.stdout.take().context("the standard output of a command")?;
        let (sender, lines) = mpsc::channel();
        // Ends with the command, or when nobody listens any more.
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, lines })
    }

    /// Waits for an object that is as said; what comes before is dropped.
    ///
    /// # Errors
    ///
    /// If none comes; it tells what came instead.
    pub fn wait_for(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut others = Vec::new();
        loop {
            let Ok(line) = self.lines.recv_timeout(PATIENCE) else {
                bail!("waited until {what}, in vain; meanwhile came {others:#?}");
            };
            let value: Value = serde_json::from_str(&line).with_context(|| format!("not JSON: {line}"))?;
            if is_it(&value) {
                return Ok(value);
            }
            others.push(value);
        }
    }

    /// Ends it without warning.
    ///
    /// # Errors
    ///
    /// If it has ended by itself.
    pub fn kill(mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("the command ended by itself: {status}");
        }
        Ok(self.child.kill()?)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Either way nobody needs it any more.
        drop(self.child.kill().and_then(|()| self.child.wait()));
    }
}
