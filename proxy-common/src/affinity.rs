//! Session affinity: which backend a client is used to.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    addr::Addr,
    backend::{BackendId, Generation},
    frontend::ServiceId,
    time::Ticks,
};

/// Who remembers; key of the affinity table. 20 bytes. Every port of a Service has mappings of its own, shared by all
/// its frontends (AFF-03, AFF-04).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AffinityKey {
    /// The client's address, as it sent it.
    pub client: Addr,
    /// The service port.
    pub service: ServiceId,
}

/// What is remembered; value of the affinity table. 12 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Affinity {
    /// The backend of the client's last new connection.
    pub backend: BackendId,
    /// Generation of that backend.
    pub generation: Generation,
    /// When that connection began.
    pub last: Ticks,
}
