//! What another process costs.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use nix::unistd::{SysconfVar, sysconf};

/// Bytes of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// That it holds now.
    pub resident: u64,
    /// Most that it ever held.
    pub peak: u64,
}

/// What a process holds in memory.
///
/// # Errors
///
/// If it has ended.
pub fn memory(pid: u32) -> Result<Memory> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("read its status")?;
    let value = |name: &str| -> Result<u64> {
        let line =
            status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| name.to_owned())?;
        let kilobytes: u64 = line.trim_start_matches(':').trim().trim_end_matches(" kB").parse()?;
        Ok(kilobytes * 1024)
    };
    Ok(Memory { resident: value("VmRSS")?, peak: value("VmHWM")? })
}

/// CPU time that a process has used, in ticks of the clock that it is counted by, and with it that of its children which have
/// ended.
///
/// # Errors
///
/// If it has ended.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("read its times")?;
    // proc(5): utime, stime, cutime and cstime are fields 14 to 17; the second, in brackets, may have spaces in it.
    let fields = stat.rsplit_once(") ").context("a command in brackets")?.1.split(' ');
    let ticks: Vec<u64> = fields.skip(11).take(4).map(str::parse).collect::<Result<_, _>>()?;
    let hz = sysconf(SysconfVar::CLK_TCK)?.context("ticks per second")?;
    Ok(Duration::from_secs(ticks.iter().sum()) / u32::try_from(hz)?)
}
