//! Values that kube-proxy would not start with either, all of them at once (LIFE-03).
//!
//! What means nothing here is checked all the same: a value that kube-proxy refuses was never in force.

use std::{net::IpAddr, str::FromStr as _};

use proxy_model::{Cidr, DetectLocal, Family, parse_ip};

use super::{
    address, duration::GoDuration, gates, host::Host, kube_proxy::KubeProxyConfiguration, problem::Fault,
};
use crate::document::Step;

/// What is wrong with a complete configuration, on a host with these facts.
pub(super) fn faults(config: &KubeProxyConfiguration, host: Host) -> Vec<Fault> {
    let mut faults = Faults(Vec::new());
    faults.gates(config);
    faults.mode(config);
    faults.periods(config);
    faults.connection(config);
    faults.addresses(config);
    faults.detection(config);
    faults.conntrack(config);
    faults.logging(config);
    faults.families(config, host);
    let adjustment = config.oom_score_adj.unwrap_or_default();
    faults.unless(
        (-1000..=1000).contains(&adjustment),
        "oomScoreAdj",
        adjustment,
        "must be from -1000 to 1000",
    );
    let name = &config.hostname_override;
    let is_name = name.is_empty() || !name.trim().is_empty();
    faults.unless(is_name, "hostnameOverride", quoted(name), "must be the name of a node");
    let version = &config.show_hidden_metrics_for_version;
    let is_version = |text: &str| {
        let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        text.split_once('.').is_some_and(|(major, minor)| number(major) && number(minor))
    };
    faults.unless(
        version.is_empty() || is_version(version),
        "showHiddenMetricsForVersion",
        quoted(version),
        "must be a minor version, such as 1.35",
    );
    faults.0
}

fn quoted(text: &str) -> String {
    format!("{text:?}")
}

struct Faults(Vec<Fault>);

impl Faults {
    fn add(&mut self, path: Vec<Step>, value: impl ToString, reason: impl Into<String>) {
        self.0.push(Fault { path, value: value.to_string(), reason: reason.into() });
    }

    fn unless(&mut self, is_right: bool, path: &str, value: impl ToString, reason: &str) {
        if !is_right {
            self.add(path.split('.').map(Step::field).collect(), value, reason);
        }
    }

    fn gates(&mut self, config: &KubeProxyConfiguration) {
        for (name, enabled) in &config.feature_gates {
            if let Some(reason) = gates::problem(name, *enabled) {
                self.add(
                    vec![Step::field("featureGates"), Step::field(name)],
                    enabled,
                    format!("{name} {reason}"),
                );
            }
        }
    }

    fn mode(&mut self, config: &KubeProxyConfiguration) {
        let known = config.mode().is_some();
        self.unless(
            known,
            "mode",
            quoted(&config.mode),
            "must be iptables, ipvs or nftables, or be left out",
        );
        for (path, bit) in [
            ("iptables.masqueradeBit", config.iptables.masquerade_bit),
            ("nftables.masqueradeBit", config.nftables.masquerade_bit),
        ] {
            let bit = bit.unwrap_or_default();
            self.unless((0..=31).contains(&bit), path, bit, "must be from 0 to 31");
        }
    }

    fn periods(&mut self, config: &KubeProxyConfiguration) {
        const POSITIVE: &str = "must be more than 0";
        self.unless(
            config.config_sync_period > GoDuration::ZERO,
            "configSyncPeriod",
            config.config_sync_period,
            POSITIVE,
        );
        let block = match config.mode.as_str() {
            block @ ("ipvs" | "nftables") => block,
            _ => "iptables",
        };
        let (period, min_period) = config.sync_periods();
        self.unless(period > GoDuration::ZERO, &format!("{block}.syncPeriod"), period, POSITIVE);
        let path = format!("{block}.minSyncPeriod");
        self.unless(min_period >= GoDuration::ZERO, &path, min_period, "must not be negative");
        self.unless(
            min_period <= period,
            &path,
            min_period,
            &format!("must not be more than syncPeriod, {period}"),
        );
    }

    fn connection(&mut self, config: &KubeProxyConfiguration) {
        let burst = config.client_connection.burst;
        self.unless(burst >= 0, "clientConnection.burst", burst, "must not be negative");
    }

