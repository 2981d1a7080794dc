//! The sweep: frees the memory of flows that have expired.
//!
//! Nothing depends on it for correctness: whether a flow has expired is decided at lookup. It also reports
//! which addresses live flows still use, so that the address filter can forget the others.
//!
//! CPUs remember flows for a tenth of a second, and the table hears of a flow whenever one does. What is removed here has been
//! silent for a second at least, so nobody remembers it.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use proxy_common::{
    config::NodeSettings,
    filter::{AddressRoles, FilterPosition},
    flow::{FlowEntry, FlowState},
    frontend::ServiceId,
    tables::{Flows, Settings},
    time::Ticks,
    tuple::{FlowKey, Hook},
};

use super::{
    map::{ArrayTable, HashTable, TableError},
    pins::Pins,
};

/// How full the flow table is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    /// Flows may stay as long as they like.
    #[default]
    Low,
    /// Memory is to be freed as soon as flows have expired.
    Rising,
    /// Flows that matter least must go, lest new ones find no room.
    High,
}

impl Pressure {
    /// The pressure of `left` entries in a table of `capacity`.
    #[must_use]
    pub const fn of(left: usize, capacity: usize) -> Self {
        if left > capacity / 4 * 3 {
            Self::High
        } else if left > capacity / 5 * 2 {
            Self::Rising
        } else {
            Self::Low
        }
    }

    /// How long after a sweep the next one is due.
    #[must_use]
    pub const fn interval(self) -> Duration {
        Duration::from_secs(match self {
            Self::Low => 30,
            Self::Rising => 5,
            Self::High => 1,
        })
    }
}

/// How long flows of some kinds may stay silent at most, whatever their own timeouts say.
#[derive(Clone, Copy, Debug, Default)]
struct Limits {
    /// Connections that are over.
    over: Option<Ticks>,
    /// Flows that nobody has answered for good.
    embryonic: Option<Ticks>,
}

impl Limits {
    /// A connection that has just ended still gets its last acknowledgement through.
    const OVER: u32 = 1;
    /// A client's first four SYNs are no more than 4 s apart.
    const EMBRYONIC: u32 = 5;

    /// From gentle to harsh, as far as `pressure` may go.
    fn under(pressure: Pressure, settings: &NodeSettings) -> Vec<Self> {
        if pressure < Pressure::High {
            return vec![Self::default()];
        }
        let over = Self { over: Some(settings.ticks(Self::OVER)), embryonic: None };
        vec![over, Self { embryonic: Some(settings.ticks(Self::EMBRYONIC)), ..over }]
    }

    fn is_idle(self, flow: &FlowEntry, now: Ticks) -> bool {
        let limit = match flow.head.state {
            state if state.is_over() => self.over,
            state if state.is_embryonic() => self.embryonic,
            _ => None,
        };
        flow.head.is_idle(now) || limit.is_some_and(|limit| flow.head.last_seen.age(now).exceeds(limit))
    }
}

/// What a sweep found.
#[derive(Debug, Default)]
pub struct Sweep {
    /// Entries removed.
    pub removed: usize,
    /// Entries left.
    pub left: usize,
    /// Entries that there is room for.
    pub capacity: u32,
    /// Roles of addresses in the flows that are left.
    pub in_use: HashMap<FilterPosition, AddressRoles>,
}

impl Sweep {
    /// How full the table is now.
    #[must_use]
    pub const fn pressure(&self) -> Pressure {
        Pressure::of(self.left, self.capacity as usize)
    }

    fn note(&mut self, position: FilterPosition, role: AddressRoles) {
        let roles = self.in_use.entry(position).or_default();
        *roles = roles.with(role);
    }
}

/// Removes expired flows, and under high pressure those that are over, and if that does not help those that have
/// not got anywhere. Blocks for about a microsecond an entry.
pub fn sweep(pins: &Pins, now: Ticks, pressure: Pressure) -> Result<Sweep, TableError> {
    let mut table = HashTable::<Flows>::open(pins)?;
    let settings = ArrayTable::<Settings>::open(pins)?.get(0)?;
    let steps =
        settings.map_or_else(|| vec![Limits::default()], |settings| Limits::under(pressure, &settings));
    let mut removed = 0;
    let mut sweep = Sweep::default();
    for limits in steps {
        sweep = pass(&mut table, now, limits)?;
        removed += sweep.removed;
        if sweep.pressure() < Pressure::High {
            break;
        }
    }
    Ok(Sweep { removed, ..sweep })
}

