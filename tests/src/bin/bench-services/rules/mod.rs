//! Rules of kube-proxy's structure, written by the programs that kube-proxy writes its rules by.
//!
//! Chains, maps and their order are those of kube-proxy 1.36 for services of these kinds (`pkg/proxy/iptables/proxier.go`,
//! `pkg/proxy/nftables/proxier.go`), so packets pay what they pay there. What the process kube-proxy itself costs between a
//! change and its rules is not in here.

mod iptables;
mod nftables;

use std::{net::Ipv4Addr, process::Command};

use anyhow::{Context as _, Result};
use sluice_tests::netns::Namespace;

use crate::{
    catalogue::{Catalogue, Service},
    peer::System,
};

/// The pods' network: traffic to services that comes from elsewhere is masqueraded.
pub(crate) const CLUSTER_CIDR: &str = "10.244.0.0/16";

/// The rules of a node.
#[derive(Debug)]
pub(crate) struct Rules {
    system: System,
    namespace: Namespace,
    catalogue: Catalogue,
    /// The address of the node's ports.
    node: Ipv4Addr,
}

impl Rules {
    /// Those of a node for all services, not written yet.
    pub(crate) fn new(system: System, namespace: &Namespace, catalogue: &Catalogue, node: Ipv4Addr) -> Self {
        Self { system, namespace: namespace.clone(), catalogue: catalogue.clone(), node }
    }

    /// The text that makes all of them where there are none.
    pub(crate) fn text(&self) -> Result<String> {
        match self.system {
            System::Nftables => nftables::all(&self.catalogue, self.node),
            _ => iptables::all(&self.catalogue),
        }
    }

    /// Has the kernel take a text of rules.
    pub(crate) fn write(&self, text: &str) -> Result<()> {
        let program = self.system.program().context("a system with rules")?;
        let arguments: &[&str] = match self.system {
            System::Nftables => &["--file", "-"],
            _ => &["--wait", "--noflush", "--counters"],
        };
        self.namespace.feed(Command::new(program).args(arguments), text)
    }

    /// Has the kernel serve one more service, or this one in another way.
    pub(crate) fn put(&mut self, service: &Service) -> Result<()> {
        let Catalogue(services) = &mut self.catalogue;
        let before = services.iter().position(|known| known.name == service.name);
        let before = before.map(|at| std::mem::replace(&mut services[at], service.clone()));
        if before.is_none() {
            services.push(service.clone());
        }
        let text = match self.system {
            System::Nftables => nftables::change(before.as_ref(), service)?,
            _ => iptables::change(&self.catalogue, service)?,
        };
        self.write(&text)
    }
}
