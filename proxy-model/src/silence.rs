//! Service ports whose policy keeps traffic on this node, where nobody answers it (MET-11).

use std::collections::BTreeMap;

use proxy_common::frontend::FrontendFlags;

use crate::{
    name::{Family, ServicePortName},
    target::Target,
};

/// How many service ports of a family drop what only other nodes could answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoLocalEndpoints {
    /// By `internalTrafficPolicy: Local`.
    pub internal: usize,
    /// By `externalTrafficPolicy: Local`.
    pub external: usize,
}

/// Keeps count of them.
#[derive(Debug, Default)]
pub(crate) struct Silences {
    ports: BTreeMap<ServicePortName, Silence>,
    counts: [NoLocalEndpoints; 2],
}

/// To whom a service port is silent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Silence {
    internal: bool,
    external: bool,
}

impl Silences {
    /// The service port is to be this.
    pub(crate) fn set(&mut self, port: &ServicePortName, target: &Target) {
        let any = |flag| target.frontends.iter().any(|(_, flags)| flags.contains(flag));
        let silence = Silence {
            internal: any(FrontendFlags::DROP_WHEN_EMPTY),
            external: any(FrontendFlags::DROP_OUTSIDE_WHEN_EMPTY),
        };
        let before = if silence == Silence::default() {
            self.ports.remove(port)
        } else {
            self.ports.insert(port.clone(), silence)
        };
        let before = before.unwrap_or_default();
        let counts = match port.family {
            Family::Ipv4 => &mut self.counts[0],
            Family::Ipv6 => &mut self.counts[1],
        };
        for (count, before, now) in [
            (&mut counts.internal, before.internal, silence.internal),
            (&mut counts.external, before.external, silence.external),
        ] {
            *count = *count + usize::from(now) - usize::from(before);
        }
    }

    /// The counts, in the order of [`Family::ALL`].
    pub(crate) const fn counts(&self) -> [NoLocalEndpoints; 2] {
        self.counts
    }
}
