//! `cargo xtask test`: the levels of proof, cheapest first.
//!
//! Cargo is never told a package here, so it takes the workspace's default members every time. With `--package` it
//! would choose the dependencies' features for that package alone, and each level would compile tokio, hyper and
//! kube anew.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::bpf::{self, Features};
use crate::process::{Privilege, cargo, report, run, workspace};
use crate::setup;
use crate::steps::Steps;

/// A level of proof, by what it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Level {
    /// Pure code and scenarios: needs nothing
    Unit,
    /// The real kernel programs under BPF_PROG_TEST_RUN: needs root
    Program,
    /// Network namespaces with real sockets: needs root
    Netns,
    /// The agent against an API server
    Api,
}

impl Level {
    const ALL: [Self; 4] = [Self::Unit, Self::Program, Self::Netns, Self::Api];

    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Program => "program",
            Self::Netns => "netns",
            Self::Api => "api",
        }
    }

    fn needs(self) -> Privilege {
        match self {
            Self::Unit | Self::Api => Privilege::User,
            Self::Program | Self::Netns => Privilege::Root,
        }
    }

    /// The cargo targets that hold the level's tests.
    fn targets(self) -> Result<Vec<String>> {
        Ok(match self {
            Self::Unit => {
                let mut names = BTreeSet::new();
                for member in ["proxy-common", "proxy-model", "proxy-agent"] {
                    names.append(&mut integration_tests(member)?);
                }
                ["--lib".to_owned(), "--bins".to_owned()].into_iter().chain(named(names)).collect()
            }
            Self::Netns => {
                // What the test bed has besides the other levels are tests of the bed itself.
                let mut names = integration_tests("tests")?;
                names.retain(|name| [Self::Program, Self::Api].iter().all(|level| level.name() != name));
                names.insert(self.name().to_owned());
                named(names).collect()
            }
            Self::Program | Self::Api => named([self.name().to_owned()]).collect(),
        })
    }

    /// What the test harness is told.
    fn harness(self) -> &'static [&'static str] {
        match self {
            // Each of these tests is a small cluster: more at once and two cores no longer meet their deadlines.
            Self::Netns => &["--test-threads=2"],
            Self::Unit | Self::Program | Self::Api => &[],
        }
    }
}

/// Builds what is tested and runs one level, or all.
pub(crate) fn test(level: Option<Level>, arguments: &[OsString]) -> Result<ExitCode> {
    let levels = level.map_or(Level::ALL.to_vec(), |level| vec![level]);
    let setup = setup::ensure()?;
    report(format_args!("bpf toolchain  {}", setup.toolchain));
    bpf::programs(&setup.toolchain, Features::Plain)?;
    let mut steps = Steps::new("test");
    for level in levels {
        steps.run(level.name(), || run_level(level, arguments));
    }
    Ok(steps.finish())
}

fn run_level(level: Level, arguments: &[OsString]) -> Result<()> {
    if level.needs() == Privilege::Root && Privilege::ours() == Privilege::User {
        bail!("makes network namespaces and loads kernel programs: run it as root");
    }
    let targets = level.targets()?;
    if level != Level::Unit {
        // The test bed starts the agent's binary. Built together with a test, because cargo chooses other features
        // for the dependencies when no test is among the targets.
        run(cargo().args(["build", "--bin", "sluice"]).args(&targets))?;
    }
    let mut command = cargo();
    command.args(["test", "--no-fail-fast"]).args(&targets);
    run(command.arg("--").args(level.harness()).args(arguments))?;
    if level == Level::Unit {
        // Cargo runs these only by themselves.
        run(cargo().args(["test", "--doc", "--"]).args(arguments))?;
    }
    Ok(())
}

/// The names of a member's integration tests.
fn integration_tests(member: &str) -> Result<BTreeSet<String>> {
    let directory = workspace().join(member).join("tests");
    if !directory.is_dir() {
        return Ok(BTreeSet::new());
    }
    let mut names = BTreeSet::new();
    for file in fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))? {
        let path = file?.path();
        let is_file = path.extension().is_some_and(|extension| extension == "rs");
        if let (true, Some(name)) = (is_file || path.join("main.rs").is_file(), path.file_stem()) {
            names.insert(name.to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

fn named(names: impl IntoIterator<Item = String>) -> impl Iterator<Item = String> {
    names.into_iter().flat_map(|name| ["--test".to_owned(), name])
}
