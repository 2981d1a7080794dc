//! A pod, as far as it matters whether it is served at its sockets.

use std::{collections::BTreeMap, fmt};

use k8s_openapi::api::core::v1::Pod;
use proxy_common::pod::PodReason;

use crate::error::Report;

/// By this label a pod chooses for itself.
const CHOICE_LABEL: &str = "sluice.io/socket-lb";

/// KubeVirt labels the pods that virtual machines run in.
const KUBEVIRT_LABEL: &str = "kubevirt.io";

/// kubelet runs a static pod under this uid rather than that of the object that mirrors it (`ConfigHashAnnotationKey` in
/// `pkg/kubelet/types`).
const STATIC_POD_ANNOTATION: &str = "kubernetes.io/config.hash";

/// The uid of a pod as kubelet writes it into the names of cgroups, whichever driver it uses.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodUid(Box<str>);

impl PodUid {
    /// A uid, in which the systemd driver writes underscores where others write dashes; `None` if it cannot be one.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (!text.is_empty() && text.bytes().all(allowed)).then(|| Self(text.replace('_', "-").into()))
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whose uid a pod goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Its own, which the API server gave to nobody else.
    Own,
    /// That of a static pod. Anybody may write an annotation.
    Static,
}

/// The uid that is in the names of the pod's cgroups.
pub(crate) fn uid(pod: &Pod, report: &mut Report<'_>) -> Option<(PodUid, Claim)> {
    let annotations = pod.metadata.annotations.as_ref();
    let (field, text, claim) = match annotations.and_then(|all| all.get(STATIC_POD_ANNOTATION)) {
        Some(text) => {
            (format!("metadata.annotations[{STATIC_POD_ANNOTATION}]"), text.as_str(), Claim::Static)
        }
        None => ("metadata.uid".to_owned(), pod.metadata.uid.as_deref().unwrap_or_default(), Claim::Own),
    };
    let uid = PodUid::new(text);
    if uid.is_none() {
        report.text(
            field,
            text,
            "is not a uid, so the pod's cgroup is not known and the pod is left to packets",
        );
    }
    uid.map(|uid| (uid, claim))
}

/// Complains about a static pod's uid that is another pod's own.
pub(crate) fn report_stolen_uid(uid: &str, report: &mut Report<'_>) {
    report.text(
        format!("metadata.annotations[{STATIC_POD_ANNOTATION}]"),
        uid,
        "is another pod's uid, so the pod's cgroup is not known and the pod is left to packets",
    );
}

/// Whether its processes are in the node's own network: then they are the node's own.
pub(crate) fn is_in_host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or_default()
}

/// What decides whether a pod is served at its sockets; `Unknown` for one whose processes are the node's own.
///
/// The label comes first, so that one can overrule everything else. A pod that is left to packets for nothing loses a
/// little speed; one that is served in spite of a mesh loses its mesh. So whatever looks like a mesh is one, and every
/// container runtime of its own counts as a sandbox.
pub(crate) fn judge(pod: &Pod, report: &mut Report<'_>) -> PodReason {
    let labels = pod.metadata.labels.as_ref();
    let label = |name: &str| labels.and_then(|labels| labels.get(name)).map(String::as_str);
    let choice = label(CHOICE_LABEL);
    if is_in_host_network(pod) {
        if let Some(text) = choice {
            report.text(
                format!("metadata.labels[{CHOICE_LABEL}]"),
                text,
                "says nothing about a pod in the node's network, which is served as the node's own processes are",
            );
        }
        return PodReason::Unknown;
    }
    match choice {
        Some("on") => return PodReason::OptedIn,
        Some("off") => return PodReason::OptedOut,
        Some(text) => {
            report.text(
                format!("metadata.labels[{CHOICE_LABEL}]"),
                text,
                "is neither \"on\" nor \"off\", so the pod is left to packets",
            );
            return PodReason::UnknownChoice;
        }
        None => {}
    }
    let spec = pod.spec.as_ref();
    if label(KUBEVIRT_LABEL).is_some() {
        PodReason::VirtualMachine
    } else if spec.and_then(|spec| spec.runtime_class_name.as_deref()).is_some_and(|name| !name.is_empty()) {
        PodReason::RuntimeClass
    } else if MESHES.iter().any(|mark| mark.is_on(pod)) {
        PodReason::ServiceMesh
    } else {
        PodReason::Eligible
    }
}

