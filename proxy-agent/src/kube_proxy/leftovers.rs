//! What kube-proxy left in netfilter.

use std::{collections::BTreeMap, fmt, io};

use super::{
    chains::{TABLES, is_kube_proxys},
    legacy::Legacy,
    nftables::{Chain, NetfilterFamily, NfTables, Table},
};

/// The table of kube-proxy's mode nftables.
pub(super) const OWN_TABLE: &str = "kube-proxy";

/// Something of kube-proxy's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Leftover {
    /// A table of its own.
    Table(Table),
    /// Chains in a table of iptables.
    Chains {
        /// The table.
        table: Table,
        /// One of them.
        example: String,
        /// How many there are.
        count: usize,
    },
}

impl Leftover {
    /// The table that it is or is in.
    pub(super) const fn table(&self) -> &Table {
        match self {
            Self::Table(table) | Self::Chains { table, .. } => table,
        }
    }
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(table) => write!(f, "table {table} (nftables mode)"),
            Self::Chains { table, example, count } => {
                write!(f, "chain {example}{} in table {table} (iptables mode)", more(*count))
            }
        }
    }
}

fn more(count: usize) -> String {
    if count > 1 { format!(" and {} more", count - 1) } else { String::new() }
}

/// All chains that nf_tables knows.
pub(crate) fn netfilter_chains() -> io::Result<Vec<Chain>> {
    NfTables::open()?.chains()
}

/// What of these is kube-proxy's, by tables.
pub(crate) fn in_netfilter(chains: &[Chain]) -> Vec<Leftover> {
    let mut found = BTreeMap::new();
    for Chain { table, name, .. } in chains {
        if ![NetfilterFamily::IP, NetfilterFamily::IP6].contains(&table.family) {
            continue;
        }
        if table.name == OWN_TABLE {
            found.insert(table, Leftover::Table(table.clone()));
        } else if TABLES.contains(&table.name.as_str()) && is_kube_proxys(name) {
            let none = Leftover::Chains { table: table.clone(), example: name.clone(), count: 0 };
            if let Leftover::Chains { example, count, .. } = found.entry(table).or_insert(none) {
                *count += 1;
                // The one that everybody knows.
                if name == "KUBE-SERVICES" {
                    example.clone_from(name);
                }
            }
        }
    }
    found.into_values().collect()
}

/// What of the legacy iptables is kube-proxy's.
///
/// # Errors
///
/// If they have tables that cannot be read.
pub(super) fn in_legacy(legacy: Legacy) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for table in legacy.tables() {
        let chains = legacy.read(table)?.chains;
        let own: Vec<_> = chains.iter().map(|(name, _)| name).filter(|name| is_kube_proxys(name)).collect();
        if let Some(example) = own.first() {
            let family = legacy.family;
            found.push(format!("chain {example}{} in legacy table {family} {table}", more(own.len())));
        }
    }
    Ok(found)
}

/// What of the legacy iptables is kube-proxy's, of both families.
///
/// # Errors
///
/// Names the program that cannot read their tables, if there are any.
pub(crate) fn in_legacy_tables() -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    for legacy in Legacy::BOTH {
        found.extend(in_legacy(legacy).map_err(|error| format!("{}-save: {error}", legacy.program))?);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(family: NetfilterFamily, table: &str, name: &str) -> Chain {
        let table = Table { family, name: table.to_owned() };
        Chain { table, name: name.to_owned(), is_base: false }
    }

    #[test]
    fn what_kube_proxy_leaves_is_found_in_every_mode() {
        const IP: NetfilterFamily = NetfilterFamily::IP;
        let found = |chains: &[Chain]| -> Vec<String> {
            in_netfilter(chains).iter().map(ToString::to_string).collect()
        };
        assert!(found(&[chain(IP, "nat", "POSTROUTING"), chain(IP, "filter", "KUBE-FIREWALL")]).is_empty());
        // Nothing in tables that kube-proxy has no chains in.
        assert!(found(&[chain(IP, "mine", "KUBE-SERVICES")]).is_empty());
        let chains = [
            chain(IP, "nat", "KUBE-SEP-A"),
            chain(IP, "nat", "KUBE-SERVICES"),
            chain(IP, "mangle", "KUBE-PROXY-CANARY"),
            chain(NetfilterFamily::IP6, "kube-proxy", "services"),
            chain(NetfilterFamily::IP6, "kube-proxy", "endpoints"),
        ];
        assert_eq!(
            found(&chains),
            [
                "chain KUBE-PROXY-CANARY in table ip mangle (iptables mode)",
                "chain KUBE-SERVICES and 1 more in table ip nat (iptables mode)",
                "table ip6 kube-proxy (nftables mode)",
            ]
        );
    }
}
