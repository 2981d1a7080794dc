//! What became of what kube-proxy left.

use std::{fmt, io};

use super::ipvs;

/// What was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    /// A whole table of nftables.
    Table {
        /// Family and name.
        table: String,
        /// How many chains it had.
        chains: usize,
        /// And rules.
        rules: usize,
    },
    /// Chains of a table of iptables.
    Chains {
        /// Family and name.
        table: String,
        /// How many.
        chains: usize,
        /// How many rules they had.
        rules: usize,
        /// How many rules led to them.
        jumps: usize,
    },
    /// Services of IPVS.
    Services(usize),
    /// The device with their addresses.
    Device,
    /// Sets of addresses.
    Sets(usize),
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table { table, chains, rules } => {
                write!(f, "table {table}, with {chains} chains and {rules} rules")
            }
            Self::Chains { table, chains, rules, jumps } => {
                write!(
                    f,
                    "table {table}: {chains} chains with {rules} rules, and {jumps} rules that led to them"
                )
            }
            Self::Services(count) => write!(f, "{count} services of IPVS"),
            Self::Device => write!(f, "device {}", ipvs::DEVICE),
            Self::Sets(count) => write!(f, "{count} ipsets"),
        }
    }
}

/// Why something of kube-proxy's may still be there.
#[derive(Debug, thiserror::Error)]
pub enum Unremoved {
    /// It cannot be seen whether there is anything.
    #[error("cannot list {what}")]
    Unseen {
        /// What.
        what: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It cannot be removed.
    #[error("{place}: cannot remove {what}, so nothing of it was removed")]
    Failed {
        /// Where it is.
        place: String,
        /// What it is.
        what: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Somebody else needs it.
    #[error("table {table}: chain {chain} stays, because chain {by}, which is not kube-proxy's, leads to it")]
    Needed {
        /// Family and name of the table.
        table: String,
        /// What stays.
        chain: String,
        /// Who needs it.
        by: String,
    },
    /// The programs that could are not here.
    #[error(
        "the legacy iptables have tables {tables} of family {family}, which only {program}-save and {program}-restore can \
         read and write, and those are not here. On the node itself: {command}"
    )]
    Legacy {
        /// The family.
        family: String,
        /// Names of the tables.
        tables: String,
        /// What the programs are called.
        program: &'static str,
        /// What is to be done.
        command: String,
    },
    /// Connections would end without it.
    #[error(
        "table {table} stays, with a chain and a rule that no packet meets: without them the kernel would not go on \
         translating {connections} TCP connections that kube-proxy did, since no rule of anybody else's asks for \
         translation. Run this again when they have ended"
    )]
    Held {
        /// Family and name of the table.
        table: String,
        /// How many.
        connections: usize,
    },
    /// It was removed, and is there.
    #[error("{0} there again: does a kube-proxy run?")]
    Back(String),
}

/// What became of what kube-proxy left.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What was removed.
    pub removed: Vec<Removed>,
    /// What was not, or may not have been.
    pub unremoved: Vec<Unremoved>,
}