/// What tells that a pod is in a service mesh.
#[derive(Debug)]
enum Mark {
    /// An annotation, whatever it says.
    Annotated(&'static str),
    /// An annotation that says anything but `disabled`.
    Enabled(&'static str),
    /// An annotation that says this.
    Annotation(&'static str, &'static str),
    /// A label, whatever it says.
    Labelled(&'static str),
    /// A label that says this.
    Label(&'static str, &'static str),
    /// A container of this name. Kubernetes 1.29 and later have sidecars among the init containers.
    Container(&'static str),
}

/// What meshes leave on the pods whose connections they take. Injectors mark a pod before it exists; Istio's ambient mode and
/// Kmesh mark it when they have set up its network (`pending` in between), which may be long after it began.
const MESHES: [Mark; 18] = [
    // Istio with sidecars, and with ztunnel.
    Mark::Annotated("sidecar.istio.io/status"),
    Mark::Container("istio-proxy"),
    Mark::Enabled("ambient.istio.io/redirection"),
    Mark::Label("istio.io/dataplane-mode", "ambient"),
    // Linkerd.
    Mark::Annotated("linkerd.io/proxy-version"),
    Mark::Container("linkerd-proxy"),
    // Kuma and Kong Mesh.
    Mark::Annotation("kuma.io/sidecar-injected", "true"),
    Mark::Container("kuma-sidecar"),
    // Consul, whose sidecar was called `envoy-sidecar` before there was a dataplane.
    Mark::Annotation("consul.hashicorp.com/connect-inject-status", "injected"),
    Mark::Annotation("consul.hashicorp.com/mesh-inject-status", "injected"),
    Mark::Container("consul-dataplane"),
    Mark::Container("envoy-sidecar"),
    // Kmesh.
    Mark::Enabled("kmesh.net/redirection"),
    Mark::Label("istio.io/dataplane-mode", "Kmesh"),
    // Open Service Mesh, and Flomesh, which went on with it.
    Mark::Labelled("osm-proxy-uuid"),
    Mark::Labelled("fsm-proxy-uuid"),
    // AWS App Mesh, by what sets up its redirection: the sidecar's name is merely `envoy`.
    Mark::Container("proxyinit"),
    // NGINX Service Mesh.
    Mark::Container("nginx-mesh-sidecar"),
];

impl Mark {
    fn is_on(&self, pod: &Pod) -> bool {
        let annotation = |name| value(pod.metadata.annotations.as_ref(), name);
        let label = |name| value(pod.metadata.labels.as_ref(), name);
        match *self {
            Self::Annotated(name) => annotation(name).is_some(),
            Self::Enabled(name) => annotation(name).is_some_and(|value| value != "disabled"),
            Self::Annotation(name, wanted) => annotation(name) == Some(wanted),
            Self::Labelled(name) => label(name).is_some(),
            Self::Label(name, wanted) => label(name) == Some(wanted),
            Self::Container(name) => pod.spec.as_ref().is_some_and(|spec| {
                let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
                all.into_iter().any(|container| container.name == name)
            }),
        }
    }
}

/// The value of a label or annotation.
fn value<'a>(all: Option<&'a BTreeMap<String, String>>, name: &str) -> Option<&'a str> {
    all?.get(name).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{change::ObjectName, error::Kind};

    /// A pod of this metadata and spec.
    fn pod(metadata: &Value, spec: &Value) -> Pod {
        serde_json::from_value(json!({ "metadata": metadata, "spec": spec })).unwrap()
    }

    fn judged(pod: &Pod) -> (PodReason, Vec<String>) {
        let name = ObjectName { namespace: "web".to_owned(), name: "a".to_owned() };
        let mut report = Report::new(Kind::Pod, &name);
        let reason = judge(pod, &mut report);
        (reason, report.finish().iter().map(ToString::to_string).collect())
    }

    fn labelled(name: &str, value: &str) -> Value {
        json!({ "labels": { "app": "x", name: value } })
    }

    fn annotated(name: &str, value: &str) -> Value {
        json!({ "annotations": { "kubectl.kubernetes.io/default-container": "app", name: value } })
    }

    fn containers(names: &[&str]) -> Vec<Value> {
        names.iter().map(|name| json!({ "name": name })).collect()
    }

    /// With a container beside the application's.
    fn beside(name: &str) -> Value {
        json!({ "containers": containers(&["app", name]) })
    }

    #[test]
    fn pods_are_judged_by_what_is_written_on_them() {
        use PodReason::{Eligible, RuntimeClass, ServiceMesh, VirtualMachine};
        let nothing = json!({});
        let app = json!({ "containers": containers(&["app"]) });
        let native =
            json!({ "containers": containers(&["app"]), "initContainers": containers(&["istio-proxy"]) });
        for (metadata, spec, expected) in [
            (&nothing, &nothing, Eligible),
            (&nothing, &app, Eligible),
            (&nothing, &json!({ "containers": [], "runtimeClassName": "kata" }), RuntimeClass),
            (&nothing, &json!({ "containers": [], "runtimeClassName": "gvisor" }), RuntimeClass),
            (&nothing, &json!({ "containers": [], "runtimeClassName": "" }), Eligible),
            (&labelled("kubevirt.io", "virt-launcher"), &app, VirtualMachine),
            (&labelled("kubevirt.io/size", "small"), &app, Eligible),
            (&annotated("sidecar.istio.io/status", "{}"), &app, ServiceMesh),
            (&annotated("sidecar.istio.io/inject", "false"), &app, Eligible),
            (&nothing, &beside("istio-proxy"), ServiceMesh),
            (&nothing, &native, ServiceMesh),
            (&nothing, &beside("istio-proxy-2"), Eligible),
            (&annotated("ambient.istio.io/redirection", "enabled"), &app, ServiceMesh),
            (&annotated("ambient.istio.io/redirection", "pending"), &app, ServiceMesh),
            (&annotated("ambient.istio.io/redirection", "disabled"), &app, Eligible),
            (&labelled("istio.io/dataplane-mode", "ambient"), &app, ServiceMesh),
            (&labelled("istio.io/dataplane-mode", "none"), &app, Eligible),
            (&annotated("linkerd.io/proxy-version", "edge-25.1.1"), &app, ServiceMesh),
            (&annotated("linkerd.io/inject", "disabled"), &app, Eligible),
            (&nothing, &beside("linkerd-proxy"), ServiceMesh),
            (&annotated("kuma.io/sidecar-injected", "true"), &app, ServiceMesh),
            (&annotated("kuma.io/sidecar-injected", "false"), &app, Eligible),
            (&nothing, &beside("kuma-sidecar"), ServiceMesh),
            (&annotated("consul.hashicorp.com/connect-inject-status", "injected"), &app, ServiceMesh),
            (&annotated("consul.hashicorp.com/connect-inject", "false"), &app, Eligible),
            (&nothing, &beside("consul-dataplane"), ServiceMesh),
            (&annotated("kmesh.net/redirection", "enabled"), &app, ServiceMesh),
            (&labelled("osm-proxy-uuid", "1"), &app, ServiceMesh),
            (&nothing, &beside("nginx-mesh-sidecar"), ServiceMesh),
            (&nothing, &beside("envoy"), Eligible),
        ] {
            assert_eq!(judged(&pod(metadata, spec)), (expected, vec![]), "{metadata} {spec}");
        }
    }

    #[test]
    fn the_label_overrules_everything_and_only_two_values_mean_something() {
        use PodReason::{OptedIn, OptedOut, UnknownChoice};
        let plain = json!({ "containers": containers(&["app"]) });
        let sandboxed = json!({ "containers": containers(&["istio-proxy"]), "runtimeClassName": "kata" });
        for spec in [&plain, &sandboxed] {
            assert_eq!(judged(&pod(&labelled(CHOICE_LABEL, "on"), spec)), (OptedIn, vec![]));
            assert_eq!(judged(&pod(&labelled(CHOICE_LABEL, "off"), spec)), (OptedOut, vec![]));
            for wrong in ["", "On", "true", "auto"] {
                let said = format!(
                    "Pod web/a: metadata.labels[sluice.io/socket-lb]: {wrong:?} is neither \"on\" nor \"off\", so the pod \
                     is left to packets"
                );
                assert_eq!(judged(&pod(&labelled(CHOICE_LABEL, wrong), spec)), (UnknownChoice, vec![said]));
            }
        }
    }

    #[test]
    fn a_pod_in_the_nodes_network_has_no_choice_and_hears_so() {
        let spec = json!({ "containers": [], "hostNetwork": true });
        assert_eq!(judged(&pod(&json!({}), &spec)), (PodReason::Unknown, vec![]));
        let (reason, said) = judged(&pod(&labelled(CHOICE_LABEL, "off"), &spec));
        assert_eq!(reason, PodReason::Unknown);
        assert!(said[0].contains("web/a") && said[0].contains("\"off\" says nothing"), "{said:?}");
    }

    #[test]
    fn the_uid_is_the_pods_own_unless_it_is_static() {
        let name = ObjectName { namespace: "web".to_owned(), name: "a".to_owned() };
        let found = |metadata: &Value| {
            let mut report = Report::new(Kind::Pod, &name);
            let found = uid(&pod(metadata, &json!({})), &mut report);
            (found.map(|(uid, claim)| (uid.to_string(), claim)), report.finish().len())
        };
        let own = "4dbd2e5a-6f9f-4c2e-a33c-41d6eeab5c0d";
        assert_eq!(found(&json!({ "uid": own })), (Some((own.to_owned(), Claim::Own)), 0));
        let hash = "ba0e2b2ad2ff1d8a1ee2eb5bb3b1a5d3";
        let mirror = json!({ "uid": own, "annotations": { STATIC_POD_ANNOTATION: hash } });
        assert_eq!(found(&mirror), (Some((hash.to_owned(), Claim::Static)), 0));
        for wrong in [json!({}), json!({ "uid": "" }), json!({ "uid": "../a" })] {
            assert_eq!(found(&wrong), (None, 1), "{wrong}");
        }
    }

    #[test]
    fn both_forms_of_a_uid_are_the_same() {
        assert_eq!(PodUid::new("1234_ab_cd"), PodUid::new("1234-ab-cd"));
        assert_ne!(PodUid::new("1234-ab"), PodUid::new("1234ab"));
    }
}
