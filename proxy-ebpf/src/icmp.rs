//! ICMP errors about translated packets: path MTU discovery, and news of closed ports, through a service.
//!
//! An error quotes the packet that caused it as it was on the wire, translated. Whoever sent that packet would not
//! recognise it, so both the quotation and the error's own address are translated back (NAT-02): at egress, towards the
//! client, what came from a backend's side claims to come from the service and to be about the service; at ingress,
//! what a client's side sends to the service goes to the backend and is about the backend. A slow path.

use aya_ebpf::programs::TcContext;
use network_types::eth::EthHdr;
use proxy_common::{
    checksum::ChecksumDiff,
    endian::Be16,
    lb,
    tuple::{Endpoint, FlowKey, Hook, Protocol},
};

use crate::{
    maps::Maps,
    packet::{ChecksumKind, Packet as _, Unhurried},
    wire::{DESTINATION_PORT, ICMP_CHECK, Icmp, IpHeader, Ports},
};

/// Translates an ICMP message whose header lies at `at`, if it is an error about a flow. `None` leaves it as it is.
#[inline(never)]
pub(crate) fn translate<I: IpHeader>(ctx: &TcContext, at: usize, hook: Hook) -> Option<()> {
    let packet = Unhurried(ctx);
    if !I::is_error(packet.load(at)?) {
        return None;
    }
    let outer = I::read(&packet, EthHdr::LEN)?;
    let quoted_at = at + size_of::<Icmp>();
    let quoted = I::read(&packet, quoted_at)?;
    if quoted.protocol != Protocol::TCP && quoted.protocol != Protocol::UDP {
        return None;
    }
    let ports: Ports = packet.load(quoted.transport)?;
    let source = Endpoint { address: quoted.source, port: ports.source };
    let destination = Endpoint { address: quoted.destination, port: ports.destination };
    let new = lb::related(&Maps, &FlowKey::new(source, destination, quoted.protocol, hook))?;
    let no_port = Be16::default();
    let (old, outer_old) = match hook {
        Hook::INGRESS => (source, outer.destination),
        _ => (destination, outer.source),
    };
    let diff = ChecksumDiff::between((old.address, old.port), (new.address, new.port));
    let outer_diff = ChecksumDiff::between((outer_old, no_port), (new.address, no_port));
    match hook {
        Hook::INGRESS => {
            I::set_source(&packet, quoted_at, new.address, diff.pseudo)?;
            packet.store(quoted.transport, new.port)?;
            I::set_destination(&packet, EthHdr::LEN, new.address, outer_diff.pseudo)?;
        }
        _ => {
            I::set_destination(&packet, quoted_at, new.address, diff.pseudo)?;
            packet.store(quoted.transport + DESTINATION_PORT, new.port)?;
            I::set_source(&packet, EthHdr::LEN, new.address, outer_diff.pseudo)?;
        }
    }
    let change = ChecksumDiff { pseudo: I::outer_diff(outer_diff), payload: I::quotation_diff(diff) };
    packet.update_checksum(at + ICMP_CHECK, ChecksumKind::Mandatory, I::NETWORK_SUM, change)
}
