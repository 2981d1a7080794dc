//! Who else balances on this node: kube-proxy in any of its modes, and proxies made of BPF programs.

use std::{collections::BTreeSet, fs};

use super::{Check, netfilter};
use crate::datapath::program_names;

/// How the names of others' programs begin, and whose they are.
const PROGRAMS: [(&str, &str); 3] =
    [("cil_", "Cilium"), ("cali_tc", "Calico's eBPF dataplane"), ("calico_", "Calico's eBPF dataplane")];

/// Looks for all of them.
pub(super) fn checks() -> Vec<Check> {
    let own = ipvs(&fs::read_to_string("/proc/net/ip_vs").unwrap_or_default());
    vec![
        kube_proxy(&processes()),
        rules(&netfilter::chains(), &fs::read_to_string("/proc/net/ip_tables_names").unwrap_or_default()),
        own,
        bpf_proxies(&program_names().map_err(|error| crate::report(&error))),
    ]
}

/// The names of processes that this one sees.
fn processes() -> Vec<(u32, String)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    let named = entries.filter_map(|entry| {
        let id = entry.file_name().to_str()?.parse().ok()?;
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        Some((id, name.trim_end().to_owned()))
    });
    named.collect()
}

fn kube_proxy(processes: &[(u32, String)]) -> Check {
    const NAME: &str = "kube-proxy";
    match processes.iter().find(|(_, name)| name == "kube-proxy") {
        Some((id, _)) => Check::warning(
            NAME,
            format!("it runs as process {id}: both would serve, Sluice first"),
            "delete its DaemonSet, or keep it off this node",
        ),
        None => Check::ok(NAME, "no process of that name is seen from here"),
    }
}

/// Rules that kube-proxy leaves when it ends. They are never reached by what Sluice serves at ingress; but they see every
/// packet of the node, and switch connection tracking on.
fn rules(chains: &Result<Vec<netfilter::Chain>, String>, legacy: &str) -> Check {
    const NAME: &str = "netfilter rules";
    let chains = match chains {
        Ok(chains) => chains,
        Err(error) => {
            let found = format!("cannot list them: {error}");
            return Check::warning(
                NAME,
                found,
                "look for chains that begin with KUBE-, and for tables kube-proxy",
            );
        }
    };
    let mut found = BTreeSet::new();
    for chain in chains {
        if chain.table == "kube-proxy" {
            found.insert(format!("table {} kube-proxy (nftables mode)", chain.family));
        } else if chain.name == "KUBE-SERVICES" || chain.name == "KUBE-NODEPORTS" {
            found.insert(format!(
                "chain {} in table {} {} (iptables mode)",
                chain.name, chain.family, chain.table
            ));
        }
    }
    if !found.is_empty() {
        let found: Vec<_> = found.into_iter().collect();
        return Check::warning(
            NAME,
            format!("kube-proxy's are there: {}", found.join(", ")),
            "stop kube-proxy and run `kube-proxy --cleanup`",
        );
    }
    if legacy.lines().any(|table| table == "nat") {
        return Check::warning(
            NAME,
            "the legacy iptables have a nat table, which cannot be listed from here",
            "look with `iptables-legacy-save -t nat | grep KUBE-`",
        );
    }
    Check::ok(NAME, format!("none of kube-proxy's among {} chains", chains.len()))
}

/// Services of IPVS, by the kernel's own list: one line each after three of heading.
fn ipvs(list: &str) -> Check {
    const NAME: &str = "ipvs";
    let services =
        list.lines().filter(|line| ["TCP", "UDP", "SCTP"].iter().any(|kind| line.starts_with(kind))).count();
    if services > 0 {
        Check::warning(
            NAME,
            format!(
                "{services} services; kube-proxy in IPVS mode leaves them behind, with a device kube-ipvs0"
            ),
            "stop kube-proxy and run `kube-proxy --cleanup`",
        )
    } else {
        Check::ok(NAME, "no services")
    }
}

fn bpf_proxies(names: &Result<BTreeSet<String>, String>) -> Check {
    const NAME: &str = "other BPF proxies";
    let names = match names {
        Ok(names) => names,
        Err(error) => {
            let found = format!("cannot list the programs in the kernel: {error}");
            return Check::warning(NAME, found, "run it as root of the host: that takes CAP_SYS_ADMIN");
        }
    };
    let owner =
        |name: &String| PROGRAMS.iter().find(|(prefix, _)| name.starts_with(prefix)).map(|(_, owner)| *owner);
    let owners: BTreeSet<_> = names.iter().filter_map(owner).collect();
    if owners.is_empty() {
        return Check::ok(NAME, format!("none among {} programs in the kernel", names.len()));
    }
    let programs: Vec<_> =
        names.iter().filter(|name| owner(name).is_some()).take(4).map(String::as_str).collect();
    let owners: Vec<_> = owners.into_iter().collect();
    Check::warning(
        NAME,
        format!("{} has programs in the kernel ({}, ...)", owners.join(", "), programs.join(", ")),
        "if it replaces kube-proxy (kubeProxyReplacement, bpfKubeProxy...), switch that off: only one may balance",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::show::preflight::Status;

    fn chain(family: &'static str, table: &str, name: &str) -> netfilter::Chain {
        netfilter::Chain { family, table: table.to_owned(), name: name.to_owned() }
    }

    #[test]
    fn what_kube_proxy_leaves_is_found_in_every_mode() {
        let nothing = Ok(vec![chain("ip", "nat", "POSTROUTING"), chain("inet", "firewalld", "filter_INPUT")]);
        assert_eq!(rules(&nothing, "filter\n").status, Status::Ok);
        let iptables = Ok(vec![chain("ip", "nat", "KUBE-SERVICES")]);
        let check = rules(&iptables, "");
        assert!(
            check.status == Status::Warning && check.found.contains("KUBE-SERVICES in table ip nat"),
            "{check:?}"
        );
        let nftables = Ok(vec![chain("ip6", "kube-proxy", "services")]);
        assert!(rules(&nftables, "").found.contains("table ip6 kube-proxy"));
        assert!(rules(&nothing, "nat\n").found.contains("legacy"));
        assert_eq!(rules(&Err("why".to_owned()), "").status, Status::Warning);
        let list = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  -> \
                    RemoteAddress:Port\nTCP  0A600001:01BB rr\n  -> C0000201:192B      Masq    1      0          0\n";
        assert!(ipvs(list).found.starts_with("1 services"));
        assert_eq!(ipvs("").status, Status::Ok);
        let processes = [(1, "init".to_owned()), (77, "kube-proxy".to_owned())];
        assert!(kube_proxy(&processes).found.contains("77"));
        assert_eq!(kube_proxy(&processes[..1]).status, Status::Ok);
    }

    #[test]
    fn others_programs_are_known_by_their_names() {
        let names = |names: &[&str]| Ok(names.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(bpf_proxies(&names(&["sluice_ingress", "sd_fw_egress"])).status, Status::Ok);
        let check = bpf_proxies(&names(&["cil_from_contai", "sluice_ingress"]));
        assert!(check.status == Status::Warning && check.found.contains("Cilium"), "{check:?}");
        assert_eq!(bpf_proxies(&Err("not permitted".to_owned())).status, Status::Warning);
    }
}
