//! ICMP errors about translated packets: path MTU discovery, and news of closed ports, through a service.
//!
//! An error quotes the packet that caused it as it was on the wire, translated. Whoever sent that packet would not
//! recognise it, so both the quotation and the error's own address are translated back (NAT-02): at egress, towards the
//! client, what came from a backend's side claims to come from the service and to be about the service; at ingress,
//! what a client's side sends to the service goes to the backend and is about the backend. A slow path.

#![expect(unsafe_code, reason = "memory of this CPU, behind a raw pointer")]

use aya_ebpf::{macros::map, maps::PerCpuArray, programs::TcContext};
use proxy_common::{
    addr::Addr,
    checksum::ChecksumDiff,
    endian::Be16,
    fragment::Ports,
    lb,
    tuple::{Endpoint, FlowKey, Hook, Protocol},
};

use crate::{
    maps::Maps,
    packet::{ChecksumKind, Packet as _, Unhurried},
    wire::{DESTINATION_PORT, ICMP_CHECK, Icmp, IpHeader, Part},
};

/// What an error is about. Between two functions, as one stack has no room for all of it.
#[derive(Clone, Copy)]
struct Error {
    /// The address of the error itself that is translated.
    outer: Addr,
    /// The end of the quoted packet that is translated.
    old: Endpoint,
    /// What it becomes.
    new: Endpoint,
    /// The quoted packet's port at the other end.
    other_port: Be16,
    /// What that becomes.
    new_other_port: Be16,
    /// Where the ICMP header is.
    icmp: usize,
    /// Where the quoted packet's transport header is.
    transport: usize,
}

#[map]
static ERRORS: PerCpuArray<Error> = PerCpuArray::with_max_entries(1, 0);

#[inline(always)]
fn error() -> Option<&'static mut Error> {
    // SAFETY: a slot of this CPU's own array; programs do not nest on a CPU at this hook.
    ERRORS.get_ptr_mut(0).map(|error| unsafe { &mut *error })
}

/// Translates a packet if it is an ICMP error about a flow. `None` leaves it as it is. `LINK` is the length of the link
/// header.
#[inline(always)]
pub(crate) fn translate<I: IpHeader, const LINK: usize>(ctx: &TcContext, hook: Hook) -> Option<()> {
    examine::<I, LINK>(ctx, hook)?;
    apply::<I, LINK>(ctx, hook)
}

/// Finds out what the error is about; `None` if it is none, or is about no flow.
#[inline(never)]
fn examine<I: IpHeader, const LINK: usize>(ctx: &TcContext, hook: Hook) -> Option<()> {
    let packet = Unhurried(ctx);
    let error = error()?;
    let outer = I::read(&packet, LINK)?;
    error.icmp = outer.transport;
    if outer.protocol != I::ICMP || outer.part == Part::Later || !I::is_error(packet.load(error.icmp)?) {
        return None;
    }
    error.outer = match hook {
        Hook::INGRESS => outer.destination,
        _ => outer.source,
    };
    let quoted = I::read(&packet, error.icmp + size_of::<Icmp>())?;
    error.transport = quoted.transport;
    if !matches!(quoted.protocol, Protocol::TCP | Protocol::UDP | Protocol::SCTP)
        || quoted.part == Part::Later
    {
        return None;
    }
    let ports: Ports = packet.load(quoted.transport)?;
    let source = Endpoint { address: quoted.source, port: ports.source };
    let destination = Endpoint { address: quoted.destination, port: ports.destination };
    (error.old, error.other_port) = match hook {
        Hook::INGRESS => (source, ports.destination),
        _ => (destination, ports.source),
    };
    let new = lb::related(&Maps, &FlowKey::new(destination, source, quoted.protocol, hook))?;
    error.new = new.end;
    error.new_other_port = new.other_port;
    Some(())
}

/// Translates it.
#[inline(never)]
fn apply<I: IpHeader, const LINK: usize>(ctx: &TcContext, hook: Hook) -> Option<()> {
    let packet = Unhurried(ctx);
    let Error { outer, old, new, other_port, new_other_port, icmp, transport } = error()?;
    let quoted = *icmp + size_of::<Icmp>();
    let no_port = Be16::default();
    let diff = ChecksumDiff::between((old.address, old.port), (new.address, new.port));
    let outer_diff = ChecksumDiff::between((*outer, no_port), (new.address, no_port));
    let (end_at, other_at) = match hook {
        Hook::INGRESS => {
            I::set_source(&packet, quoted, new.address, diff.pseudo)?;
            I::set_destination(&packet, LINK, new.address, outer_diff.pseudo)?;
            (0, DESTINATION_PORT)
        }
        _ => {
            I::set_destination(&packet, quoted, new.address, diff.pseudo)?;
            I::set_source(&packet, LINK, new.address, outer_diff.pseudo)?;
            (DESTINATION_PORT, 0)
        }
    };
    packet.store(*transport + end_at, new.port)?;
    packet.store(*transport + other_at, *new_other_port)?;
    let diff = diff.with_port(*other_port, *new_other_port);
    let change = ChecksumDiff { pseudo: I::outer_diff(outer_diff), payload: I::quotation_diff(diff) };
    packet.update_checksum(*icmp + ICMP_CHECK, ChecksumKind::Mandatory, I::NETWORK_SUM, change)
}
