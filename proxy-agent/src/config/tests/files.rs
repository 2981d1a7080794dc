//! Files, and what flags say beside them.

use std::{fs, path::Path};

use serde_json::json;

use super::{
    super::{
        Task,
        kube_proxy::{KubeProxyConfiguration, VModule},
    },
    load, load_file, warnings, with_head, without_effect,
};

/// What kubeadm writes into the ConfigMap `kube-proxy` (DEP-05, DEP-06).
const KUBEADM: &str = include_str!("kubeadm.yaml");

#[test]
fn kubeadms_file_is_kube_proxys_defaults_and_what_kubeadm_knows() {
    let loaded = load_file(KUBEADM, &["--hostname-override=Node-1"]).unwrap();
    let mut expected = KubeProxyConfiguration::defaults();
    expected.client_connection.kubeconfig = "/var/lib/kube-proxy/kubeconfig.conf".to_owned();
    expected.cluster_cidr = "10.244.0.0/16".to_owned();
    expected.hostname_override = "node-1".to_owned();
    assert_eq!(loaded.kube_proxy, expected);
    assert_eq!(loaded.task, Task::Run);
    assert_eq!(warnings(&loaded), [""; 0]);
    assert_eq!(without_effect(&loaded), "");
    let api = loaded.api();
    assert_eq!(api.kubeconfig.as_deref(), Some(Path::new("/var/lib/kube-proxy/kubeconfig.conf")));
    let limit = api.limit.unwrap();
    assert_eq!((limit.per_second, limit.burst), (5.0, 10));
}

#[test]
fn the_same_is_said_by_flags() {
    let by_flags = load(&[
        "--kubeconfig=/var/lib/kube-proxy/kubeconfig.conf",
        "--cluster_cidr=10.244.0.0/16",
        "--hostname-override",
        "Node-1",
    ])
    .unwrap();
    let by_file = load_file(KUBEADM, &["--hostname-override=Node-1"]).unwrap();
    assert_eq!(by_flags.kube_proxy, by_file.kube_proxy);
}

#[test]
fn only_the_first_document_counts() {
    let text = format!("# kube-proxy's\n---\n{}---\nwhatever: [\n", with_head("clusterCIDR: 10.0.0.0/8\n"));
    let loaded = load_file(&text, &[]).unwrap();
    assert_eq!(loaded.kube_proxy.cluster_cidr, "10.0.0.0/8");
    assert_eq!(
        warnings(&loaded),
        ["FILE: only the first document is read, as by kube-proxy; 1 more are there"]
    );
}

#[test]
fn json_is_read_as_well() {
    let yaml =
        load_file(&with_head("clusterCIDR: 10.0.0.0/8\niptables: {masqueradeAll: true}\n"), &[]).unwrap();
    let json = "{\n\t\"kind\": \"KubeProxyConfiguration\",\n\t\"apiVersion\": \"kubeproxy.config.k8s.io/v1alpha1\",\n\
                \t\"clusterCIDR\": \"10.0.0.0/8\",\n\t\"iptables\": {\n\t\t\"masqueradeAll\": true\n\t}\n}\n";
    assert_eq!(load_file(json, &[]).unwrap().kube_proxy, yaml.kube_proxy);
}

/// CFG-02.
#[test]
fn fields_that_nobody_knows_and_those_that_are_there_twice_are_told_in_one_line() {
    let loaded = load_file(
        &with_head(
            "conntrack:\n  min: 7\n  maxPerCpu: 9\nmode: ipvs\nmode: nftables\nudpIdleTimeout: 250ms\n",
        ),
        &[],
    )
    .unwrap();
    assert_eq!((loaded.kube_proxy.mode.as_str(), loaded.kube_proxy.conntrack.min), ("nftables", Some(7)));
    let [warning] = &warnings(&loaded)[..] else { panic!("{:?}", loaded.notes) };
    assert!(
        warning.starts_with("FILE: read in spite of line 7, column 1: the field mode is there twice; "),
        "{warning}"
    );
    for part in ["line 5, column 14: unknown field conntrack.maxPerCpu", "unknown field udpIdleTimeout"] {
        assert!(warning.contains(part), "{warning}");
    }
}

