//! What every test does before and after.

use std::{
    cell::RefCell,
    io::{self, Write as _},
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
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

/// As [`with_cluster`], with an agent on every node; both may have served other tests before.
///
/// # Panics
///
/// If the test fails, or an agent does not come up.
pub fn with_agents(nodes: u8, test: impl FnOnce(&Cluster, &mut Deployment) -> Result<()>) {
    Setup::new(nodes).run(test);
}

/// Runs tests once more, with these arguments for their agents beside whatever each of them tells.
///
/// # Panics
///
/// If one of them does.
pub fn again_telling(arguments: &[&str], tests: &[fn()]) {
    /// What is told to agents here is told no more when this is gone.
    struct Told;
    impl Drop for Told {
        fn drop(&mut self) {
            BESIDES.take();
        }
    }
    let _told = Told;
    BESIDES.set(arguments.iter().map(|&argument| argument.to_owned()).collect());
    tests.iter().for_each(|test| test());
}

thread_local! {
    /// What agents of this thread's tests are told besides.
    static BESIDES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// What a test needs, if that is not the ordinary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    nodes: u8,
    shape: Shape,
    arguments: Vec<String>,
    alone: bool,
}

/// A cluster with its agents. Fields are dropped in order: agents before the nodes they run on.
struct Bed {
    agents: Deployment,
    cluster: Cluster,
}

/// Beds that wait for another test: loading and verifying the programs takes longer than most tests.
static IDLE: Mutex<Vec<(Setup, Bed)>> = Mutex::new(Vec::new());

/// How many pods a node may have had. Their addresses are not used again.
const MANY_PODS: u8 = 150;

impl Setup {
    /// So many ordinary nodes, with agents that are told nothing special (but see [`again_telling`]).
    #[must_use]
    pub fn new(nodes: u8) -> Self {
        let arguments = BESIDES.with_borrow(Clone::clone);
        Self { nodes, shape: Shape::default(), arguments, alone: false }
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

    /// With a bed that no other test has used or will use: for tests that do more to it than add pods and services.
    #[must_use]
    pub fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// Runs a test with agents.
    ///
    /// # Panics
    ///
    /// If the test fails, or an agent does not come up.
    pub fn run(self, test: impl FnOnce(&Cluster, &mut Deployment) -> Result<()>) {
        if !self.can_run() {
            return;
        }
        let mut bed = self.bed().unwrap_or_else(|error| panic!("{error:#}"));
        // Dropped while panicking, the agents print their logs: here, or where the test itself panics.
        let tested = test(&bed.cluster, &mut bed.agents);
        if let Err(error) = tested.and_then(|()| bed.agents.expect_sound()) {
            panic!("{error:#}");
        }
        let used_up = bed.cluster.nodes.iter().any(|node| node.pods_made() > MANY_PODS);
        if !self.alone && !used_up {
            bed.agents.forget(&bed.cluster).unwrap_or_else(|error| panic!("{error:#}"));
            idle().push((self, bed));
        }
    }

    /// One that waits, or a new one.
    fn bed(&self) -> Result<Bed> {
        let mut idle = idle();
        if let Some(at) = idle.iter().position(|(setup, _)| setup == self) {
            let (_, mut bed) = idle.swap_remove(at);
            bed.agents.begin_story()?;
            return Ok(bed);
        }
        drop(idle);
        let cluster = Cluster::shaped(self.nodes, self.shape)?;
        Ok(Bed { agents: Deployment::start(&cluster, &self.arguments)?, cluster })
    }

    /// Runs a test without agents.
    ///
    /// # Panics
    ///
    /// If the test fails.
    pub fn run_bare(self, test: impl FnOnce(&Cluster) -> Result<()>) {
        if !self.can_run() {
            return;
        }
        let cluster = Cluster::shaped(self.nodes, self.shape).unwrap_or_else(|error| panic!("{error:#}"));
        if let Err(error) = test(&cluster) {
            panic!("{error:#}");
        }
    }

    /// Whether this machine can do it; says why if not.
    fn can_run(&self) -> bool {
        let unable = requirements().map_err(|reason| skipped(&reason)).is_err()
            || self.shape.requirements().map_err(|reason| unsupported(&reason)).is_err();
        !unable
    }
}

/// A test that panicked had its bed with it, so what is left is whole.
fn idle() -> MutexGuard<'static, Vec<(Setup, Bed)>> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
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
