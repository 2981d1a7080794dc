//! Flags and files together, and what is made of them.

mod files;

use std::{collections::BTreeSet, fs};

use clap::{CommandFactory as _, Parser as _};
use serde_json::Value;

use super::{
    Configuration, Host, Note, Task,
    fields::{FIELDS, Field},
    flags::pointer,
    kube_proxy::{KubeProxyConfiguration, VModule},
    with_dashes,
};
use crate::cli::{Cli, Command};

const DUAL: Host = Host { has_ipv6: true };

/// The configuration that `sluice run` with these flags has.
pub(super) fn load(flags: &[&str]) -> Result<Configuration, String> {
    load_on(flags, DUAL)
}

fn load_on(flags: &[&str], host: Host) -> Result<Configuration, String> {
    let line = ["sluice", "run"].into_iter().chain(flags.iter().copied()).map(Into::into);
    match Cli::try_parse_from(with_dashes(line)).map_err(|error| error.to_string())?.command {
        Command::Run(args) => Configuration::load(&args, host).map_err(|error| crate::report(&error)),
        other => panic!("{other:?}"),
    }
}

/// The same with a file of kube-proxy's configuration. Messages call it FILE.
fn load_file(text: &str, flags: &[&str]) -> Result<Configuration, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.conf");
    fs::write(&path, text).unwrap();
    let config = format!("--config={}", path.display());
    let flags: Vec<_> = [config.as_str()].into_iter().chain(flags.iter().copied()).collect();
    let named = |text: &str| text.replace(&*path.to_string_lossy(), "FILE");
    let mut loaded = load(&flags).map_err(|error| named(&error))?;
    for note in &mut loaded.notes {
        let (Note::Info(text) | Note::Warning(text)) = note;
        *text = named(text);
    }
    Ok(loaded)
}

fn with_head(fields: &str) -> String {
    format!("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n{fields}")
}

fn warnings(configuration: &Configuration) -> Vec<&str> {
    fn warning(note: &Note) -> Option<&str> {
        match note {
            Note::Warning(text) => Some(text),
            Note::Info(_) => None,
        }
    }
    configuration.notes.iter().filter_map(warning).collect()
}

/// The line about what has no effect.
fn without_effect(configuration: &Configuration) -> &str {
    fn line(note: &Note) -> Option<&str> {
        match note {
            Note::Info(text) => text.strip_prefix("accepted without effect: "),
            Note::Warning(_) => None,
        }
    }
    configuration.notes.iter().find_map(line).unwrap_or_default()
}

