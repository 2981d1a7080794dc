//! What an earlier run of the agent left in the pinned tables.

use proxy_common::{
    backend::{Backend, BackendId},
    filter::FilterLine,
    frontend::{Frontend, FrontendKey, ServiceId},
    tables::{ServiceNames, Table},
};

/// The contents of the pinned tables, as the agent read them. Empty on first start.
///
/// Nothing here is trusted: rows that contradict each other are replaced or deleted by the first commit.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// All frontends.
    pub frontends: Vec<(FrontendKey, Frontend)>,
    /// At least the slots that `frontends` refer to.
    pub slots: Vec<(u32, BackendId)>,
    /// All backends that are not entirely zero, live or not: the others tell which generations were used.
    pub backends: Vec<(BackendId, Backend)>,
    /// All service names.
    pub names: Vec<(ServiceId, <ServiceNames as Table>::Value)>,
    /// At least the filter lines that are not entirely zero.
    pub filter: Vec<(u32, FilterLine)>,
}
