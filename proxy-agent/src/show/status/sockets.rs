//! Who is served at sockets.

use std::path::Path;

use proxy_common::{
    config::{NodeSettings, SocketFlags, SocketSettings},
    pod::{PodReason, PodReasons},
};
use proxy_model::Transport;
use serde::Serialize;

use crate::{
    cgroup,
    datapath::{Pins, SocketHook, SocketProgram, TableError, socket_hooks},
    diag::Diag,
};

use super::pods::{self, PodStatus};

/// Who is served when they connect or send.
#[derive(Debug, Serialize)]
pub struct SocketStatus {
    /// `off`, `host-only`, `auto` or `on`, as the datapath is told.
    pub mode: &'static str,
    /// Whether the node's own processes reach NodePorts at loopback addresses.
    pub localhost_node_ports: bool,
    /// The cgroup whose processes are served; if this process cannot see it, its number.
    pub cgroup: Option<String>,
    /// Whether that is the root of the hierarchy, as far as this process can see: others leave processes out.
    pub cgroup_is_root: Option<bool>,
    /// The programs that are attached.
    pub hooks: Vec<SocketHookRow>,
    /// The programs that should be attached and are not.
    pub missing: Vec<MissingHook>,
    /// Why connected UDP sockets stay with a backend that is gone, if they do.
    pub cannot_abort: Option<String>,
    /// Which pods are served.
    pub pods: PodStatus,
    #[serde(skip)]
    pub(super) served: PodReasons,
}

/// A program that is attached to a cgroup.
#[derive(Debug, Serialize)]
pub struct SocketHookRow {
    /// Its name.
    pub name: &'static str,
    /// Its kernel id.
    pub program: u32,
    /// The cgroup, if it is another than that of the first one.
    pub other_cgroup: Option<String>,
}

/// A program that should be attached to a cgroup and is not.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct MissingHook {
    /// Its name.
    pub name: &'static str,
    /// Why that is so, as far as the kernel tells.
    pub reason: String,
}

/// Reads it from the kernel.
pub(super) fn sockets(pins: &Pins, settings: Option<&NodeSettings>) -> Result<SocketStatus, TableError> {
    let settings = settings.map_or(SocketSettings::OFF, |settings| settings.sockets);
    let status = SocketStatus::new(&settings, socket_hooks(pins), pods::pods(pins, &settings)?);
    let cannot_abort = if status.mode == "off" { None } else { inability() };
    Ok(SocketStatus { cannot_abort, ..status })
}

/// Why this kernel does not let sockets be aborted, if it does not.
fn inability() -> Option<String> {
    match Diag::open().and_then(|mut diag| diag.inability(Transport::Udp)) {
        Ok(unable) => unable.map(|unable| unable.to_string()),
        Err(error) => Some(crate::report(&error)),
    }
}

impl SocketStatus {
    fn new(settings: &SocketSettings, found: Vec<(SocketProgram, SocketHook)>, pods: PodStatus) -> Self {
        let SocketSettings { flags, pods: served, .. } = *settings;
        let mode = if !flags.contains(SocketFlags::HOST) {
            "off"
        } else if served == PodReasons::NONE {
            "host-only"
        } else if served.contains(PodReasons::of(PodReason::Unknown)) {
            "on"
        } else {
            "auto"
        };
        let mut first = None;
        let (mut hooks, mut missing) = (Vec::new(), Vec::new());
        for (program, hook) in found {
            let name = program.name();
            let reason = match hook {
                SocketHook::Attached { program, cgroup } => {
                    let other = cgroup.filter(|cgroup| *first.get_or_insert(*cgroup) != *cgroup);
                    let other = other.map(|other| name_of(other, cgroup::directory_of(other).as_deref()));
                    hooks.push(SocketHookRow { name, program, other_cgroup: other });
                    continue;
                }
                SocketHook::NotPinned => "no pin".to_owned(),
                SocketHook::Detached => "detached, or its cgroup is gone".to_owned(),
                SocketHook::Unreadable(error) => error,
            };
            missing.push(MissingHook { name, reason });
        }
        if mode == "off" {
            missing.clear();
        }
        let directory = first.and_then(cgroup::directory_of);
        Self {
            mode,
            localhost_node_ports: flags.contains(SocketFlags::LOCALHOST_NODE_PORTS),
            cgroup: first.map(|first| name_of(first, directory.as_deref())),
            cgroup_is_root: directory.map(|directory| cgroup::is_root(&directory)),
            hooks,
            missing,
            cannot_abort: None,
            pods,
            served,
        }
    }

