//! Who is served at sockets.

use proxy_common::config::{NodeSettings, SocketFlags};
use proxy_model::Transport;
use serde::Serialize;

use crate::{
    cgroup,
    datapath::{Pins, SocketProgram, pinned_socket_hooks},
    diag::Diag,
};

/// Who is served when they connect or send.
#[derive(Debug, Serialize)]
pub struct SocketStatus {
    /// `off`, `host-only` or `on`, as the datapath is told.
    pub mode: &'static str,
    /// Whether the node's own processes reach NodePorts at loopback addresses.
    pub localhost_node_ports: bool,
    /// The cgroup whose processes are served; if this process cannot see it, its number.
    pub cgroup: Option<String>,
    /// The programs that are attached.
    pub hooks: Vec<SocketHookRow>,
    /// The programs that should be attached and are not.
    pub missing: Vec<&'static str>,
    /// Why connected UDP sockets stay with a backend that is gone, if they do.
    pub cannot_abort: Option<String>,
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
pub(super) fn sockets(pins: &Pins, settings: Option<&NodeSettings>) -> SocketStatus {
    let flags = settings.map_or(SocketFlags::default(), |settings| settings.sockets.flags);
    let pinned = pinned_socket_hooks(pins);
    let cgroup = pinned.iter().find_map(|hook| hook.cgroup_id).map(|id| {
        cgroup::directory_of(id).map_or_else(|| format!("number {id}"), |dir| dir.display().to_string())
    });
    let rows =
        pinned.iter().map(|hook| SocketHookRow { name: hook.program.name(), program: hook.program_id });
    let status = SocketStatus::new(flags, cgroup, rows.collect());
    let cannot_abort = if status.mode == "off" { None } else { inability() };
    SocketStatus { cannot_abort, ..status }
}

/// Why this kernel does not let sockets be aborted, if it does not.
fn inability() -> Option<String> {
    match Diag::open().and_then(|mut diag| diag.inability(Transport::Udp)) {
        Ok(unable) => unable.map(|unable| unable.to_string()),
        Err(error) => Some(crate::report(&error)),
    }
}

impl SocketStatus {
    fn new(flags: SocketFlags, cgroup: Option<String>, hooks: Vec<SocketHookRow>) -> Self {
        let mode = if flags.contains(SocketFlags::PODS) {
            "on"
        } else if flags.contains(SocketFlags::HOST) {
            "host-only"
        } else {
            "off"
        };
        let wanted = SocketProgram::ALL.into_iter().filter(|_| mode != "off").map(SocketProgram::name);
        let missing = wanted.filter(|name| !hooks.iter().any(|hook| hook.name == *name)).collect();
        Self {
            mode,
            localhost_node_ports: flags.contains(SocketFlags::LOCALHOST_NODE_PORTS),
            cgroup,
            hooks,
            missing,
            cannot_abort: None,
        }
    }

    /// For people, in lines.
    pub(super) fn lines(&self) -> String {
        let mut text = format!("sockets  {}: ", self.mode);
        text += match self.mode {
            "on" => {
                "the node's own processes, and TCP of pods, are served when they connect or send; other traffic by \
                 packets"
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
        if let Some(reason) = &self.cannot_abort {
            text += &format!("         connected UDP sockets stay with a backend that is gone: {reason}\n");
        }
        text
    }
}

#[cfg(test)]
impl SocketStatus {
    /// What the default looks like when all is well.
    pub(super) fn example() -> Self {
        let hooks =
            SocketProgram::ALL.map(|program| SocketHookRow { name: program.name(), program: Some(9) });
        let flags = SocketFlags::HOST.with(SocketFlags::LOCALHOST_NODE_PORTS);
        Self::new(flags, Some("/sys/fs/cgroup".to_owned()), hooks.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_attached_is_named() {
        let mut hooks = SocketStatus::example().hooks;
        hooks.retain(|hook| hook.name != "sluice_connect4");
        let status = SocketStatus::new(SocketFlags::HOST.with(SocketFlags::PODS), None, hooks);
        assert_eq!(status.missing, ["sluice_connect4"]);
        let text = status.lines();
        assert!(text.starts_with("sockets  on: ") && text.contains("7 of 8"), "{text}");
        assert!(text.contains("missing: sluice_connect4"), "{text}");
        let status = SocketStatus { cannot_abort: Some("no such thing".to_owned()), ..status };
        assert!(status.lines().ends_with("stay with a backend that is gone: no such thing\n"));
        let off = SocketStatus::new(SocketFlags::default(), None, Vec::new());
        assert!(off.missing.is_empty());
        assert_eq!(off.lines().lines().count(), 1, "{}", off.lines());
    }
}
