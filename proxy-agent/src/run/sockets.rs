//! Processes that get their backend when they connect or send.

use std::{collections::BTreeSet, net::IpAddr, os::fd::OwnedFd, path::PathBuf};

use nix::{
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, socket},
};
use proxy_common::{
    addr::Addr,
    config::{SocketFlags, SocketSettings},
    pod::PodReasons,
    socket::halves,
};
use proxy_model::{Family, Transport};
use tracing::{info, warn};

use super::SocketOptions;
use crate::{
    cgroup,
    datapath::{
        Datapath, Pins, SocketHook, SocketHookError, SocketProgram, attach_socket, detach_sockets,
        socket_hooks,
    },
    devices::{Inventory, node_address},
};

mod option {
    use nix::{getsockopt_impl, libc, sockopt_impl};

    sockopt_impl!(
        /// The number of a socket's network namespace, which no other namespace gets before the next boot.
        NetworkNamespace,
        GetOnly,
        libc::SOL_SOCKET,
        super::SO_NETNS_COOKIE,
        u64
    );
}

/// `include/uapi/asm-generic/socket.h`
const SO_NETNS_COOKIE: libc::c_int = 71;

/// Why sockets cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot tell the network namespace of this process (SO_NETNS_COOKIE)")]
pub struct NamespaceError(#[source] nix::Error);

/// Whom sockets serve, and what is attached for it.
pub(super) struct Sockets {
    /// `None`: nobody is served.
    cgroup: Option<PathBuf>,
    settings: SocketSettings,
    /// Programs of this process that are attached.
    attached: BTreeSet<SocketProgram>,
    /// Whether nothing is left to do.
    is_settled: bool,
    /// Why something is, if it failed.
    failure: Option<String>,
}

impl Sockets {
    pub(super) fn new(options: SocketOptions) -> Result<Self, NamespaceError> {
        let cgroup = options.cgroup.filter(|_| options.flags != SocketFlags::default());
        let settings = match &cgroup {
            Some(_) => SocketSettings {
                host_namespace: halves(own_namespace().map_err(NamespaceError)?),
                flags: options.flags,
                pods: options.pods,
                ..SocketSettings::OFF
            },
            None => SocketSettings::OFF,
        };
        if let Some(dir) = &cgroup
            && !cgroup::is_root(dir)
        {
            warn!(
                cgroup = %dir.display(),
                "not the root of cgroup2: processes outside it are not served at their sockets; in a container, mount \
                 the host's cgroup2 and name it with --cgroup"
            );
        }
        Ok(Self { cgroup, settings, attached: BTreeSet::new(), is_settled: false, failure: None })
    }

    /// What the datapath is told.
    pub(super) const fn settings(&self) -> SocketSettings {
        self.settings
    }

    /// The protocols by which the node's own processes get their backend at their sockets.
    pub(super) const fn protocols(&self) -> &'static [Transport] {
        if self.settings.flags.contains(SocketFlags::HOST) { &[Transport::Udp, Transport::Tcp] } else { &[] }
    }

    /// Takes note of the node's addresses.
    pub(super) fn note_addresses(&mut self, all: &Inventory) {
        if self.cgroup.is_some() {
            let address = |family| wire(node_address(family, all));
            self.settings.node_v4 = address(Family::Ipv4);
            self.settings.node_v6 = address(Family::Ipv6);
        }
    }

    /// Whether there is something to try again.
    pub(super) const fn is_unfinished(&self) -> bool {
        !self.is_settled
    }

    /// Forgets the programs that somebody has detached, so that they are attached anew (SYNC-06).
    pub(super) fn notice_losses(&mut self, pins: &Pins) {
        if self.attached.is_empty() {
            return;
        }
        let hooks = socket_hooks(pins);
        let is_attached = |program: &SocketProgram| {
            hooks.iter().any(|(known, hook)| known == program && matches!(hook, SocketHook::Attached { .. }))
        };
        let before = self.attached.len();
        self.attached.retain(is_attached);
        let lost = before - self.attached.len();
        if lost > 0 {
            warn!(programs = lost, "somebody has detached programs from sockets; they are put back");
            self.is_settled = false;
        }
    }

    /// How many programs are attached.
    pub(super) fn attached(&self) -> usize {
        self.attached.len()
    }

    /// Attaches what is not attached, or detaches what an earlier run has left.
    pub(super) fn serve(&mut self, datapath: &mut Datapath, pins: &Pins) {
        if self.is_settled {
            return;
        }
        let result = match self.cgroup.clone() {
            Some(dir) => self.attach(datapath, pins, dir),
            None => detach_sockets(pins).map(|count| {
                if count > 0 {
                    info!(programs = count, "detached from sockets");
                }
            }),
        };
        self.is_settled = result.is_ok();
        let failure = result.err().map(|error| crate::report(&error));
        if let Some(failure) = &failure
            && self.failure.as_ref() != Some(failure)
        {
            warn!("{failure}; packets are served without; will try again");
        }
        self.failure = failure;
    }

    fn attach(&mut self, datapath: &mut Datapath, pins: &Pins, dir: PathBuf) -> Result<(), SocketHookError> {
        for program in SocketProgram::ALL {
            if !self.attached.contains(&program) {
                attach_socket(datapath, pins, &dir, program)?;
                self.attached.insert(program);
            }
        }
        let pods = self.settings.pods != PodReasons::NONE;
        info!(cgroup = %dir.display(), host = true, pods, "attached to sockets");
        Ok(())
    }
}

/// The number of this process's network namespace.
fn own_namespace() -> nix::Result<u64> {
    let any: OwnedFd = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    getsockopt(&any, option::NetworkNamespace)
}

fn wire(ip: Option<IpAddr>) -> Addr {
    ip.map_or(SocketSettings::OFF.node_v4, Addr::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_told_by_its_number() {
        let number = own_namespace().unwrap();
        assert_ne!(number, 0);
        let settings = SocketSettings { host_namespace: halves(number), ..SocketSettings::OFF };
        assert!(settings.is_host(number) && !settings.is_host(number + 1));
    }
}
