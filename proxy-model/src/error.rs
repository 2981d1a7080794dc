//! What can be wrong, each naming the object it is about.

use std::{fmt, net::SocketAddr};

use proxy_common::frontend::FrontendKey;

use crate::{change::ObjectName, name::ServicePortName};

/// The kinds of objects that Sluice parses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `v1` Node.
    Node,
    /// `v1` Pod.
    Pod,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::Pod => "Pod",
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

/// A service port that could not be planned as its Service says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{port}: {reason}")]
pub struct PlanError {
    /// The service port.
    pub port: ServicePortName,
    /// Why.
    pub reason: Misfit,
}

/// Why a service port could not be planned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// Another Service uses the same address, port and protocol (SVC-15). The service port does without it until the
    /// other gives it up.
    #[error("{} belongs to {owner}", describe(.frontend))]
    FrontendTaken {
        /// What both want.
        frontend: FrontendKey,
        /// The service port that has it.
        owner: ServicePortName,
    },
    /// A table has too little room. The service port stays as it was, and is tried again as soon as something becomes
    /// free.
    #[error("table {table} has no room for {wanted} more")]
    NoRoom {
        /// Name of the table.
        table: &'static str,
        /// How many more entries were needed; of slots, next to each other.
        wanted: usize,
    },
    /// The name does not fit into the service name table.
    #[error("the name is too long")]
    NameTooLong,
}

impl Misfit {
    /// Whether the other one says nothing new: of a table that is full, how much is wanted may change all the time.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::NoRoom { table, .. }, Self::NoRoom { table: other, .. }) => table == other,
            _ => self == other,
        }
    }
}

/// What clients see of a frontend.
fn describe(frontend: &FrontendKey) -> String {
    let port = frontend.port.to_host();
    if frontend.is_node_port() {
        return format!("node port {port}");
    }
    SocketAddr::new(frontend.address.to_ip(), port).to_string()
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

/// Collects what is wrong with one object while it is parsed.
#[derive(Debug)]
pub(crate) struct Report<'a> {
    kind: Kind,
    object: &'a ObjectName,
    errors: Vec<ObjectError>,
}

impl<'a> Report<'a> {
    pub(crate) const fn new(kind: Kind, object: &'a ObjectName) -> Self {
        Self { kind, object, errors: Vec::new() }
    }

    /// Complains about a field that holds text.
    pub(crate) fn text(&mut self, field: impl Into<String>, value: &str, reason: &'static str) {
        self.push(field.into(), format!("{value:?}"), reason);
    }

    /// Complains about a field that holds a number.
    pub(crate) fn number(&mut self, field: impl Into<String>, value: i32, reason: &'static str) {
        self.push(field.into(), value.to_string(), reason);
    }

    pub(crate) fn finish(self) -> Vec<ObjectError> {
        self.errors
    }

    fn push(&mut self, field: String, value: String, reason: &'static str) {
        let Self { kind, object, errors } = self;
        errors.push(ObjectError { kind: *kind, object: object.clone(), field, value, reason });
    }
}
