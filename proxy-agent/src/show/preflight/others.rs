//! Who else balances on this node: kube-proxy in any of its modes, and proxies made of BPF programs.

use std::collections::BTreeSet;

use super::Check;
use crate::{
    datapath::program_names,
    kube_proxy::{self, Active},
};

/// How the names of others' programs begin, and whose they are.
const PROGRAMS: [(&str, &str); 3] =
    [("cil_", "Cilium"), ("cali_tc", "Calico's eBPF dataplane"), ("calico_", "Calico's eBPF dataplane")];

/// Looks for all of them.
pub(super) fn checks() -> Vec<Check> {
    let netfilter = kube_proxy::netfilter_chains().map_err(|error| error.to_string()).map(|chains| {
        let found = kube_proxy::in_netfilter(&chains).iter().map(ToString::to_string).collect();
        (chains.len(), found)
    });
    vec![
        running(kube_proxy::active(Some(kube_proxy::METRICS))),
        rules(netfilter, kube_proxy::in_legacy_tables()),
        ipvs(kube_proxy::ipvs_services(), kube_proxy::has_ipvs_device()),
        bpf_proxies(&program_names().map_err(|error| crate::report(&error))),
    ]
}

/// What to do about what kube-proxy left.
const CLEAN_UP: &str = "stop kube-proxy and run `sluice run --cleanup-kube-proxy`";

fn running(active: Option<Active>) -> Check {
    const NAME: &str = "kube-proxy";
    match active {
        Some(active) => Check::warning(
            NAME,
            format!("{active}: only one may serve a node"),
            "delete its DaemonSet, or keep it off this node",
        ),
        None => Check::ok(NAME, "none is seen from here, and none answers at its address for metrics"),
    }
}

/// Rules that kube-proxy leaves when it ends. They are never reached by what Sluice serves at ingress; but they see every
/// packet of the node, and switch connection tracking on.
fn rules(netfilter: Result<(usize, Vec<String>), String>, legacy: Result<Vec<String>, String>) -> Check {
    const NAME: &str = "netfilter rules";
    let (count, mut found) = match netfilter {
        Ok(netfilter) => netfilter,
        Err(error) => {
            let found = format!("cannot list them: {error}");
            return Check::warning(
                NAME,
                found,
                "look for chains that begin with KUBE-, and for tables kube-proxy",
            );
        }
    };
    let unread = legacy.map(|legacy| found.extend(legacy)).err();
    if !found.is_empty() {
        return Check::warning(NAME, format!("kube-proxy's are there: {}", found.join(", ")), CLEAN_UP);
    }
    if let Some(error) = unread {
        return Check::warning(
            NAME,
            format!("the legacy iptables have a nat table, which cannot be listed from here ({error})"),
            "look with `iptables-legacy-save -t nat | grep KUBE-`, and the same with ip6tables",
        );
    }
    Check::ok(NAME, format!("none of kube-proxy's among {count} chains"))
}

/// What is left of kube-proxy's mode ipvs.
fn ipvs(services: usize, has_device: bool) -> Check {
    const NAME: &str = "ipvs";
    match (services, has_device) {
        (0, false) => Check::ok(NAME, "no services"),
        (_, true) => Check::warning(
            NAME,
            format!("{services} services, and device {} of kube-proxy's", kube_proxy::IPVS_DEVICE),
            CLEAN_UP,
        ),
        (_, false) => Check::warning(
            NAME,
            format!("{services} services; without device {}, not kube-proxy's", kube_proxy::IPVS_DEVICE),
            "see who balances by IPVS, and what",
        ),
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

    #[test]
    fn what_kube_proxy_leaves_is_told_with_what_to_do() {
        let found = |found: &[&str]| Ok((9, found.iter().map(|text| (*text).to_owned()).collect()));
        assert_eq!(rules(found(&[]), Ok(Vec::new())).status, Status::Ok);
        let check = rules(found(&["table ip kube-proxy"]), Ok(vec!["chain KUBE-SERVICES".to_owned()]));
        assert!(check.found.ends_with("table ip kube-proxy, chain KUBE-SERVICES"), "{check:?}");
        assert!(check.remedy.is_some_and(|remedy| remedy.contains("--cleanup-kube-proxy")));
        assert!(rules(found(&[]), Err("why".to_owned())).found.contains("legacy"));
        assert!(rules(found(&["table"]), Err("why".to_owned())).found.ends_with("table"));
        assert_eq!(rules(Err("why".to_owned()), Ok(Vec::new())).status, Status::Warning);
        assert_eq!(ipvs(0, false).status, Status::Ok);
        assert!(ipvs(1, true).found.starts_with("1 services") && ipvs(0, true).status == Status::Warning);
        assert!(ipvs(1, false).found.ends_with("not kube-proxy's"));
        assert!(running(Some(Active::Process(77))).found.contains("77"));
        assert_eq!(running(None).status, Status::Ok);
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
