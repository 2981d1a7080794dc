//! Source ranges: who may use a load balancer's address (LBSR).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{addr::Addr, frontend::ServiceId};

/// A range of addresses that a service port admits; key of the source range table, in the layout of the kernel's
/// longest-prefix tries. 24 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SourceRange {
    /// Bits of `data` that must match.
    pub prefix_length: u32,
    /// What they are compared with.
    pub data: SourceRangeData,
}

/// What a source range is compared with. 20 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SourceRangeData {
    /// The service port.
    pub service: ServiceId,
    /// First address of the range.
    pub address: Addr,
}

impl SourceRange {
    const SERVICE_BITS: u32 = 32;
    const ADDRESS_BITS: u32 = 128;
    /// Bits that every IPv4 address has in front of it in the 16-byte form.
    const MAPPED_BITS: u32 = 96;

    /// The addresses that share the first `length` bits of `network`: at most 32 for IPv4, 128 for IPv6. Host bits of
    /// `network` must be zero.
    #[must_use]
    pub const fn new(service: ServiceId, network: Addr, length: u32) -> Self {
        let mapped = if network.is_v4() { Self::MAPPED_BITS } else { 0 };
        let data = SourceRangeData { service, address: network };
        Self { prefix_length: Self::SERVICE_BITS + mapped + length, data }
    }

    /// What to look up to learn whether `source` is admitted.
    #[must_use]
    #[inline(always)]
    pub const fn of(service: ServiceId, source: Addr) -> Self {
        let data = SourceRangeData { service, address: source };
        Self { prefix_length: Self::SERVICE_BITS + Self::ADDRESS_BITS, data }
    }
}
