//! The command line of `sluice run`.

use std::{ffi::OsString, path::PathBuf};

use clap::Args;

use super::{
    flags::{KubeProxyFlags, go_bool},
    sluice::SluiceOptions,
};

/// Arguments of `run`: kube-proxy's flags, and Sluice's own.
#[derive(Args, Clone, Debug, Default)]
pub struct RunArgs {
    /// kube-proxy's configuration file: KubeProxyConfiguration of kubeproxy.config.k8s.io/v1alpha1, in YAML or JSON. With
    /// it, kube-proxy's flags have no effect, except --hostname-override, --master and those for logging
    #[arg(long, value_name = "FILE", help_heading = "Configuration")]
    pub config: Option<PathBuf>,
    /// A file with a SluiceConfiguration of sluice/v1alpha1, which says what Sluice's own flags say. Those overrule it
    #[arg(long, value_name = "FILE", help_heading = "Configuration")]
    pub sluice_config: Option<PathBuf>,
    /// Write the configuration that is in force, complete, to this file, and exit
    #[arg(long, value_name = "FILE", help_heading = "Configuration")]
    pub write_config_to: Option<PathBuf>,
    /// Detach all programs, remove all tables, and exit. Connections through services end. Needs no API server
    #[arg(
        long,
        value_name = "true|false",
        value_parser = go_bool,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        help_heading = "Configuration"
    )]
    pub cleanup: Option<bool>,
    /// Remove what a kube-proxy that ran here before has left in the kernel, in any of its modes, look whether it is gone,
    /// and exit. Connections that it translated go on, but for those of IPVS; Sluice may run meanwhile, kube-proxy may not.
    /// Needs no API server
    #[arg(
        long,
        value_name = "true|false",
        value_parser = go_bool,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        help_heading = "Configuration"
    )]
    pub cleanup_kube_proxy: Option<bool>,
    /// See whether the kernel takes the programs, make the tables, and exit. Nothing is attached, and nothing needs to be
    /// done so before a start
    #[arg(
        long,
        value_name = "true|false",
        value_parser = go_bool,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        help_heading = "Configuration"
    )]
    pub init_only: Option<bool>,
    /// Address of the API server, instead of the one that kubeconfig or the service account names. Has effect with
    /// --config, too
    #[arg(long, value_name = "URL", help_heading = "Kubernetes")]
    pub master: Option<String>,
    /// Sluice's own options.
    #[command(flatten)]
    pub sluice: SluiceOptions,
    /// kube-proxy's flags that are in its file, too.
    #[command(flatten)]
    pub kube_proxy: KubeProxyFlags,
    /// Deprecated: port of --healthz-bind-address, if that has none; 0: not served
    #[arg(long, value_name = "PORT", help_heading = "Health and metrics")]
    pub healthz_port: Option<u16>,
    /// Deprecated: port of --metrics-bind-address, if that has none; 0: not served
    #[arg(long, value_name = "PORT", help_heading = "Health and metrics")]
    pub metrics_port: Option<u16>,
    /// No effect: kube-proxy makes no use of it either
    #[arg(long, value_name = "FILE,...", help_heading = "Accepted for kube-proxy's sake")]
    pub boot_id_file: Option<String>,
    /// No effect: kube-proxy makes no use of it either
    #[arg(long, value_name = "FILE,...", help_heading = "Accepted for kube-proxy's sake")]
    pub machine_id_file: Option<String>,
}

/// The command line with dashes for underscores in the names of flags, as kube-proxy reads it (FLAG-42).
pub fn with_dashes(arguments: impl IntoIterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    arguments.into_iter().map(|argument| {
        let Some(name) = argument.to_str().and_then(|text| text.strip_prefix("--")) else { return argument };
        let (name, value) = name.split_at(name.find('=').unwrap_or(name.len()));
        format!("--{}{value}", name.replace('_', "-")).into()
    })
}
