//! XDP hook: packets of running flows that both tc hooks would rewrite are sent on before the stack sees them.
//!
//! Everything else is passed on as it came, and the tc hooks do what they always do. So nothing is chosen, written, refused
//! or dropped here.

use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX},
    helpers::bpf_redirect,
    programs::XdpContext,
};
use network_types::eth::{EthHdr, EtherType};
use proxy_common::{
    cache::TupleHash,
    checksum,
    drop::DropReason,
    lb,
    route::{LinkAddress, Way},
    shortcut::{Shortcut, ShortcutFlags},
    tuple::{FlowKey, Hook},
    xdp::{Passage, XdpMode},
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{
    maps::{self, Maps},
    packet::{ChecksumKind, Frame as _, Packet as _},
    parse::{self, Content, Parsed},
    rewrite, route,
    wire::{IpHeader, Ipv4, Ipv6, transport_checksum},
};

/// Where the network header begins.
const NETWORK: usize = EthHdr::LEN;
const IPV4: u16 = EtherType::Ipv4 as u16;
const IPV6: u16 = EtherType::Ipv6 as u16;

/// Ethernet header.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Ethernet {
    destination: LinkAddress,
    source: LinkAddress,
    kind: u16,
}

const _: () = assert!(size_of::<Ethernet>() == EthHdr::LEN);

/// Runs the hook on a packet and returns the XDP action.
#[inline(always)]
pub(crate) fn run(ctx: &XdpContext, mode: XdpMode) -> u32 {
    let Some(ethernet) = ctx.load::<Ethernet>(0) else {
        return XDP_PASS;
    };
    match ethernet.kind {
        IPV4 => of_family::<Ipv4>(ctx, &ethernet, mode),
        IPV6 => of_family::<Ipv6>(ctx, &ethernet, mode),
        _ => XDP_PASS,
    }
}

/// The same for a packet of a family. Out of line: one family's variables and the other's would be too much for one stack.
#[inline(never)]
fn of_family<I: IpHeader>(ctx: &XdpContext, ethernet: &Ethernet, mode: XdpMode) -> u32 {
    forward::<I>(ctx, ethernet, mode).unwrap_or(XDP_PASS)
}

/// Sends the packet on if it can be; `None` if the stack is to see it, as it came.
#[inline(always)]
fn forward<I: IpHeader>(ctx: &XdpContext, ethernet: &Ethernet, mode: XdpMode) -> Option<u32> {
    let plain = Plain::read::<I>(ctx)?;
    let packet = &plain.parsed.packet;
    let hash = TupleHash::of(&packet.key);
    let shortcut = maps::shortcut(hash)?;
    if !lb::is_remembered(&Maps, packet, plain.class, hash, shortcut) {
        learn(ctx, packet, plain.class, shortcut)?;
    }
    if !shortcut.flags.contains(ShortcutFlags::THROUGH) {
        return None;
    }
    let passage = plain.passage(ethernet, mode, &shortcut.way);
    maps::count_passage(passage);
    if passage != Passage::Forwarded {
        return None;
    }
    lb::note_through(&Maps, shortcut, packet.length);
    let sent = send::<I>(ctx, &plain.parsed, shortcut);
    let Way { device, own, next, .. } = shortcut.way;
    if sent.and_then(|()| ctx.store(0, [next, own])).is_none() {
        maps::count_drop(DropReason::RewriteFailed);
        return Some(XDP_DROP);
    }
    Some(leave(packet.device, device))
}

/// Makes a shortcut for packets like this one; `None` if the stack is to see this one. In steps out of line, each on a stack that
/// ends before the next begins.
#[inline(always)]
fn learn(ctx: &XdpContext, packet: &lb::Packet, class: u32, shortcut: &mut Shortcut) -> Option<()> {
    let routed = route::tuple()?;
    shortcut.renew(&packet.key, packet.device, class);
    let goes = lb::learn_entry(&Maps, packet, shortcut, routed)
        && lb::learn_exit(&Maps, packet, shortcut, routed)
        && find_way(ctx, routed, shortcut);
    goes.then_some(())
}

