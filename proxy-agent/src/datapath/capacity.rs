//! How many entries each table is to have room for.

use proxy_common::{
    backend::Backend,
    frontend::Frontend,
    tables::{
        Addresses, Affinities, Backends, Flows, Frontends, NODE_ADDRESSES, ServiceDrops, ServiceNames,
        ServiceTraffic, Slots, Sockets, SourceRanges, Table,
    },
};
use tracing::warn;

use super::{
    list::{self, Visitor},
    map::{self, ArrayTable, HashTable, TableError, TrieTable},
    pins::Pins,
};

/// Slots for each backend: a service port has up to two sets, and writes a new one before it lets go of the old.
const SLOTS_PER_BACKEND: u32 = Slots::CAPACITY / Backends::CAPACITY;

/// Counters of drops for each service port.
const DROPS_PER_SERVICE: u32 = ServiceDrops::CAPACITY / ServiceNames::CAPACITY;

/// Room in tables, as operators think of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacities {
    /// Service ports.
    pub services: u32,
    /// Frontends.
    pub frontends: u32,
    /// Backends.
    pub backends: u32,
    /// Source ranges.
    pub source_ranges: u32,
    /// Entries of flows.
    pub flows: u32,
    /// Clients with session affinity.
    pub affinities: u32,
    /// Sockets and their peers.
    pub sockets: u32,
}

impl Default for Capacities {
    fn default() -> Self {
        Self {
            services: ServiceNames::CAPACITY,
            frontends: Frontends::CAPACITY,
            backends: Backends::CAPACITY,
            source_ranges: SourceRanges::CAPACITY,
            flows: Flows::CAPACITY,
            affinities: Affinities::CAPACITY,
            sockets: Sockets::CAPACITY,
        }
    }
}

impl Capacities {
    /// The capacity of a table.
    pub(super) fn of<T: Table>(&self) -> u32 {
        match T::NAME {
            ServiceNames::NAME | ServiceTraffic::NAME => self.services,
            ServiceDrops::NAME => self.services.saturating_mul(DROPS_PER_SERVICE),
            Frontends::NAME => self.frontends,
            Addresses::NAME => self.frontends.saturating_add(NODE_ADDRESSES),
            Backends::NAME => self.backends,
            Slots::NAME => self.backends.saturating_mul(SLOTS_PER_BACKEND),
            SourceRanges::NAME => self.source_ranges,
            Flows::NAME => self.flows,
            Affinities::NAME => self.affinities,
            Sockets::NAME => self.sockets,
            _ => T::CAPACITY,
        }
    }

    /// What the pinned tables have room for.
    pub fn pinned(pins: &Pins) -> Result<Self, TableError> {
        Ok(Self {
            // Ids index both.
            services: map::capacity::<ServiceNames>(pins)?.min(map::capacity::<ServiceTraffic>(pins)?),
            frontends: map::capacity::<Frontends>(pins)?,
            backends: map::capacity::<Backends>(pins)?.min(map::capacity::<Slots>(pins)? / SLOTS_PER_BACKEND),
            source_ranges: map::capacity::<SourceRanges>(pins)?,
            flows: map::capacity::<Flows>(pins)?,
            affinities: map::capacity::<Affinities>(pins)?,
            sockets: map::capacity::<Sockets>(pins)?,
        })
    }

    /// These, but where the pinned tables have more room and need it, theirs.
    pub(super) fn granted(mut self, pins: &Pins) -> Result<Self, TableError> {
        let pinned = match Self::pinned(pins) {
            Ok(pinned) => pinned,
            Err(TableError::Absent { .. }) => return Ok(self),
            Err(error) => return Err(error),
        };
        let knobs: [Knob<'_>; 7] = [
            ("--max-services", &mut self.services, pinned.services, needed_services),
            ("--max-frontends", &mut self.frontends, pinned.frontends, needed_frontends),
            ("--max-backends", &mut self.backends, pinned.backends, needed_backends),
            ("--max-source-ranges", &mut self.source_ranges, pinned.source_ranges, |pins| {
                Ok(TrieTable::<SourceRanges>::open(pins)?.keys()?.len())
            }),
            // Others come while they are moved, perhaps many.
            ("--max-flow-entries", &mut self.flows, pinned.flows, |pins| {
                Ok(HashTable::<Flows>::open(pins)?.count()? * 4)
            }),
            ("--max-affinities", &mut self.affinities, pinned.affinities, |pins| {
                HashTable::<Affinities>::open(pins)?.count()
            }),
            ("--max-sockets", &mut self.sockets, pinned.sockets, |pins| {
                HashTable::<Sockets>::open(pins)?.count()
            }),
        ];
        for (flag, wanted, pinned, needed) in knobs {
            if *wanted >= pinned {
                continue;
            }
            let needed = needed(pins)?;
            if needed > *wanted as usize {
                warn!(
                    wanted = *wanted,
                    needed,
                    kept = pinned,
                    "{flag} is too small for what is there; the tables keep their capacity until the agent starts with less in them"
                );
                *wanted = pinned;
            }
        }
        Ok(self)
    }
}

/// A flag, what it wants, what there is, and what it takes for every entry to keep its place.
type Knob<'a> = (&'static str, &'a mut u32, u32, fn(&Pins) -> Result<usize, TableError>);

/// Ids are places.
fn needed_services(pins: &Pins) -> Result<usize, TableError> {
    let ids = HashTable::<ServiceNames>::open(pins)?.keys()?;
    Ok(ids.into_iter().map(|id| id.0 as usize + 1).max().unwrap_or_default())
}

fn needed_frontends(pins: &Pins) -> Result<usize, TableError> {
    let addresses = HashTable::<Addresses>::open(pins)?.count()?;
    Ok(HashTable::<Frontends>::open(pins)?.count()?.max(addresses.saturating_sub(NODE_ADDRESSES as usize)))
}

/// Ids and slots are places. Those of backends that are gone tell which generations were used.
fn needed_backends(pins: &Pins) -> Result<usize, TableError> {
    let mut needed = 0;
    for entry in ArrayTable::<Backends>::open(pins)?.entries() {
        let (index, backend) = entry?;
        if backend != Backend::default() {
            needed = needed.max(index as usize + 1);
        }
    }
    for entry in HashTable::<Frontends>::open(pins)?.entries() {
        let (_, Frontend { slots, outside, .. }) = entry?;
        for run in [slots, outside] {
            let end = run.base.saturating_add(run.count);
            needed = needed.max(end.div_ceil(SLOTS_PER_BACKEND) as usize);
        }
    }
    Ok(needed)
}

/// The name of every pinned table, and how many entries there is room for.
pub fn table_capacities(pins: &Pins) -> Result<Vec<(&'static str, u32)>, TableError> {
    struct Reading<'a>(&'a Pins, Vec<(&'static str, u32)>);
    impl Visitor for Reading<'_> {
        type Error = TableError;

        fn visit<T: Table>(&mut self) -> Result<(), TableError> {
            self.1.push((T::NAME, map::capacity::<T>(self.0)?));
            Ok(())
        }
    }
    let mut reading = Reading(pins, Vec::new());
    list::visit(&mut reading)?;
    Ok(reading.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The object declares the defaults.
    #[test]
    fn the_default_of_every_table_is_its_own() {
        struct Check;
        impl Visitor for Check {
            type Error = std::convert::Infallible;

            fn visit<T: Table>(&mut self) -> Result<(), Self::Error> {
                assert_eq!(Capacities::default().of::<T>(), T::CAPACITY, "{}", T::NAME);
                Ok(())
            }
        }
        let Ok(()) = list::visit(&mut Check);
    }
}
