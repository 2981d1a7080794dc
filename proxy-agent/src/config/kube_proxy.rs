//! kube-proxy's configuration, as `kubeproxy.config.k8s.io/v1alpha1` has it (CFG).
//!
//! `Default` is Go's: nothing is set. [`KubeProxyConfiguration::set_defaults`] fills in what kube-proxy would.
#![expect(
    missing_docs,
    reason = "the fields are kube-proxy's; docs/configuration.md says what they mean here"
)]

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value;

use super::{address, duration::GoDuration};

/// What the file says that it is.
pub(super) const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
/// The same.
pub(super) const KIND: &str = "KubeProxyConfiguration";

/// Everything that kube-proxy can be told, whether it means something here or not.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KubeProxyConfiguration {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub feature_gates: BTreeMap<String, bool>,
    pub client_connection: ClientConnection,
    pub logging: Logging,
    pub hostname_override: String,
    pub bind_address: String,
    pub healthz_bind_address: String,
    pub metrics_bind_address: String,
    pub bind_address_hard_fail: bool,
    pub enable_profiling: bool,
    pub show_hidden_metrics_for_version: String,
    pub mode: String,
    pub iptables: IPTables,
    pub ipvs: Ipvs,
    pub nftables: NFTables,
    pub winkernel: Winkernel,
    pub detect_local_mode: String,
    pub detect_local: DetectLocal,
    #[serde(rename = "clusterCIDR")]
    pub cluster_cidr: String,
    pub node_port_addresses: Vec<String>,
    pub oom_score_adj: Option<i32>,
    pub conntrack: Conntrack,
    pub config_sync_period: GoDuration,
    pub port_range: String,
    #[serde(skip_serializing_if = "is_false")]
    pub windows_run_as_service: bool,
}

/// How the API is reached.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientConnection {
    pub kubeconfig: String,
    pub accept_content_types: String,
    pub content_type: String,
    #[serde(serialize_with = "as_go_prints_it")]
    pub qps: f32,
    pub burst: i32,
}

/// What is logged, and how.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Logging {
    pub format: String,
    #[serde(deserialize_with = "duration_or_nanos")]
    pub flush_frequency: GoDuration,
    pub verbosity: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vmodule: Vec<VModule>,
    pub options: LoggingOptions,
}

/// Verbosity of some of the files of source code.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VModule {
    pub file_pattern: String,
    pub verbosity: u32,
}

/// Of each format.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoggingOptions {
    pub text: OutputRouting,
    pub json: OutputRouting,
}

/// Where lines go, and when.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OutputRouting {
    #[serde(skip_serializing_if = "is_false")]
    pub split_stream: bool,
    /// A quantity of bytes, such as `64Ki`.
    #[serde(deserialize_with = "text_or_number")]
    pub info_buffer_size: String,
}

/// Of the mode `iptables`, which is also kube-proxy's default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IPTables {
    pub masquerade_bit: Option<i32>,
    pub masquerade_all: bool,
    pub localhost_node_ports: Option<bool>,
    pub sync_period: GoDuration,
    pub min_sync_period: GoDuration,
}

/// Of the mode `ipvs`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Ipvs {
    pub sync_period: GoDuration,
    pub min_sync_period: GoDuration,
    pub scheduler: String,
    #[serde(rename = "excludeCIDRs")]
    pub exclude_cidrs: Vec<String>,
    #[serde(rename = "strictARP")]
    pub strict_arp: bool,
    pub tcp_timeout: GoDuration,
    pub tcp_fin_timeout: GoDuration,
    pub udp_timeout: GoDuration,
}

/// Of the mode `nftables`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NFTables {
    pub masquerade_bit: Option<i32>,
    pub masquerade_all: bool,
    pub sync_period: GoDuration,
    pub min_sync_period: GoDuration,
}

/// Of Windows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Winkernel {
    pub network_name: String,
    pub source_vip: String,
    #[serde(rename = "enableDSR")]
    pub enable_dsr: bool,
    pub root_hns_endpoint_name: String,
    pub forward_health_check_vip: bool,
}

