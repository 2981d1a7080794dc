//! kube-proxy's mode nftables.

use std::{
    fmt::{self, Write as _},
    net::Ipv4Addr,
};

use anyhow::Result;
use sluice_tests::{
    bench::client::Transport,
    service::{PORT, TARGET_PORT},
};

use super::CLUSTER_CIDR;
use crate::catalogue::{Catalogue, Service, word};

/// The table without services; `NODE` stands for the address that has node ports.
const TABLE: &str = "\
table ip kube-proxy {
  comment \"rules for kube-proxy\"
  set cluster-ips { type ipv4_addr; comment \"Active ClusterIPs\"; }
  set nodeport-ips { type ipv4_addr; comment \"IPs that accept NodePort traffic\"; elements = { NODE } }
  map firewall-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
  map no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict; }
  map no-endpoint-nodeports { type inet_proto . inet_service : verdict; }
  map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
  map service-nodeports { type inet_proto . inet_service : verdict; }
  chain mark-for-masquerade { mark set mark or 0x4000; }
  chain masquerading {
    mark and 0x4000 == 0 return
    mark set mark xor 0x4000
    masquerade fully-random
  }
  chain reject-chain { reject; }
  chain services {
    ip daddr . meta l4proto . th dport vmap @service-ips
    ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
  }
  chain cluster-ips-check { ip daddr @cluster-ips reject comment \"Reject traffic to invalid ports of ClusterIPs\"; }
  chain firewall-check { ip daddr . meta l4proto . th dport vmap @firewall-ips; }
  chain nodeport-endpoints-check { ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports; }
  chain service-endpoints-check { ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }
  chain filter-prerouting {
    type filter hook prerouting priority -110
    ct state new jump firewall-check
  }
  chain filter-input {
    type filter hook input priority -110
    ct state new jump nodeport-endpoints-check
    ct state new jump service-endpoints-check
  }
  chain filter-forward {
    type filter hook forward priority -110
    ct state new jump service-endpoints-check
    ct state new jump cluster-ips-check
  }
  chain filter-output {
    type filter hook output priority -110
    ct state new jump service-endpoints-check
    ct state new jump firewall-check
  }
  chain filter-output-post-dnat {
    type filter hook output priority -90
    ct state new jump cluster-ips-check
  }
  chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }
  chain nat-output { type nat hook output priority -100; jump services; }
  chain nat-postrouting { type nat hook postrouting priority srcnat; jump masquerading; }
}
";

/// All rules, where there are none.
pub(super) fn all(catalogue: &Catalogue, node: Ipv4Addr) -> Result<String> {
    let Catalogue(services) = catalogue;
    let mut text = TABLE.replace("NODE", &node.to_string());
    for service in services {
        add(&mut text, service)?;
    }
    Ok(text)
}

/// What turns a service into what it is now, or adds it: elements that name it, and its own chains.
pub(super) fn change(before: Option<&Service>, service: &Service) -> Result<String> {
    let mut text = String::new();
    if let Some(before) = before {
        for transport in before.transports {
            let map = if before.endpoints.is_empty() { "no-endpoint-services" } else { "service-ips" };
            let (vip, protocol) = (before.vip, word(*transport));
            writeln!(text, "delete element ip kube-proxy {map} {{ {vip} . {protocol} . {PORT} }}")?;
        }
    }
    add(&mut text, service)?;
    Ok(text)
}

fn add(text: &mut String, service: &Service) -> fmt::Result {
    writeln!(text, "add element ip kube-proxy cluster-ips {{ {} }}", service.vip)?;
    service.transports.iter().try_for_each(|transport| add_port(text, service, *transport))
}

fn add_port(text: &mut String, service: &Service, transport: Transport) -> fmt::Result {
    let Service { name, number, vip, .. } = service;
    let protocol = word(transport);
    let own = format!("{number:08}-default/{name}/{protocol}/{protocol}");
    if service.endpoints.is_empty() {
        return writeln!(
            text,
            "add element ip kube-proxy no-endpoint-services {{ {vip} . {protocol} . {PORT} comment \"default/{name}\" : \
             goto reject-chain }}"
        );
    }
    let chain = format!("service-{own}");
    writeln!(
        text,
        "add chain ip kube-proxy {chain}\nflush chain ip kube-proxy {chain}\n\
         add rule ip kube-proxy {chain} ip daddr {vip} {protocol} dport {PORT} ip saddr != {CLUSTER_CIDR} \
         jump mark-for-masquerade"
    )?;
    let mut choices = Vec::new();
    for (index, endpoint) in service.endpoints.iter().enumerate() {
        let address = endpoint.address;
        let goal = format!("endpoint-{own}__{address}/{TARGET_PORT}");
        writeln!(
            text,
            "add chain ip kube-proxy {goal}\nflush chain ip kube-proxy {goal}\n\
             add rule ip kube-proxy {goal} ip saddr {address} jump mark-for-masquerade\n\
             add rule ip kube-proxy {goal} meta l4proto {protocol} dnat to {address}:{TARGET_PORT}"
        )?;
        choices.push(format!("{index} : goto {goal}"));
    }
    writeln!(
        text,
        "add rule ip kube-proxy {chain} numgen random mod {} vmap {{ {} }}\n\
         add element ip kube-proxy service-ips {{ {vip} . {protocol} . {PORT} : goto {chain} }}",
        choices.len(),
        choices.join(", ")
    )?;
    if let Some(port) = service.node_port {
        let external = format!("external-{own}");
        writeln!(
            text,
            "add chain ip kube-proxy {external}\nflush chain ip kube-proxy {external}\n\
             add rule ip kube-proxy {external} jump mark-for-masquerade\n\
             add rule ip kube-proxy {external} goto {chain}\n\
             add element ip kube-proxy service-nodeports {{ {protocol} . {port} : goto {external} }}"
        )?;
    }
    Ok(())
}
