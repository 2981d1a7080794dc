//! From the command line to what the agent runs with: everything that two flags say together is checked here.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use proxy_common::{config::SocketFlags, pod::PodReasons};
use proxy_model::{Cidr, DetectLocal, Family, NodePortAddresses, ParseOptionError};

use crate::{
    cli::{DetectLocalMode, RunArgs, SocketArgs, SocketLb},
    devices::{ClassRules, DeviceRules, PodDevices},
    http::{HttpOptions, ParseAddressError, bind_address, configuration},
    run::{Options, SocketOptions},
};

/// Flags that cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum OptionError {
    /// A value means nothing.
    #[error("{flag}: {source}")]
    Value {
        /// The flag.
        flag: &'static str,
        /// What is wrong with its value.
        source: ParseOptionError,
    },
    /// A value is no address to listen at (LIFE-03).
    #[error("{flag}: {value:?} is {source}")]
    Address {
        /// The flag.
        flag: &'static str,
        /// What it says.
        value: String,
        /// What is wrong with it.
        source: ParseAddressError,
    },
    /// A flag needs another one (LIFE-03).
    #[error("--detect-local-mode={mode} needs {flag}: {what}")]
    Missing {
        /// The mode.
        mode: &'static str,
        /// The other flag.
        flag: &'static str,
        /// What that would say.
        what: &'static str,
    },
}

/// How long after an audit of the tables the next one begins.
const AUDIT_INTERVAL: Duration = Duration::from_secs(300);
/// kube-proxy's default for `syncPeriod`.
const SYNC_PERIOD: Duration = Duration::from_secs(30);
/// Where the health server listens, as far as nothing else is said.
const HEALTHZ: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 10_256);
/// Where the metrics server listens, as far as nothing else is said.
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10_249);

/// What the servers of the agent answer, and where.
pub fn http_options(args: &RunArgs) -> Result<HttpOptions, OptionError> {
    let address = |flag, text: &str, default| {
        bind_address(text, default).map_err(|source| OptionError::Address {
            flag,
            value: text.to_owned(),
            source,
        })
    };
    let healthz = address("--healthz-bind-address", &args.http.healthz_bind_address, HEALTHZ)?;
    let metrics = address("--metrics-bind-address", &args.http.metrics_bind_address, METRICS)?;
    Ok(HttpOptions {
        healthz: Some(healthz),
        metrics: Some(metrics),
        hard_fail: args.http.bind_address_hard_fail,
        sync_period: SYNC_PERIOD,
        configuration: configuration(args, healthz, metrics),
    })
}

/// What the agent of the node called `node_name` runs with.
pub fn options(args: RunArgs, node_name: String) -> Result<Options, OptionError> {
    let RunArgs { services, sockets, cgroup, local, devices, pins, .. } = args;
    let node_port_addresses =
        NodePortAddresses::parse(services.nodeport_addresses.iter().map(String::as_str))
            .map_err(|source| OptionError::Value { flag: "--nodeport-addresses", source })?;
    let name = |name: Option<String>| name.filter(|name| !name.is_empty());
    let (detect_local, pods) = match local.detect_local_mode {
        DetectLocalMode::ClusterCidr => {
            let networks = DetectLocal::cluster_cidr(&local.cluster_cidr.join(","));
            let networks =
                networks.map_err(|source| OptionError::Value { flag: "--cluster-cidr", source })?;
            (networks, PodDevices::Undetected)
        }
        DetectLocalMode::NodeCidr => (DetectLocal::NodeCidr, PodDevices::Undetected),
        DetectLocalMode::BridgeInterface => {
            let bridge = name(local.pod_bridge_interface).ok_or(OptionError::Missing {
                mode: "BridgeInterface",
                flag: "--pod-bridge-interface",
                what: "the name of the bridge that this node's pods are joined to",
            })?;
            (DetectLocal::ByDevice, PodDevices::Bridge(bridge))
        }
        DetectLocalMode::InterfaceNamePrefix => {
            let prefix = name(local.pod_interface_name_prefix).ok_or(OptionError::Missing {
                mode: "InterfaceNamePrefix",
                flag: "--pod-interface-name-prefix",
                what: "how the names of this node's pod devices begin",
            })?;
            (DetectLocal::ByDevice, PodDevices::Prefix(prefix))
        }
    };
    let classes = ClassRules { local_clients: devices.local_client_devices, uplinks: devices.uplink_devices };
    let served = if cgroup.is_some() { served_pods(sockets.socket_lb) } else { PodReasons::NONE };
    let flags = socket_flags(&sockets, &node_port_addresses);
    let sockets = SocketOptions { flags, pods: served, cgroup };
    Ok(Options {
        bpffs: pins.bpffs,
        model: proxy_model::Options {
            node_name,
            bind_address: None,
            node_port_addresses,
            detect_local,
            masquerade_all: services.masquerade_all,
            external_ips: services.serve_external_ips,
            follow_pods: served != PodReasons::NONE,
        },
        devices: DeviceRules { classes, pods },
        node_ports: services.node_port_range,
        sockets,
        audit_interval: AUDIT_INTERVAL,
    })
}