/// Asks where packets leave. Returns whether the one that it is asked for may go there.
#[inline(never)]
fn find_way(ctx: &XdpContext, routed: &FlowKey, shortcut: &mut Shortcut) -> bool {
    let Shortcut { device, class, way, .. } = shortcut;
    route::ask(ctx, routed, *device, *class, way);
    if way.device == *device {
        way.entrance = way.own;
    } else if let Some(entrance) = maps::xdp_device(*device) {
        way.entrance = entrance.address;
    } else {
        way.device = 0;
    }
    if shortcut.is_for_stack() {
        maps::count_passage(Passage::Route);
    }
    !shortcut.is_for_stack()
}

/// The action that sends a packet out by a device.
#[inline(always)]
#[expect(unsafe_code, reason = "a plain helper")]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an action")]
fn leave(came: u32, leaves: u32) -> u32 {
    if leaves == came {
        return XDP_TX;
    }
    // SAFETY: the helper notes the device for this packet, and takes any number.
    unsafe { bpf_redirect(leaves, 0) as u32 }
}

/// A packet to a service or the node that nothing but its flow could keep from being sent on.
struct Plain {
    parsed: Parsed,
    /// Bytes from the network header on.
    length: usize,
    /// How it wants to be treated.
    class: u32,
    /// Whether the transport's checksum is one, or absent: a packet that never was on a wire may leave it to whoever sends
    /// it on.
    is_finished: bool,
}

impl Plain {
    #[inline(always)]
    fn read<I: IpHeader>(ctx: &XdpContext) -> Option<Self> {
        let header: I::Header = ctx.load(NETWORK)?;
        if !I::is_plain(&header) {
            return None;
        }
        let network = I::read(ctx, NETWORK)?;
        // Before all the rest, which most packets do not need.
        if !lb::may_go_through(&Maps, network.destination) {
            return None;
        }
        let Content::Transport(mut parsed) = parse::transport(ctx, network, NETWORK, Hook::INGRESS)? else {
            return None;
        };
        let length = I::length(&header);
        parsed.packet.length = ctx.length_to(NETWORK + length)?;
        let FlowKey { source, destination, protocol, .. } = parsed.packet.key;
        let (check, kind) = transport_checksum(protocol);
        let field: u16 = ctx.load(parsed.transport + check)?;
        let behind = u16::try_from((NETWORK + length).checked_sub(parsed.transport)?).ok()?;
        let is_finished = field == 0 && kind == ChecksumKind::ZeroIsAbsent
            || !checksum::is_unfinished(field, source, destination, protocol, behind);
        Some(Self { parsed, length, class: I::class(&header), is_finished })
    }

    /// What becomes of it on a way.
    #[inline(always)]
    fn passage(&self, ethernet: &Ethernet, mode: XdpMode, way: &Way) -> Passage {
        let came = self.parsed.packet.device;
        // How the exit stands is not remembered: what is sent there after it has lost its program is lost.
        if way.device == 0
            || self.length > usize::from(way.mtu)
            || way.device != came && !maps::xdp_device(way.device).is_some_and(|exit| exit.takes_from(mode))
        {
            return Passage::Route;
        }
        // Others' packets come by, too: flooded, or to a device on top of this one.
        if self.is_finished && ethernet.destination == way.entrance {
            Passage::Forwarded
        } else {
            Passage::Form
        }
    }
}

/// Makes of the packet what both hooks and the stack would.
#[inline(always)]
fn send<I: IpHeader>(ctx: &XdpContext, parsed: &Parsed, shortcut: &Shortcut) -> Option<()> {
    rewrite::rewrite_through::<_, I>(ctx, parsed, shortcut)?;
    I::hop(ctx, NETWORK)
}
