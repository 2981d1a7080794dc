//! An agent's health and metrics, asked for on its own node.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    agent::Agent,
    traffic::http::{self, Reply},
};

/// Where `/healthz` and `/livez` are.
pub const HEALTH_PORT: u16 = 10_256;
/// Where `/metrics` is, on loopback.
pub const METRICS_PORT: u16 = 10_249;

/// Metrics at a moment.
#[derive(Clone, Debug)]
pub struct Scrape {
    /// Values by name and labels, as they are written.
    samples: BTreeMap<String, f64>,
    text: String,
}

impl Scrape {
    fn parse(text: String) -> Result<Self> {
        let mut samples = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, value) = line.rsplit_once(' ').with_context(|| format!("no sample: {line:?}"))?;
            let value = value.parse().with_context(|| format!("no number: {line:?}"))?;
            ensure!(samples.insert(name.to_owned(), value).is_none(), "twice: {line:?}");
        }
        Ok(Self { samples, text })
    }

    /// The value of a sample, by name and labels as they are written.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn value(&self, sample: &str) -> Result<f64> {
        let value = self.samples.get(sample).copied();
        value.with_context(|| format!("no {sample} among these:\n{}", self.text))
    }

    /// The sum of all samples of that name.
    #[must_use]
    pub fn sum(&self, name: &str) -> f64 {
        let of_name = |sample: &str| {
            sample.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('{'))
        };
        self.samples.iter().filter(|(sample, _)| of_name(sample)).map(|(_, value)| value).sum()
    }

    /// Everything, as it was written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl Agent {
    /// Asks the agent itself, on a port of its node's loopback address.
    ///
    /// # Errors
    ///
    /// If it does not answer.
    pub fn ask_over_http(&self, port: u16, path: &str) -> Result<Reply> {
        http::get(self.namespace(), SocketAddr::from((Ipv4Addr::LOCALHOST, port)), path)
    }

    /// Its metrics.
    ///
    /// # Errors
    ///
    /// If it does not tell them, or not so that they can be read.
    pub fn scrape(&self) -> Result<Scrape> {
        let reply = self.ask_over_http(METRICS_PORT, "/metrics")?;
        ensure!(reply.status == 200, "{reply:?}");
        Scrape::parse(reply.body)
    }
}