/// How the node's own processes are served at sockets.
fn socket_flags(args: &SocketArgs, node_port_addresses: &NodePortAddresses) -> SocketFlags {
    if args.socket_lb == SocketLb::Off {
        SocketFlags::default()
    } else if args.localhost_nodeports && includes_loopback(node_port_addresses) {
        SocketFlags::HOST.with(SocketFlags::LOCALHOST_NODE_PORTS)
    } else {
        SocketFlags::HOST
    }
}

/// Which pods are served at sockets.
const fn served_pods(mode: SocketLb) -> PodReasons {
    match mode {
        SocketLb::Off | SocketLb::HostOnly => PodReasons::NONE,
        SocketLb::Auto => PodReasons::KNOWN,
        SocketLb::On => PodReasons::ALL_BUT_OPTED_OUT,
    }
}

/// Whether NodePorts are accepted at IPv4 loopback addresses (NP-10).
fn includes_loopback(addresses: &NodePortAddresses) -> bool {
    match addresses {
        NodePortAddresses::All => true,
        NodePortAddresses::Primary => false,
        NodePortAddresses::Networks(networks) => {
            // One that is wider than 127.0.0.0/8 contains its first address; any other one has its own first in it.
            let has_loopback = |network: &Cidr| {
                network.contains(Ipv4Addr::new(127, 0, 0, 0).into()) || network.first().is_loopback()
            };
            let mut own = networks.iter().filter(|network| network.family() == Family::Ipv4).peekable();
            own.peek().is_none() || own.any(has_loopback)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parse(flags: &[&str]) -> Result<Options, String> {
        let line = ["sluice", "run"].into_iter().chain(flags.iter().copied());
        match Cli::try_parse_from(line).map_err(|error| error.to_string())?.command {
            Command::Run(args) => options(*args, "node".to_owned()).map_err(|error| error.to_string()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_defaults_are_kube_proxys() {
        let options = parse(&[]).unwrap();
        assert_eq!(
            options.model,
            proxy_model::Options {
                detect_local: DetectLocal::ClusterCidr(Vec::new()),
                ..proxy_model::Options::on_node("node")
            }
        );
        assert_eq!(options.devices, DeviceRules::default());
        assert_eq!(options.node_ports, crate::ports::PortRange::NODE_PORTS);
        // What charts write when nothing is set.
        let empty = ["--nodeport-addresses=", "--cluster-cidr=", "--detect-local-mode="];
        assert_eq!(parse(&empty).unwrap().model, options.model);
    }

    #[test]
    fn flags_are_understood() {
        let options = parse(&[
            "--nodeport-addresses=10.0.0.0/8,fd00::/8",
            "--nodeport-addresses",
            "192.0.2.0/24",
            "--cluster-cidr=10.244.0.0/16,fd00:10:244::/56",
            "--masquerade-all",
            "--serve-external-ips=false",
            "--node-port-range=30000+99",
            "--local-client-devices=tun0,vpn*",
            "--local-client-devices",
            "ext0",
            "--uplink-devices=eth*",
        ])
        .unwrap();
        let networks = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let model = &options.model;
        let expected = NodePortAddresses::Networks(networks(&["10.0.0.0/8", "fd00::/8", "192.0.2.0/24"]));
        assert_eq!(model.node_port_addresses, expected);
        let expected = DetectLocal::ClusterCidr(networks(&["10.244.0.0/16", "fd00:10:244::/56"]));
        assert_eq!(model.detect_local, expected);
        assert!(model.masquerade_all && !model.external_ips);
        assert_eq!(options.node_ports.ends(), (30_000, 30_099));
        let names = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        assert_eq!(options.devices.classes.local_clients, names(&["tun0", "vpn*", "ext0"]));
        assert_eq!(options.devices.classes.uplinks, names(&["eth*"]));
        assert!(parse(&["--masquerade-all=true"]).unwrap().model.masquerade_all);
        assert!(!parse(&["--masquerade-all=false"]).unwrap().model.masquerade_all);
    }

    /// DLOC-01 to DLOC-04.
    #[test]
    fn local_traffic_is_detected_by_address_or_by_device() {
        let detected = |flags: &[&str]| {
            let options = parse(flags).unwrap();
            (options.model.detect_local, options.devices.pods)
        };
        assert_eq!(
            detected(&["--detect-local-mode=NodeCIDR", "--cluster-cidr=nonsense"]),
            (DetectLocal::NodeCidr, PodDevices::Undetected)
        );
        assert_eq!(
            detected(&["--detect-local-mode=BridgeInterface", "--pod-bridge-interface=cni0"]),
            (DetectLocal::ByDevice, PodDevices::Bridge("cni0".to_owned()))
        );
        assert_eq!(
            detected(&["--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=cali"]),
            (DetectLocal::ByDevice, PodDevices::Prefix("cali".to_owned()))
        );
    }

    /// NP-10 and who is served at sockets.
    #[test]
    fn sockets_of_the_host_are_served_and_reach_node_ports_at_loopback_if_that_is_not_left_out() {
        const HOST: SocketFlags = SocketFlags::HOST;
        const LOOPBACK: SocketFlags = SocketFlags::LOCALHOST_NODE_PORTS;
        for (flags, expected) in [
            (&[][..], HOST.with(LOOPBACK)),
            (&["--socket-lb=auto"], HOST.with(LOOPBACK)),
            (&["--socket-lb=host-only"], HOST.with(LOOPBACK)),
            (&["--socket-lb=on"], HOST.with(LOOPBACK)),
            (&["--socket-lb=off"], SocketFlags::default()),
            (&["--localhost-nodeports=false"], HOST),
            (&["--localhost-nodeports"], HOST.with(LOOPBACK)),
            (&["--nodeport-addresses=primary"], HOST),
            (&["--nodeport-addresses=10.0.0.0/8"], HOST),
            (&["--nodeport-addresses=fd00::/8"], HOST.with(LOOPBACK)),
            (&["--nodeport-addresses=10.0.0.0/8,0.0.0.0/0"], HOST.with(LOOPBACK)),
            (&["--nodeport-addresses=127.0.0.0/8"], HOST.with(LOOPBACK)),
            (&["--nodeport-addresses=127.0.0.1/32"], HOST.with(LOOPBACK)),
            (&["--nodeport-addresses=126.0.0.0/7"], HOST.with(LOOPBACK)),
            (&["--nodeport-addresses=128.0.0.0/8"], HOST),
        ] {
            assert_eq!(parse(flags).unwrap().sockets.flags, expected, "{flags:?}");
        }
        assert_eq!(parse(&["--cgroup=/a"]).unwrap().sockets.cgroup.unwrap().to_str(), Some("/a"));
    }

    fn parse_http(flags: &[&str]) -> Result<HttpOptions, String> {
        let line = ["sluice", "run"].into_iter().chain(flags.iter().copied());
        match Cli::try_parse_from(line).map_err(|error| error.to_string())?.command {
            Command::Run(args) => http_options(&args).map_err(|error| error.to_string()),
            other => panic!("{other:?}"),
        }
    }

    /// FLAG-12 to FLAG-14.
    #[test]
    fn servers_listen_where_kube_proxys_do_unless_told_otherwise() {
        let options = parse_http(&[]).unwrap();
        assert_eq!(options.healthz, "0.0.0.0:10256".parse().ok());
        assert_eq!(options.metrics, "127.0.0.1:10249".parse().ok());
        assert_eq!((options.hard_fail, options.sync_period), (false, Duration::from_secs(30)));
        assert_eq!(options.configuration["healthzBindAddress"], "0.0.0.0:10256");
        let options = parse_http(&[
            "--healthz-bind-address=::",
            "--metrics-bind-address=[::1]:1",
            "--bind-address-hard-fail",
        ]);
        let options = options.unwrap();
        assert_eq!((options.healthz, options.metrics), ("[::]:10256".parse().ok(), "[::1]:1".parse().ok()));
        assert!(options.hard_fail);
        assert_eq!(options.configuration["metricsBindAddress"], "[::1]:1");
        let error = parse_http(&["--metrics-bind-address=localhost:80"]).unwrap_err();
        for part in ["--metrics-bind-address", "\"localhost:80\"", "0.0.0.0:10256"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn pods_are_served_as_the_mode_says_if_there_is_a_cgroup() {
        for (flags, expected) in [
            (&["--cgroup=/a"][..], PodReasons::KNOWN),
            (&["--cgroup=/a", "--socket-lb=auto"], PodReasons::KNOWN),
            (&["--cgroup=/a", "--socket-lb=on"], PodReasons::ALL_BUT_OPTED_OUT),
            (&["--cgroup=/a", "--socket-lb=host-only"], PodReasons::NONE),
            (&["--cgroup=/a", "--socket-lb=off"], PodReasons::NONE),
            (&["--socket-lb=auto"], PodReasons::NONE),
        ] {
            let options = parse(flags).unwrap();
            assert_eq!(options.sockets.pods, expected, "{flags:?}");
            assert_eq!(options.model.follow_pods, expected != PodReasons::NONE, "{flags:?}");
        }
    }

    /// LIFE-03: the flag, the value, and what would be right.
    #[test]
    fn what_is_wrong_is_named() {
        for (flags, parts) in [
            (
                &["--nodeport-addresses=10.0.0.1"][..],
                &["--nodeport-addresses", "\"10.0.0.1\"", "10.0.0.0/8"][..],
            ),
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
            (&["--node-port-range=32767-30000"], &["--node-port-range", "32767-30000", "empty"]),
            (&["--node-port-range=http"], &["--node-port-range", "http", "30000-32767"]),
            (&["--socket-lb=pods"], &["--socket-lb", "pods", "host-only"]),
            (&["--serve-external-ips=maybe"], &["--serve-external-ips", "maybe", "true"]),
            (&["--local-client-devices=a*b"], &["--local-client-devices", "a*b", "at the end"]),
            (&["--uplink-devices=much-too-long-for-a-device"], &["--uplink-devices", "much-too-long", "15"]),
            (&["10.0.0.0/8"], &["unexpected argument", "10.0.0.0/8"]),
        ] {
            let said = parse(flags).unwrap_err();
            assert!(parts.iter().all(|part| said.contains(part)), "{flags:?}: {said}");
        }
    }
}