    fn addresses(&mut self, config: &KubeProxyConfiguration) {
        let bound = &config.bind_address;
        let is_address = parse_ip(bound).is_some();
        self.unless(
            is_address,
            "bindAddress",
            quoted(bound),
            "must be an IP address, such as 0.0.0.0 or 192.0.2.1",
        );
        for (path, text) in [
            ("healthzBindAddress", &config.healthz_bind_address),
            ("metricsBindAddress", &config.metrics_bind_address),
        ] {
            self.unless(
                // Flags can leave it empty, which switches the server off.
                text.is_empty() || address::parse(text).is_some(),
                path,
                quoted(text),
                "must be an IP address with a port, such as 0.0.0.0:10256 or [::]:10256",
            );
        }
        let entries = &config.node_port_addresses;
        for (at, entry) in entries.iter().enumerate() {
            if entry != "primary" && Cidr::from_str(entry.trim()).is_err() {
                self.add(
                    vec![Step::field("nodePortAddresses"), Step::Item(at)],
                    quoted(entry),
                    "must be a network, such as 10.0.0.0/8 or fd00::/8, or the list just `primary`",
                );
            }
        }
        let is_alone = entries.len() == 1 || !entries.iter().any(|entry| entry == "primary");
        self.unless(
            is_alone,
            "nodePortAddresses",
            quoted(&entries.join(",")),
            "mixes `primary` with networks: give one or the other",
        );
    }

    fn detection(&mut self, config: &KubeProxyConfiguration) {
        let local = &config.detect_local;
        let needs = |name: &str| {
            format!("must be set: with detectLocalMode {}, it is {name}", config.detect_local_mode)
        };
        match config.detect_local_mode.as_str() {
            "ClusterCIDR" => {
                let wrong = DetectLocal::cluster_cidr(&config.cluster_cidr).err();
                if let Some(error) = wrong {
                    // It quotes what it is about.
                    self.add(vec![Step::field("clusterCIDR")], "", error.to_string());
                }
            }
            "NodeCIDR" => {}
            "BridgeInterface" => {
                let reason = needs("the bridge that this node's pods are joined to");
                self.unless(!local.bridge_interface.is_empty(), "detectLocal.bridgeInterface", "", &reason);
            }
            "InterfaceNamePrefix" => {
                let reason = needs("how the names of this node's pod devices begin");
                self.unless(
                    !local.interface_name_prefix.is_empty(),
                    "detectLocal.interfaceNamePrefix",
                    "",
                    &reason,
                );
            }
            other => self.unless(
                false,
                "detectLocalMode",
                quoted(other),
                "must be ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix",
            ),
        }
    }

    fn conntrack(&mut self, config: &KubeProxyConfiguration) {
        const NEGATIVE: &str = "must not be negative";
        let conntrack = &config.conntrack;
        for (path, count) in
            [("conntrack.maxPerCore", conntrack.max_per_core), ("conntrack.min", conntrack.min)]
        {
            let count = count.unwrap_or_default();
            self.unless(count >= 0, path, count, NEGATIVE);
        }
        for (path, timeout) in [
            ("conntrack.tcpEstablishedTimeout", conntrack.tcp_established_timeout.unwrap_or_default()),
            ("conntrack.tcpCloseWaitTimeout", conntrack.tcp_close_wait_timeout.unwrap_or_default()),
            ("conntrack.udpTimeout", conntrack.udp_timeout),
            ("conntrack.udpStreamTimeout", conntrack.udp_stream_timeout),
        ] {
            self.unless(timeout >= GoDuration::ZERO, path, timeout, NEGATIVE);
        }
    }

    fn logging(&mut self, config: &KubeProxyConfiguration) {
        let format = &config.logging.format;
        self.unless(
            matches!(format.as_str(), "text" | "json"),
            "logging.format",
            quoted(format),
            "must be text or json",
        );
    }
    /// LIFE-05.
    fn families(&mut self, config: &KubeProxyConfiguration, host: Host) {
        const NO_IPV6: &str = "this host has no IPv6 (net.ipv6.conf.all.disable_ipv6, or none in its kernel)";
        if host.has_ipv6 {
            return;
        }
        // The unspecified address is no wish (NODE-04).
        let is_wanted = |ip: IpAddr| ip.is_ipv6() && !ip.is_unspecified();
        let wanted = parse_ip(&config.bind_address).is_some_and(is_wanted);
        self.unless(!wanted, "bindAddress", quoted(&config.bind_address), NO_IPV6);
        if config.detect_local_mode == "ClusterCIDR"
            && let Ok(DetectLocal::ClusterCidr(networks)) = DetectLocal::cluster_cidr(&config.cluster_cidr)
            && !networks.is_empty()
        {
            let useful = networks.iter().any(|network| network.family() == Family::Ipv4);
            self.unless(useful, "clusterCIDR", quoted(&config.cluster_cidr), NO_IPV6);
        }
    }
}
