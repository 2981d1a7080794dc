//! kube-proxy, which ran here before: is it still there, what has it left in the kernel, and away with that.
//!
//! ```text
//! process, /proxyMode ─ active ──────────> run refuses, preflight warns
//! nf_tables, legacy ─── leftovers ───────> preflight warns
//!                         └ chains: plan ─ cleanup, and what is left is looked for again
//! IPVS, device, ipsets ────────────────────┘
//! ```
//!
//! Netlink knows everything but the legacy iptables, so that no program has to be installed. What belongs to whom is told by
//! the names of chains and sets, the same ones that kube-proxy itself removes when it is told to clean up.

mod active;
mod chains;
mod cleanup;
mod hold;
mod ipvs;
mod leftovers;
mod legacy;
mod netlink;
mod nftables;
mod outcome;

pub use self::{
    active::{Active, METRICS, absence, active},
    cleanup::cleanup,
    outcome::{Outcome, Removed, Unremoved},
};
pub(crate) use self::{
    hold::translated,
    ipvs::{DEVICE as IPVS_DEVICE, has_device as has_ipvs_device, services as ipvs_services},
    leftovers::{in_legacy_tables, in_netfilter, netfilter_chains},
};
