//! Where the client is: by which device its packets come, and whether its socket is asked first.

use std::net::IpAddr;

use proxy_common::{
    addresses::AddressFlags,
    config::SocketFlags,
    device::DeviceFlags,
    pod::{PodReason, PodReasons},
    tables::Pods,
    tuple::Protocol,
};

use super::{AttachedHook, Candidate, ExplainArgs, Source, decide::Client, view::View};
use crate::{
    datapath::{HashTable, PinnedHook, Pins, Program, SocketHook, SocketProgram, pinned_hooks, socket_hooks},
    devices::{Ifindex, Inventory, Way, way_to, ways_to},
    show::{ShowError, status::pod_name},
};

/// Why the client's place is not known.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No such device.
    #[error("--device {0}: no such device in this network namespace")]
    NoDevice(String),
    /// A process of the node sends through no device that matters.
    #[error("--device says nothing about a process of the node (--from host)")]
    HostHasNone,
    /// No such pod.
    #[error(
        "--pod {0}: no such pod is known here; `sluice status -o json` lists those that are (sockets.pods.known)"
    )]
    NoPod(String),
    /// No route leads there.
    #[error("no route leads to {0}, so its packets may come by any device: name it with --device")]
    NoRoute(IpAddr),
}

/// A client in its place.
#[derive(Debug)]
pub(super) struct Asker {
    /// As the tables know it.
    pub(super) client: Client,
    /// What decides whether its pod is served at its sockets; `None` if nobody asks.
    pub(super) pod: Option<PodReasons>,
    /// The name of its device.
    pub(super) device_name: Option<String>,
    /// How that was found.
    pub(super) device_found: Option<&'static str>,
    /// The programs at its socket that are attached; none if it is not asked there.
    pub(super) socket_hooks: Vec<AttachedHook>,
    /// The program at the ingress of its device, if one is attached.
    pub(super) ingress: Option<AttachedHook>,
}

/// Finds out.
pub(super) fn find(
    args: &ExplainArgs,
    view: &View,
    all: &Inventory,
    pins: &Pins,
) -> Result<Asker, ShowError> {
    let protocol = args.to.protocol;
    let (ip, port) = match args.from {
        Source::Host if args.device.is_some() => return Err(SourceError::HostHasNone.into()),
        Source::Host => return Ok(host(view, protocol, args.to.end.ip(), pins)),
        Source::Address(ip, port) => (ip, port),
    };
    let hooks = pinned_hooks(pins)?;
    let (device, found) = match &args.device {
        Some(name) => {
            let device = all.devices.iter().find(|device| device.name == *name);
            (device.ok_or_else(|| SourceError::NoDevice(name.clone()))?.index, "given")
        }
        // Nothing else sends under the node's own addresses.
        None if view.address(ip.into()).contains(AddressFlags::NODE) => {
            return Ok(host(view, protocol, args.to.end.ip(), pins));
        }
        None => match way_to(ip, all)? {
            Way::Own => return Ok(host(view, protocol, args.to.end.ip(), pins)),
            Way::Nowhere => return Err(SourceError::NoRoute(ip).into()),
            Way::Device(device) => (device, "by the route to the client"),
            Way::Bridge { port: Some(port), .. } => {
                (port, "by the route to the client, and what its bridge has learned")
            }
            Way::Bridge { bridge, port: None } => {
                (any_port(bridge, &hooks, all), "any port of the client's bridge")
            }
        },
    };
    let is_local =
        view.devices.get(&device.0).is_some_and(|row| row.flags.contains(DeviceFlags::LOCAL_CLIENTS));
    let served = view.settings.sockets.pods;
    let pod = (served != PodReasons::NONE && is_local && protocol == Protocol::TCP)
        .then(|| view.pod.unwrap_or(PodReasons::of(PodReason::Unknown)));
    let at_socket = pod.is_some_and(|reason| served.intersects(reason));
    let ingress = hooks
        .iter()
        .find(|hook| hook.device == device && matches!(hook.program, Program::Ingress | Program::IngressL3));
    Ok(Asker {
        client: Client { address: Some(ip), port, device: device.0, at_socket },
        pod,
        device_name: all.device(device).map(|device| device.name.clone()),
        device_found: Some(found),
        socket_hooks: if at_socket { met_hooks(protocol, args.to.end.ip(), pins) } else { Vec::new() },
        ingress: ingress.map(|hook| AttachedHook { program: hook.program.name(), id: hook.program_id }),
    })
}

