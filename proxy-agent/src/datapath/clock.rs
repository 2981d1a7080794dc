//! The kernel's tick, which flows are timed by.
//!
//! `bpf_jiffies64` costs a packet nothing, but user space sees neither jiffies nor how many of them make a
//! second. So the agent runs a program that returns them.

use std::{
    thread,
    time::{Duration, Instant},
};

use aya::programs::{ProgramError, SchedClassifier, TestRun as _, TestRunOptions};
use proxy_common::flow::Ticks;

/// The clock program could not be run.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the kernel's clock")]
pub struct ClockError(#[source] Box<ProgramError>);

/// How long to watch the clock: long enough to tell the possible rates apart, short enough for a start-up.
const WATCH: Duration = Duration::from_millis(50);
/// The rates that a kernel can be configured to (`kernel/Kconfig.hz`).
const RATES: [u32; 4] = [100, 250, 300, 1000];

/// The time, in ticks.
pub(super) fn now(clock: &SchedClassifier) -> Result<Ticks, ClockError> {
    // The kernel wants a frame to run a tc program on; this one ignores it.
    let frame = [0; 14];
    let options = TestRunOptions { data_in: Some(&frame), ..TestRunOptions::default() };
    let result = clock.test_run(options).map_err(|error| ClockError(Box::new(error)))?;
    Ok(Ticks(result.return_value))
}

/// How many ticks make a second.
pub(super) fn rate(clock: &SchedClassifier) -> Result<u32, ClockError> {
    let (start, first) = (Instant::now(), now(clock)?);
    thread::sleep(WATCH);
    let (end, last) = (Instant::now(), now(clock)?);
    Ok(nearest_rate(first.age(last), end - start))
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
    fn a_tick_more_or_less_does_not_change_the_rate() {
        for rate in RATES {
            let expected = rate / 20;
            for ticks in expected.saturating_sub(1)..=expected + 1 {
                // 250 and 300 Hz lie 2.5 ticks apart.
                assert_eq!(nearest_rate(Ticks(ticks), WATCH), rate, "{ticks} ticks");
            }
        }
    }
}
