//! Programs that do nothing, where Sluice has its own: what it costs to be asked at all.

use std::fs;

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    programs::{LinkOrder, SchedClassifier, TcAttachType, tc::TcAttachOptions},
};
use sluice_tests::{
    bench::generator::OBJECT,
    counters,
    topology::{BRIDGE, Node},
};

/// As long as this is held, each packet meets a program where it enters a node and one where it leaves it.
#[derive(Debug)]
pub(crate) struct EmptyPrograms(#[expect(dead_code, reason = "its drop takes the programs off")] Ebpf);

impl EmptyPrograms {
    /// Attaches them to all devices of these nodes but the bridge, whose ports have them.
    pub(crate) fn attach(nodes: &[Node]) -> Result<Self> {
        let bytes = fs::read(OBJECT).with_context(|| format!("{OBJECT}: run `cargo xtask build`"))?;
        let mut ebpf = Ebpf::load(&bytes)?;
        let empty: &mut SchedClassifier =
            ebpf.program_mut("empty").context("no empty program")?.try_into()?;
        empty.load()?;
        for node in nodes {
            let devices = counters::devices(&node.namespace)?;
            for device in devices.iter().filter(|name| !["lo", BRIDGE].contains(&name.as_str())) {
                for at in [TcAttachType::Ingress, TcAttachType::Egress] {
                    let options = || TcAttachOptions::TcxOrder(LinkOrder::first());
                    node.namespace.run(|| Ok(empty.attach_with_options(device, at, options())?))?;
                }
            }
        }
        Ok(Self(ebpf))
    }
}