    /// For people, in lines.
    pub(super) fn lines(&self) -> String {
        let mut text = format!("sockets  {}: ", self.mode);
        text += match self.mode {
            "on" => {
                "the node's own processes, and TCP of pods that have not opted out, are served when they connect or \
                 send; other traffic by packets"
            }
            "auto" => {
                "the node's own processes, and TCP of pods that are known not to mind, are served when they connect \
                 or send; other traffic by packets"
            }
            "host-only" => {
                "the node's own processes are served when they connect or send; everybody else by packets"
            }
            _ => "pods and others are served by packets; the node's own processes are not served",
        };
        if self.localhost_node_ports {
            text += "; NodePorts are at loopback too";
        }
        text.push('\n');
        if !self.hooks.is_empty() || !self.missing.is_empty() {
            let cgroup = self.cgroup.as_deref().unwrap_or("unknown");
            text += &format!(
                "cgroup   {cgroup}, {} of {} programs attached",
                self.hooks.len(),
                SocketProgram::ALL.len()
            );
            if self.cgroup_is_root == Some(false) {
                text += "; it is not the root of cgroup2: processes outside it are not served";
            }
            text.push('\n');
        }
        if let Some(reason) = &self.cannot_abort {
            text += &format!("         connected UDP sockets stay with a backend that is gone: {reason}\n");
        }
        text += &self.pods.line(self.served);
        text
    }
}

/// What people call a cgroup: its directory, or its number.
fn name_of(cgroup: u64, directory: Option<&Path>) -> String {
    match directory {
        Some(directory) => directory.display().to_string(),
        None => format!("number {cgroup}, which is gone or cannot be seen from here"),
    }
}

#[cfg(test)]
impl SocketStatus {
    /// What the default looks like when all is well.
    pub(super) fn example() -> Self {
        let flags = SocketFlags::HOST.with(SocketFlags::LOCALHOST_NODE_PORTS).with(SocketFlags::PODS_LISTED);
        let settings = SocketSettings { flags, pods: PodReasons::KNOWN, ..SocketSettings::OFF };
        let hooks = SocketProgram::ALL.map(|program| (program, ATTACHED));
        let status = Self::new(&settings, hooks.into(), PodStatus::new(&settings, &[]));
        Self { cgroup: Some("/sys/fs/cgroup".to_owned()), ..status }
    }
}

#[cfg(test)]
const ATTACHED: SocketHook = SocketHook::Attached { program: 9, cgroup: None };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_attached_is_named_with_the_reason() {
        let mut found = SocketProgram::ALL.map(|program| (program, ATTACHED));
        found[4].1 = SocketHook::NotPinned;
        found[5].1 = SocketHook::Detached;
        found[6].1 = SocketHook::Unreadable("no luck".to_owned());
        let status = |settings: SocketSettings, found| {
            SocketStatus::new(&settings, found, PodStatus::new(&settings, &[]))
        };
        let off = status(SocketSettings::OFF, vec![(SocketProgram::Connect4, SocketHook::NotPinned)]);
        let settings = SocketSettings {
            flags: SocketFlags::HOST,
            pods: PodReasons::ALL_BUT_OPTED_OUT,
            ..SocketSettings::OFF
        };
        let status = status(settings, found.to_vec());
        let missing: Vec<_> = status.missing.iter().map(|hook| (hook.name, hook.reason.as_str())).collect();
        let expected = [
            ("sluice_connect4", "no pin"),
            ("sluice_connect6", "detached, or its cgroup is gone"),
            ("sluice_sendmsg4", "no luck"),
        ];
        assert_eq!(missing, expected);
        let text = status.lines();
        assert!(text.starts_with("sockets  on: ") && text.contains("unknown, 5 of 8"), "{text}");
        let status = SocketStatus { cannot_abort: Some("no such thing".to_owned()), ..status };
        assert!(status.lines().contains("stay with a backend that is gone: no such thing\n"));
        assert!(off.missing.is_empty());
        assert_eq!(off.lines().lines().count(), 1, "{}", off.lines());
    }

    #[test]
    fn a_cgroup_that_is_not_the_first_ones_is_named() {
        // No directory has such numbers.
        let at = |cgroup| SocketHook::Attached { program: 9, cgroup: Some(u64::MAX - cgroup) };
        let found = vec![
            (SocketProgram::Connect4, at(1)),
            (SocketProgram::Connect6, at(2)),
            (SocketProgram::Sendmsg4, at(1)),
        ];
        let settings = SocketSettings { flags: SocketFlags::HOST, ..SocketSettings::OFF };
        let status = SocketStatus::new(&settings, found, PodStatus::new(&settings, &[]));
        let number =
            |cgroup: u64| format!("number {}, which is gone or cannot be seen from here", u64::MAX - cgroup);
        assert_eq!((status.cgroup, status.cgroup_is_root), (Some(number(1)), None));
        let others: Vec<_> = status.hooks.into_iter().map(|hook| hook.other_cgroup).collect();
        assert_eq!(others, [None, Some(number(2)), None]);
    }
}
