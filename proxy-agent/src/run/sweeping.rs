//! Sweeps of the flow table, as the loop sees them.

use std::time::{Duration, Instant};

use tokio::task::{JoinError, JoinSet};
use tracing::{debug, info, warn};

use super::Agent;
use crate::datapath::{Pressure, Sweep, TableError, sweep};

/// A finished sweep, and how long it took.
pub(super) type Swept = Result<(Sweep, SweepTimes), TableError>;

/// When a sweep began, in the model's time, and how long it took.
#[derive(Clone, Copy, Debug)]
pub(super) struct SweepTimes {
    began: Duration,
    took: Duration,
}

impl Agent {
    /// Starts a sweep, beside the loop.
    pub(super) fn start_sweep(&mut self, sweeping: &mut JoinSet<Swept>) {
        match self.datapath.now() {
            Ok(ticks) => {
                let (pins, began, pressure) = (self.pins.clone(), self.now(), self.pressure);
                sweeping.spawn_blocking(move || {
                    let before = Instant::now();
                    let sweep = sweep(&pins, ticks, pressure)?;
                    Ok((sweep, SweepTimes { began, took: before.elapsed() }))
                });
            }
            Err(error) => {
                warn!(error = %crate::report(&error), "cannot sweep the flow table");
                self.sweep_at = Instant::now() + self.pressure.interval();
            }
        }
    }

    /// Takes note of what a sweep found.
    pub(super) fn finish_sweep(&mut self, swept: Result<Swept, JoinError>) {
        match swept {
            Ok(Ok((sweep, SweepTimes { began, took }))) => {
                self.telling.swept(&sweep, took);
                debug!(removed = sweep.removed, left = sweep.left, "swept the flow table");
                self.model.retain_filter(began, |position| {
                    sweep.in_use.get(&position).copied().unwrap_or_default()
                });
                self.note_pressure(&sweep);
            }
            Ok(Err(error)) => warn!(error = %crate::report(&error), "cannot sweep the flow table"),
            Err(error) => warn!(%error, "the sweep of the flow table failed"),
        }
        self.sweep_at = Instant::now() + self.pressure.interval();
    }

    /// Told once: between high and low pressure the table may go up and down with every sweep.
    fn note_pressure(&mut self, sweep: &Sweep) {
        let (left, capacity) = (sweep.left, sweep.capacity);
        self.pressure = sweep.pressure();
        match self.pressure {
            Pressure::High if !self.is_short_of_room => {
                self.is_short_of_room = true;
                warn!(
                    left,
                    capacity, "the flow table fills up; flows that are over lose their entries early"
                );
            }
            Pressure::Low if self.is_short_of_room => {
                self.is_short_of_room = false;
                info!(left, capacity, "the flow table has room again");
            }
            _ => {}
        }
    }
}
