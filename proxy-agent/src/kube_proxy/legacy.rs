//! The legacy iptables, whose tables no netlink knows: their own programs read and write them, where they are installed.

use std::{
    fs,
    io::{self, Write as _},
    process::{Command, Output, Stdio},
};

use super::{
    chains::{self, Plan, TABLES},
    nftables::{NetfilterFamily, Rule, TRANSLATIONS},
};

/// The legacy iptables of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Legacy {
    /// The family.
    pub(super) family: NetfilterFamily,
    /// Where the kernel lists its tables.
    names: &'static str,
    /// What its programs are called, before `-save` and `-restore`.
    pub(super) program: &'static str,
}

impl Legacy {
    /// Of both families.
    pub(super) const BOTH: [Self; 2] = [
        Self {
            family: NetfilterFamily::IP,
            names: "/proc/thread-self/net/ip_tables_names",
            program: "iptables-legacy",
        },
        Self {
            family: NetfilterFamily::IP6,
            names: "/proc/thread-self/net/ip6_tables_names",
            program: "ip6tables-legacy",
        },
    ];

    /// The tables that kube-proxy may have chains in: none, unless there is a table nat, which it always needs.
    pub(super) fn tables(self) -> Vec<&'static str> {
        // The file exists where the module does.
        let names = fs::read_to_string(self.names).unwrap_or_default();
        let is_there = |table: &&str| names.lines().any(|name| name == *table);
        if is_there(&"nat") { TABLES.into_iter().filter(is_there).collect() } else { Vec::new() }
    }

    /// What one of them is called.
    pub(super) fn place(self, table: &str) -> String {
        format!("{} {table} of the legacy iptables", self.family)
    }

    /// Chains and rules of a table.
    ///
    /// # Errors
    ///
    /// If its program fails; of the kind [`io::ErrorKind::NotFound`] if that is not installed.
    pub(super) fn read(self, table: &str) -> io::Result<Content> {
        let output = Command::new(format!("{}-save", self.program)).args(["--table", table]).output()?;
        printed(output).map(|text| Content::parse(&text))
    }

    /// Removes from a table what a plan says, at once.
    ///
    /// # Errors
    ///
    /// If its program fails.
    pub(super) fn remove(self, table: &str, plan: &Plan<String>) -> io::Result<()> {
        let mut child = Command::new(format!("{}-restore", self.program))
            .args(["--noflush", "--wait"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        // Taken, so that it is closed, and the program sees the end.
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(script(table, plan).as_bytes())?;
        }
        printed(child.wait_with_output()?).map(drop)
    }

    /// What somebody is to do where the programs are.
    pub(super) fn command(self) -> String {
        let Self { program, .. } = self;
        format!(
            "{program}-save --counters | grep -vE '(^:|-[Aj] ){}' | {program}-restore --counters",
            chains::pattern()
        )
    }
}

/// What a program that ended well printed.
fn printed(output: Output) -> io::Result<String> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let error = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(error.lines().next().unwrap_or("it does not say why").to_owned()))
}

/// What is in a table.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Content {
    /// The chains, and whether packets come to them by themselves.
    pub(super) chains: Vec<(String, bool)>,
    /// The rules. What they are deleted by is how they were added.
    pub(super) rules: Vec<Rule<String>>,
}

impl Content {
    /// Whether a rule that is not kube-proxy's translates addresses.
    pub(super) fn translates_for_others(&self) -> bool {
        let others = self.rules.iter().filter(|rule| !chains::is_kube_proxys(&rule.chain));
        let mut words = others.flat_map(|rule| rule.id.split(' ').zip(rule.id.split(' ').skip(1)));
        words.any(|(option, target)| option == "-j" && TRANSLATIONS.contains(&target))
    }

    /// Reads what `iptables-save` prints of one table.
    fn parse(text: &str) -> Self {
        let mut content = Self { chains: Vec::new(), rules: Vec::new() };
        for line in text.lines() {
            if let Some(chain) = line.strip_prefix(':') {
                let mut words = chain.split(' ');
                let name = words.next().unwrap_or_default().to_owned();
                content.chains.push((name, words.next() != Some("-")));
            } else if let Some(rule) = line.strip_prefix("-A ") {
                let chain = rule.split(' ').next().unwrap_or_default().to_owned();
                // What leads to a chain comes last, and has no options.
                let mut last = rule.rsplit(' ');
                let target = last.next().map(str::to_owned);
                let target = target.filter(|_| matches!(last.next(), Some("-j" | "-g")));
                content.rules.push(Rule { chain, target, id: rule.to_owned() });
            }
        }
        content
    }
}

/// What `iptables-restore` is to read.
fn script(table: &str, plan: &Plan<String>) -> String {
    let mut lines = vec![format!("*{table}")];
    // To declare a chain that exists is to empty it.
    lines.extend(plan.chains.iter().map(|chain| format!(":{chain} - [0:0]")));
    lines.extend(plan.jumps.iter().map(|rule| format!("-D {}", rule.id)));
    lines.extend(plan.chains.iter().map(|chain| format!("-X {chain}")));
    lines.push("COMMIT\n".to_owned());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = "\
# Generated by iptables-save v1.8.9
*nat
:PREROUTING ACCEPT [3:180]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-A - [0:0]
:DOCKER - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A PREROUTING -m comment --comment \"not -j KUBE-SERVICES\" -j DOCKER
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j KUBE-SVC-A
-A KUBE-SVC-A -p tcp -j DNAT --to-destination 192.0.2.1:6443
COMMIT
";

    #[test]
    fn kube_proxys_part_of_a_table_is_deleted_and_no_other() {
        let content = Content::parse(SAVED);
        assert_eq!(content.chains[0], ("PREROUTING".to_owned(), true));
        assert_eq!(content.chains[3], ("DOCKER".to_owned(), false));
        assert!(!content.translates_for_others());
        let with_others = SAVED.replace("COMMIT", "-A DOCKER -s 172.17.0.0/16 -j MASQUERADE\nCOMMIT");
        assert!(Content::parse(&with_others).translates_for_others());
        let plan = chains::plan(&content.chains, &content.rules);
        assert_eq!(plan.rules, 2);
        assert_eq!(
            script("nat", &plan),
            "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-A - [0:0]\n\
             -D PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
             -X KUBE-SERVICES\n-X KUBE-SVC-A\nCOMMIT\n"
        );
    }
}
