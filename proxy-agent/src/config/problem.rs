//! What is wrong with a configuration.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use super::{fields, file::ConfigFile};
use crate::document::{Position, Step, dotted};

/// Why the agent has no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read the configuration file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file cannot be understood.
    #[error("configuration file {file}{place}: {cause}", file = file.display(), place = place(position.as_ref()))]
    Malformed {
        /// The file.
        file: PathBuf,
        /// Line and column, as far as they are known.
        position: Option<(u64, u64)>,
        /// What is wrong, and with which field.
        cause: String,
    },
    /// It cannot be converted, which no value could cause.
    #[error("the configuration cannot be converted")]
    Convert(#[from] serde_json::Error),
    /// It cannot be written as YAML, which no value could cause.
    #[error("the configuration cannot be written")]
    Write(#[from] serde_saphyr::ser::Error),
    /// Values cannot be used. One a line.
    #[error("the configuration cannot be used:{}", listed(.0))]
    Invalid(Vec<Problem>),
}

fn place(position: Option<&(u64, u64)>) -> String {
    position.map(|(line, column)| format!(", line {line}, column {column}")).unwrap_or_default()
}

fn listed(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("\n  {problem}")).collect()
}

impl ConfigError {
    pub(super) fn malformed(file: &Path, position: Option<Position>, cause: impl Into<String>) -> Self {
        let position = position.map(|position| (position.line, position.column));
        Self::Malformed { file: file.to_owned(), position, cause: cause.into() }
    }
}

/// A value that cannot be used (LIFE-03).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The flag, or the field and where it is.
    name: String,
    /// What it says; nothing if it is missing.
    value: String,
    /// What would be right.
    reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, value, reason } = self;
        match value.as_str() {
            "" => write!(f, "{name}: {reason}"),
            value => write!(f, "{name}: {value}: {reason}"),
        }
    }
}

impl Problem {
    /// Of a flag, which is named with its dashes.
    pub(super) fn with_flag(flag: &str, value: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { name: flag.to_owned(), value: value.into(), reason: reason.into() }
    }

    /// Of a field of kube-proxy's configuration, wherever that comes from.
    pub(super) fn with_field(fault: Fault, origin: Origin<'_>) -> Self {
        let Fault { path, value, reason } = fault;
        let field = dotted(&path);
        let name = match origin {
            Origin::Flags => fields::flag(&field).map_or(field, |flag| format!("--{}", flag.name)),
            Origin::File(file) => {
                let position = file.position(&path).map(|position| format!(", {position}"));
                format!("{}{}, {field}", file.path().display(), position.unwrap_or_default())
            }
        };
        Self { name, value, reason }
    }
}

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) path: Vec<Step>,
    pub(super) value: String,
    pub(super) reason: String,
}

/// Where kube-proxy's configuration comes from.
#[derive(Clone, Copy)]
pub(super) enum Origin<'a> {
    Flags,
    File(&'a ConfigFile),
}