/// Of the modes that detect local traffic by its device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DetectLocal {
    pub bridge_interface: String,
    pub interface_name_prefix: String,
}

/// How connections are tracked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Conntrack {
    pub max_per_core: Option<i32>,
    pub min: Option<i32>,
    pub tcp_established_timeout: Option<GoDuration>,
    pub tcp_close_wait_timeout: Option<GoDuration>,
    pub tcp_be_liberal: bool,
    pub udp_timeout: GoDuration,
    pub udp_stream_timeout: GoDuration,
}

/// One of kube-proxy's modes. Here there is only one datapath, which follows what a mode says about NodePorts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The default.
    IPTables,
    /// Deprecated.
    Ipvs,
    /// The newer one.
    NFTables,
}

impl KubeProxyConfiguration {
    /// What kube-proxy runs with when it is told nothing.
    #[must_use]
    pub fn defaults() -> Self {
        let mut defaults = Self::default();
        defaults.set_defaults();
        defaults
    }

    /// Fills in what is not set, as kube-proxy does (CFG, `SetDefaults_KubeProxyConfiguration`). Durations of zero in a
    /// file are not set either; so are some of its numbers.
    pub fn set_defaults(&mut self) {
        default_text(&mut self.bind_address, "0.0.0.0");
        let (everywhere, here) = address::defaults(&self.bind_address);
        default_text(&mut self.healthz_bind_address, everywhere);
        self.healthz_bind_address = address::with_port(&self.healthz_bind_address, address::HEALTHZ_PORT);
        default_text(&mut self.metrics_bind_address, here);
        self.metrics_bind_address = address::with_port(&self.metrics_bind_address, address::METRICS_PORT);
        default_text(&mut self.mode, "iptables");
        default_text(&mut self.detect_local_mode, "ClusterCIDR");
        self.oom_score_adj.get_or_insert(-999);
        default_duration(&mut self.config_sync_period, 15 * 60);
        default_duration(&mut self.iptables.sync_period, 30);
        default_duration(&mut self.iptables.min_sync_period, 1);
        default_duration(&mut self.ipvs.sync_period, 30);
        default_duration(&mut self.nftables.sync_period, 30);
        default_duration(&mut self.nftables.min_sync_period, 1);
        self.iptables.masquerade_bit.get_or_insert(14);
        self.iptables.localhost_node_ports.get_or_insert(true);
        self.nftables.masquerade_bit.get_or_insert(14);
        self.conntrack.max_per_core.get_or_insert(32 * 1024);
        self.conntrack.min.get_or_insert(128 * 1024);
        self.conntrack.tcp_established_timeout.get_or_insert(GoDuration::from_secs(24 * 3_600));
        self.conntrack.tcp_close_wait_timeout.get_or_insert(GoDuration::from_secs(3_600));
        if self.client_connection.qps == 0.0 {
            self.client_connection.qps = 5.0;
        }
        if self.client_connection.burst == 0 {
            self.client_connection.burst = 10;
        }
        default_text(&mut self.client_connection.content_type, PROTOBUF);
        default_text(&mut self.logging.format, "text");
        default_duration(&mut self.logging.flush_frequency, 5);
        for routing in [&mut self.logging.options.text, &mut self.logging.options.json] {
            default_text(&mut routing.info_buffer_size, "0");
        }
        if self.mode() == Some(Mode::NFTables) && self.node_port_addresses.is_empty() {
            self.node_port_addresses.push("primary".to_owned());
        }
    }

    /// The mode; `None` if there is none of that name.
    #[must_use]
    pub fn mode(&self) -> Option<Mode> {
        match self.mode.as_str() {
            "iptables" => Some(Mode::IPTables),
            "ipvs" => Some(Mode::Ipvs),
            "nftables" => Some(Mode::NFTables),
            _ => None,
        }
    }

