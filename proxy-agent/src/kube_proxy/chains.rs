//! Which chains of iptables' tables are kube-proxy's, and what goes with them.

use std::collections::{BTreeMap, BTreeSet};

use super::nftables::Rule;

/// The tables of iptables that kube-proxy has chains in.
pub(super) const TABLES: [&str; 3] = ["nat", "filter", "mangle"];

/// Where kube-proxy marks what is to get another source, and where that gets one.
const MARK: &str = "KUBE-MARK-MASQ";
const MASQUERADE: &str = "KUBE-POSTROUTING";

/// The chains of kube-proxy's modes iptables and ipvs that have fixed names: those that it removes itself when it is told to
/// clean up. Others' begin with KUBE- as well, kubelet's (KUBE-FIREWALL, KUBE-KUBELET-CANARY) and those of network policies.
const NAMES: [&str; 14] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    MASQUERADE,
    MARK,
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-PROXY-CANARY",
    "KUBE-NODE-PORT",
    "KUBE-LOAD-BALANCER",
    "KUBE-FIRE-WALL",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
];

/// How the names of its chains for services and endpoints begin.
const PREFIXES: [&str; 6] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-", "KUBE-XLB-", "KUBE-SEP-"];

/// Whether a chain of one of the [`TABLES`] is kube-proxy's.
pub(super) fn is_kube_proxys(chain: &str) -> bool {
    NAMES.contains(&chain) || PREFIXES.iter().any(|prefix| chain.starts_with(prefix))
}

/// An extended regular expression for the names of all of them.
pub(super) fn pattern() -> String {
    let names = NAMES.iter().map(|name| format!("{name}\\b"));
    let all = names.chain(PREFIXES.iter().map(|prefix| (*prefix).to_owned()));
    format!("KUBE-({})", all.map(|name| name.replacen("KUBE-", "", 1)).collect::<Vec<_>>().join("|"))
}

/// What goes of a table, and what must stay.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan<Id> {
    /// Rules of others' chains that lead to kube-proxy's.
    pub(super) jumps: Vec<Rule<Id>>,
    /// kube-proxy's chains.
    pub(super) chains: BTreeSet<String>,
    /// How many rules are in them.
    pub(super) rules: usize,
    /// kube-proxy's chains that others' chains need, and the chain that does.
    pub(super) needed: BTreeMap<String, String>,
}

