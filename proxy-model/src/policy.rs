//! What a Service asks for all its ports alike.

use k8s_openapi::{api::core::v1::ServiceSpec, apimachinery::pkg::apis::meta::v1::ObjectMeta};

use crate::error::Report;

/// The timeout of session affinity, if the Service names none that can be used (AFF-02).
const DEFAULT_TIMEOUT: u32 = 10_800;
/// The longest timeout that the API accepts: one day.
const MAX_TIMEOUT: u32 = 86_400;

/// Which backends traffic may reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum TrafficPolicy {
    /// Those on any node.
    #[default]
    Cluster,
    /// Those on the node that the traffic is on.
    Local,
}

impl TrafficPolicy {
    /// From `spec.internalTrafficPolicy` (SP-08).
    pub(crate) fn parse_internal(spec: &ServiceSpec, report: &mut Report<'_>) -> Self {
        Self::parse("spec.internalTrafficPolicy", spec.internal_traffic_policy.as_deref(), report)
    }

    /// From `spec.externalTrafficPolicy`, which counts only if the Service is meant to be reached from outside (SP-07,
    /// ETP-01, upstream `ExternalPolicyLocal`).
    pub(crate) fn parse_external(spec: &ServiceSpec, report: &mut Report<'_>) -> Self {
        let policy =
            Self::parse("spec.externalTrafficPolicy", spec.external_traffic_policy.as_deref(), report);
        let external_ips = spec.external_ips.as_deref().unwrap_or_default();
        match spec.type_.as_deref() {
            Some("NodePort" | "LoadBalancer") => policy,
            None | Some("" | "ClusterIP") if !external_ips.is_empty() => policy,
            _ => Self::Cluster,
        }
    }

    /// Like kube-proxy, takes what is unknown for `Cluster`.
    fn parse(field: &str, text: Option<&str>, report: &mut Report<'_>) -> Self {
        match text {
            None | Some("" | "Cluster") => Self::Cluster,
            Some("Local") => Self::Local,
            Some(other) => {
                report.text(field, other, "is not Cluster or Local; Cluster is used");
                Self::Cluster
            }
        }
    }
}

/// Whether a client stays with its backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum SessionAffinity {
    /// Every connection is a new choice.
    #[default]
    None,
    /// For so many seconds after the client's last new connection (AFF-05); 1 to 86,400.
    ClientIp(u32),
}

impl SessionAffinity {
    /// From `spec.sessionAffinity` and, if that says so, the timeout (SP-11).
    ///
    /// The API lets no illegal value through, so kube-proxy uses what it finds; manifests may contain anything. What
    /// is too long is cut to the longest timeout, and what is no time at all becomes the default: a Service that asks
    /// for affinity never ends up without.
    pub(crate) fn parse(spec: &ServiceSpec, report: &mut Report<'_>) -> Self {
        match spec.session_affinity.as_deref() {
            None | Some("" | "None") => return Self::None,
            Some("ClientIP") => {}
            Some(other) => {
                report.text("spec.sessionAffinity", other, "is not ClientIP or None; None is used");
                return Self::None;
            }
        }
        let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
        let Some(seconds) = config.and_then(|config| config.timeout_seconds) else {
            return Self::ClientIp(DEFAULT_TIMEOUT);
        };
        let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        Self::ClientIp(match u32::try_from(seconds) {
            Ok(seconds @ 1..=MAX_TIMEOUT) => seconds,
            Ok(1..) => {
                report.number(field, seconds, "is more than a day; 86400 is used");
                MAX_TIMEOUT
            }
            Ok(0) | Err(_) => {
                report.number(field, seconds, "is not a timeout (1-86400); 10800 is used");
                DEFAULT_TIMEOUT
            }
        })
    }

    /// As the frontend table stores it.
    pub(crate) const fn seconds(self) -> u32 {
        match self {
            Self::None => 0,
            Self::ClientIp(seconds) => seconds,
        }
    }
}

/// What becomes of a TCP connection when its endpoint is gone for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum OnRemoval {
    /// It goes on until it ends by itself (CT-20).
    #[default]
    Keep,
    /// It is reset.
    Reset,
}

impl OnRemoval {
    /// The annotation by which a Service asks for it.
    const ANNOTATION: &str = "sluice.io/reset-on-backend-removal";

