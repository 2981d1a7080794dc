//! From a checked configuration to what the agent runs with.

use std::{net::Ipv4Addr, num::NonZeroU16, time::Duration};

use proxy_common::{config::SocketFlags, dsr, limit::NEW_FLOWS, pod::PodReasons};
use proxy_model::{Cidr, DetectLocal, Family, NodePortAddresses, parse_ip};

use super::{ConfigError, Configuration, GoDuration, Mode, SocketLb, address, gates, problem::Problem};
use crate::{
    devices::{ClassRules, DeviceRules, PodDevices},
    http::HttpOptions,
    ports::PortRange,
    run::{ConntrackTimeouts, Options, SocketOptions},
};

/// How long after an audit of the tables the next one begins.
const AUDIT_INTERVAL: GoDuration = GoDuration::from_secs(300);

/// The port by which nodes send each other packets for their backends.
const DSR_PORT: NonZeroU16 = NonZeroU16::new(dsr::PORT).expect("not zero");

/// The node's name: what flags say, else the configuration, else the host's name; trimmed and in lower case (NODE-01).
#[must_use]
pub fn node_name(hostname_override: &str, hostname: &str) -> Option<String> {
    let name = if hostname_override.is_empty() { hostname } else { hostname_override };
    let name = name.trim().to_lowercase();
    (!name.is_empty()).then_some(name)
}

