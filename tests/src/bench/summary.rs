//! Figures of several rounds.

use serde::Serialize;

/// Where the figures of all rounds lie. Quartiles say more than extremes: one round that something else on the machine
/// disturbed makes an extreme, and nothing else.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Summary {
    /// Half of the figures are lower.
    pub median: f64,
    /// A quarter of them is lower.
    pub low: f64,
    /// A quarter of them is higher.
    pub high: f64,
}

impl Summary {
    /// Of some figures; `None` if there are none.
    #[must_use]
    pub fn of(mut figures: Vec<f64>) -> Option<Self> {
        figures.sort_by(f64::total_cmp);
        let at = |quarters: usize| figures.get((figures.len().checked_sub(1)? * quarters + 2) / 4).copied();
        Some(Self { median: at(2)?, low: at(1)?, high: at(3)? })
    }

    /// Of some figures, each as a share of that of the same round.
    #[must_use]
    pub fn of_shares(figures: &[f64], wholes: &[f64]) -> Option<Self> {
        Self::of(figures.iter().zip(wholes).map(|(figure, whole)| figure / whole).collect())
    }

    /// Each of them changed.
    #[must_use]
    pub fn map(self, change: impl Fn(f64) -> f64) -> Self {
        let Self { median, low, high } = self;
        Self { median: change(median), low: change(low), high: change(high) }
    }
}

/// The numbers below `count`, beginning with another one each round.
pub fn rotated(count: usize, round: u32) -> impl Iterator<Item = usize> {
    let start = usize::try_from(round).unwrap_or_default();
    (0..count).map(move |at| (at + start) % count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_disturbed_round_changes_no_quartile_much() {
        let summary = Summary::of(vec![5.0, 1.0, 3.0, 2.0, 1000.0]).unwrap();
        assert_eq!((summary.low, summary.median, summary.high), (2.0, 3.0, 5.0));
        let summary = Summary::of(vec![1.0, 2.0]).unwrap();
        assert_eq!((summary.low, summary.high), (1.0, 2.0));
        assert!(Summary::of(Vec::new()).is_none());
    }

    #[test]
    fn shares_are_of_their_own_round() {
        let summary = Summary::of_shares(&[90.0, 45.0, 9.0], &[100.0, 50.0, 10.0]).unwrap();
        assert_eq!((summary.low, summary.high), (0.9, 0.9));
    }

    #[test]
    fn everybody_is_first_once() {
        let orders: Vec<Vec<_>> = (0..3).map(|round| rotated(3, round).collect()).collect();
        assert_eq!(orders, [[0, 1, 2], [1, 2, 0], [2, 0, 1]]);
    }
}
