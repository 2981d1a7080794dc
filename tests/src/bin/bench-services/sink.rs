//! A device on the fabric that nobody listens on: frames for a node can be led there instead.

use std::process::Command;

use anyhow::{Context as _, Result};
use sluice_tests::{counters, netns::Namespace};

/// The fabric's end of it.
const PORT: &str = "sink";
/// The end that nobody listens on, and the nodes' devices.
const DEVICE: &str = "eth0";

/// The device.
#[derive(Debug)]
pub(crate) struct Sink {
    fabric: Namespace,
    namespace: Namespace,
}

/// As long as this is held, frames for a node end at the device.
pub(crate) struct End<'a> {
    sink: &'a Sink,
    address: String,
}

impl Sink {
    /// Joins one to the fabric.
    pub(crate) fn join(fabric: &Namespace) -> Result<Self> {
        let namespace = Namespace::new(PORT)?;
        fabric.ip(&format!(
            "link add {PORT} type veth peer name {DEVICE} netns {}\nlink set {PORT} master fabric up",
            namespace.path()
        ))?;
        namespace.ip(&format!("link set {DEVICE} up"))?;
        Ok(Self { fabric: fabric.clone(), namespace })
    }

    /// Takes the frames for a node.
    pub(crate) fn take(&self, node: &Namespace) -> Result<End<'_>> {
        let line = node.output(Command::new("ip").args(["-oneline", "link", "show", DEVICE]))?;
        let mut words = line.split_whitespace().skip_while(|word| *word != "link/ether");
        let address = words.nth(1).context("a link-layer address")?.to_owned();
        let end = End { sink: self, address };
        end.change("replace")?;
        Ok(end)
    }
}

impl End<'_> {
    /// How many have ended so far.
    pub(crate) fn packets(&self) -> Result<u64> {
        Ok(counters::received(&self.sink.namespace, DEVICE)?.frames)
    }

    fn change(&self, how: &str) -> Result<()> {
        let mut command = Command::new("bridge");
        // Sticky: the bridge does not learn another way from what the node sends.
        command.args(["fdb", how, &self.address, "dev", PORT, "master", "static", "sticky"]);
        self.sink.fabric.output(&mut command).map(drop)
    }
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        // Whoever asks the node next hears nothing if this fails, and says so.
        drop(self.change("del"));
    }
}