#[test]
fn files_that_mean_something_else_are_refused_with_the_place() {
    for (text, parts) in [
        (
            String::new(),
            &["FILE: there is no KubeProxyConfiguration of kubeproxy.config.k8s.io/v1alpha1"][..],
        ),
        ("kind: KubeProxyConfiguration\n".to_owned(), &["FILE, line 1, column 1: apiVersion is missing"]),
        (
            with_head("").replace("v1alpha1", "v1"),
            &["FILE, line 1, column 13: apiVersion is \"kubeproxy.config.k8s.io/v1\"", "v1alpha1"],
        ),
        (
            with_head("").replace("kind: KubeProxyC", "kind: KubeletC"),
            &["FILE, line 2, column 7: kind is \"KubeletConfiguration\"", "KubeProxyConfiguration"],
        ),
        (with_head("mode: [\n"), &["FILE, line "]),
        (with_head("conntrack:\n  min: many\n"), &["FILE, line 4, column 8: conntrack.min: ", "\"many\""]),
        (
            with_head("iptables:\n  syncPeriod: 30\n"),
            &["FILE, line 4, column 15: iptables.syncPeriod: ", "`30`", "such as 30s"],
        ),
        (
            with_head("iptables: {syncPeriod: 1d}\n"),
            &["FILE, line 3", "iptables.syncPeriod", "\"1d\"", "1m30s"],
        ),
        (
            with_head("nodePortAddresses: primary\n"),
            &["FILE, line 3, column 20: nodePortAddresses: ", "primary"],
        ),
        ("words".to_owned(), &["FILE, line 1, column 1: apiVersion is missing"]),
    ] {
        let error = load_file(&text, &[]).unwrap_err();
        assert!(parts.iter().all(|part| error.contains(part)), "{text:?}: {error}");
    }
    let error = load(&["--config=/nonexistent/file"]).unwrap_err();
    assert!(error.contains("/nonexistent/file") && error.contains("No such file"), "{error}");
}

/// LIFE-01.
#[test]
fn beside_a_file_only_some_flags_have_effect() {
    let file = with_head(
        "mode: nftables\nlogging: {verbosity: 1, format: json, vmodule: [{filePattern: run, verbosity: 1}]}\n\
                          hostnameOverride: theirs\n",
    );
    let loaded = load_file(
        &file,
        &[
            "--hostname-override=ours",
            "-v=4",
            "--vmodule=watch=6,run=5",
            "--proxy-mode=ipvs",
            "--cluster-cidr=10.0.0.0/8",
            "--healthz-port=1",
            "--master=https://192.0.2.1:6443",
        ],
    )
    .unwrap();
    let config = &loaded.kube_proxy;
    assert_eq!((config.mode.as_str(), config.cluster_cidr.as_str()), ("nftables", ""));
    assert_eq!(config.hostname_override, "ours");
    assert_eq!((config.logging.verbosity, config.logging.format.as_str()), (4, "json"));
    let module = |name: &str, verbosity| VModule { file_pattern: name.to_owned(), verbosity };
    assert_eq!(config.logging.vmodule, [module("watch", 6), module("run", 5), module("run", 1)]);
    assert_eq!(loaded.api_servers, ["https://192.0.2.1:6443"]);
    assert_eq!(config.healthz_bind_address, "0.0.0.0:10256");
    assert_eq!(
        warnings(&loaded),
        ["without effect beside --config, as in kube-proxy: --proxy-mode, --cluster-cidr, --healthz-port"]
    );
}

#[test]
fn what_is_wrong_in_a_file_is_named_with_its_place() {
    let said = load_file(
        &with_head(
            "bindAddress: \"[::]\"\nnodePortAddresses:\n- 10.0.0.0/8\n- 10.0.0.1\nfeatureGates:\n  Nonsense: true\n\
             conntrack:\n  min: -1\nlogging:\n  format: xml\n",
        ),
        &["--logging-format=yaml"],
    )
    .unwrap_err();
    for part in [
        "\n  FILE, line 3, column 14, bindAddress: \"[::]\": ",
        "\n  FILE, line 6, column 3, nodePortAddresses[1]: \"10.0.0.1\": ",
        "\n  FILE, line 8, column 13, featureGates.Nonsense: true: ",
        "\n  FILE, line 10, column 8, conntrack.min: -1: ",
        "\n  --logging-format: \"yaml\": ",
    ] {
        assert!(said.contains(part), "{said}");
    }
}

/// CFG: what nobody sets has kube-proxy's defaults, and so has what Go takes for not set.
#[test]
fn zeros_in_a_file_are_defaults() {
    let zeros = with_head(
        "bindAddress: \"\"\nhealthzBindAddress: \"\"\nmode: \"\"\niptables: {syncPeriod: 0s, minSyncPeriod: 0s, masqueradeBit: null}\n\
         nftables: null\nclientConnection: {qps: 0, burst: 0}\nconfigSyncPeriod: 0s\noomScoreAdj: null\n\
         logging: {flushFrequency: 0, options: {json: {infoBufferSize: \"0\"}}}\nnodePortAddresses: null\n",
    );
    assert_eq!(load_file(&zeros, &[]).unwrap().kube_proxy, KubeProxyConfiguration::defaults());
    let kept =
        load_file(&with_head("oomScoreAdj: 0\nconntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s}\n"), &[]);
    let kept = kept.unwrap().kube_proxy;
    assert_eq!((kept.oom_score_adj, kept.conntrack.max_per_core), (Some(0), Some(0)));
    assert_eq!(kept.conntrack.tcp_established_timeout.unwrap().to_string(), "0s");
    let v6 =
        load_file(&with_head("bindAddress: \"::\"\nmetricsBindAddress: 10.0.0.1\n"), &[]).unwrap().kube_proxy;
    assert_eq!(
        (v6.healthz_bind_address.as_str(), v6.metrics_bind_address.as_str()),
        ("[::]:10256", "10.0.0.1:10249")
    );
}

