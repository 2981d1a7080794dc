//! What can be wrong, each naming the object it is about.

use std::fmt;

use proxy_common::frontend::FrontendKey;

use crate::{change::ObjectName, name::ServicePortName};

/// The kinds of objects that Sluice parses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
        })
    }
}

/// A part of an object that cannot be used. The other parts are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("{kind} {object}: {field}: {value} {reason}")]
pub struct ObjectError {
    /// Kind of the object.
    pub kind: Kind,
    /// The object.
    pub object: ObjectName,
    /// Path of the field, such as `spec.ports[1].port`.
    pub field: String,
    /// What it contains, quoted if it is text.
    pub value: String,
    /// Completes the sentence that begins with the value.
    pub reason: &'static str,
}

/// A service port that could not be planned. It keeps what it had, and is tried again when there is room.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Another Service uses the same address, port and protocol (SVC-15).
    #[error("{port}: {}:{} belongs to {owner}", .frontend.address, .frontend.port)]
    FrontendTaken {
        /// The service port that does without.
        port: ServicePortName,
        /// What both want.
        frontend: FrontendKey,
        /// The service port that has it.
        owner: ServicePortName,
    },
    /// Every service id is taken.
    #[error("{port}: no service id is free")]
    NoServiceId {
        /// The service port.
        port: ServicePortName,
    },
    /// Fewer backend ids are free than needed.
    #[error("{port}: no room for {wanted} more backends")]
    NoBackendId {
        /// The service port.
        port: ServicePortName,
        /// How many were needed.
        wanted: usize,
    },
    /// No run of slots is long enough.
    #[error("{port}: no room for a run of {wanted} slots")]
    NoSlots {
        /// The service port.
        port: ServicePortName,
        /// Length of the run.
        wanted: u32,
    },
    /// The name does not fit into the service name table.
    #[error("{port}: the name is too long")]
    NameTooLong {
        /// The service port.
        port: ServicePortName,
    },
}

impl PlanError {
    /// The service port that could not be planned.
    #[must_use]
    pub const fn port(&self) -> &ServicePortName {
        match self {
            Self::FrontendTaken { port, .. }
            | Self::NoServiceId { port }
            | Self::NoBackendId { port, .. }
            | Self::NoSlots { port, .. }
            | Self::NameTooLong { port } => port,
        }
    }
}

/// A write that failed. It stays pending, and nothing that depends on it was written.
#[derive(Debug, thiserror::Error)]
#[error("{table}: {}{source}", .port.as_ref().map(|port| format!("{port}: ")).unwrap_or_default())]
pub struct CommitError<E: std::error::Error + 'static> {
    /// Name of the table.
    pub table: &'static str,
    /// The service port that needs the write; `None` for leftovers of an earlier run.
    pub port: Option<ServicePortName>,
    /// What the table said.
    pub source: E,
}
