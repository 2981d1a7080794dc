//! What the agent's commands say, as far as tests care.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use anyhow::{Context as _, Result, anyhow};
use proxy_agent::{
    datapath::{ArrayTable, HashTable, PerCpuTable, Pins, Program, pinned_hooks},
    devices::{Ifindex, name_of},
};
use proxy_common::{
    backend::{Backend, BackendFlags},
    counters::ServiceCounters,
    drop::DropReason,
    tables::{Backends, Drops, Passages, ServiceNames, ServiceTraffic},
    xdp::Passage,
};

use crate::{
    agent::{Agent, Mark},
    counters,
    service::Service,
    topology::{BRIDGE, Family, POD_DEVICE},
    traffic::Protocol,
    wait::wait_until,
};

/// A frontend of `sluice services`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// Address and port.
    pub frontend: SocketAddr,
    /// Protocol, as Kubernetes writes it.
    pub protocol: String,
    /// Where new flows may go.
    pub backends: BTreeSet<SocketAddr>,
}

/// The shape of `sluice services -o json`, as far as it matters here.
mod shape {
    use std::{collections::BTreeMap, net::SocketAddr};

    use serde::Deserialize;

    #[derive(Deserialize)]
    pub(super) struct Status {
        pub(super) devices: Vec<Device>,
        pub(super) drops: BTreeMap<String, u64>,
    }

    #[derive(Deserialize)]
    pub(super) struct Device {
        pub(super) name: Option<String>,
        pub(super) ingress: Option<u32>,
        pub(super) egress: Option<u32>,
    }

    #[derive(Deserialize)]
    pub(super) struct Services {
        pub(super) services: Vec<Service>,
    }

    #[derive(Deserialize)]
    pub(super) struct Service {
        pub(super) frontends: Vec<Frontend>,
    }

    #[derive(Deserialize)]
    pub(super) struct Frontend {
        pub(super) address: SocketAddr,
        pub(super) protocol: String,
        pub(super) backends: Vec<Backend>,
    }

    #[derive(Deserialize)]
    pub(super) struct Backend {
        pub(super) address: SocketAddr,
        pub(super) state: String,
    }
}

impl Agent {
    /// What `sluice services` says.
    ///
    /// # Errors
    ///
    /// If it says nothing, or something unknown.
    pub fn services(&self) -> Result<Vec<Served>> {
        let text = self.ask(&["services", "-o", "json"])?;
        let all: shape::Services =
            serde_json::from_str(&text).with_context(|| format!("the answer of sluice services:\n{text}"))?;
        let served = |frontend: shape::Frontend| Served {
            frontend: frontend.address,
            protocol: frontend.protocol,
            backends: frontend
                .backends
                .into_iter()
                .filter(|backend| backend.state.starts_with("live"))
                .map(|backend| backend.address)
                .collect(),
        };
        Ok(all.services.into_iter().flat_map(|service| service.frontends).map(served).collect())
    }

    /// The devices that have both programs, by name, as their links are pinned.
    ///
    /// # Errors
    ///
    /// If they cannot be read.
    pub fn attached(&self) -> Result<BTreeSet<String>> {
        self.namespace().run(|| {
            let hooks = pinned_hooks(&Pins::new(self.bpffs()))?;
            let has = |device: Ifindex, programs: [Program; 2]| {
                hooks.iter().any(|hook| hook.device == device && programs.contains(&hook.program))
            };
            let whole = hooks.iter().map(|hook| hook.device).filter(|&device| {
                has(device, [Program::Ingress, Program::IngressL3])
                    && has(device, [Program::Egress, Program::EgressL3])
            });
            Ok(whole.map(|device| name_of(device).unwrap_or_else(|| format!("index {}", device.0))).collect())
        })
    }

    /// What the kernel has counted so far, of all services.
    ///
    /// # Errors
    ///
    /// If its tables cannot be read.
    pub fn traffic(&self) -> Result<ServiceCounters> {
        self.namespace().run(|| {
            let pins = Pins::new(self.bpffs());
            let table = PerCpuTable::<ServiceTraffic>::open(&pins)?;
            let mut sum = ServiceCounters::default();
            for entry in HashTable::<ServiceNames>::open(&pins)?.entries() {
                let (id, _) = entry?;
                sum = table.get(id.0)?.into_iter().fold(sum, ServiceCounters::plus);
            }
            Ok(sum)
        })
    }

    /// What became of how many packets before the stack.
    ///
    /// # Errors
    ///
    /// If the kernel's table cannot be read.
    pub fn passages(&self, passage: Passage) -> Result<u64> {
        self.namespace().run(|| {
            let table = PerCpuTable::<Passages>::open(&Pins::new(self.bpffs()))?;
            Ok(table.get(passage as u32)?.iter().sum())
        })
    }

    /// How many packets the kernel has dropped for a reason.
    ///
    /// # Errors
    ///
    /// If its table cannot be read.
    pub fn drops(&self, reason: DropReason) -> Result<u64> {
        self.namespace().run(|| {
            let table = PerCpuTable::<Drops>::open(&Pins::new(self.bpffs()))?;
            Ok(table.get(reason as u32)?.iter().sum())
        })
    }