    /// From the Service's annotation.
    pub(crate) fn parse(metadata: &ObjectMeta, report: &mut Report<'_>) -> Self {
        let known = [("false", Self::Keep), ("true", Self::Reset)];
        annotation(
            metadata,
            report,
            Self::ANNOTATION,
            known,
            r#"is not "true" or "false"; connections are not reset"#,
        )
        .unwrap_or_default()
    }
}

/// How a client outside gets a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendSelection {
    /// Any, each as likely as the others.
    #[default]
    Random,
    /// The one that the hash of its packet's tuple has in a Maglev table: the same through every node that leads to the same
    /// backends.
    Maglev,
}

impl BackendSelection {
    /// The annotation by which a Service asks for one.
    const ANNOTATION: &str = "sluice.io/backend-selection";

    /// From the Service's annotation; `None` if it leaves that to the node's administrator.
    pub(crate) fn parse(metadata: &ObjectMeta, report: &mut Report<'_>) -> Option<Self> {
        let known = [("random", Self::Random), ("maglev", Self::Maglev)];
        annotation(
            metadata,
            report,
            Self::ANNOTATION,
            known,
            r#"is not "random" or "maglev"; --backend-selection decides"#,
        )
    }
}

/// How traffic from outside gets to a backend on another node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExternalForwarding {
    /// As if it were this node's own, so that answers come back here.
    #[default]
    Snat,
    /// With its source, encapsulated: the backend's node answers.
    Dsr,
}

impl ExternalForwarding {
    /// The annotation by which a Service asks for one.
    const ANNOTATION: &str = "sluice.io/external-forwarding";

    /// From the Service's annotation; `None` if it leaves that to the node's administrator.
    pub(crate) fn parse(metadata: &ObjectMeta, report: &mut Report<'_>) -> Option<Self> {
        let known = [("snat", Self::Snat), ("dsr", Self::Dsr)];
        annotation(
            metadata,
            report,
            Self::ANNOTATION,
            known,
            r#"is not "snat" or "dsr"; --external-forwarding decides"#,
        )
    }
}

