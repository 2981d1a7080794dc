//! The formats that metrics are written in.

use std::fmt;

use prometheus_client::{encoding::text::encode, registry::Registry};
use tracing::debug;

use super::kernel::Fills;
use crate::datapath::Pins;

/// A format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' own text format, version 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// What a client accepts, by its `Accept` header: OpenMetrics if it names it, as Prometheus does and people do not.
    #[must_use]
    pub fn accepted(accept: &str) -> Self {
        let mut ranges = accept.split(',').map(|range| range.split(';').next().unwrap_or_default().trim());
        if ranges.any(|range| range.eq_ignore_ascii_case("application/openmetrics-text")) {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }

    /// What it is called in a `Content-Type` header.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Everything that can be asked for.
#[derive(Debug)]
pub struct Exposition {
    registry: Registry,
    fills: Fills,
    pins: Pins,
}

impl Exposition {
    /// What is registered, with numbers of entries that are counted below `pins`.
    pub(super) const fn new(registry: Registry, fills: Fills, pins: Pins) -> Self {
        Self { registry, fills, pins }
    }

    /// All metrics as they are now. Blocks while the kernel's tables are read: milliseconds, tens of them if there are
    /// thousands of services.
    ///
    /// # Errors
    ///
    /// If a value has no text form.
    pub fn text(&self, format: Format) -> Result<String, fmt::Error> {
        if let Err(error) = self.fills.count(&self.pins) {
            debug!(error = %crate::report(&error), "cannot count the entries of tables");
        }
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(match format {
            Format::OpenMetrics => text,
            Format::Prometheus => classic(&text),
        })
    }
}

/// OpenMetrics text in the older format. They differ in what they call a family whose samples have a suffix, and in comments
/// that the older one does not know.
fn classic(text: &str) -> String {
    let mut classic = String::with_capacity(text.len());
    let mut help = None;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').map(|(_, help)| help);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, "untyped"));
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                kind => ("", kind),
            };
            if let Some(help) = help.take() {
                classic.extend(["# HELP ", name, suffix, " ", help, "\n"]);
            }
            classic.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
        } else if !line.starts_with('#') {
            classic.extend([line, "\n"]);
        }
    }
    classic
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::{counter::Counter, gauge::Gauge, info::Info};

    use super::*;

    fn registry() -> Registry {
        let mut registry = Registry::default();
        let (counter, gauge) = (Counter::<u64>::default(), Gauge::<i64>::default());
        counter.inc_by(7);
        gauge.set(-1);
        registry.register("a", "Counted", counter);
        registry.register("b", "Measured", gauge);
        registry.register("c", "Known", Info::new([("version", "1")]));
        registry.register("d_seconds", "Timed", super::super::work_buckets());
        registry
    }

    fn exposition(registry: Registry) -> Exposition {
        Exposition::new(registry, Fills::default(), Pins::new(std::path::Path::new("/nonexistent")))
    }

    #[test]
    fn the_older_format_names_families_as_their_samples() {
        let exposition = exposition(registry());
        let text = exposition.text(Format::Prometheus).unwrap();
        let expected = "# HELP a_total Counted.\n# TYPE a_total counter\na_total 7\n\
                        # HELP b Measured.\n# TYPE b gauge\nb -1\n\
                        # HELP c_info Known.\n# TYPE c_info gauge\nc_info{version=\"1\"} 1\n\
                        # HELP d_seconds Timed.\n# TYPE d_seconds histogram\n";
        assert!(text.starts_with(expected), "{text}");
        assert!(!text.contains("# EOF"));
        let text = exposition.text(Format::OpenMetrics).unwrap();
        assert!(text.starts_with("# HELP a Counted.\n# TYPE a counter\na_total 7\n"), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn clients_say_which_format_they_want() {
        for (accept, format) in [
            ("", Format::Prometheus),
            ("*/*", Format::Prometheus),
            ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", Format::Prometheus),
            ("application/json", Format::Prometheus),
            (
                "application/vnd.google.protobuf;q=0.7, application/openmetrics-text; version=1.0.0;q=0.5,*/*;q=0.1",
                Format::OpenMetrics,
            ),
        ] {
            assert_eq!(Format::accepted(accept), format, "{accept}");
        }
    }

    /// MET-30, MET-31.
    #[test]
    fn buckets_are_kube_proxys() {
        let mut registry = Registry::default();
        registry.register("work", "Work", super::super::work_buckets());
        registry.register("latency", "Latency", super::super::latency_buckets());
        let text = exposition(registry).text(Format::Prometheus).unwrap();
        let bounds = |name: &str| -> Vec<f64> {
            let bound = |line: &str| Some(line.strip_prefix(name)?.split('"').nth(1)?.replace("+Inf", "inf"));
            text.lines().filter_map(bound).map(|bound| bound.parse().unwrap()).collect()
        };
        let work = bounds("work_bucket{");
        assert_eq!((work.len(), work[0], work[14]), (16, 0.001, 16.384));
        let latency = bounds("latency_bucket{");
        assert_eq!(latency.len(), 2 + 59 + 12 + 7 + 1);
        assert_eq!(latency[..4], [0.25, 0.5, 1.0, 2.0]);
        assert_eq!(latency[60..64], [59.0, 60.0, 65.0, 70.0]);
        assert_eq!(
            latency[71..],
            [110.0, 115.0, 120.0, 150.0, 180.0, 210.0, 240.0, 270.0, 300.0, f64::INFINITY][..10]
        );
    }
}