#[test]
fn everything_that_is_wrong_is_named_at_once() {
    for (flags, parts) in [
        (&["--nodeport-addresses=10.0.0.1"][..], &["--nodeport-addresses", "\"10.0.0.1\"", "10.0.0.0/8"][..]),
        (&["--nodeport-addresses=primary,10.0.0.0/8"], &["--nodeport-addresses", "mixes `primary`"]),
        (
            &["--nodeport-addresses=primary", "--nodeport-addresses=10.0.0.0/8"],
            &["--nodeport-addresses", "mixes `primary`"],
        ),
        (&["--cluster-cidr=10.0.0.0"], &["--cluster-cidr", "\"10.0.0.0\"", "10.0.0.0/8"]),
        (&["--cluster-cidr=10.0.0.0/8,11.0.0.0/8"], &["--cluster-cidr", "one of each family"]),
        (
            &["--detect-local-mode=ClusterCidr"],
            &["--detect-local-mode", "ClusterCidr", "InterfaceNamePrefix"],
        ),
        (&["--detect-local-mode=BridgeInterface"], &["BridgeInterface", "--pod-bridge-interface"]),
        (
            &["--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix="],
            &["InterfaceNamePrefix", "--pod-interface-name-prefix"],
        ),
        (&["--proxy-mode=userspace"], &["--proxy-mode: \"userspace\"", "nftables"]),
        (&["--iptables-masquerade-bit=32"], &["--iptables-masquerade-bit: 32: ", "31"]),
        (&["--oom-score-adj", "-1001"], &["--oom-score-adj: -1001: ", "-1000"]),
        (&["--config-sync-period=0"], &["--config-sync-period: 0s: ", "more than 0"]),
        (&["--iptables-sync-period=-1s"], &["--iptables-sync-period: -1s: ", "more than 0"]),
        (&["--iptables-min-sync-period=1m"], &["--iptables-min-sync-period: 1m0s: ", "30s"]),
        (&["--proxy-mode=nftables", "--iptables-sync-period=-1s"], &["--iptables-sync-period: -1s: "]),
        (&["--kube-api-burst=-1"], &["--kube-api-burst: -1: ", "negative"]),
        (&["--bind-address=[::]"], &["--bind-address: \"[::]\": ", "192.0.2.1"]),
        (&["--healthz-bind-address=localhost"], &["--healthz-bind-address: \"localhost\": ", "[::]:10256"]),
        (&["--metrics-bind-address=10.0.0.1:0"], &["--metrics-bind-address: \"10.0.0.1:0\": "]),
        (&["--conntrack-min=-1"], &["--conntrack-min: -1: "]),
        (&["--conntrack-udp-timeout=-1s"], &["--conntrack-udp-timeout: -1s: "]),
        (&["--feature-gates=NoSuchGate=true"], &["--feature-gates: true: NoSuchGate is not a feature gate"]),
        (&["--feature-gates=TopologyAwareHints=false"], &["TopologyAwareHints cannot be"]),
        (&["--logging-format=xml"], &["--logging-format: \"xml\": ", "json"]),
        (&["--log=a=b=c"], &["--log: \"a=b=c\": "]),
        (
            &["--show-hidden-metrics-for-version=latest"],
            &["--show-hidden-metrics-for-version: \"latest\": ", "1.35"],
        ),
        (&["--hostname-override= "], &["--hostname-override: \" \": "]),
        (&["--master=192.0.2.1:6443"], &["--master: \"192.0.2.1:6443\": ", "https://"]),
        (&["--api-servers=https://a,b"], &["--api-servers: \"b\": ", "https://"]),
        (&["--api-servers=https://a", "--master=https://b"], &["--master: not together with --api-servers"]),
        (&["--manifests=/a", "--kubeconfig=/b"], &["--kubeconfig: not together with --manifests"]),
        (
            &["--oom-score-adj=2000", "--proxy-mode=x", "--api-servers=b", "--conntrack-min=-1"],
            &["--oom-score-adj: 2000", "--proxy-mode: \"x\"", "--api-servers: \"b\"", "--conntrack-min: -1"],
        ),
    ] {
        let said = load(flags).unwrap_err();
        assert!(parts.iter().all(|part| said.contains(part)), "{flags:?}: {said}");
        assert!(said.starts_with("the configuration cannot be used:\n  --"), "{said}");
    }
}

#[test]
fn flags_that_cannot_be_read_are_named() {
    for (flags, parts) in [
        (&["--node-port-range=32767-30000"][..], &["--node-port-range", "32767-30000", "empty"][..]),
        (&["--node-port-range=http"], &["--node-port-range", "http", "30000-32767"]),
        (&["--socket-lb=pods"], &["--socket-lb", "pods", "host-only"]),
        (&["--serve-external-ips=maybe"], &["--serve-external-ips", "maybe", "true"]),
        (&["--masquerade-all=maybe"], &["--masquerade-all", "maybe", "true"]),
        (&["--local-client-devices=a*b"], &["--local-client-devices", "a*b", "at the end"]),
        (&["--uplink-devices=much-too-long-for-a-device"], &["--uplink-devices", "much-too-long", "15"]),
        (&["--iptables-sync-period=30"], &["--iptables-sync-period", "30", "1m30s"]),
        (&["--kube-api-qps=NaN"], &["--kube-api-qps", "NaN", "not a number"]),
        (&["--vmodule=watch"], &["--vmodule", "watch", "watch=6"]),
        (&["--feature-gates=A"], &["--feature-gates", "'A'", "=true"]),
        (&["--feature-gates=A=2"], &["--feature-gates", "'A=2'", "true"]),
        // FLAG-40, FLAG-41.
        (&["10.0.0.0/8"], &["unexpected argument", "10.0.0.0/8"]),
        (&["--masquerade-all", "false"], &["unexpected argument", "false"]),
        (&["--no-such-flag"], &["unexpected argument", "--no-such-flag"]),
        (&["--source-vip=10.0.0.1"], &["unexpected argument", "--source-vip"]),
    ] {
        let said = load(flags).unwrap_err();
        assert!(parts.iter().all(|part| said.contains(part)), "{flags:?}: {said}");
    }
}

