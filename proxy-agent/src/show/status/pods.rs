//! Which pods are served at their sockets.

use std::collections::BTreeMap;

use proxy_common::{
    config::{SocketFlags, SocketSettings},
    pod::{CgroupId, PodEntry, PodReason, PodReasons},
    tables::Pods,
};
use serde::Serialize;

use crate::datapath::{HashTable, Pins, TableError};

/// Which pods are served at their sockets, and which are left to packets.
#[derive(Debug, Serialize)]
pub struct PodStatus {
    /// Whether the agent has been told which pods there are.
    pub listed: bool,
    /// Whether it sees the root of cgroup2; without, it cannot tell which pod a process belongs to.
    pub cgroup_root: bool,
    /// How many are served at their sockets, by what decided it.
    pub by_sockets: BTreeMap<&'static str, u64>,
    /// How many are left to packets.
    pub by_packets: BTreeMap<&'static str, u64>,
    /// How pods are served of which nothing is known: `sockets` or `packets`.
    pub unknown_by: &'static str,
    /// The pods that are known.
    pub known: Vec<PodRow>,
}

/// A pod that is known.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct PodRow {
    /// Its namespace and name.
    pub name: String,
    /// The number of its cgroup.
    pub cgroup: u64,
    /// How its TCP is served: `sockets` or `packets`.
    pub by: &'static str,
    /// What decided it.
    pub reason: &'static str,
}

/// Reads it from the kernel.
pub(super) fn pods(pins: &Pins, settings: &SocketSettings) -> Result<PodStatus, TableError> {
    let known = HashTable::<Pods>::open(pins)?.entries().collect::<Result<Vec<_>, _>>()?;
    Ok(PodStatus::new(settings, &known))
}

impl PodStatus {
    pub(super) fn new(settings: &SocketSettings, known: &[(CgroupId, PodEntry)]) -> Self {
        let by = |reason| if settings.pods.intersects(reason) { "sockets" } else { "packets" };
        let mut known: Vec<_> =
            known.iter().map(|(id, entry)| PodRow::new(*id, entry, by(entry.reason))).collect();
        known.sort();
        let count = |by| {
            let mut counts = BTreeMap::new();
            for row in known.iter().filter(|row| row.by == by) {
                *counts.entry(row.reason).or_default() += 1;
            }
            counts
        };
        Self {
            listed: settings.flags.contains(SocketFlags::PODS_LISTED),
            cgroup_root: !settings.flags.contains(SocketFlags::LEVELS_UNKNOWN),
            by_sockets: count("sockets"),
            by_packets: count("packets"),
            unknown_by: by(PodReasons::of(PodReason::Unknown)),
            known,
        }
    }

    /// For people: one line, if anybody has asked for more than the node's own processes.
    pub(super) fn line(&self, settings: PodReasons) -> String {
        if !self.cgroup_root {
            return "pods     by packets: the agent does not see the root of cgroup2, so it cannot tell which pod a process \
                    belongs to\n"
                .to_owned();
        }
        if settings == PodReasons::NONE {
            return String::new();
        }
        let mut text = format!(
            "pods     {}; {}; others by {}",
            counted("sockets", &self.by_sockets),
            counted("packets", &self.by_packets),
            self.unknown_by
        );
        if !self.listed {
            text += "; not listed: the API denies list and watch of pods, or has not answered (see the agent's log)";
        }
        text.push('\n');
        text
    }
}

impl PodRow {
    fn new(CgroupId(cgroup): CgroupId, entry: &PodEntry, by: &'static str) -> Self {
        Self {
            name: pod_name(entry),
            cgroup,
            by,
            reason: entry.reason.only().map_or("none", PodReason::as_str),
        }
    }
}

/// Namespace and name of a pod.
pub(in crate::show) fn pod_name(entry: &PodEntry) -> String {
    let end = entry.name.iter().position(|&byte| byte == 0).unwrap_or(entry.name.len());
    String::from_utf8_lossy(&entry.name[..end]).into_owned()
}

/// Such as `3 by packets (opted-out 1, service-mesh 2)`.
fn counted(by: &str, counts: &BTreeMap<&str, u64>) -> String {
    let total: u64 = counts.values().sum();
    let reasons: Vec<_> = counts.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    if reasons.is_empty() {
        format!("0 by {by}")
    } else {
        format!("{total} by {by} ({})", reasons.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::pod::POD_NAME_BYTES;

    use super::*;

    fn entry(name: &str, reason: PodReason) -> PodEntry {
        let mut bytes = [0; POD_NAME_BYTES];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        PodEntry { reason: PodReasons::of(reason), name: bytes }
    }

    fn status(pods: PodReasons, flags: SocketFlags) -> (PodStatus, String) {
        let known = [
            (CgroupId(3), entry("web/b", PodReason::ServiceMesh)),
            (CgroupId(2), entry("web/a", PodReason::Eligible)),
            (CgroupId(4), entry("web/c", PodReason::OptedOut)),
            (CgroupId(5), entry("web/d", PodReason::ServiceMesh)),
        ];
        let settings = SocketSettings { pods, flags, ..SocketSettings::OFF };
        let status = PodStatus::new(&settings, &known);
        let line = status.line(pods);
        (status, line)
    }

    #[test]
    fn who_is_served_how_depends_on_the_mode() {
        let listed = SocketFlags::HOST.with(SocketFlags::PODS_LISTED);
        let (auto, line) = status(PodReasons::KNOWN, listed);
        assert_eq!(
            line,
            "pods     1 by sockets (eligible 1); 3 by packets (opted-out 1, service-mesh 2); others by packets\n"
        );
        let row = PodRow { name: "web/b".to_owned(), cgroup: 3, by: "packets", reason: "service-mesh" };
        assert_eq!(auto.known[1], row);
        let (on, line) = status(PodReasons::ALL_BUT_OPTED_OUT, listed);
        assert_eq!(
            line,
            "pods     3 by sockets (eligible 1, service-mesh 2); 1 by packets (opted-out 1); others by sockets\n"
        );
        assert_eq!(on.unknown_by, "sockets");
        assert_eq!(status(PodReasons::NONE, listed).1, "");
    }

    #[test]
    fn what_the_agent_could_not_find_out_is_said() {
        let (_, line) = status(PodReasons::KNOWN, SocketFlags::HOST);
        assert!(line.contains("not listed") && line.contains("list and watch of pods"), "{line}");
        let (status, line) = status(PodReasons::NONE, SocketFlags::HOST.with(SocketFlags::LEVELS_UNKNOWN));
        assert!(line.contains("by packets") && line.contains("root of cgroup2"), "{line}");
        assert!(!status.cgroup_root && !status.listed);
    }
}
