//! What every test does before and after.

use std::{
    io::{self, Write as _},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    deployment::Deployment,
    sandbox::Sandbox,
    topology::{Cluster, Shape},
};

/// Runs a test on a fresh cluster; without the privileges for one, says so and skips the test.
///
/// # Panics
///
/// If the test fails. It does so while the cluster stands, so that whatever is dropped with it can tell its story.
pub fn with_cluster(nodes: u8, test: impl FnOnce(&Cluster) -> Result<()>) {
    Setup::new(nodes).run_bare(test);
}

/// As [`with_cluster`], with an agent on every node.
///
/// # Panics
///
/// If the test fails, or an agent does not come up.
pub fn with_agents(nodes: u8, test: impl FnOnce(&Cluster, &mut Deployment) -> Result<()>) {
    Setup::new(nodes).run(test);
}

/// What a test needs, if that is not the ordinary.
#[derive(Clone, Debug)]
pub struct Setup {
    nodes: u8,
    shape: Shape,
    arguments: Vec<String>,
}

impl Setup {
    /// So many ordinary nodes, with agents that are told nothing special.
    #[must_use]
    pub fn new(nodes: u8) -> Self {
        Self { nodes, shape: Shape::default(), arguments: Vec::new() }
    }

    /// With a cluster of that shape.
    #[must_use]
    pub fn shaped(mut self, shape: Shape) -> Self {
        self.shape = shape;
        self
    }

    /// With that on the agents' command lines.
    #[must_use]
    pub fn telling(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|&argument| argument.to_owned()));
        self
    }

    /// Runs a test with agents.
    ///
    /// # Panics
    ///
    /// If the test fails, or an agent does not come up.
    pub fn run(self, test: impl FnOnce(&Cluster, &mut Deployment) -> Result<()>) {
        let arguments = self.arguments.clone();
        self.run_bare(|cluster| {
            let mut agents = Deployment::start(cluster, &arguments)?;
            if let Err(error) = test(cluster, &mut agents) {
                // Here and not above: dropped while panicking, the agents print their logs.
                panic!("{error:#}");
            }
            Ok(())
        });
    }

    /// Runs a test without agents.
    ///
    /// # Panics
    ///
    /// If the test fails.
    pub fn run_bare(self, test: impl FnOnce(&Cluster) -> Result<()>) {
        if let Err(reason) = requirements() {
            return skipped(&reason);
        }
        if let Err(reason) = self.shape.requirements() {
            return unsupported(&reason);
        }
        let cluster = Cluster::shaped(self.nodes, self.shape).unwrap_or_else(|error| panic!("{error:#}"));
        if let Err(error) = test(&cluster) {
            panic!("{error:#}");
        }
    }
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
    unsupported(reason);
}

/// Says that the running test is skipped because this kernel was built without something that it needs. Nobody can
/// give a machine another kernel, so this is no failure even where no test may be skipped.
pub fn unsupported(reason: &anyhow::Error) {
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
