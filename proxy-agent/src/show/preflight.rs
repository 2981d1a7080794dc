//! `sluice preflight`: can this machine run Sluice, and who else balances here? Nothing is attached and nothing is changed.

mod others;
mod own;
mod print;

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::ShowError;
use crate::cli::ShowArgs;

/// Arguments of `preflight`.
#[derive(Debug, Args)]
pub struct PreflightArgs {
    /// Directory in a cgroup2 file system, as `sluice run` would get it
    #[arg(long, value_name = "DIR")]
    pub cgroup: Option<std::path::PathBuf>,
    /// What all commands have.
    #[command(flatten)]
    pub show: ShowArgs,
}

/// What was found.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Preflight {
    /// Whether Sluice can run here: nothing that it needs is missing.
    pub ready: bool,
    /// Everything that was looked at.
    pub checks: Vec<Check>,
}

/// Something that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What.
    pub name: String,
    /// How it is.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What to do about it; `null` if nothing is to be done.
    pub remedy: Option<String>,
}

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Sluice runs, but not all is as it should be.
    Warning,
    /// Sluice does not run.
    Failed,
}

impl Check {
    fn ok(name: &str, found: impl Into<String>) -> Self {
        Self { name: name.to_owned(), status: Status::Ok, found: found.into(), remedy: None }
    }

    fn warning(name: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { status: Status::Warning, remedy: Some(remedy.into()), ..Self::ok(name, found) }
    }

    fn failed(name: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { status: Status::Failed, ..Self::warning(name, found, remedy) }
    }
}

impl Preflight {
    fn new(checks: Vec<Check>) -> Self {
        Self { ready: checks.iter().all(|check| check.status != Status::Failed), checks }
    }

    /// What the process says when it ends: 0 if Sluice can run here.
    pub(super) fn exit_code(&self) -> ExitCode {
        if self.ready { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// Looks at everything.
pub(super) fn preflight(args: &PreflightArgs) -> Result<Preflight, ShowError> {
    let mut checks = own::checks(&args.show.pins.bpffs, args.cgroup.as_deref());
    checks.extend(others::checks());
    Ok(Preflight::new(checks))
}
