//! Who is served at sockets.

use proxy_common::{
    config::{NodeSettings, SocketFlags, SocketSettings},
    pod::{PodReason, PodReasons},
};
use serde::Serialize;

use crate::{
    cgroup,
    datapath::{Pins, SocketProgram, TableError, pinned_socket_hooks},
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
    /// The programs that are attached.
    pub hooks: Vec<SocketHookRow>,
    /// The programs that should be attached and are not.
    pub missing: Vec<&'static str>,
    /// Which pods are served.
    pub pods: PodStatus,
    #[serde(skip)]
    served: PodReasons,
}

/// A program that is attached to the cgroup.
#[derive(Debug, Serialize)]
pub struct SocketHookRow {
    /// Its name.
    pub name: &'static str,
    /// Its kernel id.
    pub program: Option<u32>,
}

/// Reads it from the kernel.
pub(super) fn sockets(pins: &Pins, settings: Option<&NodeSettings>) -> Result<SocketStatus, TableError> {
    let settings = settings.map_or(SocketSettings::OFF, |settings| settings.sockets);
    let pinned = pinned_socket_hooks(pins);
    let cgroup = pinned.iter().find_map(|hook| hook.cgroup_id).map(|id| {
        cgroup::directory_of(id).map_or_else(|| format!("number {id}"), |dir| dir.display().to_string())
    });
    let rows =
        pinned.iter().map(|hook| SocketHookRow { name: hook.program.name(), program: hook.program_id });
    Ok(SocketStatus::new(&settings, cgroup, rows.collect(), pods::pods(pins, &settings)?))
}

impl SocketStatus {
    fn new(
        settings: &SocketSettings,
        cgroup: Option<String>,
        hooks: Vec<SocketHookRow>,
        pods: PodStatus,
    ) -> Self {
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
        let wanted = SocketProgram::ALL.into_iter().filter(|_| mode != "off").map(SocketProgram::name);
        let missing = wanted.filter(|name| !hooks.iter().any(|hook| hook.name == *name)).collect();
        Self {
            mode,
            localhost_node_ports: flags.contains(SocketFlags::LOCALHOST_NODE_PORTS),
            cgroup,
            hooks,
            missing,
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
            if !self.missing.is_empty() {
                text += &format!("; missing: {}", self.missing.join(", "));
            }
            text.push('\n');
        }
        text += &self.pods.line(self.served);
        text
    }
}

#[cfg(test)]
impl SocketStatus {
    /// What the default looks like when all is well.
    pub(super) fn example() -> Self {
        let hooks =
            SocketProgram::ALL.map(|program| SocketHookRow { name: program.name(), program: Some(9) });
        let flags = SocketFlags::HOST.with(SocketFlags::LOCALHOST_NODE_PORTS).with(SocketFlags::PODS_LISTED);
        let settings = SocketSettings { flags, pods: PodReasons::KNOWN, ..SocketSettings::OFF };
        let pods = PodStatus::new(&settings, &[]);
        Self::new(&settings, Some("/sys/fs/cgroup".to_owned()), hooks.into(), pods)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_attached_is_named() {
        let mut hooks = SocketStatus::example().hooks;
        hooks.retain(|hook| hook.name != "sluice_connect4");
        let settings = |flags, pods| SocketSettings { flags, pods, ..SocketSettings::OFF };
        let status = |settings: SocketSettings, hooks| {
            SocketStatus::new(&settings, None, hooks, PodStatus::new(&settings, &[]))
        };
        let off = status(SocketSettings::OFF, Vec::new());
        let status = status(settings(SocketFlags::HOST, PodReasons::ALL_BUT_OPTED_OUT), hooks);
        assert_eq!(status.missing, ["sluice_connect4"]);
        let text = status.lines();
        assert!(text.starts_with("sockets  on: ") && text.contains("7 of 8"), "{text}");
        assert!(text.contains("missing: sluice_connect4"), "{text}");
        assert!(off.missing.is_empty());
        assert_eq!(off.lines().lines().count(), 1, "{}", off.lines());
    }
}
