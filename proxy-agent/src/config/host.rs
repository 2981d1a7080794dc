//! What a configuration must fit.

use std::{fs, path::Path};

/// What of the host decides whether a configuration can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// Whether there is IPv6 (LIFE-06).
    pub has_ipv6: bool,
}

impl Host {
    /// This host.
    #[must_use]
    pub fn detect() -> Self {
        Self { has_ipv6: has_ipv6(Path::new("/proc")) }
    }
}

/// As kube-proxy tests it.
fn has_ipv6(proc: &Path) -> bool {
    let disabled = fs::read_to_string(proc.join("sys/net/ipv6/conf/all/disable_ipv6"));
    proc.join("net/if_inet6").exists() && !disabled.is_ok_and(|value| value.trim() == "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_can_be_absent_or_disabled() {
        let proc = tempfile::tempdir().unwrap();
        assert!(!has_ipv6(proc.path()));
        let sysctl = proc.path().join("sys/net/ipv6/conf/all");
        fs::create_dir_all(&sysctl).unwrap();
        fs::create_dir(proc.path().join("net")).unwrap();
        fs::write(proc.path().join("net/if_inet6"), "").unwrap();
        assert!(has_ipv6(proc.path()));
        fs::write(sysctl.join("disable_ipv6"), "0\n").unwrap();
        assert!(has_ipv6(proc.path()));
        fs::write(sysctl.join("disable_ipv6"), "1\n").unwrap();
        assert!(!has_ipv6(proc.path()));
    }
}