/// What goes of a table with these chains and rules.
///
/// Rules of the chains that packets come to by themselves go with what they lead to. Somebody else's chain that leads to
/// one of kube-proxy's (some CNI plugins mark what is to be masqueraded so) needs that, and what comes after it.
pub(super) fn plan<Id: Clone>(chains: &[(String, bool)], rules: &[Rule<Id>]) -> Plan<Id> {
    let own: BTreeSet<&str> =
        chains.iter().map(|(name, _)| name.as_str()).filter(|name| is_kube_proxys(name)).collect();
    let bases: BTreeSet<&str> =
        chains.iter().filter(|(_, is_base)| *is_base).map(|(name, _)| name.as_str()).collect();
    let leads_in = |rule: &Rule<Id>| {
        let target = rule.target.as_deref().filter(|target| own.contains(target))?;
        Some((rule.chain.clone(), target.to_owned()))
    };
    let mut needed: BTreeMap<String, String> = BTreeMap::new();
    let others = rules.iter().filter(|rule| {
        let chain = rule.chain.as_str();
        !own.contains(chain) && !bases.contains(chain)
    });
    let mut waiting: Vec<_> = others.filter_map(leads_in).collect();
    while let Some((by, chain)) = waiting.pop() {
        if needed.contains_key(&chain) {
            continue;
        }
        if chain == MARK && own.contains(MASQUERADE) {
            waiting.push((by.clone(), MASQUERADE.to_owned()));
        }
        let next = rules.iter().filter(|rule| rule.chain == chain).filter_map(leads_in);
        waiting.extend(next.map(|(_, target)| (by.clone(), target)));
        needed.insert(chain, by);
    }
    let goes = |chain: &str| own.contains(chain) && !needed.contains_key(chain);
    let jumps = rules.iter().filter(|rule| !own.contains(rule.chain.as_str()));
    let jumps = jumps.filter(|rule| rule.target.as_deref().is_some_and(goes)).cloned().collect();
    let chains = own.iter().filter(|chain| goes(chain)).map(|chain| (*chain).to_owned()).collect();
    Plan { jumps, chains, rules: rules.iter().filter(|rule| goes(&rule.chain)).count(), needed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubelets_and_others_chains_are_not_kube_proxys() {
        for chain in ["KUBE-SERVICES", "KUBE-SVC-ABC", "KUBE-SEP-ABC", "KUBE-PROXY-CANARY", "KUBE-FIRE-WALL"]
        {
            assert!(is_kube_proxys(chain), "{chain}");
        }
        for chain in [
            "KUBE-FIREWALL",
            "KUBE-KUBELET-CANARY",
            "KUBE-MARK-DROP",
            "KUBE-IPTABLES-HINT",
            "KUBE-ROUTER-INPUT",
            "KUBE-POD-FW-ABC",
            "KUBE-NWPLCY-ABC",
            "DOCKER",
            "PREROUTING",
        ] {
            assert!(!is_kube_proxys(chain), "{chain}");
        }
        assert!(
            pattern().starts_with("KUBE-(SERVICES\\b|") && pattern().ends_with("|SEP-)"),
            "{}",
            pattern()
        );
    }

    fn rule(chain: &str, target: &str) -> Rule<u64> {
        let target = (!target.is_empty()).then(|| target.to_owned());
        Rule { chain: chain.to_owned(), target, id: 0 }
    }

    fn chains(names: &[&str]) -> Vec<(String, bool)> {
        names.iter().map(|name| ((*name).to_owned(), name.ends_with("ROUTING"))).collect()
    }

    #[test]
    fn what_leads_to_kube_proxys_chains_goes_with_them() {
        let chains = chains(&["PREROUTING", "KUBE-SERVICES", "KUBE-SVC-A", "DOCKER"]);
        let rules = [
            rule("PREROUTING", "KUBE-SERVICES"),
            rule("PREROUTING", "DOCKER"),
            rule("KUBE-SERVICES", "KUBE-SVC-A"),
            rule("KUBE-SVC-A", ""),
            rule("DOCKER", ""),
        ];
        let plan = plan(&chains, &rules);
        assert_eq!(plan.jumps, [rules[0].clone()]);
        assert_eq!(plan.chains.iter().collect::<Vec<_>>(), ["KUBE-SERVICES", "KUBE-SVC-A"]);
        assert!(plan.rules == 2 && plan.needed.is_empty());
    }

    #[test]
    fn what_somebody_elses_chain_leads_to_stays_in_working_order() {
        let chains = chains(&[
            "PREROUTING",
            "POSTROUTING",
            "KUBE-SERVICES",
            "KUBE-MARK-MASQ",
            "KUBE-POSTROUTING",
            "CNI-DN-A",
        ]);
        let rules = [
            rule("PREROUTING", "KUBE-SERVICES"),
            rule("POSTROUTING", "KUBE-POSTROUTING"),
            rule("KUBE-SERVICES", "KUBE-MARK-MASQ"),
            rule("KUBE-MARK-MASQ", ""),
            rule("KUBE-POSTROUTING", ""),
            rule("CNI-DN-A", "KUBE-MARK-MASQ"),
        ];
        let plan = plan(&chains, &rules);
        assert_eq!(plan.jumps, [rules[0].clone()]);
        assert_eq!(plan.chains.iter().collect::<Vec<_>>(), ["KUBE-SERVICES"]);
        let needed: Vec<_> = plan.needed.iter().map(|(chain, by)| (chain.as_str(), by.as_str())).collect();
        assert_eq!(needed, [("KUBE-MARK-MASQ", "CNI-DN-A"), ("KUBE-POSTROUTING", "CNI-DN-A")]);
    }
}
