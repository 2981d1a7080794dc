//! kube-proxy's mode iptables.

use std::fmt::{self, Write as _};

use anyhow::Result;
use sluice_tests::{
    bench::client::Transport,
    service::{PORT, TARGET_PORT},
};

use super::CLUSTER_CIDR;
use crate::catalogue::{Catalogue, Service, word};

/// With more endpoints than that, kube-proxy leaves comments out (`largeClusterEndpointsThreshold`).
const LARGE: usize = 1_000;

/// Jumps to kube-proxy's chains, as it makes them when it starts (`iptablesJumpChains`).
const JUMPS: &str = "\
*filter
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment \"kubernetes health check service ports\" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
COMMIT
*nat
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
COMMIT
";

/// Chains of the table nat that a synchronization writes whatever has changed, and what is always in them.
const NAT: &str = "\
*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
";

/// The last of them.
const NODE_PORTS: &str = "-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last \
                          rule in this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n";

/// All rules, where there are none.
pub(super) fn all(catalogue: &Catalogue) -> Result<String> {
    Ok(JUMPS.to_owned() + &synchronize(catalogue, |_| true)?)
}

/// What a synchronization writes after a service has changed: its own chains, and those that name all services.
pub(super) fn change(catalogue: &Catalogue, changed: &Service) -> Result<String> {
    synchronize(catalogue, |service| service.name == changed.name)
}

fn synchronize(catalogue: &Catalogue, has_changed: impl Fn(&Service) -> bool) -> Result<String> {
    let comments = Comments(catalogue.endpoints() <= LARGE);
    let mut text =
        "*filter\n:KUBE-EXTERNAL-SERVICES - [0:0]\n:KUBE-FORWARD - [0:0]\n:KUBE-NODEPORTS - [0:0]\n\
                    :KUBE-PROXY-FIREWALL - [0:0]\n:KUBE-SERVICES - [0:0]\n"
            .to_owned();
    for (service, transport) in ports(catalogue).filter(|(service, _)| service.endpoints.is_empty()) {
        let Service { name, vip, .. } = service;
        let (protocol, comment) = (word(transport), comments.of(&format!("default/{name} has no endpoints")));
        writeln!(
            text,
            "-A KUBE-SERVICES{comment} -m {protocol} -p {protocol} -d {vip} --dport {PORT} -j REJECT"
        )?;
    }
    text += "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
             -A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark 0x4000/0x4000 -j ACCEPT\n\
             -A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate \
             RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n";
    text += NAT;
    let mut chains = String::new();
    for (service, transport) in ports(catalogue).filter(|(service, _)| !service.endpoints.is_empty()) {
        let names = Names { number: service.number, protocol: word(transport) };
        let comment = comments.of(&format!("default/{} cluster IP", service.name));
        let (protocol, vip) = (word(transport), service.vip);
        let portal = format!("{comment} -m {protocol} -p {protocol} -d {vip} --dport {PORT}");
        writeln!(text, "-A KUBE-SERVICES{portal} -j {}", names.service())?;
        if let Some(port) = service.node_port {
            let comment = comments.of(&format!("default/{}", service.name));
            writeln!(
                text,
                "-A KUBE-NODEPORTS{comment} -m {protocol} -p {protocol} --dport {port} -j {}",
                names.external()
            )?;
        }
        if has_changed(service) {
            write_chains(&mut chains, service, &names, &portal, comments)?;
        }
    }
    text += NODE_PORTS;
    // Chains must be known before they are named.
    let declared: String = chains.lines().filter(|line| line.starts_with(':')).map(with_end).collect();
    let rules: String = chains.lines().filter(|line| line.starts_with('-')).map(with_end).collect();
    let text = text.replacen("*nat\n", &format!("*nat\n{declared}"), 1);
    Ok(text + &rules + "COMMIT\n")
}

fn with_end(line: &str) -> String {
    format!("{line}\n")
}

/// The chains of a service's port, declarations among them.
fn write_chains(
    text: &mut String,
    service: &Service,
    names: &Names,
    portal: &str,
    comments: Comments,
) -> fmt::Result {
    let (chain, protocol) = (names.service(), names.protocol);
    let comment = comments.of(&format!("default/{}", service.name));
    writeln!(text, ":{chain} - [0:0]\n-A {chain}{portal} ! -s {CLUSTER_CIDR} -j KUBE-MARK-MASQ")?;
    if service.node_port.is_some() {
        let external = names.external();
        let why =
            comments.of(&format!("masquerade traffic for default/{} external destinations", service.name));
        writeln!(
            text,
            ":{external} - [0:0]\n-A {external}{why} -j KUBE-MARK-MASQ\n-A {external} -j {chain}"
        )?;
    }
    for (index, endpoint) in service.endpoints.iter().enumerate() {
        let (own, address) = (names.endpoint(index), endpoint.address);
        let where_to = comments.of(&format!("default/{} -> {address}:{TARGET_PORT}", service.name));
        let left = service.endpoints.len() - index;
        let chance = match left {
            1 => String::new(),
            _ => format!(" -m statistic --mode random --probability {:.10}", 1.0 / left as f64),
        };
        writeln!(
            text,
            "-A {chain}{where_to}{chance} -j {own}\n:{own} - [0:0]\n-A {own}{comment} -s {address} -j KUBE-MARK-MASQ\n\
             -A {own}{comment} -m {protocol} -p {protocol} -j DNAT --to-destination {address}:{TARGET_PORT}"
        )?;
    }
    Ok(())
}

fn ports(catalogue: &Catalogue) -> impl Iterator<Item = (&Service, Transport)> {
    let Catalogue(services) = catalogue;
    services.iter().flat_map(|service| service.transports.iter().map(move |transport| (service, *transport)))
}

/// Whether rules have comments.
#[derive(Clone, Copy)]
struct Comments(bool);

impl Comments {
    fn of(self, text: &str) -> String {
        let Self(are_written) = self;
        if are_written { format!(" -m comment --comment \"{text}\"") } else { String::new() }
    }
}

/// Chains of a service's port. kube-proxy's names have a hash of sixteen letters; these have a number in its place.
struct Names {
    number: u32,
    protocol: &'static str,
}

impl Names {
    fn service(&self) -> String {
        format!("KUBE-SVC-{}{:013}", self.protocol.to_uppercase(), self.number)
    }

    fn external(&self) -> String {
        format!("KUBE-EXT-{}{:013}", self.protocol.to_uppercase(), self.number)
    }

    fn endpoint(&self, index: usize) -> String {
        format!("KUBE-SEP-{}{:010}{index:03}", self.protocol.to_uppercase(), self.number)
    }
}
