//! How many flows may begin: tokens that time brings, a bucket of them for each CPU.

use crate::time::Ticks;

/// New flows for each second and CPU, unless the administrator says otherwise: more than any node meets, and little enough that a
/// flood leaves a CPU four fifths of its time (docs/performance.md has what a new flow costs).
pub const NEW_FLOWS: u32 = 100_000;

/// What a bucket is filled by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Tokens for each second; 0: as many as anybody asks for.
    pub per_second: u32,
    /// Ticks of the clock for each second.
    pub ticks_per_second: u32,
}

impl Rate {
    /// How long a bucket takes to be full, as a part of a second. What comes at once, after an outage for instance, has to fit.
    const BURST: u64 = 10;

    /// What a full bucket holds: what a tenth of a second brings, and one token more, or a slow rate would lose to rounding.
    #[inline(always)]
    const fn burst(self) -> u64 {
        self.per_second as u64 * self.token() / Self::BURST + self.token()
    }

    /// One token, in parts that a tick brings `per_second` of: so nothing is rounded, however slow the clock is.
    #[inline(always)]
    const fn token(self) -> u64 {
        self.ticks_per_second as u64
    }
}

/// Tokens of one CPU. All zero bytes are a full bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Bucket {
    /// What was taken and has not been filled up again, in parts of a token.
    missing: u64,
    /// When it was last filled.
    filled: Ticks,
    reserved: u32,
}

impl Bucket {
    /// Takes a token, if there is one: over any time no more than the rate times that, and one burst.
    #[inline(always)]
    pub fn take(&mut self, rate: Rate, now: Ticks) -> bool {
        if rate.per_second == 0 {
            return true;
        }
        // After a silence of the clock's whole circle it looks shorter than it was: that is less, never more.
        let passed = now.0.wrapping_sub(self.filled.0);
        let missing = self.missing.saturating_sub(u64::from(passed) * u64::from(rate.per_second));
        let burst = rate.burst();
        // The rate may have been another one.
        let missing = if missing > burst { burst } else { missing };
        self.filled = now;
        let has = missing + rate.token() <= burst;
        self.missing = if has { missing + rate.token() } else { missing };
        has
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    const RATE: Rate = Rate { per_second: 1_000, ticks_per_second: 250 };

    /// How many of so many packets at once get a token.
    fn taken(bucket: &mut Bucket, rate: Rate, now: u32, packets: u32) -> u32 {
        (0..packets).map(|_| u32::from(bucket.take(rate, Ticks(now)))).sum()
    }

    #[test]
    fn a_burst_is_a_tenth_of_a_second() {
        let mut bucket = Bucket::default();
        assert_eq!(taken(&mut bucket, RATE, 5_000, 1_000), 101);
        assert_eq!(taken(&mut bucket, RATE, 5_001, 1_000), 4);
        assert_eq!(taken(&mut bucket, RATE, 5_027, 1_000), 101);
    }

    #[test]
    fn whoever_stays_below_the_rate_never_waits() {
        for per_second in [1, 3, 249, 250, 251, 100_000] {
            let rate = Rate { per_second, ..RATE };
            let mut bucket = Bucket::default();
            // As many as a second brings, spread over it, for an hour.
            let mut sent = 0_u64;
            for tick in 0..900_000_u32 {
                let due = u64::from(tick) * u64::from(per_second) / 250;
                while sent < due {
                    sent += 1;
                    assert!(bucket.take(rate, Ticks(tick.wrapping_sub(1_000))), "{per_second}: tick {tick}");
                }
            }
        }
    }

    #[test]
    fn no_limit_lets_everything_through() {
        let mut bucket = Bucket::default();
        assert_eq!(taken(&mut bucket, Rate { per_second: 0, ..RATE }, 7, 100_000), 100_000);
    }

    #[test]
    fn a_lower_rate_holds_at_once() {
        let mut bucket = Bucket::default();
        taken(&mut bucket, Rate { per_second: 100_000, ..RATE }, 0, 20_000);
        assert_eq!(taken(&mut bucket, RATE, 0, 1_000), 0);
        assert_eq!(taken(&mut bucket, RATE, 1, 1_000), 4);
    }

    #[test]
    fn the_clock_goes_round_without_a_flood_and_without_a_gap() {
        let mut bucket = Bucket::default();
        assert_eq!(taken(&mut bucket, RATE, u32::MAX - 1, 1_000), 101);
        assert_eq!(taken(&mut bucket, RATE, u32::MAX, 1_000), 4);
        assert_eq!(taken(&mut bucket, RATE, 0, 1_000), 4);
        assert_eq!(taken(&mut bucket, RATE, 1, 1_000), 4);
    }

    #[test]
    fn a_long_silence_brings_one_burst() {
        for silence in [26, 250, 1 << 31, u32::MAX] {
            let mut bucket = Bucket::default();
            taken(&mut bucket, RATE, 9_000, 1_000);
            assert_eq!(taken(&mut bucket, RATE, 9_000_u32.wrapping_add(silence), 1_000), 101, "{silence}");
            let fastest = Rate { per_second: u32::MAX, ticks_per_second: 1_000 };
            assert!(bucket.take(fastest, Ticks(silence)));
        }
    }

    /// Over every span of time, with packets and pauses of all kinds.
    #[test]
    fn nobody_gets_more_than_rate_times_time_and_a_burst() {
        let mut dice = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = |below: u64| {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            (dice >> 33) % below
        };
        for round in 0..200_u32 {
            let hz = [100, 250, 300, 1_000][round as usize % 4];
            let rate = Rate { per_second: u32::try_from(1 + random(20_000)).unwrap(), ticks_per_second: hz };
            let burst = rate.burst() / u64::from(hz);
            let mut bucket = Bucket::default();
            let mut now = u32::MAX - 500 * round;
            let mut ticks = 0_u64;
            // What was taken before, by time.
            let mut history: Vec<(u64, u64)> = Vec::new();
            let mut total = 0;
            for _ in 0..100 {
                let pause = if random(20) == 0 { random(5_000) } else { random(4) };
                ticks += pause;
                now = now.wrapping_add(u32::try_from(pause).unwrap());
                history.push((ticks, total));
                total += u64::from(taken(&mut bucket, rate, now, u32::try_from(random(400)).unwrap()));
                for &(since, had) in &history {
                    let most = (ticks - since) * u64::from(rate.per_second) / u64::from(hz) + burst + 1;
                    assert!(total - had <= most, "{rate:?}: {} in {} ticks", total - had, ticks - since);
                }
            }
        }
    }
}
