//! One end of a packet becomes another: address, port, and every checksum over them.

use proxy_common::{checksum::ChecksumDiff, tuple::Endpoint};

use crate::{
    packet::Packet,
    parse::Parsed,
    wire::{DESTINATION_PORT, IpHeader, transport_checksum},
};

/// Which end of the packet a hook rewrites.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Source,
    Destination,
}

/// Gives the packet a new source or destination. `None` if the packet is no longer what was parsed.
#[inline(always)]
pub(crate) fn rewrite<P: Packet, I: IpHeader>(
    packet: &P,
    parsed: &Parsed,
    end: End,
    new: Endpoint,
) -> Option<()> {
    let key = &parsed.packet.key;
    let old = match end {
        End::Source => key.source_end(),
        End::Destination => key.destination_end(),
    };
    let diff = ChecksumDiff::between((old.address, old.port), (new.address, new.port));
    match end {
        End::Source => {
            I::set_source(packet, parsed.network, new.address, diff.pseudo)?;
            packet.store(parsed.transport, new.port)?;
        }
        End::Destination => {
            I::set_destination(packet, parsed.network, new.address, diff.pseudo)?;
            packet.store(parsed.transport + DESTINATION_PORT, new.port)?;
        }
    }
    // Last, because helpers end what the verifier knows about the packet's bounds.
    let (check, kind) = transport_checksum(key.protocol);
    packet.update_checksum(parsed.transport + check, kind, I::NETWORK_SUM, diff)
}
