//! Room in tables: word of who finds none, and tables that are being moved to where there is more.

use std::collections::BTreeMap;

use proxy_common::{
    misfit::Misfit,
    tables::{Backends, Frontends, Misfits as MisfitTable, ServiceNames, Slots, SourceRanges, Table as _},
};
use proxy_model::{Model, Troubles};
use tracing::{info, warn};

use crate::datapath::{self, HashTable, Pins, TableError};

/// The tables that a service port may find no room in, and how many do not.
pub(crate) type Unfit = [(&'static str, usize); 5];

const NOBODY: Unfit = [
    (ServiceNames::NAME, 0),
    (Frontends::NAME, 0),
    (Backends::NAME, 0),
    (Slots::NAME, 0),
    (SourceRanges::NAME, 0),
];

/// Service ports without room, as others may read them.
pub(super) struct Misfits {
    table: HashTable<MisfitTable>,
    rows: BTreeMap<u32, Misfit>,
    counts: Unfit,
    /// How much was wrong the last time.
    troubles: Troubles,
}

impl Misfits {
    /// Forgets what an earlier run could not place.
    pub(super) fn start(pins: &Pins) -> Result<Self, TableError> {
        let mut table = HashTable::open(pins)?;
        table.keys()?.iter().try_for_each(|place| table.delete(place))?;
        Ok(Self { table, rows: BTreeMap::new(), counts: NOBODY, troubles: Troubles::default() })
    }

    /// How many there are, by table.
    pub(super) const fn counts(&self) -> Unfit {
        self.counts
    }

    /// Writes down who does not fit after a plan, if that may have changed: there is `news`, or something is no longer wrong.
    pub(super) fn note(&mut self, model: &Model, news: bool) -> Result<(), TableError> {
        let troubles = model.troubles();
        if !news && troubles == self.troubles {
            return Ok(());
        }
        if troubles.services_without_room == 0 && self.troubles.services_without_room > 0 {
            info!("every Service has room again");
        }
        self.counts = NOBODY;
        let mut wanted = BTreeMap::new();
        for (place, (port, table, count)) in (0..).zip(model.unfit_ports()) {
            let known = self.counts.iter_mut().find(|(name, _)| *name == table);
            known.into_iter().for_each(|(_, ports)| *ports += 1);
            let row = port.to_row().filter(|_| place < MisfitTable::CAPACITY);
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            wanted.extend(row.map(|row| (place, Misfit::new(row, table, count))));
        }
        for (place, row) in wanted.iter().filter(|(place, row)| self.rows.get(place) != Some(row)) {
            self.table.put(place, row)?;
        }
        for place in self.rows.keys().filter(|place| !wanted.contains_key(place)) {
            self.table.delete(place)?;
        }
        self.rows = wanted;
        self.troubles = troubles;
        Ok(())
    }
}

/// Tables that are to be moved.
pub(super) enum Moves {
    /// Not yet: programs may be attached that would not find what is moved. Why it failed, if it was tried.
    Pending(Option<String>),
    /// All are where they belong.
    Done,
}

impl Moves {
    /// Whether there is anything left to do.
    pub(super) const fn is_pending(&self) -> bool {
        matches!(self, Self::Pending(_))
    }

    /// Moves them. Programs find everything meanwhile.
    pub(super) fn go_on(&mut self, pins: &Pins) {
        let Self::Pending(before) = self else { return };
        match datapath::move_tables(pins) {
            Ok(()) => *self = Self::Done,
            Err(error) => {
                let error = crate::report(&error);
                if before.as_ref() != Some(&error) {
                    warn!("{error}; will try again, and nothing is lost until then");
                }
                *before = Some(error);
            }
        }
    }
}
