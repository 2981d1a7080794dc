//! The sweep: frees the memory of flows that have expired.
//!
//! Nothing depends on it for correctness: whether a flow has expired is decided at lookup. It also reports
//! which addresses live flows still use, so that the address filter can forget the others.

use std::collections::{HashMap, HashSet};

use proxy_common::{
    filter::{AddressRoles, FilterPosition},
    flow::{Direction, FlowEntry, FlowState, Ticks},
    tables::Flows,
    tuple::FlowKey,
};

use super::{
    map::{HashTable, TableError},
    pins::Pins,
};

/// What a sweep found.
#[derive(Debug, Default)]
pub struct Sweep {
    /// Entries removed.
    pub removed: usize,
    /// Entries left.
    pub left: usize,
    /// Roles of addresses in the flows that are left.
    pub in_use: HashMap<FilterPosition, AddressRoles>,
}

impl Sweep {
    fn note(&mut self, position: FilterPosition, role: AddressRoles) {
        let roles = self.in_use.entry(position).or_default();
        *roles = roles.with(role);
    }
}

/// Removes expired flows. Blocks for about a microsecond an entry.
pub fn sweep(pins: &Pins, now: Ticks) -> Result<Sweep, TableError> {
    let mut table = HashTable::<Flows>::open(pins)?;
    let mut idle = HashMap::new();
    let mut sweep = Sweep::default();
    for entry in table.entries() {
        let (key, flow) = entry?;
        if flow.is_idle(now) {
            idle.insert(key, flow);
        } else {
            keep(&mut sweep, &key, &flow);
        }
    }
    let expired: HashSet<_> = idle.keys().copied().collect();
    for (key, flow) in idle {
        // A flow that one side uses is alive; a void entry belongs to nobody.
        let peer_lives =
            !expired.contains(&flow.peer) && table.get(&flow.peer)?.is_some_and(|peer| peer.peer == key);
        if flow.state != FlowState::VOID && peer_lives {
            keep(&mut sweep, &key, &flow);
            continue;
        }
        // It may have come back to life since it was read.
        if table.get(&key)?.is_some_and(|flow| flow.is_idle(now)) {
            table.delete(&key)?;
            sweep.removed += 1;
        }
    }
    Ok(sweep)
}

fn keep(sweep: &mut Sweep, key: &FlowKey, flow: &FlowEntry) {
    sweep.left += 1;
    if flow.direction == Direction::ORIGINAL {
        sweep.note(FilterPosition::of(key.destination), AddressRoles::FRONTEND);
        sweep.note(FilterPosition::of(flow.peer.source), AddressRoles::BACKEND);
    } else {
        sweep.note(FilterPosition::of(flow.peer.destination), AddressRoles::FRONTEND);
        sweep.note(FilterPosition::of(key.source), AddressRoles::BACKEND);
    }
}
