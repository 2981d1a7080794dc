//! Why a packet was dropped.

/// A reason to drop a packet: index into the drop counters in the kernel, label of a metric in the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DropReason {
    /// The service has no backend.
    NoBackend = 0,
    /// The flow table is full, or the kernel had no memory for another entry.
    FlowTableFull = 1,
    /// No source port was found that could tell this flow's answers from another's.
    NoSourcePort = 2,
    /// A frontend names a slot, or a slot a backend, that does not exist. Never anything but 0.
    BrokenTable = 3,
    /// The packet changed under the program between parsing and rewriting. Never anything but 0.
    RewriteFailed = 4,
    /// A policy keeps the service's traffic on this node, and none of its backends is here.
    NoLocalBackend = 5,
    /// The client's address is in none of the service's source ranges.
    NotInSourceRanges = 6,
    /// The destination is a ClusterIP, but its Service has no such port or protocol.
    UnknownPort = 7,
    /// The device that the packet leaves by has no address to give it as its source.
    NoSourceAddress = 8,
    /// A fragment for a service whose first fragment has not been seen.
    OrphanFragment = 9,
    /// The connection's backend is gone, and its service wants its clients told.
    BackendGone = 10,
    /// More flows begin on this CPU than may.
    NewFlowLimit = 11,
    /// The packet does not fit into the encapsulation that takes it to its backend's node.
    TooBig = 12,
    /// Another node sent it here encapsulated, for a frontend that does not expect that or a backend that is not here.
    NotServedHere = 13,
    /// Another node sent it here, and what it encapsulates is no packet that a node sends so.
    BadEncapsulation = 14,
}

impl DropReason {
    /// Every reason, in the order of its number.
    pub const ALL: [Self; 15] = [
        Self::NoBackend,
        Self::FlowTableFull,
        Self::NoSourcePort,
        Self::BrokenTable,
        Self::RewriteFailed,
        Self::NoLocalBackend,
        Self::NotInSourceRanges,
        Self::UnknownPort,
        Self::NoSourceAddress,
        Self::OrphanFragment,
        Self::BackendGone,
        Self::NewFlowLimit,
        Self::TooBig,
        Self::NotServedHere,
        Self::BadEncapsulation,
    ];

    /// The name used in output and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoBackend => "no_backend",
            Self::FlowTableFull => "flow_table_full",
            Self::NoSourcePort => "no_source_port",
            Self::BrokenTable => "broken_table",
            Self::RewriteFailed => "rewrite_failed",
            Self::NoLocalBackend => "no_local_backend",
            Self::NotInSourceRanges => "not_in_source_ranges",
            Self::UnknownPort => "unknown_port",
            Self::NoSourceAddress => "no_source_address",
            Self::OrphanFragment => "orphan_fragment",
            Self::BackendGone => "backend_gone",
            Self::NewFlowLimit => "new_flow_limit",
            Self::TooBig => "too_big",
            Self::NotServedHere => "not_served_here",
            Self::BadEncapsulation => "bad_encapsulation",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_positions_in_the_list() {
        for (at, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, at);
        }
    }
}
