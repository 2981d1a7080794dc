//! The audit: at intervals, the agent reads back what it has written, a part at a time, and puts right what differs.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use proxy_common::tables::{Devices, Settings as SettingsTable, Table as _};
use proxy_model::{Audit, Model};
use tracing::{debug, warn};

use super::{placing::Placing, settings::Settings, telling::describe};
use crate::{datapath::KernelTables, metrics::Verdict};

/// Entries looked at before anything else gets its turn: about a millisecond's worth.
const PART: usize = 1024;

/// When the tables are audited, and how far that is.
pub(super) struct Auditing {
    interval: Option<Duration>,
    next: Option<Instant>,
    under_way: Option<Audit>,
}

impl Auditing {
    /// The first audit is due after an interval; `None`: there is none.
    pub(super) fn every(interval: Option<Duration>) -> Self {
        Self { interval, next: after(interval), under_way: None }
    }

    /// When there is something to do.
    pub(super) const fn due(&self) -> Option<Instant> {
        self.next
    }

    /// Does a part, and at the end of an audit says what it has found.
    pub(super) fn go_on(
        &mut self,
        model: &Model,
        tables: &mut KernelTables,
        settings: &mut Settings,
        placing: &mut Placing,
    ) -> Option<Verdict> {
        match self.part(model, tables) {
            Ok(audit) => {
                let audit = audit?;
                self.next = after(self.interval);
                Some(finish(&audit, settings, placing))
            }
            Err(failure) => {
                // What the audit was about to look at, the next one will.
                self.under_way = None;
                self.next = after(self.interval);
                warn!("{failure}; the audit of the tables is given up until the next one");
                Some(Verdict { repaired: BTreeMap::new(), is_complete: false })
            }
        }
    }

    /// Does a part. Returns the audit if that was the last one.
    fn part(&mut self, model: &Model, tables: &mut KernelTables) -> Result<Option<Audit>, String> {
        let mut audit = match self.under_way.take() {
            Some(audit) => audit,
            None => match model.begin_audit(tables).map_err(|failure| describe(&failure))? {
                Some(audit) => audit,
                None => {
                    self.next = after(self.interval);
                    return Ok(None);
                }
            },
        };
        model.go_on(&mut audit, PART, tables).map_err(|failure| describe(&failure))?;
        if audit.is_done() {
            return Ok(Some(audit));
        }
        self.under_way = Some(audit);
        Ok(None)
    }
}

fn after(interval: Option<Duration>) -> Option<Instant> {
    Instant::now().checked_add(interval?)
}

fn finish(audit: &Audit, settings: &mut Settings, placing: &mut Placing) -> Verdict {
    let own = [
        (SettingsTable::NAME, settings.audit().map(|is_right| usize::from(!is_right))),
        (Devices::NAME, placing.audit()),
    ];
    let found = audit.repaired().iter().map(|&(table, count)| (table, Ok(count)));
    let mut verdict = Verdict { repaired: BTreeMap::new(), is_complete: true };
    for (table, result) in found.chain(own) {
        match result {
            Ok(0) => {}
            Ok(entries) => {
                warn!(table, entries, "somebody has changed the table; what was written is restored");
                *verdict.repaired.entry(table).or_default() += entries;
            }
            Err(error) => {
                warn!("{}; the table is not audited", crate::report(&error));
                verdict.is_complete = false;
            }
        }
    }
    if verdict.is_sound() {
        debug!(entries = audit.examined(), "audited the tables: they contain what was written");
    }
    verdict
}
