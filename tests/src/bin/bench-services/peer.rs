//! Who is compared with whom.

use std::process::{Command, Stdio};

use clap::ValueEnum;
use serde::Serialize;

/// A way to a backend, and who paves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Peer {
    /// The client names the pod, on nodes without any proxy.
    Direct,
    /// The same on nodes where programs look at each packet that do nothing; only if it is named.
    DirectEmpty,
    /// Sluice, with the clients' sockets served (`--socket-lb=on`).
    Sluice,
    /// Sluice, by packets.
    SluicePackets,
    /// Sluice, before the stack (`--xdp=native`).
    SluiceXdp,
    /// The same on behalf of drivers (`--xdp=generic`).
    SluiceXdpGeneric,
    /// Sluice, by packets, past the stack on their own node (`--local-delivery=direct`); only if it is named.
    SluiceDelivery,
    /// kube-proxy's mode iptables, by the iptables that speaks to nf_tables.
    #[value(alias = "iptables-nft")]
    Iptables,
    /// kube-proxy's mode iptables, by the legacy iptables.
    IptablesLegacy,
    /// kube-proxy's mode nftables.
    Nftables,
}

impl Peer {
    /// All but those that explain figures of others.
    pub(crate) const USUAL: [Self; 8] = [
        Self::Direct,
        Self::Sluice,
        Self::SluicePackets,
        Self::SluiceXdp,
        Self::SluiceXdpGeneric,
        Self::Iptables,
        Self::IptablesLegacy,
        Self::Nftables,
    ];

    /// What runs on the nodes.
    pub(crate) const fn system(self) -> System {
        match self {
            Self::Direct => System::Nothing,
            Self::DirectEmpty => System::Empty,
            Self::Sluice | Self::SluicePackets => System::Sluice,
            Self::SluiceXdp => System::SluiceXdp,
            Self::SluiceXdpGeneric => System::SluiceXdpGeneric,
            Self::SluiceDelivery => System::SluiceDelivery,
            Self::Iptables => System::Iptables,
            Self::IptablesLegacy => System::IptablesLegacy,
            Self::Nftables => System::Nftables,
        }
    }

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::DirectEmpty => "direct, empty programs",
            Self::Sluice => "Sluice",
            Self::SluicePackets => "Sluice, by packet",
            Self::SluiceXdp => "Sluice, XDP",
            Self::SluiceXdpGeneric => "Sluice, generic XDP",
            Self::SluiceDelivery => "Sluice, direct delivery",
            Self::Iptables => "iptables-nft",
            Self::IptablesLegacy => "iptables-legacy",
            Self::Nftables => "nftables",
        }
    }
}

/// What makes services on the nodes of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum System {
    /// Nothing does.
    Nothing,
    /// Nothing does, but there are programs.
    Empty,
    /// Sluice's agents.
    Sluice,
    /// The same, with programs before the stack.
    SluiceXdp,
    /// The same, with programs before the stack that no driver runs.
    SluiceXdpGeneric,
    /// The same as the first, with local delivery past the stack.
    SluiceDelivery,
    /// Rules of iptables, in nf_tables.
    Iptables,
    /// Rules of iptables, in its own tables.
    IptablesLegacy,
    /// Rules of nftables.
    Nftables,
}

impl System {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "none",
            Self::Empty => "empty programs",
            Self::Sluice => "Sluice",
            Self::SluiceXdp => "Sluice, XDP",
            Self::SluiceXdpGeneric => "Sluice, generic XDP",
            Self::SluiceDelivery => "Sluice, direct delivery",
            Self::Iptables => "iptables-nft",
            Self::IptablesLegacy => "iptables-legacy",
            Self::Nftables => "nftables",
        }
    }

    /// Whether requests and changes are measured of it. Requests between the test bed's virtual devices would show what it takes
    /// to copy each packet into a frame of the kind that a card's driver has already.
    pub(crate) const fn answers(self) -> bool {
        !matches!(self, Self::SluiceXdp | Self::SluiceXdpGeneric)
    }

    /// The program that writes its rules, if it has any.
    pub(crate) const fn program(self) -> Option<&'static str> {
        match self {
            Self::Nothing
            | Self::Empty
            | Self::Sluice
            | Self::SluiceXdp
            | Self::SluiceXdpGeneric
            | Self::SluiceDelivery => None,
            Self::Iptables => Some("iptables-nft-restore"),
            Self::IptablesLegacy => Some("iptables-legacy-restore"),
            Self::Nftables => Some("nft"),
        }
    }

    /// Whether what it needs is installed.
    pub(crate) fn is_installed(self) -> bool {
        let Some(program) = self.program() else { return true };
        let mut asked = Command::new(program);
        let asked = asked.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        asked.status().is_ok()
    }
}
