//! One end of a packet becomes another: address, port, and every checksum over them.

#![expect(
    clippy::cast_possible_truncation,
    reason = "lengths of packets and headers, and halves of a checksum"
)]

use proxy_common::{
    checksum::ChecksumDiff,
    endian::Be16,
    lb::Translation,
    shortcut::Shortcut,
    tuple::{Endpoint, FlowKey, Hook, Protocol},
};

use crate::{
    packet::Packet,
    parse::Parsed,
    verified,
    wire::{DESTINATION_PORT, IpHeader, Part, SCTP_CHECK, transport_checksum},
};

/// Gives the packet a new destination (at ingress) or source (at egress). `None` if the packet is no longer what was
/// parsed.
#[inline(always)]
pub(crate) fn rewrite<P: Packet, I: IpHeader>(packet: &P, parsed: &Parsed, new: &Translation) -> Option<()> {
    let key = &parsed.packet.key;
    let diff = readdress::<P, I>(packet, parsed, key, new)?;
    if parsed.part == Part::Later {
        return Some(());
    }
    if key.protocol == Protocol::SCTP {
        return sctp::<P>(packet, parsed, new);
    }
    finish::<P, I>(packet, parsed, diff)
}

/// What both hooks make of a whole packet of TCP or UDP.
#[inline(always)]
pub(crate) fn rewrite_through<P: Packet, I: IpHeader>(
    packet: &P,
    parsed: &Parsed,
    shortcut: &Shortcut,
) -> Option<()> {
    let key = &parsed.packet.key;
    let change = |old: Endpoint, new: Endpoint| {
        ChecksumDiff::between((old.address, old.port), (new.address, new.port))
    };
    let (source, destination) = (shortcut.source_end(), shortcut.destination_end());
    let diff = change(key.destination_end(), destination);
    I::set_destination(packet, parsed.network, destination.address, diff.pseudo)?;
    packet.store(parsed.transport + DESTINATION_PORT, destination.port)?;
    let other = change(key.source_end(), source);
    I::set_source(packet, parsed.network, source.address, other.pseudo)?;
    packet.store(parsed.transport, source.port)?;
    finish::<P, I>(packet, parsed, diff.plus(other))
}

/// Writes address and ports into a packet with this key. Returns how that changes the sum that the transport's checksum
/// covers.
#[inline(always)]
fn readdress<P: Packet, I: IpHeader>(
    packet: &P,
    parsed: &Parsed,
    key: &FlowKey,
    new: &Translation,
) -> Option<ChecksumDiff> {
    let (old, other_port, end_at, other_at) = match key.hook {
        Hook::INGRESS => (key.destination_end(), key.source_port, DESTINATION_PORT, 0),
        _ => (key.source_end(), key.destination_port, 0, DESTINATION_PORT),
    };
    let mut diff = ChecksumDiff::between((old.address, old.port), (new.end.address, new.end.port));
    match key.hook {
        Hook::INGRESS => I::set_destination(packet, parsed.network, new.end.address, diff.pseudo)?,
        _ => I::set_source(packet, parsed.network, new.end.address, diff.pseudo)?,
    }
    if parsed.part == Part::Later {
        return Some(diff);
    }
    packet.store(parsed.transport + end_at, new.end.port)?;
    if new.other_port != other_port {
        packet.store(parsed.transport + other_at, new.other_port)?;
        diff = diff.with_port(other_port, new.other_port);
    }
    Some(diff)
}

/// Last, because helpers end what the verifier knows about the packet's bounds.
#[inline(always)]
fn finish<P: Packet, I: IpHeader>(packet: &P, parsed: &Parsed, diff: ChecksumDiff) -> Option<()> {
    let (check, kind) = transport_checksum(parsed.packet.key.protocol);
    packet.update_checksum(parsed.transport + check, kind, I::NETWORK_SUM, diff)
}

/// Brings SCTP's checksum up to date, which covers the ports. One that is zero is still to be computed, by whoever sends the
/// packet on.
#[inline(always)]
fn sctp<P: Packet>(packet: &P, parsed: &Parsed, new: &Translation) -> Option<()> {
    let FlowKey { source_port, destination_port, hook, .. } = parsed.packet.key;
    let (source, destination) = match hook {
        Hook::INGRESS => (new.other_port, new.end.port),
        _ => (new.end.port, new.other_port),
    };
    let changed = little_endian(source_port, destination_port) ^ little_endian(source, destination);
    if changed == 0 {
        return Some(());
    }
    let at = parsed.transport + SCTP_CHECK;
    let [low, high]: [u16; 2] = packet.load(at)?;
    let check = u32::from(u16::from_le(low)) | u32::from(u16::from_le(high)) << 16;
    if check == 0 {
        return Some(());
    }
    let behind = packet.length().wrapping_sub(parsed.transport as u32).wrapping_sub(size_of::<u32>() as u32);
    let check = check ^ verified::sctp_change(changed, behind);
    packet.store(at, [(check as u16).to_le(), ((check >> 16) as u16).to_le()])
}

/// The first four bytes of the header as a number, the first byte lowest.
#[inline(always)]
const fn little_endian(source: Be16, destination: Be16) -> u32 {
    u16::from_le(source.raw()) as u32 | (u16::from_le(destination.raw()) as u32) << 16
}
