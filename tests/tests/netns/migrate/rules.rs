//! Rules in the structure of kube-proxy's, for a service with one endpoint, and others' rules beside them.

use std::{
    net::{IpAddr, SocketAddr},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};
use sluice_tests::{netns::Namespace, topology::Family};

/// What makes the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// kube-proxy's mode iptables, by the iptables that speaks to nf_tables.
    Iptables,
    /// The same, by the legacy iptables.
    Legacy,
    /// kube-proxy's mode nftables.
    Nftables,
}

/// What kubelet, a network plugin and an administrator have, in the form of iptables-save.
const OTHERS: &str = "\
*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-POD-FW-OTHER - [0:0]
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m comment --comment \"not KUBE-SERVICES\" -j KUBE-POD-FW-OTHER
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL -m comment --comment \"block incoming localnet connections\" -m conntrack --ctstate INVALID -j DROP
-A KUBE-POD-FW-OTHER -m mark --mark 0x77 -j DROP
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A POSTROUTING -m mark --mark 0x78 -j MASQUERADE
COMMIT
";

/// kube-proxy's mode iptables. `VIP`, `POD` and `TARGET` stand for addresses.
const IPTABLES: &str = "\
*mangle
:KUBE-PROXY-CANARY - [0:0]
COMMIT
*filter
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
-I INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-I INPUT -m comment --comment \"kubernetes health check service ports\" -j KUBE-NODEPORTS
-I INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-I FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-I FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-I OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A KUBE-SERVICES -d VIP -p udp -m comment --comment \"default/empty has no endpoints\" -m udp --dport 9 -j REJECT
COMMIT
*nat
:KUBE-EXT-ABCDEFGHIJKLMNOP - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SEP-ABCDEFGHIJKLMNOP - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-ABCDEFGHIJKLMNOP - [0:0]
-I PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-I OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-I POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-EXT-ABCDEFGHIJKLMNOP -m comment --comment \"masquerade traffic for default/echo external destinations\" -j KUBE-MARK-MASQ
-A KUBE-EXT-ABCDEFGHIJKLMNOP -j KUBE-SVC-ABCDEFGHIJKLMNOP
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-NODEPORTS -p tcp -m comment --comment default/echo -m tcp --dport 30080 -j KUBE-EXT-ABCDEFGHIJKLMNOP
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully
-A KUBE-SEP-ABCDEFGHIJKLMNOP -s POD -m comment --comment default/echo -j KUBE-MARK-MASQ
-A KUBE-SEP-ABCDEFGHIJKLMNOP -p tcp -m comment --comment default/echo -m tcp -j DNAT --to-destination TARGET
-A KUBE-SERVICES -d VIP -p tcp -m comment --comment \"default/echo cluster IP\" -m tcp --dport 80 -j KUBE-SVC-ABCDEFGHIJKLMNOP
-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-SVC-ABCDEFGHIJKLMNOP -m comment --comment \"default/echo -> TARGET\" -m statistic --mode random --probability 1.0 -j KUBE-SEP-ABCDEFGHIJKLMNOP
COMMIT
";

/// kube-proxy's mode nftables; `FAMILY` stands for `ip` or `ip6`, `TYPE` for its addresses.
const NFTABLES: &str = "\
table FAMILY kube-proxy {
  comment \"rules for kube-proxy\"
  set cluster-ips { type TYPE; elements = { VIP } }
  map no-endpoint-services { type TYPE . inet_proto . inet_service : verdict; }
  map service-ips {
    type TYPE . inet_proto . inet_service : verdict
    elements = { VIP . tcp . 80 : goto service-ABCDEFGH-default/echo/tcp/ }
  }
  map service-nodeports { type inet_proto . inet_service : verdict; }
  chain mark-for-masquerade { meta mark set meta mark or 0x4000; }
  chain masquerading {
    mark and 0x4000 == 0 return
    mark set mark xor 0x4000
    masquerade fully-random
  }
  chain reject-chain { reject; }
  chain services {
    FAMILY daddr . meta l4proto . th dport vmap @service-ips
    fib daddr type local FAMILY daddr != LOOPBACK meta l4proto . th dport vmap @service-nodeports
  }
  chain cluster-ips-check { FAMILY daddr @cluster-ips reject; }
  chain service-endpoints-check { FAMILY daddr . meta l4proto . th dport vmap @no-endpoint-services; }
  chain filter-prerouting { type filter hook prerouting priority -110; ct state new jump service-endpoints-check; }
  chain filter-forward { type filter hook forward priority -110; ct state new jump cluster-ips-check; }
  chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }
  chain nat-output { type nat hook output priority -100; jump services; }
  chain nat-postrouting { type nat hook postrouting priority srcnat; jump masquerading; }
  chain service-ABCDEFGH-default/echo/tcp/ {
    numgen random mod 1 vmap { 0 : goto endpoint-ABCDEFGH-default/echo/tcp/ }
  }
  chain endpoint-ABCDEFGH-default/echo/tcp/ {
    FAMILY saddr POD jump mark-for-masquerade
    meta l4proto tcp dnat to TARGET
  }
}
";

