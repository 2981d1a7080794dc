//! What the administrator should know of a configuration that can be used.

use std::collections::{BTreeMap, BTreeSet};

use proxy_model::{Cidr, DetectLocal, Family};
use serde_json::Value;

use super::{
    address, fields::FIELDS, flags::pointer, host::Host, kube_proxy::KubeProxyConfiguration, logging,
};

/// Something to be logged at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// As it should be, but perhaps not as expected.
    Info(String),
    /// Perhaps a mistake.
    Warning(String),
}

/// Names what was set to something else than its default and has no effect, with the reasons: one line.
///
/// `given` are the paths that were set at all, `name` tells what the administrator calls them.
pub(super) fn without_effect(
    config: &KubeProxyConfiguration,
    given: &BTreeSet<&'static str>,
    flags: &[(&'static str, &'static str)],
    name: impl Fn(&'static str) -> String,
) -> serde_json::Result<Option<Note>> {
    let (set, default) =
        (serde_json::to_value(config)?, serde_json::to_value(KubeProxyConfiguration::defaults())?);
    let mut reasons: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for field in FIELDS.iter().filter(|field| given.contains(field.path)) {
        let at = pointer(field.path);
        // Protobuf is the default, but who asks for it should know.
        let matters =
            set.pointer(&at) != default.pointer(&at) || field.path == "clientConnection.contentType";
        if let Some(reason) = field.inert.filter(|_| matters) {
            reasons.entry(reason).or_default().push(name(field.path));
        }
    }
    for (flag, reason) in flags {
        reasons.entry(reason).or_default().push((*flag).to_owned());
    }
    let patterns: Vec<_> = logging::meaningless(&config.logging).collect();
    if !patterns.is_empty() {
        let named = format!("{} of {}", patterns.join(", "), name("logging.vmodule"));
        reasons.entry("not the name of a module, such as watch").or_default().push(named);
    }
    let reasons: Vec<_> =
        reasons.iter().map(|(reason, names)| format!("{} ({reason})", names.join(", "))).collect();
    Ok((!reasons.is_empty()).then(|| Note::Info(format!("accepted without effect: {}", reasons.join("; ")))))
}

/// The paths that a file sets to something that Go would not take for nothing.
pub(super) fn given(file: &Value) -> BTreeSet<&'static str> {
    let is_set = |path: &str| file.pointer(&pointer(path)).is_some_and(|value| !is_nothing(value));
    FIELDS.iter().map(|field| field.path).filter(|path| is_set(path)).collect()
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => matches!(text.as_str(), "" | "0" | "0s"),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

/// What kube-proxy complains about, too (LIFE-04, DLOC-05).
pub(super) fn complaints(config: &KubeProxyConfiguration, host: Host) -> Vec<Note> {
    let mut notes = Vec::new();
    let families: &[Family] = if host.has_ipv6 { &Family::ALL } else { &[Family::Ipv4] };
    let networks: Vec<Cidr> =
        config.node_port_addresses.iter().filter_map(|entry| entry.trim().parse().ok()).collect();
    if config.node_port_addresses.is_empty() {
        notes.push(Note::Info(
            "all addresses of the node accept NodePorts; `primary` for nodePortAddresses (--nodeport-addresses) would \
             leave it at those that the Node object names"
                .to_owned(),
        ));
    } else if !networks.is_empty() {
        notes.extend(missing(families, &networks).map(|family| {
            Note::Warning(format!(
                "no network in nodePortAddresses is of {}: NodePorts are accepted on all its addresses",
                family.as_str()
            ))
        }));
    }
    if config.detect_local_mode == "ClusterCIDR"
        && let Ok(DetectLocal::ClusterCidr(networks)) = DetectLocal::cluster_cidr(&config.cluster_cidr)
    {
        if networks.is_empty() {
            notes.push(Note::Info(
                "without clusterCIDR (--cluster-cidr), clients are not told to be pods by their address"
                    .to_owned(),
            ));
        } else {
            notes.extend(missing(families, &networks).map(|family| {
                Note::Info(format!(
                    "no network in clusterCIDR is of {}: its clients are not told to be pods by their address",
                    family.as_str()
                ))
            }));
        }
    }
    for (field, text) in [
        ("healthzBindAddress", &config.healthz_bind_address),
        ("metricsBindAddress", &config.metrics_bind_address),
    ] {
        if !host.has_ipv6 && address::parse(text).is_some_and(|address| address.is_ipv6()) {
            notes.push(Note::Warning(format!("{field}: {text}: this host has no IPv6")));
        }
    }
    notes
}

/// The families that no network is of.
fn missing<'a>(families: &'a [Family], networks: &'a [Cidr]) -> impl Iterator<Item = Family> + 'a {
    families.iter().copied().filter(|family| !networks.iter().any(|network| network.family() == *family))
}
