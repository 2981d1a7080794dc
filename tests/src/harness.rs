//! What every test does before and after.

use std::{
    io::{self, Write as _},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::{deployment::Deployment, sandbox::Sandbox, topology::Cluster};

/// Runs a test on a fresh cluster; without the privileges for one, says so and skips the test.
///
/// # Panics
///
/// If the test fails. It does so while the cluster stands, so that whatever is dropped with it can tell its story.
pub fn with_cluster(nodes: u8, test: impl FnOnce(&Cluster) -> Result<()>) {
    if let Err(reason) = requirements() {
        return skipped(&reason);
    }
    let cluster = Cluster::new(nodes).unwrap_or_else(|error| panic!("{error:#}"));
    if let Err(error) = test(&cluster) {
        panic!("{error:#}");
    }
}

/// As [`with_cluster`], with an agent on every node.
///
/// # Panics
///
/// If the test fails, or an agent does not come up.
pub fn with_agents(nodes: u8, test: impl FnOnce(&Cluster, &mut Deployment) -> Result<()>) {
    with_cluster(nodes, |cluster| {
        let mut agents = Deployment::start(cluster)?;
        if let Err(error) = test(cluster, &mut agents) {
            // Here and not above: dropped while panicking, the agents print their logs.
            panic!("{error:#}");
        }
        Ok(())
    });
}

/// Set where every test must run: a machine that lost a privilege must not pass by skipping.
const NO_SKIP: &str = "SLUICE_NO_SKIP";

/// Says that the running test is skipped, and why.
///
/// # Panics
///
/// If `SLUICE_NO_SKIP` is set.
pub fn skipped(reason: &anyhow::Error) {
    assert!(std::env::var_os(NO_SKIP).is_none(), "{NO_SKIP} is set, but this cannot run: {reason:#}");
    // Past the test harness, which hides what passing tests print: a skipped test must not look like a passed one.
    let name = std::thread::current().name().unwrap_or("test").to_owned();
    drop(writeln!(io::stderr(), "skipped {name}: {reason:#}"));
}

/// Whether the test bed can work here.
///
/// # Errors
///
/// What is missing.
pub fn requirements() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root");
    let ip = Command::new("ip").arg("-V").stdout(Stdio::null()).status();
    ip.context("the ip command (iproute2) is not installed")?;
    Sandbox::shared().map(drop)
}
