//! Durations as Go writes them, in flags and configuration of Kubernetes.
//!
//! kube has a type for them too, which panics on what a hand may write (`1h-5m`, `9999999999h`).

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A duration in nanoseconds, which may be negative (Go's `time.Duration`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GoDuration(i64);

/// The text is no duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a duration such as 30s, 1m30s or 500ms")]
pub struct ParseDurationError;

impl GoDuration {
    /// No time.
    pub const ZERO: Self = Self(0);

    /// So many seconds.
    #[must_use]
    pub const fn from_secs(seconds: u32) -> Self {
        Self(seconds as i64 * SECOND)
    }

    /// So many nanoseconds.
    #[must_use]
    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    /// The same for the standard library, to which durations are never negative.
    #[must_use]
    pub fn to_std(self) -> Option<Duration> {
        u64::try_from(self.0).ok().map(Duration::from_nanos)
    }

    /// The time of one of Go's units.
    fn unit(name: &str) -> Option<i64> {
        Some(match name {
            "ns" => 1,
            // The micro sign, and the Greek letter.
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ms" => 1_000_000,
            "s" => SECOND,
            "m" => 60 * SECOND,
            "h" => 3_600 * SECOND,
            _ => return None,
        })
    }
}

impl FromStr for GoDuration {
    type Err = ParseDurationError;

    /// Reads what Go's `time.ParseDuration` reads: numbers with a unit each, such as `1h15m30.918s`, or `0`.
    fn from_str(text: &str) -> Result<Self, ParseDurationError> {
        let (sign, mut rest) = match text.as_bytes().first() {
            Some(b'-') => (-1, &text[1..]),
            Some(b'+') => (1, &text[1..]),
            _ => (1, text),
        };
        if rest == "0" {
            return Ok(Self::ZERO);
        }
        if rest.is_empty() {
            return Err(ParseDurationError);
        }
        let mut total = 0_i64;
        while !rest.is_empty() {
            let is_number = |c: char| c.is_ascii_digit() || c == '.';
            let (number, after) = rest.split_at(rest.find(|c| !is_number(c)).unwrap_or(rest.len()));
            let (unit, after) = after.split_at(after.find(is_number).unwrap_or(after.len()));
            let part = part(number, Self::unit(unit).ok_or(ParseDurationError)?).ok_or(ParseDurationError)?;
            total = total.checked_add(part).ok_or(ParseDurationError)?;
            rest = after;
        }
        Ok(Self(sign * total))
    }
}

/// So many units, in nanoseconds; what is less than one is cut off.
fn part(number: &str, unit: i64) -> Option<i64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let whole = if whole.is_empty() { 0 } else { whole.parse::<i64>().ok()?.checked_mul(unit)? };
    let mut digit_of = i128::from(unit) * FRACTION;
    let mut nanos = 0;
    for digit in fraction.bytes() {
        digit_of /= 10;
        nanos += i128::from(digit - b'0') * digit_of;
    }
    whole.checked_add(i64::try_from(nanos / FRACTION).ok()?)
}

impl fmt::Display for GoDuration {
    /// As Go's `time.Duration.String`: `1h0m0s`, `1m30s`, `1.5s`, `250ms`, `0s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let nanos = self.0.unsigned_abs();
        let (unit, name) = match nanos {
            0 => return f.write_str("0s"),
            1..1_000 => (1, "ns"),
            1_000..1_000_000 => (1_000, "\u{b5}s"),
            1_000_000..1_000_000_000 => (1_000_000, "ms"),
            _ => {
                let (minutes, seconds) =
                    (nanos / 60_000_000_000, decimal(nanos % 60_000_000_000, 1_000_000_000));
                return match minutes {
                    0 => write!(f, "{sign}{seconds}s"),
                    1..60 => write!(f, "{sign}{minutes}m{seconds}s"),
                    _ => write!(f, "{sign}{}h{}m{seconds}s", minutes / 60, minutes % 60),
                };
            }
        };
        write!(f, "{sign}{}{name}", decimal(nanos, unit))
    }
}

