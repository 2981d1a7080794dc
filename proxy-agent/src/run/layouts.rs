//! What agents with other layouts have left, from when this one serves until nobody needs it any more.

use std::time::Duration;

use proxy_common::config::TimeoutSettings;
use tracing::{info, warn};

use super::{Agent, ConntrackTimeouts};
use crate::datapath::{Pins, retire};

/// How long the programs of another layout stay after they have begun their last flow: as long as an established
/// connection may be silent.
pub(super) fn stay(timeouts: &ConntrackTimeouts) -> Duration {
    let seconds = timeouts.tcp_established.unwrap_or(TimeoutSettings::CONNTRACK.tcp_established);
    Duration::from_secs(seconds.into())
}

impl Agent {
    /// From when this agent serves, the programs of other layouts begin no flows, so that they disagree with it about none;
    /// they go on with those that they have, and are removed when these had time to end.
    pub(super) fn look_after_other_layouts(&self) {
        if !self.synced {
            return;
        }
        match self.pins.others() {
            Ok(others) => others.iter().for_each(|other| self.look_after(other)),
            Err(error) => warn!("{}; links and tables of other layouts remain", crate::report(&error)),
        }
    }

    fn look_after(&self, other: &Pins) {
        let pins = other.root().display();
        let stay = self.old_layouts_stay;
        match retire(other) {
            Ok(None) => {
                info!(%pins, ?stay, "another layout begins no more connections and goes on with those that it has");
                return;
            }
            Ok(Some(retired)) if retired < stay => return,
            Ok(Some(_)) => {}
            Err(error) => warn!(
                "{}; the links and tables of another layout are removed, and the connections that began through them end",
                crate::report(&error)
            ),
        }
        match other.remove() {
            Ok(links) => info!(%pins, links, "removed the links and tables of another layout"),
            Err(error) => warn!("{}; links and tables of another layout remain", crate::report(&error)),
        }
    }
}
