//! How kubelet calls the cgroups of pods.

use std::path::Path;

use proxy_model::PodUid;

/// The pod whose own cgroup is at this path below the root of the hierarchy; `None` for every other cgroup, also for those
/// inside a pod's.
///
/// kubelet names a pod's cgroup by a list: its own root, if it is told one, `kubepods`, the pod's class unless that is
/// Guaranteed, and `pod<uid>`. The cgroupfs driver makes a path of it. The systemd driver makes slices of it, each with the
/// names of those above it in front of its own, and writes `_` for a `-` in a name (`pkg/kubelet/cm`,
/// `cgroup_manager_linux.go`).
pub(super) fn pod_of(path: &Path) -> Option<PodUid> {
    let names: Vec<&str> = match path.file_name()?.to_str()?.strip_suffix(".slice") {
        Some(slice) => slice.split('-').collect(),
        None => path.iter().map(|name| name.to_str().unwrap_or_default()).collect(),
    };
    match names.as_slice() {
        [.., KUBEPODS, pod] | [.., KUBEPODS, BURSTABLE | BEST_EFFORT, pod] => {
            PodUid::new(pod.strip_prefix("pod")?)
        }
        _ => None,
    }
}

const KUBEPODS: &str = "kubepods";
const BURSTABLE: &str = "burstable";
const BEST_EFFORT: &str = "besteffort";

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "4dbd2e5a-6f9f-4c2e-a33c-41d6eeab5c0d";
    const ESCAPED: &str = "4dbd2e5a_6f9f_4c2e_a33c_41d6eeab5c0d";
    /// Of a static pod.
    const HASH: &str = "ba0e2b2ad2ff1d8a1ee2eb5bb3b1a5d3";

    #[test]
    fn pods_are_told_from_other_cgroups_under_both_drivers() {
        let own = PodUid::new(UID);
        for (path, expected) in [
            // cgroupfs
            (format!("kubepods/pod{UID}"), own.clone()),
            (format!("kubepods/burstable/pod{UID}"), own.clone()),
            (format!("kubepods/besteffort/pod{UID}"), own.clone()),
            (format!("kubepods/burstable/pod{HASH}"), PodUid::new(HASH)),
            (format!("kubelet/kubepods/besteffort/pod{UID}"), own.clone()),
            (format!("system.slice/docker-1f.scope/kubelet/kubepods/pod{UID}"), own.clone()),
            // systemd
            (format!("kubepods.slice/kubepods-pod{ESCAPED}.slice"), own.clone()),
            (
                format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{ESCAPED}.slice"),
                own.clone(),
            ),
            (
                format!("kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{HASH}.slice"),
                PodUid::new(HASH),
            ),
            (
                format!(
                    "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/\
                     kubelet-kubepods-burstable-pod{ESCAPED}.slice"
                ),
                own.clone(),
            ),
            (format!("k.slice/k-l.slice/k-l-kubepods.slice/k-l-kubepods-pod{ESCAPED}.slice"), own),
            // Others.
            (String::new(), None),
            ("kubepods".to_owned(), None),
            ("kubepods.slice".to_owned(), None),
            ("kubepods/burstable".to_owned(), None),
            ("kubepods.slice/kubepods-burstable.slice".to_owned(), None),
            ("kubepods/pod".to_owned(), None),
            ("kubepods.slice/kubepods-pod.slice".to_owned(), None),
            (format!("kubepods/pod{UID}/1f2e3d"), None),
            (format!("kubepods.slice/kubepods-pod{ESCAPED}.slice/cri-containerd-1f2e3d.scope"), None),
            (format!("kubepods/guaranteed/pod{UID}"), None),
            (format!("podsandbox/pod{UID}"), None),
            (format!("machine.slice/machine-pod{ESCAPED}.slice"), None),
            (format!("burstable/pod{UID}"), None),
            ("system.slice/podman.service".to_owned(), None),
            (format!("kubepods/pod{UID}?"), None),
        ] {
            assert_eq!(pod_of(Path::new(&path)), expected, "{path}");
        }
    }
}
