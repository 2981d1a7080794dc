//! Whether connections that the datapath does not know go on where their hash leads.
//!
//! They may be kube-proxy's: what it translated before Sluice came is in conntrack, and its packets have to be left to that. No
//! program can look there, so the agent does, as long as there is one that was made to a Maglev frontend. Once there is none,
//! there is none for ever: new ones to services do not come so far.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use proxy_common::{
    endian::Be16,
    frontend::{FrontendFlags, FrontendKey},
    tables::Frontends,
    tuple::{Endpoint, Protocol},
};
use tracing::{info, warn};

use super::settings::Settings;
use crate::{
    datapath::{HashTable, Pins, TableError},
    kube_proxy,
};

/// How long after a look there may be another.
const PAUSE: Duration = Duration::from_secs(10);

/// When conntrack was asked.
#[derive(Debug, Default)]
pub(super) struct TakingUp {
    asked: Option<Instant>,
    is_told: bool,
}

impl TakingUp {
    /// Lets connections be taken up, if netfilter has none of them and nobody has let them be yet.
    pub(super) fn consider(&mut self, pins: &Pins, settings: &mut Settings) {
        if settings.take_up() || self.asked.is_some_and(|asked| asked.elapsed() < PAUSE) {
            return;
        }
        self.asked = Some(Instant::now());
        let why = match translated(pins) {
            Ok(0) => match settings.set_take_up() {
                Ok(()) => return info!("connections that are not known here go on where their hash leads"),
                Err(error) => crate::report(&error),
            },
            Ok(found) => format!("netfilter translates {found} of them, which began before this agent"),
            Err(error) => error,
        };
        if !self.is_told {
            self.is_told = true;
            warn!(
                why,
                "TCP connections to Maglev frontends that are not known here are left to the stack for now"
            );
        }
    }
}

/// How many TCP connections to Maglev frontends netfilter leads to their backends.
fn translated(pins: &Pins) -> Result<usize, String> {
    let ends = kube_proxy::translated().map_err(|error| format!("conntrack cannot be listed: {error}"))?;
    let table = HashTable::<Frontends>::open(pins).map_err(|error| crate::report(&error))?;
    let mut count = 0;
    for end in ends {
        let counts = end.map_or(Ok(true), |end| leads_by_hash(&table, end));
        count += usize::from(counts.map_err(|error| crate::report(&error))?);
    }
    Ok(count)
}

/// Whether there is a Maglev frontend, or may be one: a NodePort is taken for one at any address.
fn leads_by_hash(table: &HashTable<Frontends>, end: SocketAddr) -> Result<bool, TableError> {
    let end = Endpoint { address: end.ip().into(), port: Be16::from_host(end.port()) };
    for key in [FrontendKey::new(end, Protocol::TCP), FrontendKey::node_port(end, Protocol::TCP)] {
        if table.get(&key)?.is_some_and(|frontend| frontend.flags.contains(FrontendFlags::MAGLEV)) {
            return Ok(true);
        }
    }
    Ok(false)
}
