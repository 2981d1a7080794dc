//! This process, as every Prometheus client describes its own.

use std::fmt;

use procfs::{
    ProcResult, WithCurrentSystemInfo as _,
    process::{LimitValue, Process as This},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};
use tracing::debug;

/// Reads it when it is asked.
#[derive(Debug)]
pub(super) struct Process;

/// What there is to tell.
struct Facts {
    cpu_seconds: f64,
    resident_bytes: u64,
    virtual_bytes: u64,
    virtual_bytes_at_most: Option<u64>,
    start_time: f64,
    descriptors: u64,
    descriptors_at_most: Option<u64>,
}

impl Facts {
    fn read() -> ProcResult<Self> {
        let this = This::myself()?;
        let (stat, limits) = (this.stat()?, this.limits()?);
        let limit = |value| match value {
            LimitValue::Value(value) => Some(value),
            LimitValue::Unlimited => None,
        };
        #[expect(clippy::cast_precision_loss, reason = "seconds and ticks stay far below 2^52")]
        let seconds = |ticks: u64| ticks as f64 / procfs::ticks_per_second() as f64;
        #[expect(clippy::cast_precision_loss, reason = "seconds and ticks stay far below 2^52")]
        let boot = procfs::boot_time_secs()? as f64;
        Ok(Self {
            cpu_seconds: seconds(stat.utime + stat.stime),
            resident_bytes: stat.rss_bytes().get(),
            virtual_bytes: stat.vsize,
            virtual_bytes_at_most: limit(limits.max_address_space.soft_limit),
            start_time: boot + seconds(stat.starttime),
            descriptors: this.fd_count()? as u64,
            descriptors_at_most: limit(limits.max_open_files.soft_limit),
        })
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Facts {
            cpu_seconds,
            resident_bytes,
            virtual_bytes,
            virtual_bytes_at_most,
            start_time,
            descriptors,
            descriptors_at_most,
        } = match Facts::read() {
            Ok(facts) => facts,
            Err(error) => {
                debug!(%error, "cannot read what /proc says about this process");
                return Ok(());
            }
        };
        let mut tell = |name: &str, help: &str, value: &dyn EncodeMetric| {
            value.encode(encoder.encode_descriptor(name, help, None, value.metric_type())?)
        };
        tell("process_cpu_seconds", "Time on CPUs.", &ConstCounter::new(cpu_seconds))?;
        tell("process_resident_memory_bytes", "Memory in use.", &ConstGauge::new(resident_bytes))?;
        tell("process_virtual_memory_bytes", "Address space in use.", &ConstGauge::new(virtual_bytes))?;
        if let Some(bytes) = virtual_bytes_at_most {
            tell("process_virtual_memory_max_bytes", "Address space there can be.", &ConstGauge::new(bytes))?;
        }
        tell("process_start_time_seconds", "Unix time of the start.", &ConstGauge::new(start_time))?;
        tell("process_open_fds", "Open file descriptors.", &ConstGauge::new(descriptors))?;
        if let Some(count) = descriptors_at_most {
            tell("process_max_fds", "File descriptors there can be.", &ConstGauge::new(count))?;
        }
        Ok(())
    }
}