/// `nanos` in units of a power of ten of them.
fn decimal(nanos: u64, unit: u64) -> String {
    let digits = unit.ilog10() as usize;
    let text = format!("{}.{:0digits$}", nanos / unit, nanos % unit);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = GoDuration;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as 30s, 1m30s or 500ms")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<GoDuration, E> {
                text.parse().map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }

        deserializer.deserialize_str(Visitor)
    }
}

const SECOND: i64 = 1_000_000_000;
/// Fractions of a unit are counted in these, so that their sum is cut off once.
const FRACTION: i128 = 1_000_000_000_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, nanos) in [
            ("0", 0),
            ("-0", 0),
            ("+0", 0),
            ("0s", 0),
            ("5s", 5_000_000_000),
            ("30s", 30_000_000_000),
            ("1m30s", 90_000_000_000),
            ("-5s", -5_000_000_000),
            ("+5s", 5_000_000_000),
            ("5.0s", 5_000_000_000),
            ("5.6s", 5_600_000_000),
            ("5.s", 5_000_000_000),
            (".5s", 500_000_000),
            ("1.004s", 1_004_000_000),
            ("100.00100s", 100_001_000_000),
            ("10ns", 10),
            ("11us", 11_000),
            ("12\u{b5}s", 12_000),
            ("12\u{3bc}s", 12_000),
            ("13ms", 13_000_000),
            ("15m", 900_000_000_000),
            ("24h", 86_400_000_000_000),
            ("3h30m", 12_600_000_000_000),
            ("10.5s4m", 250_500_000_000),
            ("-2m3.4s", -123_400_000_000),
            ("0.3333333333333333333h", 1_200_000_000_000 - 1),
            ("0.830103483285477580700h", 2_988_372_539_827),
            ("9223372036854775807ns", i64::MAX),
        ] {
            assert_eq!(text.parse(), Ok(GoDuration(nanos)), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "-",
            "+",
            "3",
            "s",
            ".",
            ".s",
            "-.",
            "+.s",
            "1..2s",
            "1.2.3s",
            "1d",
            "1 s",
            " 1s",
            "1s ",
            "1h-5m",
            "--5s",
            "1e3s",
            "9999999999h",
            "9223372036854775808ns",
            "9223372036854775807ns1ns",
            "s5",
            "NaNs",
            "\u{b5}s",
        ] {
            assert_eq!(text.parse::<GoDuration>(), Err(ParseDurationError), "{text:?}");
        }
    }

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (nanos, text) in [
            (0, "0s"),
            (1, "1ns"),
            (1_100, "1.1\u{b5}s"),
            (2_200_000, "2.2ms"),
            (250_000_000, "250ms"),
            (3_300_000_000, "3.3s"),
            (60_000_000_000, "1m0s"),
            (245_000_000_000, "4m5s"),
            (245_001_000_000, "4m5.001s"),
            (900_000_000_000, "15m0s"),
            (3_600_000_000_000, "1h0m0s"),
            (86_400_000_000_000, "24h0m0s"),
            (18_367_001_000_000, "5h6m7.001s"),
            (-90_000_000_000, "-1m30s"),
            (i64::MAX, "2562047h47m16.854775807s"),
            (i64::MIN, "-2562047h47m16.854775808s"),
        ] {
            assert_eq!(GoDuration(nanos).to_string(), text);
            // Go reads the lowest one, whose opposite there is not; nobody writes it.
            if nanos != i64::MIN {
                assert_eq!(text.parse(), Ok(GoDuration(nanos)));
            }
        }
    }

    #[test]
    fn negative_durations_are_none_of_the_standard_library() {
        assert_eq!(GoDuration::from_secs(3).to_std(), Some(Duration::from_secs(3)));
        assert_eq!(GoDuration(-1).to_std(), None);
    }
}
