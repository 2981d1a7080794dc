//! What the agent is told to do: kube-proxy's flags and configuration file, and Sluice's own.
//!
//! ```text
//! flags ──┐                                     ┌─ faults -> error, all at once
//!         ├─> KubeProxyConfiguration, complete ─┤
//! file  ──┘                                     ├─ notes  -> log
//! SluiceOptions: flags, else file ──────────────┴─ options -> the agent
//! ```
//!
//! Nothing here acts: files are read, and that is all. Every field of kube-proxy's stands in `fields`, with its flag and
//! with the reason if it means nothing here; flags, help, log lines and documentation go by that.

mod address;
mod args;
mod capacity;
mod change;
mod duration;
mod fields;
mod file;
mod flags;
mod gates;
mod host;
mod kube_proxy;
mod load;
mod logging;
mod notes;
mod options;
mod problem;
mod sluice;
#[cfg(test)]
mod tests;
mod validate;

use std::path::PathBuf;

use hyper::Uri;

use crate::watch::{ApiOptions, RequestLimit};

pub use self::{
    args::{RunArgs, with_dashes},
    capacity::CapacityOptions,
    change::changed,
    duration::{GoDuration, ParseDurationError},
    host::Host,
    kube_proxy::{KubeProxyConfiguration, Mode},
    logging::LogFormat,
    notes::Note,
    options::node_name,
    problem::{ConfigError, Problem},
    sluice::{BPFFS, Selection, SluiceOptions, SocketLb},
};

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Serve this node.
    Run,
    /// Write the configuration to a file (LIFE-11).
    WriteConfig(PathBuf),
    /// Remove what other runs have left (LIFE-09).
    Cleanup,
    /// Remove what kube-proxy has left.
    CleanupKubeProxy,
    /// Only what comes before serving (LIFE-10).
    InitOnly,
}

/// Everything that the agent was told, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Configuration {
    /// What to do.
    pub task: Task,
    /// kube-proxy's configuration, complete.
    pub kube_proxy: KubeProxyConfiguration,
    /// Sluice's own.
    pub sluice: SluiceOptions,
    /// Addresses of API servers, if not those of kubeconfig or service account.
    pub api_servers: Vec<Uri>,
    /// What is logged, in tracing's filter syntax.
    pub log: String,
    /// What to log about the configuration itself.
    pub notes: Vec<Note>,
    /// The files that it comes from.
    pub files: Vec<PathBuf>,
}

impl Configuration {
    /// How log lines look.
    #[must_use]
    pub fn log_format(&self) -> LogFormat {
        match self.kube_proxy.logging.format.as_str() {
            "json" => LogFormat::Json,
            _ => LogFormat::Text,
        }
    }

    /// How the API is reached, if it is.
    #[must_use]
    pub fn api(&self) -> ApiOptions {
        let connection = &self.kube_proxy.client_connection;
        let kubeconfig = (!connection.kubeconfig.is_empty()).then(|| connection.kubeconfig.clone().into());
        let per_second = if connection.qps == 0.0 { 5.0 } else { connection.qps };
        let burst = u32::try_from(connection.burst).ok().filter(|burst| *burst > 0).unwrap_or(10);
        let limit = (per_second > 0.0).then_some(RequestLimit { per_second, burst });
        ApiOptions { kubeconfig, servers: self.api_servers.clone(), limit }
    }

    /// As files: kube-proxy's, which is the first document, and Sluice's own. kube-proxy reads no further than the first.
    ///
    /// # Errors
    ///
    /// None that a configuration could cause.
    pub fn to_yaml(&self) -> Result<String, ConfigError> {
        let documents = [self.kube_proxy.to_value()?, self.sluice.to_value()?];
        let documents = documents.iter().map(serde_saphyr::to_string);
        Ok(documents.collect::<Result<Vec<_>, _>>()?.join("---\n"))
    }
}
