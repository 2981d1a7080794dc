//! From Kubernetes objects to the contents of the kernel's tables.
//!
//! ```text
//! Change --apply--> parsed objects --plan--> desired rows --commit--> TablesIo
//! ```
//!
//! This crate does no I/O, knows no clock and no runtime: what goes in and out is in the signatures of [`Model`].
#![forbid(unsafe_code)]

mod address;
mod addresses;
mod audit;
mod change;
mod cidr;
mod claims;
mod delta;
mod endpoint;
mod error;
mod external;
mod filter;
mod frontends;
mod health;
mod ids;
mod io;
mod journal;
mod maglev;
mod model;
mod name;
mod node;
mod options;
mod pod;
mod pods;
mod policy;
mod programmed;
mod ranges;
mod reasons;
mod restore;
mod runs;
mod service;
mod sets;
mod silence;
mod state;
mod tables;
mod target;
mod topology;

pub use address::parse_ip;
pub use audit::Audit;
pub use change::{Change, Event, ObjectName, PodCgroup};
pub use cidr::{Cidr, ParseCidrError};
pub use error::{CommitError, Kind, Misfit, ObjectError, PlanError};
pub use health::{HealthCheck, HealthCheckName};
pub use io::{HashTableIo, Io, TableIo, TablesIo};
pub use journal::{ChangeCounts, Trigger};
pub use model::{Counts, Finished, Model, Problem, Troubles};
pub use name::{Family, ParseNameError, ServicePortName, Transport};
pub use options::{DetectLocal, NodePortAddresses, Options, ParseOptionError};
pub use pod::PodUid;
pub use policy::{BackendSelection, ExternalForwarding};
pub use reasons::{EndpointVerdict, Exclusion, Explanation};
pub use restore::{Capacities, Restored};
pub use silence::NoLocalEndpoints;
