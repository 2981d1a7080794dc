//! The kernel's tick, which flows are timed by.
//!
//! `bpf_jiffies64` costs a packet nothing, but user space sees neither jiffies nor how many of them make a
//! second. So the agent runs a program that returns them, and leaves it to others who read the tables.

use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use aya::programs::{ProgramError, SchedClassifier, TestRun as _, TestRunOptions};
use proxy_common::time::Ticks;

use super::{pins::Pins, program::Program};

/// Why there is no time.
#[derive(Debug, thiserror::Error)]
pub enum ClockError {
    /// The clock program could not be run.
    #[error("cannot read the kernel's clock")]
    Unreadable(#[source] Box<ProgramError>),
    /// The clock program could not be opened.
    #[error("cannot open the kernel's clock at {}", path.display())]
    Absent {
        /// Its pin.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<ProgramError>,
    },
}

/// The kernel's clock, for those who have not loaded the datapath.
pub struct Clock(SchedClassifier);

impl Clock {
    /// The program that an agent has left.
    pub fn open(pins: &Pins) -> Result<Self, ClockError> {
        let path = pins.program(Program::Clock.name());
        let program = SchedClassifier::from_pin(&path);
        program.map(Self).map_err(|source| ClockError::Absent { path, source: Box::new(source) })
    }

    /// The time, in ticks.
    pub fn now(&self) -> Result<Ticks, ClockError> {
        now(&self.0)
    }
}

/// How long to watch the clock: long enough to tell the possible rates apart, short enough for a start-up.
const WATCH: Duration = Duration::from_millis(100);
/// How far from a reading the wall clock may be taken: at 300 Hz, a third of a tick.
const PRECISION: Duration = Duration::from_millis(1);
/// Readings until one that was not interrupted must do. The most precise one is used if none was.
const ATTEMPTS: u32 = 20;
/// The rates that a kernel can be configured to (`kernel/Kconfig.hz`).
const RATES: [u32; 4] = [100, 250, 300, 1000];

/// The time, in ticks.
pub(super) fn now(clock: &SchedClassifier) -> Result<Ticks, ClockError> {
    // The kernel wants a frame to run a tc program on; this one ignores it.
    let frame = [0; 14];
    let options = TestRunOptions { data_in: Some(&frame), ..TestRunOptions::default() };
    let result = clock.test_run(options).map_err(|error| ClockError::Unreadable(Box::new(error)))?;
    Ok(Ticks(result.return_value))
}

/// How many ticks make a second.
pub(super) fn rate(clock: &SchedClassifier) -> Result<u32, ClockError> {
    let first = Reading::take(clock)?;
    thread::sleep(WATCH);
    let last = Reading::take(clock)?;
    Ok(nearest_rate(first.ticks.age(last.ticks), last.before - first.before))
}

/// The kernel's clock beside the wall clock.
struct Reading {
    ticks: Ticks,
    /// Wall clock right before the kernel's was read.
    before: Instant,
    /// How long reading it took. Where this process lost its CPU meanwhile, the two clocks tell different times.
    took: Duration,
}

impl Reading {
    fn take(clock: &SchedClassifier) -> Result<Self, ClockError> {
        let mut best = Self::once(clock)?;
        for _ in 1..ATTEMPTS {
            if best.took <= PRECISION {
                break;
            }
            let next = Self::once(clock)?;
            if next.took < best.took {
                best = next;
            }
        }
        Ok(best)
    }

    fn once(clock: &SchedClassifier) -> Result<Self, ClockError> {
        let before = Instant::now();
        let ticks = now(clock)?;
        Ok(Self { ticks, before, took: before.elapsed() })
    }
}

/// The configurable rate that comes closest to so many ticks in so much time.
fn nearest_rate(ticks: Ticks, elapsed: Duration) -> u32 {
    let measured = f64::from(ticks.0) / elapsed.as_secs_f64();
    let distance = |rate: u32| (f64::from(rate) / measured.max(1.0)).ln().abs();
    RATES.into_iter().min_by(|&a, &b| distance(a).total_cmp(&distance(b))).unwrap_or(RATES[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imprecise_readings_do_not_change_the_rate() {
        for rate in RATES {
            // The sleep may take longer than asked, each reading be late, and a tick be met or just missed.
            for watched in [100, 101, 130, 1000] {
                for ran in watched - 1..=watched + 1 {
                    let ticks = rate * ran / 1000;
                    for ticks in ticks - 1..=ticks + 1 {
                        let elapsed = Duration::from_millis(watched.into());
                        assert_eq!(nearest_rate(Ticks(ticks), elapsed), rate, "{ticks} in {elapsed:?}");
                    }
                }
            }
        }
    }
}
