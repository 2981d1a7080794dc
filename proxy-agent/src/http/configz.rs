//! The configuration that the agent runs with, as `/configz` tells it.

use std::net::SocketAddr;

use clap::ValueEnum as _;
use serde_json::{Value, json};

use crate::cli::RunArgs;

/// What the flags say, in the form of kube-proxy's `KubeProxyConfiguration`, as far as it has names for it. The addresses are
/// those that `args` mean.
#[must_use]
pub fn configuration(args: &RunArgs, healthz: SocketAddr, metrics: SocketAddr) -> Value {
    let RunArgs { kubeconfig, hostname_override, services, sockets, local, http, .. } = args;
    let mode = local.detect_local_mode.to_possible_value().map(|value| value.get_name().to_owned());
    let split = |texts: &[String]| -> Vec<String> {
        let entries = texts.iter().flat_map(|text| text.split(',')).map(str::trim);
        entries.filter(|entry| !entry.is_empty()).map(str::to_owned).collect()
    };
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "bindAddressHardFail": http.bind_address_hard_fail,
        "clientConnection": {
            "kubeconfig": kubeconfig.as_deref().map(|path| path.display().to_string()).unwrap_or_default(),
        },
        "clusterCIDR": split(&local.cluster_cidr).join(","),
        "detectLocal": {
            "bridgeInterface": local.pod_bridge_interface.as_deref().unwrap_or_default(),
            "interfaceNamePrefix": local.pod_interface_name_prefix.as_deref().unwrap_or_default(),
        },
        "detectLocalMode": mode,
        "healthzBindAddress": healthz,
        "hostnameOverride": hostname_override.as_deref().unwrap_or_default(),
        "iptables": {
            "localhostNodePorts": sockets.localhost_nodeports,
            "masqueradeAll": services.masquerade_all,
        },
        "metricsBindAddress": metrics,
        "nodePortAddresses": split(&services.nodeport_addresses),
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn flags_are_told_by_their_names_in_the_file() {
        let line = "sluice run --cluster-cidr=10.0.0.0/8,fd00::/8 --masquerade-all --nodeport-addresses 192.0.2.0/24 \
                    --nodeport-addresses 198.51.100.0/24 --bind-address-hard-fail --detect-local-mode=NodeCIDR";
        let Command::Run(args) = Cli::try_parse_from(line.split_whitespace()).unwrap().command else {
            panic!("not `run`");
        };
        let found = configuration(&args, "[::]:1".parse().unwrap(), "[::1]:10249".parse().unwrap());
        assert_eq!(found["apiVersion"], "kubeproxy.config.k8s.io/v1alpha1");
        assert_eq!(found["kind"], "KubeProxyConfiguration");
        assert_eq!(found["clusterCIDR"], "10.0.0.0/8,fd00::/8");
        assert_eq!(found["detectLocalMode"], "NodeCIDR");
        assert_eq!(found["iptables"], json!({ "localhostNodePorts": true, "masqueradeAll": true }));
        assert_eq!(found["nodePortAddresses"], json!(["192.0.2.0/24", "198.51.100.0/24"]));
        assert_eq!(found["healthzBindAddress"], "[::]:1");
        assert_eq!(found["metricsBindAddress"], "[::1]:10249");
        assert_eq!(found["bindAddressHardFail"], true);
    }
}