    /// Whether the source of everything that is sent to a ClusterIP is rewritten: the block of the mode says so
    /// (CFG-01).
    #[must_use]
    pub fn masquerade_all(&self) -> bool {
        match self.mode() {
            Some(Mode::NFTables) => self.nftables.masquerade_all,
            _ => self.iptables.masquerade_all,
        }
    }

    /// How long a sync may take before health suffers, and how long it waits at least: the block of the mode says so
    /// (CFG-01).
    #[must_use]
    pub fn sync_periods(&self) -> (GoDuration, GoDuration) {
        match self.mode() {
            Some(Mode::Ipvs) => (self.ipvs.sync_period, self.ipvs.min_sync_period),
            Some(Mode::NFTables) => (self.nftables.sync_period, self.nftables.min_sync_period),
            _ => (self.iptables.sync_period, self.iptables.min_sync_period),
        }
    }

    /// The same, to be changed.
    fn sync_periods_mut(&mut self) -> (&mut GoDuration, &mut GoDuration) {
        match self.mode() {
            Some(Mode::Ipvs) => (&mut self.ipvs.sync_period, &mut self.ipvs.min_sync_period),
            Some(Mode::NFTables) => (&mut self.nftables.sync_period, &mut self.nftables.min_sync_period),
            _ => (&mut self.iptables.sync_period, &mut self.iptables.min_sync_period),
        }
    }

    /// As kube-proxy prints it at `/configz` and by `--write-config-to`: complete, with zeros for the modes that are not
    /// selected (CFG-04).
    ///
    /// # Errors
    ///
    /// None that a configuration could cause.
    pub fn to_value(&self) -> serde_json::Result<Value> {
        let mut shown = self.clone();
        let (sync, min_sync) = self.sync_periods();
        for (period, min_period) in [
            (&mut shown.iptables.sync_period, &mut shown.iptables.min_sync_period),
            (&mut shown.ipvs.sync_period, &mut shown.ipvs.min_sync_period),
            (&mut shown.nftables.sync_period, &mut shown.nftables.min_sync_period),
        ] {
            (*period, *min_period) = (GoDuration::ZERO, GoDuration::ZERO);
        }
        let (period, min_period) = shown.sync_periods_mut();
        (*period, *min_period) = (sync, min_sync);
        typed(&shown, API_VERSION, KIND)
    }
}

/// The object with its type.
pub(super) fn typed(object: &impl Serialize, api_version: &str, kind: &str) -> serde_json::Result<Value> {
    let mut value = serde_json::to_value(object)?;
    value["apiVersion"] = api_version.into();
    value["kind"] = kind.into();
    Ok(value)
}

fn default_text(text: &mut String, default: &str) {
    if text.is_empty() {
        default.clone_into(text);
    }
}

fn default_duration(duration: &mut GoDuration, seconds: u32) {
    if *duration == GoDuration::ZERO {
        *duration = GoDuration::from_secs(seconds);
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

/// Without the fraction that a whole number does not have.
fn as_go_prints_it<S: Serializer>(number: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    #[expect(clippy::cast_possible_truncation, reason = "what is truncated is compared")]
    let whole = *number as i32;
    #[expect(clippy::cast_precision_loss, reason = "what is lost is compared")]
    if whole as f32 == *number { serializer.serialize_i32(whole) } else { serializer.serialize_f32(*number) }
}

/// `metav1.TimeOrMetaDuration`: text, or nanoseconds.
fn duration_or_nanos<'de, D: Deserializer<'de>>(deserializer: D) -> Result<GoDuration, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Number(nanos) if nanos.is_i64() => {
            Ok(GoDuration::from_nanos(nanos.as_i64().unwrap_or_default()))
        }
        other => GoDuration::deserialize(other).map_err(de::Error::custom),
    }
}

/// `resource.Quantity`, of which nobody here asks how much it is.
fn text_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Number(number) => Ok(number.to_string()),
        other => String::deserialize(other).map_err(de::Error::custom),
    }
}

/// What kube-proxy asks the API for, unless it is told otherwise.
pub(super) const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