/// Of the ports of a bridge all are alike to the datapath, as far as it can tell; one that is attached will do.
fn any_port(bridge: Ifindex, hooks: &[PinnedHook], all: &Inventory) -> Ifindex {
    let is_port = |index: Ifindex| all.device(index).is_some_and(|device| device.controller == Some(bridge));
    hooks.iter().map(|hook| hook.device).find(|index| is_port(*index)).unwrap_or(bridge)
}

/// A process of the node.
fn host(view: &View, protocol: Protocol, to: IpAddr, pins: &Pins) -> Asker {
    let is_served = view.settings.sockets.flags.contains(SocketFlags::HOST) && protocol != Protocol::SCTP;
    Asker {
        client: Client { address: None, port: None, device: 0, at_socket: true },
        pod: None,
        device_name: None,
        device_found: None,
        socket_hooks: if is_served { met_hooks(protocol, to, pins) } else { Vec::new() },
        ingress: None,
    }
}

/// The programs that a socket of that protocol meets on its way to an address: when it connects, or sends.
fn met_hooks(protocol: Protocol, to: IpAddr, pins: &Pins) -> Vec<AttachedHook> {
    let met: &[SocketProgram] = match (protocol, to.is_ipv4()) {
        (Protocol::UDP, true) => &[SocketProgram::Connect4, SocketProgram::Sendmsg4],
        (Protocol::UDP, false) => &[SocketProgram::Connect6, SocketProgram::Sendmsg6],
        (_, true) => &[SocketProgram::Connect4],
        (_, false) => &[SocketProgram::Connect6],
    };
    let attached = socket_hooks(pins).into_iter().filter_map(|(hook, found)| match found {
        SocketHook::Attached { program, .. } if met.contains(&hook) => {
            Some(AttachedHook { program: hook.name(), id: Some(program) })
        }
        _ => None,
    });
    attached.collect()
}

/// What decides about a pod, by its namespace and name.
pub(super) fn reason_of(name: &str, pins: &Pins) -> Result<PodReasons, ShowError> {
    for entry in HashTable::<Pods>::open(pins)?.entries() {
        let (_, pod) = entry?;
        if pod_name(&pod) == name {
            return Ok(pod.reason);
        }
    }
    Err(SourceError::NoPod(name.to_owned()).into())
}

/// Tells the node's address towards the backends that see it: that of the device which packets to them leave by.
pub(super) fn tell_addresses(
    view: &View,
    candidates: &mut [Candidate],
    all: &Inventory,
) -> Result<(), ShowError> {
    let mut seen: Vec<_> = candidates.iter_mut().filter(|row| row.masqueraded == Some(true)).collect();
    let ips: Vec<_> = seen.iter().map(|candidate| candidate.address.ip()).collect();
    if ips.is_empty() {
        return Ok(());
    }
    for (candidate, way) in seen.iter_mut().zip(ways_to(&ips, all)?) {
        let device = match way {
            Way::Device(device) | Way::Bridge { port: Some(device), .. } => Some(device),
            Way::Own | Way::Nowhere | Way::Bridge { port: None, .. } => None,
        };
        let row = device.and_then(|device| view.devices.get(&device.0));
        let source = row.and_then(|row| row.source_for(candidate.address.ip().into()));
        candidate.seen_as = source.map(|source| source.to_ip());
    }
    Ok(())
}