    /// The numbers of the backends at these ends that may be used, by the kernel's table.
    ///
    /// # Errors
    ///
    /// If the table cannot be read.
    pub fn live_backends(&self, ends: &[SocketAddr]) -> Result<Vec<u32>> {
        self.namespace().run(|| {
            let table = ArrayTable::<Backends>::open(&Pins::new(self.bpffs()))?;
            let is_one = |backend: &Backend| {
                let end = backend.end();
                let end = SocketAddr::new(end.address.to_ip(), end.port.to_host());
                backend.flags.contains(BackendFlags::LIVE) && ends.contains(&end)
            };
            let mut found = Vec::new();
            for entry in table.entries() {
                let (id, backend) = entry?;
                // Low numbers are given away first.
                if found.len() == ends.len() {
                    break;
                }
                if is_one(&backend) {
                    found.push(id);
                }
            }
            Ok(found)
        })
    }

    /// Whether one of these backends may be used.
    ///
    /// # Errors
    ///
    /// If the table cannot be read.
    pub fn has_live_backend(&self, numbers: &[u32]) -> Result<bool> {
        self.namespace().run(|| {
            let table = ArrayTable::<Backends>::open(&Pins::new(self.bpffs()))?;
            let is_live = |backend: Backend| backend.flags.contains(BackendFlags::LIVE);
            let rows = numbers.iter().map(|&number| table.get(number)).collect::<Result<Vec<_>, _>>()?;
            Ok(rows.into_iter().flatten().any(is_live))
        })
    }

    /// What `sluice status` says of devices with both programs, and of drops by their reasons.
    ///
    /// # Errors
    ///
    /// If it says nothing, or something unknown.
    pub fn status(&self) -> Result<(BTreeSet<String>, BTreeMap<String, u64>)> {
        let text = self.ask(&["status", "-o", "json"])?;
        let status: shape::Status =
            serde_json::from_str(&text).with_context(|| format!("the answer of sluice status:\n{text}"))?;
        let whole = status.devices.into_iter().filter(|row| row.ingress.is_some() && row.egress.is_some());
        Ok((whole.filter_map(|row| row.name).collect(), status.drops))
    }

    /// Waits until the kernel has put a mark into effect, and so everything that was told before.
    pub(crate) fn wait_for_mark(&self, mark: Mark) -> Result<()> {
        let Mark(frontend) = mark;
        let seen = wait_until(&format!("{} has caught up to {frontend}", self.node()), || {
            let served = self.services()?.iter().any(|served| served.frontend == frontend);
            Ok(served.then_some(()))
        });
        seen.map_err(|error| anyhow!("{error:#}; its log:\n{}", self.log().unwrap_or_default()))
    }

    /// Waits until exactly the devices that should be are attached: all but `lo`, the bridge if it has ports, and the
    /// ports of a bond.
    ///
    /// # Errors
    ///
    /// If they never are.
    pub fn wait_until_attached(&self) -> Result<()> {
        let attached = wait_until(&format!("{} has programs on every device", self.node()), || {
            let mut devices = counters::devices(self.namespace())?;
            devices.remove("lo");
            if devices.iter().any(|name| name.starts_with(POD_DEVICE)) {
                devices.remove(BRIDGE);
            }
            if devices.contains("bond0") {
                devices.retain(|name| !name.starts_with("eth"));
            }
            Ok((self.attached()? == devices).then_some(()))
        });
        attached.map_err(|error| anyhow!("{error:#}; attached are {:?}", self.attached()))
    }

    /// Waits until the kernel of this node serves exactly what `service`, whose endpoints are all ready, describes.
    ///
    /// # Errors
    ///
    /// If it never does.
    pub fn wait_for_service(&self, service: &Service) -> Result<()> {
        let what = format!("{} serves {} with {:?}", self.node(), service.name, service.pods());
        let served = wait_until(&what, || {
            let services = self.services()?;
            let all = service.frontends().all(|(frontend, protocol)| {
                let backends = service.backends(Family::of(frontend.ip()));
                find(&services, frontend, protocol).is_some_and(|served| served.backends == backends)
            });
            Ok(all.then_some(()))
        });
        served.map_err(|error| anyhow!("{error:#}; the kernel has {:#?}", self.services()))
    }

    /// Waits until the kernel of this node knows nothing of `service`.
    ///
    /// # Errors
    ///
    /// If it goes on serving it.
    pub fn wait_for_absence(&self, service: &Service) -> Result<()> {
        let what = format!("{} no longer serves {}", self.node(), service.name);
        wait_until(&what, || {
            let services = self.services()?;
            let mut all = service.frontends();
            let any = all.any(|(frontend, protocol)| find(&services, frontend, protocol).is_some());
            Ok((!any).then_some(()))
        })
    }
}

fn find(services: &[Served], frontend: SocketAddr, protocol: Protocol) -> Option<&Served> {
    services.iter().find(|served| served.frontend == frontend && served.protocol == protocol.as_str())
}
