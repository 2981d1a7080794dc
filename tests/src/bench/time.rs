//! CPU time, and which CPU it is of.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    time::{ClockId, clock_gettime},
    unistd::Pid,
};

/// What the calling thread has used.
///
/// # Errors
///
/// If the kernel does not say.
pub fn of_thread() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

/// What this process has used.
///
/// # Errors
///
/// If the kernel does not say.
pub fn of_process() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?.into())
}

/// The CPU that everything is measured on: the last one that this process may use, as devices tend to interrupt the
/// first.
///
/// # Errors
///
/// If there is none, or the kernel does not say.
pub fn cpu() -> Result<usize> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let last = (0..CpuSet::count()).rev().find(|&cpu| allowed.is_set(cpu).unwrap_or(false));
    last.context("this process may use no CPU")
}

/// Keeps the calling thread on a CPU.
///
/// # Errors
///
/// If the kernel refuses.
pub fn stay_on(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("stay on CPU {cpu}"))
}

/// The kernel's thread that takes a CPU's packets when they are too many to be taken at once.
///
/// What is taken at once is on the time of whoever is interrupted, unless the kernel accounts interrupts apart
/// (`CONFIG_IRQ_TIME_ACCOUNTING`).
#[derive(Clone, Copy, Debug)]
pub struct SoftirqThread(Option<u32>);

impl SoftirqThread {
    /// That of a CPU, if this process can see it: in a PID namespace it may not.
    ///
    /// # Errors
    ///
    /// If there is no `/proc`.
    pub fn find(cpu: usize) -> Result<Self> {
        let wanted = format!("ksoftirqd/{cpu}");
        let is_it = |pid: &u32| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim_end() == wanted)
        };
        let processes = fs::read_dir("/proc").context("list processes")?;
        let mut pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        Ok(Self(pids.find(is_it)))
    }

    /// What it has used; nothing if it cannot be seen.
    ///
    /// # Errors
    ///
    /// If the kernel says something unknown.
    pub fn used(self) -> Result<Duration> {
        let Some(pid) = self.0 else { return Ok(Duration::ZERO) };
        let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).context("read schedstat")?;
        // proc(5) has it not; Documentation/scheduler/sched-stats.rst does: nanoseconds on the CPU come first.
        let spent = text.split(' ').next().context("time on the CPU")?;
        Ok(Duration::from_nanos(spent.parse().context("time on the CPU")?))
    }
}

/// What this process and a CPU's softirq thread have used together.
///
/// # Errors
///
/// If the kernel does not say.
pub fn of_work(softirq: SoftirqThread) -> Result<Duration> {
    Ok(of_process()? + softirq.used()?)
}
