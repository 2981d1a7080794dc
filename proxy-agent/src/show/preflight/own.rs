//! What Sluice itself needs.

use std::{fs, path::Path};

use nix::sys::{
    statfs::{BPF_FS_MAGIC, statfs},
    utsname::uname,
};
use proxy_common::config::SourcePorts;

use super::Check;
use crate::{
    cgroup,
    datapath::{Feature, PreflightError, VERIFIER_LIMIT, Verified, check_process, features, verify},
    ports::PortRange,
};

/// Looks at all of it.
pub(super) fn checks(bpffs: &Path, cgroup: Option<&Path>) -> Vec<Check> {
    let process = check_process();
    let mut checks = vec![kernel(&process), capabilities(&process), bpf_file_system(bpffs), cgroup2(cgroup)];
    // Without permission, every answer would be no.
    if process.is_ok() {
        checks.push(kernel_features(&features()));
        checks.push(btf());
        checks.push(programs());
    }
    checks.extend([forwarding("ipv4/ip_forward", "IPv4"), forwarding("ipv6/conf/all/forwarding", "IPv6")]);
    checks.push(source_ports());
    checks
}

fn kernel(process: &Result<(), PreflightError>) -> Check {
    let release = uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default();
    match process {
        Err(error @ PreflightError::KernelTooOld(_)) => {
            Check::failed("kernel", error.to_string(), "run Linux 6.6 or newer")
        }
        _ => Check::ok("kernel", format!("Linux {release}")),
    }
}

fn capabilities(process: &Result<(), PreflightError>) -> Check {
    match process {
        Err(error @ (PreflightError::Capabilities(_) | PreflightError::Unknown(_))) => Check::failed(
            "capabilities",
            error.to_string(),
            "run it as root, or give the container CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN",
        ),
        _ => Check::ok("capabilities", "this process may load and attach programs"),
    }
}

fn bpf_file_system(dir: &Path) -> Check {
    let existing = dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let shown = existing.display();
    match statfs(existing) {
        Ok(kind) if kind.filesystem_type() == BPF_FS_MAGIC => Check::ok("bpffs", format!("{shown} is one")),
        Ok(_) => Check::failed(
            "bpffs",
            format!("{shown} is on no BPF file system"),
            "mount -t bpf bpf /sys/fs/bpf, or name another with --bpffs",
        ),
        Err(error) => {
            Check::failed("bpffs", format!("{shown}: {error}"), "name a BPF file system with --bpffs")
        }
    }
}

/// Without one, Sluice runs and the node's own processes go without.
fn cgroup2(given: Option<&Path>) -> Check {
    let found = match given {
        Some(dir) => cgroup::check(dir).map(|()| dir.to_owned()),
        None => cgroup::find(),
    };
    match found {
        Ok(dir) if cgroup::is_root(&dir) => Check::ok("cgroup2", format!("{} is the root", dir.display())),
        Ok(dir) => Check::warning(
            "cgroup2",
            format!(
                "{} is not the root: processes outside it are not served at their sockets",
                dir.display()
            ),
            "in a container, mount the host's cgroup2 and name it with --cgroup",
        ),
        Err(error) => Check::warning(
            "cgroup2",
            format!("{error}; the node's own processes do not reach services"),
            "mount -t cgroup2 none /sys/fs/cgroup",
        ),
    }
}

fn kernel_features(all: &[Feature]) -> Check {
    const NAME: &str = "features";
    let named = |wanted: fn(&Feature) -> bool| -> Vec<String> {
        all.iter()
            .filter(|feature| wanted(feature))
            .map(|feature| format!("{} {}", feature.kind, feature.name))
            .collect()
    };
    let missing = named(|feature| feature.supported == Ok(false));
    let unknown = named(|feature| feature.supported.is_err());
    if !missing.is_empty() {
        let found = format!("this kernel lacks {}", missing.join(", "));
        return Check::failed(
            NAME,
            found,
            "run a kernel with CONFIG_BPF_SYSCALL, CONFIG_CGROUP_BPF and CONFIG_NET_CLS_ACT",
        );
    }
    if !unknown.is_empty() {
        let found = format!("cannot tell whether this kernel has {}", unknown.join(", "));
        return Check::warning(NAME, found, "see whether the programs load, below");
    }
    Check::ok(NAME, format!("all {} program types, map types, helpers and hooks are there", all.len()))
}