/// LIFE-04 to LIFE-06, DLOC-05.
#[test]
fn families_are_complained_about_where_they_are_missing() {
    let single = Host { has_ipv6: false };
    let said = |flags: &[&str], host| {
        let loaded = load_on(flags, host)?;
        let texts = loaded.notes.into_iter().map(|note| match note {
            Note::Info(text) | Note::Warning(text) => text,
        });
        Ok::<_, String>(texts.collect::<Vec<_>>().join("\n"))
    };
    let v4 = ["--cluster-cidr=10.0.0.0/8", "--nodeport-addresses=10.0.0.0/8"];
    let text = said(&v4, DUAL).unwrap();
    assert!(
        text.contains("nodePortAddresses is of IPv6") && text.contains("clusterCIDR is of IPv6"),
        "{text}"
    );
    assert_eq!(said(&v4, single).unwrap(), "");
    let text = said(&[], DUAL).unwrap();
    assert!(text.contains("all addresses of the node") && text.contains("without clusterCIDR"), "{text}");
    let v6 =
        ["--cluster-cidr=fd00::/8", "--nodeport-addresses=fd00::/8,10.0.0.0/8", "--bind-address=fd00::1"];
    assert!(said(&v6, DUAL).unwrap().contains("clusterCIDR is of IPv4"));
    let error = said(&v6, single).unwrap_err();
    assert!(error.contains("--bind-address") && error.contains("--cluster-cidr"), "{error}");
    assert!(
        said(
            &["--bind-address=::", "--healthz-bind-address=0.0.0.0", "--metrics-bind-address=127.0.0.1"],
            single
        )
        .is_ok()
    );
    let text = said(&["--healthz-bind-address=[::]:1"], single).unwrap();
    assert!(text.contains("healthzBindAddress: [::]:1: this host has no IPv6"), "{text}");
}

#[test]
fn what_has_no_effect_is_told_in_one_line_with_the_reasons() {
    let flags = load(&[
        "--iptables-masquerade-bit=15",
        "--conntrack-max-per-core=1",
        "--conntrack-min=2",
        "--profiling",
        "--ipvs-strict-arp=false",
        "--kube-api-content-type=application/vnd.kubernetes.protobuf",
        "--boot-id-file=/etc/id",
        "--vmodule=proxier*=4",
        "--proxy-mode=nftables",
        "--iptables-min-sync-period=3s",
    ])
    .unwrap();
    assert_eq!(
        without_effect(&flags),
        "--profiling (Go's profiles are of Go programs); --kube-api-content-type (Sluice asks for JSON); \
         --iptables-masquerade-bit (Sluice marks no packets); --iptables-min-sync-period (changes are programmed as they \
         come); --boot-id-file (kube-proxy makes no use of it either); \
         proxier* of --vmodule (not the name of a module, such as watch); --conntrack-max-per-core, --conntrack-min \
         (the flow table has a fixed size, and conntrack's is left alone); --proxy-mode (there is one datapath, which \
         only follows what the mode says about NodePorts by default)"
    );
    let file =
        load_file(&with_head("mode: ipvs\nipvs: {scheduler: rr, strictARP: true, syncPeriod: 10s}\n"), &[])
            .unwrap();
    assert_eq!(
        without_effect(&file),
        "ipvs.scheduler (backends are chosen at random); ipvs.strictARP (no service's address is put on a device); mode \
         (there is one datapath, which only follows what the mode says about NodePorts by default)"
    );
    assert_eq!(without_effect(&load(&["--masquerade-all", "--cluster-cidr=10.0.0.0/8"]).unwrap()), "");
}

