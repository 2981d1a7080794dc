//! Can this kernel and this process run the datapath? Asked before anything is touched, so that the answer is one
//! sentence instead of a system call's error number.

use aya::util::KernelVersion;

/// What is missing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PreflightError {
    /// The kernel lacks tcx links.
    #[error("Linux {0} is too old: Sluice attaches with tcx links, which came with Linux {TCX}")]
    KernelTooOld(KernelVersion),
    /// The process lacks capabilities.
    #[error("no permission for BPF: the process lacks {}; run it as root, or grant them to the container", .0.join(", "))]
    Capabilities(Vec<&'static str>),
    /// The process cannot tell its capabilities.
    #[error("cannot read the capabilities of this process from /proc/self/status: {0}")]
    Unknown(String),
}

/// First kernel with tcx (commit e420bed02507, "bpf: Add fd-based tcx multi-prog infra").
const TCX: KernelVersion = KernelVersion::new(6, 6, 0);

/// Capabilities that loading and attaching need, with their numbers in `include/uapi/linux/capability.h`.
const NEEDED: [(&str, u32); 3] = [("CAP_NET_ADMIN", 12), ("CAP_PERFMON", 38), ("CAP_BPF", 39)];
/// Stands for all of them on kernels and in containers that know nothing finer.
const SYS_ADMIN: u32 = 21;

/// Says what is missing, if anything.
pub(super) fn check() -> Result<(), PreflightError> {
    // A version that cannot be read is no reason to refuse: the kernel will speak for itself.
    if let Ok(version) = KernelVersion::current() {
        check_kernel(version)?;
    }
    let status = std::fs::read_to_string("/proc/self/status")
        .map_err(|error| PreflightError::Unknown(error.to_string()))?;
    check_capabilities(&status)
}

fn check_kernel(version: KernelVersion) -> Result<(), PreflightError> {
    if version < TCX { Err(PreflightError::KernelTooOld(version)) } else { Ok(()) }
}

fn check_capabilities(status: &str) -> Result<(), PreflightError> {
    let unknown = || PreflightError::Unknown("no CapEff line".to_owned());
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).ok_or_else(unknown)?;
    let bits =
        u64::from_str_radix(line.trim(), 16).map_err(|error| PreflightError::Unknown(error.to_string()))?;
    let has = |bit: u32| bits >> bit & 1 == 1;
    let missing: Vec<_> = NEEDED
        .into_iter()
        .filter(|&(_, bit)| !has(bit) && (bit == 12 || !has(SYS_ADMIN)))
        .map(|(name, _)| name)
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(PreflightError::Capabilities(missing)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_kernel_is_named() {
        let error = check_kernel(KernelVersion::new(6, 1, 90)).unwrap_err().to_string();
        assert_eq!(
            error,
            "Linux 6.1.90 is too old: Sluice attaches with tcx links, which came with Linux 6.6.0"
        );
        assert_eq!(check_kernel(TCX), Ok(()));
    }

    #[test]
    fn missing_capabilities_are_named() {
        assert_eq!(check_capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n"), Ok(()));
        let error = check_capabilities("CapEff:\t0000000000001000\n").unwrap_err();
        assert_eq!(error, PreflightError::Capabilities(vec!["CAP_PERFMON", "CAP_BPF"]));
        assert_eq!(
            check_capabilities("CapEff:\t0000000000201000\n"),
            Ok(()),
            "CAP_SYS_ADMIN stands for both"
        );
        assert!(matches!(check_capabilities(""), Err(PreflightError::Unknown(_))));
    }
}
