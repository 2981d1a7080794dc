//! What the agent is told, and what keeps it from running.

use std::{num::NonZeroU16, path::PathBuf, time::Duration};

use proxy_common::{config::SocketFlags, pod::PodReasons};

use super::{ConntrackTimeouts, sockets::NamespaceError};
use crate::{
    datapath::{AttachError, Capacities, LoadError, TableError},
    devices::{DeviceError, DeviceRules},
    ports::PortRange,
};

/// What the agent runs with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory of pins.
    pub bpffs: PathBuf,
    /// What decides about services.
    pub model: proxy_model::Options,
    /// What decides about devices.
    pub devices: DeviceRules,
    /// Where the API server takes NodePorts from.
    pub node_ports: PortRange,
    /// Who is served at sockets.
    pub sockets: SocketOptions,
    /// How long after an audit of the tables the next one begins; `None`: there are none.
    pub audit_interval: Option<Duration>,
    /// How long flows may be silent.
    pub timeouts: ConntrackTimeouts,
    /// Flows that may begin through services in each second on each CPU; 0: any number.
    pub new_flow_limit: u32,
    /// The UDP port by which nodes send each other packets for their backends.
    pub dsr_port: NonZeroU16,
    /// How much the tables have room for.
    pub capacities: Capacities,
}

/// Who is served at sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketOptions {
    /// What is switched on.
    pub flags: SocketFlags,
    /// Reasons for which pods are served.
    pub pods: PodReasons,
    /// The cgroup whose processes are served; if there is none, nobody is.
    pub cgroup: Option<PathBuf>,
}

/// Why the agent could not start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The datapath could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A table could not be used.
    #[error(transparent)]
    Table(#[from] TableError),
    /// Devices cannot be followed.
    #[error(transparent)]
    Devices(#[from] DeviceError),
    /// Pins cannot be kept.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// Sockets cannot be served.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// The source of changes ended, which it never should.
    #[error("the source of Services and EndpointSlices ended")]
    SourceEnded,
}
