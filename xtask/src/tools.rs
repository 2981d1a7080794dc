//! Programs that the demo and the tests run.

use std::fmt;

use anyhow::{Result, bail};

use crate::install::apt;
use crate::process::{Log, find_in_path};
use crate::toolchain::Packages;

/// The tools, and which of them are there.
pub(crate) struct Tools(Vec<(&'static Tool, Presence)>);

impl Tools {
    fn look() -> Self {
        Self(TOOLS.iter().map(|tool| (tool, tool.presence())).collect())
    }

    fn lacks_required(&self) -> bool {
        self.0.iter().any(|(tool, presence)| tool.need == Need::Required && *presence == Presence::Missing)
    }

    fn missing_packages(&self) -> Vec<String> {
        let missing = self.0.iter().filter(|(_, presence)| *presence == Presence::Missing);
        let mut packages: Vec<String> = missing.map(|(tool, _)| tool.package.to_owned()).collect();
        packages.dedup();
        packages
    }
}

impl fmt::Display for Tools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self
            .0
            .iter()
            .map(|(tool, presence)| match (presence, tool.need) {
                (Presence::Found, _) => tool.name.to_owned(),
                (Presence::Missing, Need::Optional) => format!("no {} ({})", tool.name, tool.purpose),
                (Presence::Missing, Need::Required) => format!("{} is missing", tool.name),
            })
            .collect();
        f.write_str(&words.join(", "))
    }
}

/// Installs missing tools. Optional ones come along, but are not worth an installation of their own.
pub(crate) fn ensure(packages: Packages, log: &mut Log) -> Result<Tools> {
    let tools = Tools::look();
    if !tools.lacks_required() {
        return Ok(tools);
    }
    let missing = tools.missing_packages().join(" ");
    match packages {
        Packages::Installable => apt(&tools.missing_packages(), log)?,
        Packages::NeedRoot => bail!("{tools}; run `apt-get install {missing}` as root"),
        Packages::None => bail!("{tools}; install what your distribution calls {missing}"),
    }
    let tools = Tools::look();
    if tools.lacks_required() {
        bail!("{missing} was installed, yet {tools}");
    }
    Ok(tools)
}

struct Tool {
    name: &'static str,
    package: &'static str,
    need: Need,
    purpose: &'static str,
}

impl Tool {
    fn presence(&self) -> Presence {
        find_in_path(self.name).map_or(Presence::Missing, |_| Presence::Found)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Required,
    Optional,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Presence {
    Found,
    Missing,
}

const TOOLS: [Tool; 7] = [
    Tool {
        name: "ip",
        package: "iproute2",
        need: Need::Required,
        purpose: "makes the nodes of tests and demo",
    },
    Tool { name: "tc", package: "iproute2", need: Need::Required, purpose: "shows attached programs" },
    Tool { name: "ethtool", package: "ethtool", need: Need::Optional, purpose: "offload tests are skipped" },
    Tool {
        name: "iptables-nft",
        package: "iptables",
        need: Need::Optional,
        purpose: "tests of migration are skipped",
    },
    Tool {
        name: "nft",
        package: "nftables",
        need: Need::Optional,
        purpose: "tests of migration are skipped",
    },
    Tool { name: "ipset", package: "ipset", need: Need::Optional, purpose: "a test of migration is skipped" },
    Tool { name: "bpftool", package: "bpftool", need: Need::Optional, purpose: "for debugging only" },
];