/// LIFE-11, CFG-04.
#[test]
fn the_configuration_is_written_complete_and_read_again() {
    let loaded = load(&[
        "--proxy-mode=nftables",
        "--cluster-cidr=10.0.0.0/8",
        "--node-port-range=30000-30010",
        "--v=2",
    ]);
    let loaded = loaded.unwrap();
    let value = loaded.kube_proxy.to_value().unwrap();
    assert_eq!(value["apiVersion"], "kubeproxy.config.k8s.io/v1alpha1");
    assert_eq!(value["kind"], "KubeProxyConfiguration");
    let expected =
        json!({"masqueradeAll": false, "masqueradeBit": 14, "syncPeriod": "30s", "minSyncPeriod": "1s"});
    assert_eq!(value["nftables"], expected);
    assert_eq!(
        (&value["iptables"]["syncPeriod"], &value["ipvs"]["syncPeriod"]),
        (&json!("0s"), &json!("0s"))
    );
    assert_eq!(value["clientConnection"]["qps"], json!(5));
    assert_eq!(value["conntrack"]["tcpEstablishedTimeout"], "24h0m0s");
    assert_eq!(value["nodePortAddresses"], json!(["primary"]));

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("written.yaml");
    fs::write(&path, loaded.to_yaml().unwrap()).unwrap();
    let path = path.display();
    let again = load(&[&format!("--config={path}"), &format!("--sluice-config={path}")]).unwrap();
    assert_eq!(again.kube_proxy, loaded.kube_proxy);
    assert_eq!(again.sluice, loaded.sluice);
    assert_eq!(warnings(&again), [""; 0]);
}

#[test]
fn sluices_own_file_is_overruled_by_its_flags_and_allows_nothing_unknown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sluice.yaml");
    let read = |text: &str, flags: &[&str]| {
        fs::write(&path, text).unwrap();
        let file = format!("--sluice-config={}", path.display());
        load(&[&[file.as_str()], flags].concat())
            .map_err(|error| error.replace(&*path.to_string_lossy(), "FILE"))
    };
    let head = "apiVersion: sluice/v1alpha1\nkind: SluiceConfiguration\n";
    let all = format!(
        "{head}apiServers: [https://192.0.2.1:6443, https://192.0.2.2:6443]\nbpffs: /a\ncgroup: /b\nlocalClientDevices: [tun*]\n\
         uplinkDevices: [eth0]\nlocalhostNodePorts: false\nlog: warn\nnodePortRange: 1-2\nserveExternalIPs: false\nsocketLB: host-only\n\
         xdp: native,eth1=generic\nauditInterval: 60s\nbackendSelection: maglev\nnewFlowLimit: 5000\n\
         externalForwarding: dsr\ndsrPort: 7000\nlocalDelivery: direct\n"
    );
    let loaded = read(&all, &["--bpffs=/c", "--socket-lb=off", "--cluster-cidr=10.0.0.0/8"]).unwrap();
    let own = serde_json::to_value(&loaded.sluice).unwrap();
    let expected = json!({
        "apiServers": ["https://192.0.2.1:6443", "https://192.0.2.2:6443"],
        "bpffs": "/c", "cgroup": "/b", "localClientDevices": ["tun*"], "uplinkDevices": ["eth0"], "log": "warn",
        "localhostNodePorts": false, "nodePortRange": "1-2", "serveExternalIPs": false, "socketLB": "off", "xdp": "native,eth1=generic",
        "auditInterval": "1m0s", "backendSelection": "maglev", "newFlowLimit": 5000,
        "externalForwarding": "dsr", "dsrPort": 7000, "localDelivery": "direct",
    });
    assert_eq!(own, expected);
    assert_eq!((loaded.log.as_str(), loaded.api_servers.len()), ("warn", 2));
    assert_eq!(loaded.kube_proxy.cluster_cidr, "10.0.0.0/8", "kube-proxy's flags have effect beside it");
    for (text, parts) in [
        (format!("{head}bpfs: /a\n"), &["FILE: line 3, column 7: unknown field bpfs"][..]),
        (format!("{head}nodePortRange: 9-1\n"), &["FILE, line 3, column 16: nodePortRange: ", "empty"]),
        (format!("{head}socketLB: pods\n"), &["FILE, line 3, column 11: socketLB: ", "pods", "host-only"]),
        (format!("{head}xdp: fast\n"), &["FILE, line 3, column 6: xdp: ", "fast", "native"]),
        (
            format!("{head}backendSelection: ring\n"),
            &["FILE, line 3, column 19: backendSelection: ", "ring", "maglev"],
        ),
        (
            format!("{head}externalForwarding: direct\n"),
            &["FILE, line 3, column 21: externalForwarding: ", "direct", "dsr"],
        ),
        (
            format!("{head}localDelivery: fast\n"),
            &["FILE, line 3, column 16: localDelivery: ", "fast", "direct"],
        ),
        (with_head(""), &["FILE: there is no SluiceConfiguration of sluice/v1alpha1"]),
    ] {
        let error = read(&text, &[]).unwrap_err();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
}
