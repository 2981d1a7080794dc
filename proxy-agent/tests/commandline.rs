//! The binary as it is called, as far as it needs neither a kernel nor a cluster.

#![expect(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::{Value, json};

fn sluice(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
    command.args(arguments).env_remove("SLUICE_LOG").env("NO_COLOR", "1").output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn written(arguments: &[&str], to: &Path) -> String {
    let to = format!("--write-config-to={}", to.display());
    let output = sluice(&[&["run", to.as_str()], arguments].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    fs::read_to_string(to.split_once('=').unwrap().1).unwrap()
}

/// LIFE-11: what is written is what kube-proxy would write, and reading it changes nothing.
#[test]
fn the_configuration_is_written_and_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("first.yaml"), dir.path().join("second.yaml"));
    let flags = ["--cluster-cidr=10.244.0.0/16", "--hostname_override=Node-1", "--masquerade-all", "-v=2"];
    let text = written(&flags, &first);
    let (kube_proxys, sluices) = text.split_once("---\n").unwrap();
    let value: Value = serde_saphyr::from_str(kube_proxys).unwrap();
    let expected = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "bindAddress": "0.0.0.0",
        "bindAddressHardFail": false,
        "clientConnection": {
            "acceptContentTypes": "",
            "burst": 10,
            "contentType": "application/vnd.kubernetes.protobuf",
            "kubeconfig": "",
            "qps": 5,
        },
        "clusterCIDR": "10.244.0.0/16",
        "configSyncPeriod": "15m0s",
        "conntrack": {
            "maxPerCore": 32768,
            "min": 131072,
            "tcpBeLiberal": false,
            "tcpCloseWaitTimeout": "1h0m0s",
            "tcpEstablishedTimeout": "24h0m0s",
            "udpStreamTimeout": "0s",
            "udpTimeout": "0s",
        },
        "detectLocal": { "bridgeInterface": "", "interfaceNamePrefix": "" },
        "detectLocalMode": "ClusterCIDR",
        "enableProfiling": false,
        "healthzBindAddress": "0.0.0.0:10256",
        "hostnameOverride": "node-1",
        "iptables": {
            "localhostNodePorts": true,
            "masqueradeAll": true,
            "masqueradeBit": 14,
            "minSyncPeriod": "1s",
            "syncPeriod": "30s",
        },
        "ipvs": {
            "excludeCIDRs": [],
            "minSyncPeriod": "0s",
            "scheduler": "",
            "strictARP": false,
            "syncPeriod": "0s",
            "tcpFinTimeout": "0s",
            "tcpTimeout": "0s",
            "udpTimeout": "0s",
        },
        "kind": "KubeProxyConfiguration",
        "logging": {
            "flushFrequency": "5s",
            "format": "text",
            "options": { "json": { "infoBufferSize": "0" }, "text": { "infoBufferSize": "0" } },
            "verbosity": 2,
        },
        "metricsBindAddress": "127.0.0.1:10249",
        "mode": "iptables",
        "nftables": { "masqueradeAll": false, "masqueradeBit": 14, "minSyncPeriod": "0s", "syncPeriod": "0s" },
        "nodePortAddresses": [],
        "oomScoreAdj": -999,
        "portRange": "",
        "showHiddenMetricsForVersion": "",
        "winkernel": {
            "enableDSR": false,
            "forwardHealthCheckVip": false,
            "networkName": "",
            "rootHnsEndpointName": "",
            "sourceVip": "",
        },
    });
    assert_eq!(value, expected);
    let own: Value = serde_saphyr::from_str(sluices).unwrap();
    assert_eq!(own, json!({ "apiVersion": "sluice/v1alpha1", "kind": "SluiceConfiguration" }));

    let file = first.display();
    assert_eq!(written(&[&format!("--config={file}"), &format!("--sluice-config={file}")], &second), text);
}

