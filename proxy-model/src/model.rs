//! The whole way from objects to tables, behind one type.

use std::time::Duration;

use proxy_common::filter::{AddressRoles, FilterPosition};

use crate::{
    change::Change,
    error::{CommitError, ObjectError, PlanError},
    io::TablesIo,
    restore::Restored,
};

/// Owns the parsed objects, the ids, and the picture of the kernel's tables.
///
/// One task owns it and goes round: [`Model::apply`] changes, [`Model::plan`], [`Model::commit`]. All three do
/// work in proportion to what changed. Times are monotonic, from any origin, and never go back.
#[derive(Debug)]
pub struct Model {}

/// How much is programmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Service ports that have an id.
    pub service_ports: usize,
    /// Frontends in the kernel.
    pub frontends: usize,
    /// Backends in use by service ports.
    pub backends: usize,
}

/// Anything that is wrong at present.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// With an object.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// With fitting a service port into the tables.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

impl Model {
    /// A model for the node called `node_name`, which goes on from what the kernel has.
    #[must_use]
    pub fn new(node_name: &str, restored: Restored) -> Self {
        drop((node_name, restored));
        Self {}
    }

    /// Takes note of a change. Returns what is newly wrong with the object.
    pub fn apply(&mut self, change: Change) -> Vec<ObjectError> {
        drop(change);
        Vec::new()
    }

    /// Whether the Services and the EndpointSlices have been listed once (SYNC-01). Before that, plans are empty and
    /// commits write nothing.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        false
    }

    /// Works out what the tables should contain. Returns what is newly wrong with service ports.
    pub fn plan(&mut self, _now: Duration) -> Vec<PlanError> {
        Vec::new()
    }

    /// Writes what differs, in an order in which every packet finds complete services at every moment. A failed
    /// write holds back its own service port alone, and is repeated by the next commit.
    #[must_use = "failed writes must be retried"]
    pub fn commit<I: TablesIo>(&mut self, _now: Duration, _io: &mut I) -> Vec<CommitError<I::Error>> {
        Vec::new()
    }

    /// Whether anything waits: for [`Model::plan`], for a write to be repeated, or for room in a table. The agent calls
    /// plan and commit again after a moment even if no change comes.
    #[must_use]
    pub fn is_unfinished(&self) -> bool {
        false
    }

    /// Forgets filter bits that neither a table nor a flow needs; the next commit clears them. `in_use` tells the
    /// roles needed at a position by flows that were read at or after `sweep_started`.
    pub fn retain_filter(
        &mut self,
        _sweep_started: Duration,
        _in_use: impl Fn(FilterPosition) -> AddressRoles,
    ) {
    }

    /// How much is programmed.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts::default()
    }

    /// Everything that is wrong at present.
    pub fn problems(&self) -> impl Iterator<Item = Problem> {
        std::iter::empty()
    }
}
