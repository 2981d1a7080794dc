//! By which device the packets of somebody come: by the one that answers would leave by, if routes are as they should be.

use std::net::IpAddr;

use futures::TryStreamExt as _;
use nix::errno::Errno;
use rtnetlink::{
    Handle, RouteMessageBuilder, new_connection,
    packet_route::{
        AddressFamily,
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
    },
};

use super::{
    inventory::{DeviceKind, Ifindex, Inventory},
    watch::{DeviceError, once},
};

/// The way to somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The address is this node's own.
    Own,
    /// Through a device that is no bridge with ports.
    Device(Ifindex),
    /// Through a bridge, by that port of it if the bridge knows; it learns from what it has heard.
    Bridge {
        /// The bridge.
        bridge: Ifindex,
        /// Its port.
        port: Option<Ifindex>,
    },
    /// There is no route.
    Nowhere,
}

/// The way to each of these addresses, by the routes, neighbours and bridges of this network namespace.
pub fn ways_to(ips: &[IpAddr], all: &Inventory) -> Result<Vec<Way>, DeviceError> {
    once(async {
        let (connection, handle, _) = new_connection().map_err(DeviceError::Socket)?;
        tokio::spawn(connection);
        let mut ways = Vec::with_capacity(ips.len());
        for ip in ips {
            ways.push(ask(&handle, *ip, all).await?);
        }
        Ok(ways)
    })
}

/// The way to one.
pub fn way_to(ip: IpAddr, all: &Inventory) -> Result<Way, DeviceError> {
    Ok(ways_to(&[ip], all)?.pop().unwrap_or(Way::Nowhere))
}

async fn ask(handle: &Handle, ip: IpAddr, all: &Inventory) -> Result<Way, DeviceError> {
    let Some(route) = route_to(handle, ip).await? else {
        return Ok(Way::Nowhere);
    };
    if route.header.kind == RouteType::Local {
        return Ok(Way::Own);
    }
    let Some(device) = output(&route) else {
        return Ok(Way::Nowhere);
    };
    let has_port = || all.devices.iter().any(|other| other.controller == Some(device));
    if all.device(device).is_none_or(|device| device.kind != DeviceKind::Bridge) || !has_port() {
        return Ok(Way::Device(device));
    }
    let hop = gateway(&route).unwrap_or(ip);
    let neighbours = list(handle, family_of(hop)).await?;
    let link = neighbours.iter().find(|entry| is_at(entry, device) && destination(entry) == Some(hop));
    let port = match link.and_then(link_address) {
        Some(link) => {
            let known = list(handle, AddressFamily::Bridge).await?;
            let is_port = |index| all.device(index).is_some_and(|port| port.controller == Some(device));
            let ports = known.iter().filter(|entry| link_address(entry) == Some(link));
            ports.map(|entry| Ifindex(entry.header.ifindex)).find(|index| is_port(*index))
        }
        None => None,
    };
    Ok(Way::Bridge { bridge: device, port })
}

/// The route that the kernel takes to an address; `None` without one.
async fn route_to(handle: &Handle, ip: IpAddr) -> Result<Option<RouteMessage>, DeviceError> {
    let query = match ip {
        IpAddr::V4(ip) => RouteMessageBuilder::<std::net::Ipv4Addr>::new().destination_prefix(ip, 32).build(),
        IpAddr::V6(ip) => {
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().destination_prefix(ip, 128).build()
        }
    };
    let unreachable = [Errno::ENETUNREACH, Errno::EHOSTUNREACH, Errno::EACCES, Errno::EINVAL];
    match Box::pin(handle.route().get(query).execute()).try_next().await {
        Err(rtnetlink::Error::NetlinkError(error))
            if unreachable.contains(&Errno::from_raw(error.raw_code().wrapping_abs())) =>
        {
            Ok(None)
        }
        answer => answer.map_err(|source| DeviceError::List { what: "route", source }),
    }
}

async fn list(handle: &Handle, family: AddressFamily) -> Result<Vec<NeighbourMessage>, DeviceError> {
    let answer = handle.neighbours().get().set_address_family(family).execute().try_collect().await;
    answer.map_err(|source| DeviceError::List { what: "neighbours", source })
}

const fn family_of(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn output(route: &RouteMessage) -> Option<Ifindex> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(Ifindex(*index)),
        _ => None,
    })
}

fn gateway(route: &RouteMessage) -> Option<IpAddr> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(ip)) => Some((*ip).into()),
        RouteAttribute::Gateway(RouteAddress::Inet6(ip)) => Some((*ip).into()),
        _ => None,
    })
}

const fn is_at(entry: &NeighbourMessage, device: Ifindex) -> bool {
    entry.header.ifindex == device.0
}

fn destination(entry: &NeighbourMessage) -> Option<IpAddr> {
    entry.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some((*ip).into()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some((*ip).into()),
        _ => None,
    })
}

fn link_address(entry: &NeighbourMessage) -> Option<&[u8]> {
    entry.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => Some(bytes.as_slice()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices;

    #[test]
    fn the_node_finds_its_own_addresses_at_home() {
        let all = devices::list().unwrap();
        assert_eq!(way_to("127.0.0.1".parse().unwrap(), &all).unwrap(), Way::Own);
    }
}