/// LIFE-03.
#[test]
fn bad_values_end_the_start_and_are_all_named() {
    let dir = tempfile::tempdir().unwrap();
    let output = sluice(&[
        "run",
        "--oom-score-adj=2000",
        "--proxy-mode=kernelspace",
        "--metrics-bind-address=everywhere",
        &format!("--write-config-to={}", dir.path().join("never").display()),
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        stderr(&output),
        "sluice: the configuration cannot be used:\n  \
         --proxy-mode: \"kernelspace\": must be iptables, ipvs or nftables, or be left out\n  \
         --metrics-bind-address: \"everywhere\": must be an IP address with a port, such as 0.0.0.0:10256 or [::]:10256\n  \
         --oom-score-adj: 2000: must be from -1000 to 1000\n"
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was done");
}

#[test]
fn a_file_that_is_wrong_ends_the_start_and_is_named_with_the_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.conf");
    let said = |text: &str| {
        fs::write(&path, text).unwrap();
        let output = sluice(&["run", &format!("--config={}", path.display())]);
        assert_eq!(output.status.code(), Some(1));
        stderr(&output).replace(&*path.to_string_lossy(), "FILE")
    };
    assert_eq!(
        said(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nconntrack:\n  min: many\n"
        ),
        "sluice: configuration file FILE, line 4, column 8: conntrack.min: invalid type: string \"many\", expected i32\n"
    );
    assert_eq!(
        said("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n"),
        "sluice: configuration file FILE, line 1, column 13: apiVersion is \"kubelet.config.k8s.io/v1beta1\", not \
         \"kubeproxy.config.k8s.io/v1alpha1\"\n"
    );
}

/// FLAG-36: as JSON, each line is an object; what has no effect is one line.
#[test]
fn what_has_no_effect_is_logged_once() {
    let dir = tempfile::tempdir().unwrap();
    let output = sluice(&[
        "run",
        "--logging-format=json",
        "--iptables-masquerade-bit=1",
        "--conntrack-min=1",
        "--ipvs-scheduler=rr",
        &format!("--write-config-to={}", dir.path().join("written").display()),
    ]);
    assert!(output.status.success(), "{}", stderr(&output));
    let lines: Vec<Value> = stderr(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let about: Vec<_> = lines
        .iter()
        .filter_map(|line| line["message"].as_str())
        .filter(|message| message.starts_with("accepted without effect: "))
        .collect();
    let [line] = about[..] else { panic!("{lines:#?}") };
    for flag in ["--iptables-masquerade-bit (", "--conntrack-min (", "--ipvs-scheduler ("] {
        assert!(line.contains(flag), "{line}");
    }
}

#[test]
fn nothing_to_clean_up_is_clean() {
    let dir = tempfile::tempdir().unwrap();
    let output = sluice(&["run", "--cleanup", &format!("--bpffs={}", dir.path().join("none").display())]);
    assert!(
        output.status.success() && stderr(&output).contains("nothing of Sluice is here"),
        "{}",
        stderr(&output)
    );
}

/// FLAG-37, FLAG-40.
#[test]
fn help_and_version_are_told_and_strangers_are_not() {
    for arguments in [&["--version"][..], &["run", "--version"]] {
        let output = sluice(arguments);
        assert!(output.status.success());
        assert_eq!(
            String::from_utf8(output.stdout).unwrap(),
            concat!("sluice ", env!("CARGO_PKG_VERSION"), "\n")
        );
    }
    let output = sluice(&["run", "--help"]);
    let help = String::from_utf8(output.stdout).unwrap();
    let headings = [
        "Configuration:",
        "Kubernetes:",
        "Node and clients:",
        "Services:",
        "Sockets:",
        "Health and metrics:",
        "Logging:",
        "Accepted for kube-proxy's sake:",
    ];
    for heading in headings {
        assert_eq!(help.lines().filter(|line| *line == heading).count(), 1, "{heading}\n{help}");
    }
    assert_eq!(sluice(&["run", "--no-such-flag"]).status.code(), Some(2));
}