/// FLAG-01 to FLAG-37, FLAG-42.
#[test]
fn flags_of_every_kind_reach_their_fields() {
    let config = |flags: &[&str]| load(flags).unwrap().kube_proxy;
    assert!(config(&["--masquerade_all"]).iptables.masquerade_all);
    assert!(config(&["--proxy-mode=nftables", "--masquerade-all=T"]).nftables.masquerade_all);
    assert!(!config(&["--masquerade-all", "--masquerade-all=false"]).masquerade_all(), "the last one counts");
    let periods =
        config(&["--proxy-mode=nftables", "--iptables-sync-period=1m", "--iptables-min-sync-period=0s"]);
    let (period, min_period) = periods.sync_periods();
    assert_eq!((period.to_string().as_str(), min_period.to_string().as_str()), ("1m0s", "0s"));
    let periods =
        config(&["--proxy-mode=ipvs", "--iptables-sync-period=1m", "--ipvs-sync-period=2m"]).sync_periods();
    assert_eq!(periods.0.to_string(), "2m0s");
    assert_eq!(config(&["--oom-score-adj", "-500"]).oom_score_adj, Some(-500));
    let api = config(&["--kube-api-qps=-1", "--kube-api-burst=0"]).client_connection;
    assert_eq!((api.qps, api.burst), (-1.0, 0));
    assert_eq!(load(&["--kube-api-qps=-1"]).unwrap().api().limit, None);
    for flags in [&["-v", "5"][..], &["-v=5"], &["-v5"], &["--v=5"], &["--v", "5"]] {
        assert_eq!(config(flags).logging.verbosity, 5, "{flags:?}");
    }
    let addresses =
        config(&["--nodeport-addresses=10.0.0.0/8,fd00::/8", "--nodeport-addresses", "192.0.2.0/24"]);
    assert_eq!(addresses.node_port_addresses, ["10.0.0.0/8", "fd00::/8", "192.0.2.0/24"]);
    let gates = config(&[
        "--feature-gates=AllAlpha=true,AllBeta=0",
        "--feature_gates=WatchList=f",
        "--feature-gates=",
    ]);
    let gates: Vec<_> = gates.feature_gates.iter().map(|(name, on)| (name.as_str(), *on)).collect();
    assert_eq!(gates, [("AllAlpha", true), ("AllBeta", false), ("WatchList", false)]);
    assert_eq!(load(&["--cleanup"]).unwrap().task, Task::Cleanup);
    assert_eq!(load(&["--cleanup-kube-proxy"]).unwrap().task, Task::CleanupKubeProxy);
    let both = load(&["--cleanup-kube-proxy", "--cleanup"]);
    assert!(both.is_err_and(|error| error.contains("not together with --cleanup")));
    assert_eq!(load(&["--init-only=true"]).unwrap().task, Task::InitOnly);
    assert_eq!(load(&["--init-only=false", "--cleanup=false"]).unwrap().task, Task::Run);
    let writing = load(&["--write-config-to=/x", "--cleanup", "--healthz-port=0"]).unwrap();
    assert_eq!(writing.task, Task::WriteConfig("/x".into()));
    assert_eq!(writing.kube_proxy.healthz_bind_address, "0.0.0.0:10256");
}

/// What the table of fields says is what there is.
#[test]
fn every_field_and_flag_stands_in_the_table_once() {
    let mut config = KubeProxyConfiguration::defaults();
    // What is not printed otherwise.
    config.feature_gates.insert("AllAlpha".to_owned(), true);
    config.logging.vmodule.push(VModule::default());
    config.logging.options.text.split_stream = true;
    config.logging.options.json.split_stream = true;
    config.windows_run_as_service = true;
    let value = serde_json::to_value(&config).unwrap();
    let listed: BTreeSet<_> = FIELDS.iter().map(|field| field.path).collect();
    assert_eq!(listed.len(), FIELDS.len());
    let mut found = BTreeSet::new();
    leaves(&value, "", &listed, &mut found);
    assert_eq!(found, listed.iter().map(|path| (*path).to_owned()).collect());
    assert!(FIELDS.iter().all(|field| value.pointer(&pointer(field.path)).is_some()));
    let names: BTreeSet<_> = flags().collect();
    assert_eq!(names.len(), flags().count());
    Cli::command().debug_assert();
}

fn leaves(value: &Value, path: &str, listed: &BTreeSet<&str>, found: &mut BTreeSet<String>) {
    match value.as_object().filter(|_| !listed.contains(path)) {
        Some(fields) => {
            for (name, value) in fields {
                leaves(value, format!("{path}.{name}").trim_start_matches('.'), listed, found);
            }
        }
        None => {
            found.insert(path.to_owned());
        }
    }
}

fn flags() -> impl Iterator<Item = &'static str> {
    FIELDS.iter().filter_map(|field: &Field| field.flag.map(|flag| flag.name))
}

/// docs/configuration.md.
#[test]
fn every_field_and_flag_is_documented() {
    let text = include_str!("../../../docs/configuration.md");
    let rows: Vec<_> = text.lines().filter(|line| line.starts_with("| ")).collect();
    for field in FIELDS {
        let row = rows.iter().find(|row| row.starts_with(&format!("| `{}` |", field.path)));
        let row = row.unwrap_or_else(|| panic!("{} is not documented", field.path));
        if let Some(flag) = field.flag {
            let flag =
                if flag.name.len() == 1 { format!("-{}", flag.name) } else { format!("--{}", flag.name) };
            assert!(row.contains(&format!("`{flag}`")), "{flag} is not documented: {row}");
        }
        assert_eq!(row.contains("no effect"), field.inert.is_some(), "{row}");
    }
    let command = Cli::command();
    let run = command.find_subcommand("run").unwrap();
    for flag in run.get_arguments().filter_map(|argument| argument.get_long()).filter(|flag| flag.len() > 1) {
        assert!(text.contains(&format!("`--{flag}`")), "--{flag} is not documented");
    }
}