/// What stands before `-save` and `-restore`.
fn program(kind: Kind, family: Family) -> String {
    let variant = if kind == Kind::Legacy { "legacy" } else { "nft" };
    match family {
        Family::V4 => format!("iptables-{variant}"),
        Family::V6 => format!("ip6tables-{variant}"),
    }
}

/// What is needed for rules of this kind.
pub(super) fn requirements(kind: Kind) -> Result<()> {
    let programs =
        [("nft", "nftables"), ("iptables-nft-restore", "iptables"), ("iptables-legacy-restore", "iptables")];
    let wanted = if kind == Kind::Nftables { &programs[..2] } else { &programs[1..] };
    for (program, package) in wanted {
        let started =
            Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        started.with_context(|| format!("{program} is not installed (package {package})"))?;
    }
    Ok(())
}

fn feed(namespace: &Namespace, program: &str, arguments: &[&str], text: &str) -> Result<()> {
    namespace.feed(Command::new(program).args(arguments), text)
}

/// Has the rules of everybody but kube-proxy made.
pub(super) fn add_others(namespace: &Namespace, kind: Kind) -> Result<()> {
    for family in Family::ALL {
        feed(namespace, &format!("{}-restore", program(kind, family)), &["--noflush"], OTHERS)?;
    }
    if kind == Kind::Nftables {
        let table = "table inet other { chain input { type filter hook input priority 0; ct state invalid drop; }; }\n";
        feed(namespace, "nft", &["--file", "-"], table)?;
    }
    Ok(())
}

/// Has the rules of kube-proxy made, for a service that leads to one endpoint.
pub(super) fn add(namespace: &Namespace, kind: Kind, vip: IpAddr, target: SocketAddr) -> Result<()> {
    let family = Family::of(vip);
    let (name, kind_of_address, loopback) = match family {
        Family::V4 => ("ip", "ipv4_addr", "127.0.0.0/8"),
        Family::V6 => ("ip6", "ipv6_addr", "::1"),
    };
    let filled = |text: &str| {
        text.replace("FAMILY", name)
            .replace("TYPE", kind_of_address)
            .replace("LOOPBACK", loopback)
            .replace("VIP", &vip.to_string())
            .replace("POD", &target.ip().to_string())
            .replace("TARGET", &target.to_string())
    };
    match kind {
        Kind::Nftables => feed(namespace, "nft", &["--file", "-"], &filled(NFTABLES)),
        Kind::Iptables | Kind::Legacy => {
            feed(namespace, &format!("{}-restore", program(kind, family)), &["--noflush"], &filled(IPTABLES))
        }
    }
}

/// All rules that there are, without counters.
pub(super) fn saved(namespace: &Namespace, kind: Kind) -> Result<String> {
    let save = |program: &str| namespace.output(&mut Command::new(program));
    let text = match kind {
        Kind::Nftables => {
            namespace.output(Command::new("nft").args(["--stateless", "--handle", "list", "ruleset"]))?
        }
        Kind::Iptables | Kind::Legacy => Family::ALL
            .into_iter()
            .map(|family| save(&format!("{}-save", program(kind, family))))
            .collect::<Result<_>>()?,
    };
    // Dates, and counters of chains.
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    Ok(lines.map(|line| line.split(" [").next().unwrap_or_default()).collect::<Vec<_>>().join("\n"))
}
