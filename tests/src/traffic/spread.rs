//! How connections spread over backends.

use std::{collections::BTreeMap, net::SocketAddr};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::{Connection, Protocol, UdpClient};
use crate::{netns::Namespace, topology::Family};

/// Connections opened at once when many are opened.
const BATCH: usize = 50;

/// Upper 10^-6 quantiles of the chi-square distribution with 1, 2, ... degrees of freedom: a fair choice exceeds
/// them once in a million runs.
const CHI_SQUARE: [f64; 9] = [23.928, 27.631, 30.665, 33.377, 35.888, 38.258, 40.522, 42.701, 44.811];

/// How many connections each backend got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spread {
    counts: BTreeMap<String, usize>,
}

impl Spread {
    /// Makes `count` new connections (for UDP: datagrams from as many sockets) and counts who takes them. Calls
    /// `progress` with how many are done.
    ///
    /// # Errors
    ///
    /// If one is not answered.
    pub fn measure(
        from: &Namespace,
        to: SocketAddr,
        protocol: Protocol,
        count: usize,
        mut progress: impl FnMut(usize),
    ) -> Result<Self> {
        let mut spread = Self::default();
        let mut done = 0;
        while done < count {
            let batch = BATCH.min(count - done);
            let names = match protocol {
                Protocol::Tcp => tcp(from, to, batch),
                Protocol::Udp => udp(from, to, batch),
                Protocol::Sctp => Err(anyhow!("SCTP has no connections here")),
            };
            spread.extend(names.with_context(|| format!("after {done} of {count} to {to}"))?);
            done += batch;
            progress(done);
        }
        Ok(spread)
    }

    /// Connections per backend, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, usize)> {
        self.counts.iter().map(|(name, count)| (name.as_str(), *count))
    }

    /// Connections that a backend got.
    #[must_use]
    pub fn of(&self, name: &str) -> usize {
        self.counts.get(name).copied().unwrap_or(0)
    }

    /// All connections.
    #[must_use]
    pub fn total(&self) -> usize {
        self.counts.values().sum()
    }

    /// Checks that exactly these backends got connections, and as many as equal chances give.
    ///
    /// # Errors
    ///
    /// If somebody else got some, or a choice with equal chances would give such a spread less than once in a
    /// million times.
    #[expect(clippy::cast_precision_loss, reason = "counts of connections are far below 2^52")]
    pub fn expect_uniform_over(&self, names: &[&str]) -> Result<()> {
        let strangers: Vec<_> = self.counts.keys().filter(|name| !names.contains(&name.as_str())).collect();
        ensure!(strangers.is_empty(), "{strangers:?} should have got nothing: {:?}", self.counts);
        let expected = self.total() as f64 / names.len() as f64;
        let statistic: f64 =
            names.iter().map(|name| (self.of(name) as f64 - expected).powi(2) / expected).sum();
        let Some(freedom) = names.len().checked_sub(2) else {
            return Ok(());
        };
        let limit = CHI_SQUARE.get(freedom).context("at most ten backends")?;
        ensure!(
            statistic <= *limit,
            "not uniform: chi-square {statistic:.1} exceeds {limit}: {:?}",
            self.counts
        );
        Ok(())
    }
}

impl Extend<String> for Spread {
    fn extend<T: IntoIterator<Item = String>>(&mut self, names: T) {
        for name in names {
            *self.counts.entry(name).or_default() += 1;
        }
    }
}

fn tcp(from: &Namespace, to: SocketAddr, count: usize) -> Result<Vec<String>> {
    let connections = Connection::open_many(from, to, count)?;
    Ok(connections.into_iter().map(|connection| connection.backend).collect())
}

fn udp(from: &Namespace, to: SocketAddr, count: usize) -> Result<Vec<String>> {
    let clients = UdpClient::bind_many(from, Family::of(to.ip()), count)?;
    let ask = |(client, number): (UdpClient, u64)| {
        let answer = client.ask(to, number)?;
        ensure!(answer.from == to, "asked {to}, the answer came from {}", answer.from);
        Ok(answer.backend)
    };
    clients.into_iter().zip(0..).map(ask).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(counts: &[(&str, usize)]) -> Spread {
        Spread { counts: counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect() }
    }

    #[test]
    fn a_fair_spread_passes_and_a_skewed_one_does_not() {
        let names = ["a", "b", "c"];
        spread(&[("a", 340), ("b", 320), ("c", 340)]).expect_uniform_over(&names).unwrap();
        spread(&[("a", 500), ("b", 250), ("c", 250)]).expect_uniform_over(&names).unwrap_err();
        spread(&[("a", 500), ("b", 500)]).expect_uniform_over(&names).unwrap_err();
    }

    #[test]
    fn a_stranger_fails_however_little_it_got() {
        spread(&[("a", 500), ("b", 1)]).expect_uniform_over(&["a"]).unwrap_err();
    }
}
