//! `cargo xtask test`: the levels of proof, cheapest first.
//!
//! Cargo is never told a package here, so it takes the workspace's default members every time. With `--package` it
//! would choose the dependencies' features for that package alone, and each level would compile tokio, hyper and
//! kube anew.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde_json::Value;

use crate::bpf::{self, Features};
use crate::process::{Privilege, cargo, query, report, run};
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
                let names = integration_tests()?.into_iter().filter(|test| test.package != TEST_BED);
                let names = names.map(|test| test.name);
                ["--lib".to_owned(), "--bins".to_owned()].into_iter().chain(named(names)).collect()
            }
            Self::Netns => {
                // What the test bed has besides the other levels are tests of the bed itself.
                let other_levels = [Self::Program.name(), Self::Api.name()];
                let names = integration_tests()?.into_iter().filter(|test| test.package == TEST_BED);
                let mut names: BTreeSet<String> = names.map(|test| test.name).collect();
                names.retain(|name| !other_levels.contains(&name.as_str()));
                // Never none: without a target cargo would run everything.
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

/// A file of integration tests.
#[derive(Debug, PartialEq, Eq)]
struct IntegrationTest {
    package: String,
    name: String,
}

/// The workspace's integration tests, as cargo sees them.
fn integration_tests() -> Result<Vec<IntegrationTest>> {
    let metadata = query(cargo().args(["metadata", "--no-deps", "--format-version=1"]));
    tests_in(&metadata.context("`cargo metadata` failed")?)
}

fn tests_in(metadata: &str) -> Result<Vec<IntegrationTest>> {
    let metadata: Value = serde_json::from_str(metadata).context("cannot read what `cargo metadata` says")?;
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut tests = Vec::new();
    for package in list(&metadata["packages"]) {
        for target in list(&package["targets"]) {
            let is_test = list(&target["kind"]).iter().any(|kind| kind == "test");
            if let (true, Some(package), Some(name)) =
                (is_test, package["name"].as_str(), target["name"].as_str())
            {
                tests.push(IntegrationTest { package: package.to_owned(), name: name.to_owned() });
            }
        }
    }
    Ok(tests)
}

fn named(names: impl IntoIterator<Item = String>) -> impl Iterator<Item = String> {
    names.into_iter().flat_map(|name| ["--test".to_owned(), name])
}

/// The package whose integration tests are the levels that need a kernel.
const TEST_BED: &str = "sluice-tests";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integration_tests_are_told_from_other_targets() {
        let metadata = r#"{"packages": [
            {"name": "proxy-model", "targets": [
                {"kind": ["lib"], "name": "proxy_model"},
                {"kind": ["test"], "name": "model", "src_path": "/proxy-model/tests/main.rs"}]},
            {"name": "sluice-tests", "targets": [{"kind": ["test"], "name": "netns"}]}]}"#;
        let tests = tests_in(metadata).unwrap();
        let tests: Vec<_> = tests.iter().map(|test| (test.package.as_str(), test.name.as_str())).collect();
        assert_eq!(tests, [("proxy-model", "model"), (TEST_BED, "netns")]);
    }
}