fn btf() -> Check {
    if Path::new("/sys/kernel/btf/vmlinux").exists() {
        Check::ok("btf", "the kernel describes its types")
    } else {
        Check::warning(
            "btf",
            "no /sys/kernel/btf/vmlinux; packets cost twice as much, since checksums are left to the kernel's helpers",
            "run a kernel with CONFIG_DEBUG_INFO_BTF",
        )
    }
}

/// The real programs under this kernel's verifier.
fn programs() -> Check {
    const NAME: &str = "programs";
    let refused = |error: &dyn std::error::Error| {
        let found = crate::report(error);
        // The verifier's log is long; its first line says where it ended.
        let found = found.lines().next().unwrap_or_default().to_owned();
        Check::failed(
            NAME,
            found,
            "report it with the kernel's version; `sluice run` logs the verifier's reasons",
        )
    };
    let verified = match verify() {
        Ok(verified) => verified,
        Err(error) => return refused(&error),
    };
    if let Some(error) = verified.iter().find_map(|program| program.walked.as_ref().err()) {
        return refused(error);
    }
    let largest = verified
        .iter()
        .filter_map(|Verified { program, walked }| Some(((*walked.as_ref().ok()?)?, *program)));
    let count = verified.len();
    match largest.max() {
        None => Check::ok(NAME, format!("all {count} load")),
        Some((walked, program)) => {
            let share = walked * 100 / VERIFIER_LIMIT;
            let found = format!(
                "all {count} load; of the verifier's {VERIFIER_LIMIT} instructions, {program} takes {walked} ({share} %)"
            );
            if walked > VERIFIER_LIMIT / 4 * 3 {
                Check::warning(NAME, found, "none; a later kernel may refuse it")
            } else {
                Check::ok(NAME, found)
            }
        }
    }
}

fn forwarding(path: &str, family: &str) -> Check {
    let name = format!("forwarding {family}");
    match fs::read_to_string(format!("/proc/sys/net/{path}")) {
        Ok(text) if text.trim() == "0" => Check::warning(
            &name,
            format!("net.{} is 0: packets to pods are not forwarded", path.replace('/', ".")),
            format!("sysctl -w net.{}=1, if the network plugin does not", path.replace('/', ".")),
        ),
        Ok(_) => Check::ok(&name, "on"),
        Err(_) => Check::ok(&name, "this kernel has no such family"),
    }
}

fn source_ports() -> Check {
    const NAME: &str = "source ports";
    let sockets = match PortRange::of_sockets() {
        Ok(range) => range,
        Err(error) => {
            return Check::warning(
                NAME,
                format!("cannot read net.ipv4.ip_local_port_range: {error}"),
                "mount /proc",
            );
        }
    };
    let left = SourcePorts::outside([sockets.ends(), PortRange::NODE_PORTS.ends()]).len();
    let found =
        format!("{left} are left beside sockets ({sockets}) and NodePorts ({})", PortRange::NODE_PORTS);
    if left < 1024 {
        Check::warning(
            NAME,
            format!("{found}: too few for many clients outside whose backends are on other nodes"),
            "narrow net.ipv4.ip_local_port_range",
        )
    } else {
        Check::ok(NAME, found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::show::preflight::Status;

    #[test]
    fn an_ordinary_directory_is_no_bpf_file_system() {
        let dir = tempfile::tempdir().unwrap();
        let check = bpf_file_system(&dir.path().join("sluice"));
        assert_eq!(check.status, Status::Failed);
        assert!(check.found.contains(&dir.path().display().to_string()), "{check:?}");
    }

    #[test]
    fn what_is_missing_is_named() {
        let feature = |name, supported| Feature { kind: "helper", name, supported };
        let all = [feature("a", Ok(true)), feature("b", Ok(false)), feature("c", Err("why".to_owned()))];
        let check = kernel_features(&all);
        assert_eq!((check.status, check.found.as_str()), (Status::Failed, "this kernel lacks helper b"));
        assert_eq!(kernel_features(&all[..1]).status, Status::Ok);
        assert_eq!(kernel_features(&all[2..]).status, Status::Warning);
        let old = Err(PreflightError::Capabilities(vec!["CAP_BPF"]));
        assert_eq!(kernel(&old).status, Status::Ok);
        assert!(capabilities(&old).found.contains("CAP_BPF"));
    }
}