/// What a Service's annotation asks for; `None` if there is none, or one that is not `known`, of which the report says `otherwise`.
fn annotation<T, const N: usize>(
    metadata: &ObjectMeta,
    report: &mut Report<'_>,
    name: &str,
    known: [(&str, T); N],
    otherwise: &'static str,
) -> Option<T> {
    let text = metadata.annotations.as_ref()?.get(name)?;
    let found = known.into_iter().find(|(word, _)| word == text);
    if found.is_none() {
        report.text(format!("metadata.annotations[{name}]"), text, otherwise);
    }
    found.map(|(_, meaning)| meaning)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{change::ObjectName, error::Kind};

    /// The parsed form, and what is wrong with the field.
    fn parsed<T>(spec: Value, parse: fn(&ServiceSpec, &mut Report<'_>) -> T) -> (T, Vec<String>) {
        let object = ObjectName { namespace: "default".to_owned(), name: "web".to_owned() };
        let spec = serde_json::from_value(spec).unwrap();
        let mut report = Report::new(Kind::Service, &object);
        let parsed = parse(&spec, &mut report);
        (parsed, report.finish().iter().map(ToString::to_string).collect())
    }

    /// SP-08.
    #[test]
    fn internal_traffic_stays_local_only_if_the_service_says_so() {
        for (spec, policy) in [
            (json!({}), TrafficPolicy::Cluster),
            (
                json!({ "internalTrafficPolicy": "Cluster", "externalTrafficPolicy": "Local" }),
                TrafficPolicy::Cluster,
            ),
            (json!({ "internalTrafficPolicy": "Local" }), TrafficPolicy::Local),
        ] {
            let text = spec.to_string();
            assert_eq!(parsed(spec, TrafficPolicy::parse_internal), (policy, vec![]), "{text}");
        }
        let (policy, errors) =
            parsed(json!({ "internalTrafficPolicy": "local" }), TrafficPolicy::parse_internal);
        assert_eq!(policy, TrafficPolicy::Cluster);
        let reason = "is not Cluster or Local; Cluster is used";
        assert_eq!(errors, [format!("Service default/web: spec.internalTrafficPolicy: \"local\" {reason}")]);
    }

    /// SP-07, ETP-01.
    #[test]
    fn external_traffic_stays_local_only_if_the_service_is_meant_for_it() {
        for (spec, policy) in [
            (json!({ "type": "NodePort" }), TrafficPolicy::Cluster),
            (json!({ "type": "NodePort", "externalTrafficPolicy": "" }), TrafficPolicy::Cluster),
            (json!({ "type": "NodePort", "externalTrafficPolicy": "Cluster" }), TrafficPolicy::Cluster),
            (json!({ "type": "NodePort", "externalTrafficPolicy": "Local" }), TrafficPolicy::Local),
            (json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local" }), TrafficPolicy::Local),
            (json!({ "type": "ClusterIP", "externalTrafficPolicy": "Local" }), TrafficPolicy::Cluster),
            (json!({ "externalTrafficPolicy": "Local", "externalIPs": [] }), TrafficPolicy::Cluster),
            (
                json!({ "type": "ClusterIP", "externalTrafficPolicy": "Local", "externalIPs": ["192.0.2.1"] }),
                TrafficPolicy::Local,
            ),
            (json!({ "externalTrafficPolicy": "Local", "externalIPs": ["x"] }), TrafficPolicy::Local),
            (json!({ "type": "NodePort", "internalTrafficPolicy": "Local" }), TrafficPolicy::Cluster),
        ] {
            let text = spec.to_string();
            assert_eq!(parsed(spec, TrafficPolicy::parse_external), (policy, vec![]), "{text}");
        }
        let spec = json!({ "type": "NodePort", "externalTrafficPolicy": "Global" });
        let (policy, errors) = parsed(spec, TrafficPolicy::parse_external);
        assert_eq!(policy, TrafficPolicy::Cluster);
        let reason = "is not Cluster or Local; Cluster is used";
        assert_eq!(errors, [format!("Service default/web: spec.externalTrafficPolicy: \"Global\" {reason}")]);
    }

    #[test]
    fn connections_are_kept_unless_the_service_says_otherwise() {
        let complaint = |value: &str| {
            vec![format!(
                "Service default/web: metadata.annotations[sluice.io/reset-on-backend-removal]: {value:?} is not \"true\" or \
                 \"false\"; connections are not reset"
            )]
        };
        for (annotations, expected) in [
            (json!(null), (OnRemoval::Keep, vec![])),
            (json!({ "sluice.io/reset": "true" }), (OnRemoval::Keep, vec![])),
            (json!({ OnRemoval::ANNOTATION: "false" }), (OnRemoval::Keep, vec![])),
            (json!({ OnRemoval::ANNOTATION: "true" }), (OnRemoval::Reset, vec![])),
            (json!({ OnRemoval::ANNOTATION: "yes" }), (OnRemoval::Keep, complaint("yes"))),
            (json!({ OnRemoval::ANNOTATION: "" }), (OnRemoval::Keep, complaint(""))),
        ] {
            let object = ObjectName { namespace: "default".to_owned(), name: "web".to_owned() };
            let metadata = serde_json::from_value(json!({ "annotations": annotations })).unwrap();
            let mut report = Report::new(Kind::Service, &object);
            let found = OnRemoval::parse(&metadata, &mut report);
            let errors: Vec<_> = report.finish().iter().map(ToString::to_string).collect();
            assert_eq!((found, errors), expected, "{metadata:?}");
        }
    }

    #[test]
    fn the_choice_is_the_administrators_unless_the_service_says_otherwise() {
        let complaint = |value: &str| {
            vec![format!(
                "Service default/web: metadata.annotations[sluice.io/backend-selection]: {value:?} is not \"random\" or \
                 \"maglev\"; --backend-selection decides"
            )]
        };
        for (annotations, expected) in [
            (json!(null), (None, vec![])),
            (json!({ "sluice.io/backend": "maglev" }), (None, vec![])),
            (json!({ BackendSelection::ANNOTATION: "random" }), (Some(BackendSelection::Random), vec![])),
            (json!({ BackendSelection::ANNOTATION: "maglev" }), (Some(BackendSelection::Maglev), vec![])),
            (json!({ BackendSelection::ANNOTATION: "Maglev" }), (None, complaint("Maglev"))),
            (json!({ BackendSelection::ANNOTATION: "" }), (None, complaint(""))),
        ] {
            let object = ObjectName { namespace: "default".to_owned(), name: "web".to_owned() };
            let metadata = serde_json::from_value(json!({ "annotations": annotations })).unwrap();
            let mut report = Report::new(Kind::Service, &object);
            let found = BackendSelection::parse(&metadata, &mut report);
            let errors: Vec<_> = report.finish().iter().map(ToString::to_string).collect();
            assert_eq!((found, errors), expected, "{metadata:?}");
        }
    }

    #[test]
    fn forwarding_is_the_administrators_unless_the_service_says_otherwise() {
        let complaint = |value: &str| {
            vec![format!(
                "Service default/web: metadata.annotations[sluice.io/external-forwarding]: {value:?} is not \"snat\" or \"dsr\"; \
                 --external-forwarding decides"
            )]
        };
        for (annotations, expected) in [
            (json!(null), (None, vec![])),
            (json!({ "sluice.io/forwarding": "dsr" }), (None, vec![])),
            (json!({ ExternalForwarding::ANNOTATION: "snat" }), (Some(ExternalForwarding::Snat), vec![])),
            (json!({ ExternalForwarding::ANNOTATION: "dsr" }), (Some(ExternalForwarding::Dsr), vec![])),
            (json!({ ExternalForwarding::ANNOTATION: "DSR" }), (None, complaint("DSR"))),
        ] {
            let object = ObjectName { namespace: "default".to_owned(), name: "web".to_owned() };
            let metadata = serde_json::from_value(json!({ "annotations": annotations })).unwrap();
            let mut report = Report::new(Kind::Service, &object);
            let found = ExternalForwarding::parse(&metadata, &mut report);
            let errors: Vec<_> = report.finish().iter().map(ToString::to_string).collect();
            assert_eq!((found, errors), expected, "{metadata:?}");
        }
    }

    /// SP-11, AFF-02.
    #[test]
    fn affinity_lasts_three_hours_unless_the_service_says_otherwise() {
        for (spec, seconds) in [
            (json!({}), 0),
            (json!({ "sessionAffinity": "None" }), 0),
            (
                json!({ "sessionAffinity": "None", "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 5 } } }),
                0,
            ),
            (json!({ "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": -5 } } }), 0),
            (json!({ "sessionAffinity": "ClientIP" }), 10_800),
            (json!({ "sessionAffinity": "ClientIP", "sessionAffinityConfig": {} }), 10_800),
            (json!({ "sessionAffinity": "ClientIP", "sessionAffinityConfig": { "clientIP": {} } }), 10_800),
            (
                json!({ "sessionAffinity": "ClientIP", "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 1 } } }),
                1,
            ),
            (
                json!({ "sessionAffinity": "ClientIP", "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 86400 } } }),
                86_400,
            ),
        ] {
            let text = spec.to_string();
            let (affinity, errors) = parsed(spec, SessionAffinity::parse);
            assert_eq!((affinity.seconds(), errors), (seconds, vec![]), "{text}");
        }
    }

    #[test]
    fn an_illegal_timeout_is_named_and_replaced() {
        for (timeout, seconds, reason) in [
            (0, 10_800, "is not a timeout (1-86400); 10800 is used"),
            (-1, 10_800, "is not a timeout (1-86400); 10800 is used"),
            (86_401, 86_400, "is more than a day; 86400 is used"),
        ] {
            let config = json!({ "clientIP": { "timeoutSeconds": timeout } });
            let spec = json!({ "sessionAffinity": "ClientIP", "sessionAffinityConfig": config });
            let (affinity, errors) = parsed(spec, SessionAffinity::parse);
            assert_eq!(affinity.seconds(), seconds);
            let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
            assert_eq!(errors, [format!("Service default/web: {field}: {timeout} {reason}")]);
        }
    }

    #[test]
    fn an_unknown_affinity_is_none() {
        let (affinity, errors) = parsed(json!({ "sessionAffinity": "clientip" }), SessionAffinity::parse);
        assert_eq!(affinity, SessionAffinity::None);
        assert_eq!(
            errors,
            ["Service default/web: spec.sessionAffinity: \"clientip\" is not ClientIP or None; None is used"]
        );
    }
}
