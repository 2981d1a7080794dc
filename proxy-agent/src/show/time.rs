//! The kernel's time, for people.

use proxy_common::{tables::Settings, time::Ticks};

use super::ShowError;
use crate::datapath::{ArrayTable, Clock, Pins};

/// The kernel's time, and what a second is in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Time {
    /// Now.
    pub(super) now: Ticks,
    /// Ticks of a second.
    pub(super) rate: u32,
}

impl Time {
    /// Asks the kernel.
    pub(super) fn read(pins: &Pins) -> Result<Self, ShowError> {
        let settings = ArrayTable::<Settings>::open(pins)?.get(0)?;
        let rate = settings.map_or(1, |settings| settings.ticks_per_second).max(1);
        Ok(Self { now: Clock::open(pins)?.now()?, rate })
    }

    /// Whole seconds in so many ticks.
    pub(super) const fn seconds(self, ticks: Ticks) -> u32 {
        ticks.0 / self.rate
    }
}

/// A number of seconds in its two largest units.
pub(super) fn duration(seconds: u32) -> String {
    let parts = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let mut rest = seconds;
    let mut units = parts.map(|(length, unit)| {
        let count = rest / length;
        rest %= length;
        (count, unit)
    });
    let first = units.iter().position(|(count, _)| *count > 0).unwrap_or(units.len() - 1);
    let shown = units.iter_mut().skip(first).take(2).enumerate();
    shown
        .filter(|(at, (count, _))| *at == 0 || *count > 0)
        .map(|(_, (count, unit))| format!("{count}{unit}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_told_in_two_units() {
        for (seconds, expected) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (61, "1m1s"),
            (3_600, "1h"),
            (3_661, "1h1m"),
            (86_399, "23h59m"),
            (86_400, "1d"),
            (90_061, "1d1h"),
        ] {
            assert_eq!(duration(seconds), expected);
        }
    }
}