fn pass(table: &mut HashTable<Flows>, now: Ticks, limits: Limits) -> Result<Sweep, TableError> {
    let mut idle = HashMap::new();
    let mut sweep = Sweep { capacity: table.capacity(), ..Sweep::default() };
    for entry in table.entries() {
        let (key, flow) = entry?;
        if limits.is_idle(&flow, now) {
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
        if flow.head.state != FlowState::VOID && peer_lives {
            keep(&mut sweep, &key, &flow);
            continue;
        }
        // It may have come back to life since it was read.
        if table.get(&key)?.is_some_and(|flow| limits.is_idle(&flow, now)) {
            table.delete(&key)?;
            sweep.removed += 1;
        }
    }
    Ok(sweep)
}

fn keep(sweep: &mut Sweep, key: &FlowKey, flow: &FlowEntry) {
    sweep.left += 1;
    for end in [key, &flow.peer] {
        if let Some((position, roles)) = needed(end, flow.head.service) {
            sweep.note(position, roles);
        }
    }
}

/// What the filter must go on saying for a direction of a flow to be found: something about destinations at ingress,
/// about sources at egress.
///
/// Flows of no service rewrite sources. Of these, what leaves the node is looked up because the ingress hook wants it to
/// be, whatever the filter says of the client; what comes back is found by the node's address.
fn needed(key: &FlowKey, service: ServiceId) -> Option<(FilterPosition, AddressRoles)> {
    const SERVED: AddressRoles = AddressRoles::FRONTEND.with(AddressRoles::NODE);
    match (key.hook, service) {
        (Hook::INGRESS, ServiceId::NONE) => Some((FilterPosition::of(key.destination), AddressRoles::NODE)),
        // By a NodePort, a service too is found by the node's address.
        (Hook::INGRESS, _) => Some((FilterPosition::of(key.destination), SERVED)),
        (_, ServiceId::NONE) => None,
        (_, _) => Some((FilterPosition::of(key.source), AddressRoles::BACKEND)),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use proxy_common::{
        endian::Be16,
        flow::FlowHead,
        tuple::{Endpoint, Protocol},
    };

    use super::*;

    fn end(text: &str) -> Endpoint {
        let end: SocketAddr = text.parse().unwrap();
        Endpoint { address: end.ip().into(), port: Be16::from_host(end.port()) }
    }

    /// A client of a service whose backend is on another node: both pairs of entries.
    #[test]
    fn flows_keep_the_filter_bits_that_they_are_found_by() {
        let (client, frontend) = (end("10.0.0.9:40000"), end("192.0.2.1:30080"));
        let (backend, node) = (end("10.244.2.7:8080"), end("192.0.2.1:5000"));
        let key = |from, to, hook| FlowKey::new(from, to, Protocol::TCP, hook);
        let found = |key: FlowKey, peer: FlowKey, service| {
            let mut sweep = Sweep::default();
            keep(&mut sweep, &key, &FlowEntry { peer, head: FlowHead { service, ..FlowHead::default() } });
            assert_eq!(sweep.left, 1);
            sweep.in_use
        };
        let place = |end: Endpoint| FilterPosition::of(end.address);
        let served = AddressRoles::FRONTEND.with(AddressRoles::NODE);

        let there = key(client, frontend, Hook::INGRESS);
        let back = key(backend, client, Hook::EGRESS);
        let expected = HashMap::from([(place(frontend), served), (place(backend), AddressRoles::BACKEND)]);
        assert_eq!(found(there, back, ServiceId(7)), expected);
        assert_eq!(found(back, there, ServiceId(7)), expected);

        let there = key(client, backend, Hook::EGRESS);
        let back = key(backend, node, Hook::INGRESS);
        let expected = HashMap::from([(place(node), AddressRoles::NODE)]);
        assert_eq!(found(there, back, ServiceId::NONE), expected);
        assert_eq!(found(back, there, ServiceId::NONE), expected);
    }

    #[test]
    fn pressure_grows_with_the_entries() {
        let table = [
            (0, Pressure::Low),
            (400, Pressure::Low),
            (401, Pressure::Rising),
            (750, Pressure::Rising),
            (751, Pressure::High),
            (1000, Pressure::High),
        ];
        for (left, expected) in table {
            assert_eq!(Pressure::of(left, 1000), expected, "{left} of 1000");
        }
    }

    #[test]
    fn higher_pressure_means_more_sweeps() {
        let intervals = [Pressure::Low, Pressure::Rising, Pressure::High].map(Pressure::interval);
        assert!(intervals.is_sorted_by(|a, b| a > b), "{intervals:?}");
    }

    #[test]
    fn pressure_takes_first_what_is_over_and_then_what_has_not_begun() {
        let settings = NodeSettings::new(100);
        let outcomes = |pressure, state, silent: u32| {
            let timeout = settings.timeouts.of(state);
            let head = FlowHead { state, timeout, ..FlowHead::default() };
            let flow = FlowEntry { head, ..FlowEntry::default() };
            let limits = Limits::under(pressure, &settings);
            limits.iter().map(|limits| limits.is_idle(&flow, settings.ticks(silent))).collect::<Vec<_>>()
        };
        assert_eq!(outcomes(Pressure::Low, FlowState::TIME_WAIT, 119), [false]);
        assert_eq!(outcomes(Pressure::Rising, FlowState::SYN_SENT, 119), [false]);
        assert_eq!(outcomes(Pressure::Rising, FlowState::SYN_SENT, 121), [true]);
        assert_eq!(outcomes(Pressure::High, FlowState::TIME_WAIT, 1), [false, false]);
        assert_eq!(outcomes(Pressure::High, FlowState::TIME_WAIT, 2), [true, true]);
        assert_eq!(outcomes(Pressure::High, FlowState::RESET, 2), [true, true]);
        assert_eq!(outcomes(Pressure::High, FlowState::SYN_SENT, 5), [false, false]);
        assert_eq!(outcomes(Pressure::High, FlowState::SYN_SENT, 6), [false, true]);
        assert_eq!(outcomes(Pressure::High, FlowState::UNREPLIED, 6), [false, true]);
        assert_eq!(outcomes(Pressure::High, FlowState::ESTABLISHED, 3600), [false, false]);
        assert_eq!(outcomes(Pressure::High, FlowState::REPLIED, 60), [false, false]);
    }
}