impl Configuration {
    /// What the agent of the node called `node_name` runs with. The cgroup is still to be found, if none is named.
    ///
    /// # Errors
    ///
    /// None in a configuration that was loaded.
    pub fn options(&self, node_name: String) -> Result<Options, ConfigError> {
        let (config, own) = (&self.kube_proxy, &self.sluice);
        let unusable = |flag: &'static str| {
            move |error: proxy_model::ParseOptionError| {
                ConfigError::Invalid(vec![Problem::with_flag(flag, "", error.to_string())])
            }
        };
        let node_port_addresses =
            NodePortAddresses::parse(config.node_port_addresses.iter().map(String::as_str))
                .map_err(unusable("--nodeport-addresses"))?;
        let local = &config.detect_local;
        let (detect_local, pod_devices) = match config.detect_local_mode.as_str() {
            "NodeCIDR" => (DetectLocal::NodeCidr, PodDevices::Undetected),
            "BridgeInterface" => (DetectLocal::ByDevice, PodDevices::Bridge(local.bridge_interface.clone())),
            "InterfaceNamePrefix" => {
                (DetectLocal::ByDevice, PodDevices::Prefix(local.interface_name_prefix.clone()))
            }
            _ => {
                let networks = DetectLocal::cluster_cidr(&config.cluster_cidr);
                (networks.map_err(unusable("--cluster-cidr"))?, PodDevices::Undetected)
            }
        };
        let classes = ClassRules {
            local_clients: own.local_client_devices.clone().unwrap_or_default(),
            uplinks: own.uplink_devices.clone().unwrap_or_default(),
        };
        let pods = self.served_pods();
        let flags = self.socket_flags(&node_port_addresses);
        let sockets = SocketOptions { flags, pods, cgroup: own.cgroup.clone() };
        Ok(Options {
            bpffs: own.bpffs(),
            model: proxy_model::Options {
                node_name,
                bind_address: parse_ip(&config.bind_address).filter(|ip| !ip.is_unspecified()),
                node_port_addresses,
                detect_local,
                masquerade_all: config.masquerade_all(),
                external_ips: own.serve_external_ips.unwrap_or(gates::external_ips(&config.feature_gates)),
                backend_selection: own.backend_selection.unwrap_or_default().into(),
                external_forwarding: own.external_forwarding.unwrap_or_default().into(),
                follow_pods: pods != PodReasons::NONE,
            },
            devices: DeviceRules {
                classes,
                pods: pod_devices,
                xdp: own.xdp.clone().unwrap_or_default(),
                delivery: own.local_delivery.unwrap_or_default(),
            },
            node_ports: own.node_port_range.unwrap_or(PortRange::NODE_PORTS),
            sockets,
            timeouts: self.timeouts(),
            new_flow_limit: own.new_flow_limit.unwrap_or(NEW_FLOWS),
            audit_interval: own
                .audit_interval
                .unwrap_or(AUDIT_INTERVAL)
                .to_std()
                .filter(|interval| !interval.is_zero()),
            dsr_port: own.dsr_port.unwrap_or(DSR_PORT),
            capacities: own.capacities.capacities(),
        })
    }

    /// What the servers of the agent answer, and where.
    ///
    /// # Errors
    ///
    /// None that a configuration could cause.
    pub fn http(&self) -> Result<HttpOptions, ConfigError> {
        let config = &self.kube_proxy;
        Ok(HttpOptions {
            healthz: address::parse(&config.healthz_bind_address),
            metrics: address::parse(&config.metrics_bind_address),
            hard_fail: config.bind_address_hard_fail,
            sync_period: config.sync_periods().0.to_std().unwrap_or_default(),
            configuration: config.to_value()?,
        })
    }

    /// Which pods are served at sockets, if there is a cgroup.
    fn served_pods(&self) -> PodReasons {
        match self.sluice.socket_lb.unwrap_or_default() {
            SocketLb::Off | SocketLb::HostOnly => PodReasons::NONE,
            SocketLb::Auto => PodReasons::KNOWN,
            SocketLb::On => PodReasons::ALL_BUT_OPTED_OUT,
        }
    }

    /// How the node's own processes are served at sockets.
    fn socket_flags(&self, node_port_addresses: &NodePortAddresses) -> SocketFlags {
        if self.sluice.socket_lb.unwrap_or_default() == SocketLb::Off {
            return SocketFlags::default();
        }
        // Other modes have none there (NP-10, DIFF-02).
        let as_kube_proxy = self.kube_proxy.mode() == Some(Mode::IPTables)
            && self.kube_proxy.iptables.localhost_node_ports.unwrap_or(true);
        if self.sluice.localhost_nodeports.unwrap_or(as_kube_proxy) && includes_loopback(node_port_addresses)
        {
            SocketFlags::HOST.with(SocketFlags::LOCALHOST_NODE_PORTS)
        } else {
            SocketFlags::HOST
        }
    }

    /// How long flows may be silent (CT-32, CT-33, CT-35, BPF-06).
    fn timeouts(&self) -> ConntrackTimeouts {
        let conntrack = &self.kube_proxy.conntrack;
        ConntrackTimeouts {
            tcp_established: seconds(conntrack.tcp_established_timeout.unwrap_or_default()),
            tcp_close_wait: seconds(conntrack.tcp_close_wait_timeout.unwrap_or_default()),
            udp: seconds(conntrack.udp_timeout),
            udp_stream: seconds(conntrack.udp_stream_timeout),
        }
    }
}

