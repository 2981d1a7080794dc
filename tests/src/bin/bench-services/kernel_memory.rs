//! What the kernel holds for tables, whoever made them.

use std::fs;

use anyhow::{Context as _, Result};

/// Kinds of memory that tables of BPF, iptables and nf_tables lie in (proc(5), `meminfo`).
const KINDS: [&str; 3] = ["SUnreclaim:", "VmallocUsed:", "Percpu:"];

/// Bytes of the kernel's own memory. What it grows by while tables are made is theirs, as far as nothing else on the machine
/// makes any.
pub(crate) fn used() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    let value = |kind: &str| -> Result<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(kind)).with_context(|| kind.to_owned())?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
    };
    KINDS.iter().map(|kind| value(kind)).sum()
}
