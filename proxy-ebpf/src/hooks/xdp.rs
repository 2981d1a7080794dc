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
    checksum,
    drop::DropReason,
    lb::{self, Through},
    route::{LinkAddress, Way},
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
    forward(ctx, mode).unwrap_or(XDP_PASS)
}

/// Sends the packet on if it can be; `None` if the stack is to see it, as it came. The decision stands here once, between
/// what differs by family.
#[inline(always)]
fn forward(ctx: &XdpContext, mode: XdpMode) -> Option<u32> {
    let ethernet: Ethernet = ctx.load(0)?;
    let family = ethernet.kind;
    let plain = match family {
        IPV4 => Plain::read::<Ipv4>(ctx),
        IPV6 => Plain::read::<Ipv6>(ctx),
        _ => None,
    }?;
    let through = lb::through(&Maps, &plain.parsed.packet)?;
    let way = match plain.is_finished {
        true => way(ctx, mode, &plain, &through.routed, &ethernet),
        false => Err(Passage::Form),
    };
    let way = match way {
        Ok(way) => way,
        Err(passage) => {
            maps::count_passage(passage);
            return None;
        }
    };
    through.note(&Maps, plain.parsed.packet.length);
    let sent = match family {
        IPV4 => send::<Ipv4>(ctx, &plain.parsed, &through),
        _ => send::<Ipv6>(ctx, &plain.parsed, &through),
    };
    if sent.and_then(|()| ctx.store(0, [way.next, way.own])).is_none() {
        maps::count_drop(DropReason::RewriteFailed);
        return Some(XDP_DROP);
    }
    maps::count_passage(Passage::Forwarded);
    Some(leave(plain.parsed.packet.device, way.device))
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

/// A packet that nothing but its flow could keep from being sent on.
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
        let Content::Transport(mut parsed) = parse::parse::<_, I>(ctx, NETWORK, Hook::INGRESS)? else {
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
}

/// Where the packet goes; or why the stack is to see it.
#[inline(always)]
fn way(
    ctx: &XdpContext,
    mode: XdpMode,
    plain: &Plain,
    routed: &FlowKey,
    ethernet: &Ethernet,
) -> Result<Way, Passage> {
    let device = plain.parsed.packet.device;
    let way = route::way(ctx, routed, device, plain.class).ok_or(Passage::Route)?;
    if plain.length > usize::from(way.mtu) {
        return Err(Passage::Route);
    }
    let own = match way.device == device {
        true => way.own,
        false => between(mode, device, way.device).ok_or(Passage::Route)?,
    };
    // Others' packets come by, too: flooded, or to a device on top of this one.
    if ethernet.destination == own { Ok(way) } else { Err(Passage::Form) }
}

/// The link-layer address of the device that a packet came by, if it may leave by another.
#[inline(always)]
fn between(mode: XdpMode, came: u32, leaves: u32) -> Option<LinkAddress> {
    let exit = maps::xdp_device(leaves)?;
    let entrance = maps::xdp_device(came)?;
    exit.takes_from(mode).then_some(entrance.address)
}

/// Makes of the packet what both hooks and the stack would.
#[inline(always)]
fn send<I: IpHeader>(ctx: &XdpContext, parsed: &Parsed, through: &Through<'_, Maps>) -> Option<()> {
    rewrite::rewrite_through::<_, I, _>(ctx, parsed, through)?;
    I::hop(ctx, NETWORK)
}