/// Whole seconds (CT-36), at least one; `None` leaves it to conntrack.
fn seconds(timeout: GoDuration) -> Option<u32> {
    let timeout = timeout.to_std().filter(|timeout| *timeout > Duration::ZERO)?;
    Some(u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX).max(1))
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
    use std::net::SocketAddr;

    use proxy_model::{BackendSelection, ExternalForwarding};

    use super::{super::tests::load, *};
    use crate::{datapath::Capacities, devices::LocalDelivery};

    fn parse(flags: &[&str]) -> Result<Options, String> {
        load(flags)?.options("node".to_owned()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_are_kube_proxys() {
        let options = parse(&[]).unwrap();
        assert_eq!(
            options.model,
            proxy_model::Options {
                detect_local: DetectLocal::ClusterCidr(Vec::new()),
                follow_pods: true,
                ..proxy_model::Options::on_node("node")
            }
        );
        assert_eq!(options.devices, DeviceRules::default());
        assert_eq!(options.node_ports, PortRange::NODE_PORTS);
        assert_eq!(options.bpffs.to_str(), Some("/sys/fs/bpf/sluice"));
        let kube_proxys = ConntrackTimeouts {
            tcp_established: Some(86_400),
            tcp_close_wait: Some(3_600),
            ..ConntrackTimeouts::default()
        };
        assert_eq!(options.timeouts, kube_proxys);
        let http = load(&[]).unwrap().http().unwrap();
        assert_eq!((http.sync_period, http.hard_fail), (Duration::from_secs(30), false));
        assert_eq!(http.configuration["kind"], "KubeProxyConfiguration");
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
            "--backend-selection=maglev",
            "--external-forwarding=dsr",
            "--dsr-port=7000",
            "--local-delivery=direct",
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
        assert_eq!(model.backend_selection, BackendSelection::Maglev);
        assert_eq!((model.external_forwarding, options.dsr_port.get()), (ExternalForwarding::Dsr, 7_000));
        assert_eq!(options.node_ports.ends(), (30_000, 30_099));
        assert_eq!(options.devices.delivery, LocalDelivery::Direct);
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
            (&["--iptables-localhost-nodeports=false"], HOST),
            (&["--iptables-localhost-nodeports=false", "--localhost-nodeports"], HOST.with(LOOPBACK)),
            (&["--proxy-mode=ipvs"], HOST),
            (&["--proxy-mode=nftables", "--nodeport-addresses=0.0.0.0/0"], HOST),
            (
                &["--proxy-mode=nftables", "--nodeport-addresses=0.0.0.0/0", "--localhost-nodeports"],
                HOST.with(LOOPBACK),
            ),
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

    #[test]
    fn pods_are_served_as_the_mode_says() {
        for (flags, expected) in [
            (&[][..], PodReasons::KNOWN),
            (&["--socket-lb=auto"], PodReasons::KNOWN),
            (&["--socket-lb=on"], PodReasons::ALL_BUT_OPTED_OUT),
            (&["--socket-lb=host-only"], PodReasons::NONE),
            (&["--socket-lb=off"], PodReasons::NONE),
        ] {
            let options = parse(flags).unwrap();
            assert_eq!(options.sockets.pods, expected, "{flags:?}");
            assert_eq!(options.model.follow_pods, expected != PodReasons::NONE, "{flags:?}");
        }
    }

    #[test]
    fn new_flows_have_a_limit_and_zero_is_none() {
        let limit = |flags: &[&str]| parse(flags).map(|options| options.new_flow_limit);
        assert_eq!(limit(&[]), Ok(100_000));
        assert_eq!(limit(&["--new-flow-limit=250"]), Ok(250));
        assert_eq!(limit(&["--new-flow-limit=0"]), Ok(0));
    }

    #[test]
    fn audits_have_an_interval_and_zero_is_none() {
        let interval = |flags: &[&str]| parse(flags).map(|options| options.audit_interval);
        assert_eq!(interval(&[]), Ok(Some(Duration::from_secs(300))));
        assert_eq!(interval(&["--audit-interval=1m30s"]), Ok(Some(Duration::from_secs(90))));
        assert_eq!(interval(&["--audit-interval=0"]), Ok(None));
        let problem = interval(&["--audit-interval=-1s"]).unwrap_err();
        assert!(
            problem.contains("--audit-interval") && problem.contains("must not be negative"),
            "{problem}"
        );
    }

    /// DIFF-01, NP-09.
    #[test]
    fn nodeports_are_where_the_mode_has_them() {
        let accepting = |flags: &[&str]| parse(flags).unwrap().model.node_port_addresses;
        assert_eq!(accepting(&["--proxy-mode=iptables"]), NodePortAddresses::All);
        assert_eq!(accepting(&["--proxy-mode=nftables"]), NodePortAddresses::Primary);
        let networks = NodePortAddresses::Networks(vec!["10.0.0.0/8".parse().unwrap()]);
        assert_eq!(accepting(&["--proxy-mode=nftables", "--nodeport-addresses=10.0.0.0/8"]), networks);
    }

    /// XIP-03.
    #[test]
    fn external_ips_are_served_as_the_gate_says_unless_the_flag_overrules_it() {
        let served = |flags: &[&str]| parse(flags).unwrap().model.external_ips;
        assert!(served(&[]) && served(&["--feature-gates=AllowServiceExternalIPs=true,AllAlpha=false"]));
        assert!(!served(&["--feature-gates=AllAlpha=true", "--feature-gates=AllowServiceExternalIPs=false"]));
        assert!(served(&["--feature-gates=AllowServiceExternalIPs=false", "--serve-external-ips"]));
    }

    /// CT-32 to CT-36.
    #[test]
    fn timeouts_are_whole_seconds_and_zero_leaves_them_to_conntrack() {
        let timeouts = parse(&[
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=1m30.9s",
            "--conntrack-udp-timeout=500ms",
            "--conntrack-udp-timeout-stream=2562047h",
        ])
        .unwrap()
        .timeouts;
        let expected = ConntrackTimeouts {
            tcp_established: None,
            tcp_close_wait: Some(90),
            udp: Some(1),
            udp_stream: Some(u32::MAX),
        };
        assert_eq!(timeouts, expected);
    }

    /// NODE-04, FLAG-12, FLAG-13, FLAG-34, FLAG-35, FLAG-43, HZ-01.
    #[test]
    fn addresses_go_by_flags_and_by_the_family_of_the_bind_address() {
        for (flags, bound, healthz, metrics) in [
            (&[][..], None, Some("0.0.0.0:10256"), Some("127.0.0.1:10249")),
            (&["--bind-address=::"], None, Some("[::]:10256"), Some("[::1]:10249")),
            (&["--bind-address=fd00::1"], Some("fd00::1"), Some("[::]:10256"), Some("[::1]:10249")),
            (
                &["--bind-address=192.0.2.01"],
                Some("192.0.2.1"),
                Some("0.0.0.0:10256"),
                Some("127.0.0.1:10249"),
            ),
            (&["--bind-address="], None, Some("0.0.0.0:10256"), Some("127.0.0.1:10249")),
            (
                &["--healthz-bind-address=10.0.0.1", "--metrics-bind-address=[::]:99"],
                None,
                Some("10.0.0.1:10256"),
                Some("[::]:99"),
            ),
            (
                &["--healthz-bind-address=", "--metrics-bind-address="],
                None,
                Some("0.0.0.0:10256"),
                Some("127.0.0.1:10249"),
            ),
            (
                &["--healthz-bind-address=10.0.0.1", "--healthz-port=80"],
                None,
                Some("10.0.0.1:80"),
                Some("127.0.0.1:10249"),
            ),
            (&["--healthz-port=0", "--metrics-port=0"], None, None, None),
        ] {
            let options = parse(flags).unwrap();
            assert_eq!(options.model.bind_address, bound.map(|ip| ip.parse().unwrap()), "{flags:?}");
            let address = |text: Option<&str>| text.map(|text| text.parse::<SocketAddr>().unwrap());
            let http = load(flags).unwrap().http().unwrap();
            assert_eq!((http.healthz, http.metrics), (address(healthz), address(metrics)), "{flags:?}");
        }
    }

    #[test]
    fn capacities_are_what_flags_say_within_limits() {
        assert_eq!(parse(&[]).unwrap().capacities, Capacities::default());
        let chosen = parse(&["--max-services=100", "--max-flow-entries=1024"]).unwrap().capacities;
        assert_eq!(chosen, Capacities { services: 100, flows: 1_024, ..Capacities::default() });
        let error = parse(&["--max-backends=0", "--max-sockets=99999999"]).unwrap_err();
        assert!(error.contains("--max-backends: 0: must be from 16 to 4194304"), "{error}");
        assert!(error.contains("--max-sockets: 99999999: must be from 1024 to 4194304"), "{error}");
    }

    #[test]
    fn node_names_are_trimmed_and_lower_case() {
        assert_eq!(node_name("", "Node-A\n").as_deref(), Some("node-a"));
        assert_eq!(node_name(" B ", "a").as_deref(), Some("b"));
        assert_eq!(node_name("  ", "a"), None);
    }
}
