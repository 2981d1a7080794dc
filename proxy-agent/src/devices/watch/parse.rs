//! From the kernel's messages to an inventory.

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

use proxy_model::Family;
use rtnetlink::packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
    link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteType},
};

use crate::devices::inventory::{Address, Device, DeviceKind, Ifindex, LinkHeader, Standing};

/// The device that a VXLAN's packets leave by, if this is it.
fn vxlan_device(option: &InfoVxlan) -> Option<Ifindex> {
    match option {
        InfoVxlan::Link(index) if *index != 0 => Some(Ifindex(*index)),
        _ => None,
    }
}

/// A device.
pub(super) fn device(message: &LinkMessage) -> Device {
    let index = Ifindex(message.header.index);
    let mut name = format!("#{}", index.0);
    let mut controller = None;
    let mut link = None;
    let mut is_elsewhere = false;
    let mut address = [0; 6];
    let mut info = None;
    let mut has_queue = false;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(value) => name.clone_from(value),
            LinkAttribute::Controller(value) if *value != 0 => controller = Some(Ifindex(*value)),
            LinkAttribute::Address(value) => address = value.as_slice().try_into().unwrap_or_default(),
            LinkAttribute::Link(value) if *value != 0 => link = Some(Ifindex(*value)),
            LinkAttribute::LinkNetNsId(_) => is_elsewhere = true,
            LinkAttribute::Qdisc(name) => has_queue = name != "noqueue",
            LinkAttribute::LinkInfo(infos) => {
                for part in infos {
                    match part {
                        LinkInfo::Kind(kind) => info = Some(kind),
                        // To VXLAN, the device is one of its options.
                        LinkInfo::Data(InfoData::Vxlan(options)) => {
                            link = link.or_else(|| options.iter().find_map(vxlan_device));
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let header = match message.header.link_layer_type {
        LinkLayerType::Ether | LinkLayerType::Loopback => LinkHeader::Ethernet,
        _ => LinkHeader::None,
    };
    let kind = match info {
        _ if message.header.flags.contains(LinkFlags::Loopback) => DeviceKind::Loopback,
        Some(InfoKind::Bridge) => DeviceKind::Bridge,
        Some(InfoKind::Bond | InfoKind::Team) => DeviceKind::Bond,
        Some(InfoKind::Vlan) => DeviceKind::Vlan,
        Some(InfoKind::Veth | InfoKind::Netkit | InfoKind::IpVlan | InfoKind::MacVtap | InfoKind::IpVtap) => {
            DeviceKind::Joint
        }
        // tap belongs to a virtual machine, tun to a VPN.
        Some(InfoKind::Tun) if header == LinkHeader::Ethernet => DeviceKind::Joint,
        _ => DeviceKind::Other,
    };
    // A pair names its other end, which it does not leave by.
    let is_end = matches!(info, Some(InfoKind::Veth | InfoKind::Netkit | InfoKind::Vxcan));
    let lower = link.filter(|link| *link != index && !is_elsewhere && !is_end);
    // Whoever put a queue there wants packets to be in it.
    let leads_into = is_elsewhere && !has_queue && matches!(info, Some(InfoKind::Veth | InfoKind::Netkit));
    Device { index, name, kind, header, address, leads_into, controller, lower }
}

/// An address of the node.
pub(super) fn address(message: &AddressMessage) -> Option<Address> {
    let mut local = None;
    let mut peer = None;
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => peer = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    // Where both ends of a link have an address, the other name means the other end.
    let ip = local.or(peer)?;
    let is_secondary = flags.contains(AddressFlags::Secondary);
    let is_uncertain = flags.contains(AddressFlags::Dadfailed)
        || flags.contains(AddressFlags::Tentative) && !flags.contains(AddressFlags::Optimistic);
    let is_link_local = match ip {
        std::net::IpAddr::V4(ip) => ip.is_link_local(),
        std::net::IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    let standing = match message.header.scope {
        AddressScope::Host | AddressScope::Nowhere => Standing::Unfit,
        _ if ip.is_loopback() || is_secondary || is_uncertain => Standing::Unfit,
        AddressScope::Link => Standing::LinkLocal,
        _ if is_link_local => Standing::LinkLocal,
        _ if flags.contains(AddressFlags::Deprecated) => Standing::Deprecated,
        _ => Standing::Preferred,
    };
    let prefix_length = message.header.prefix_len;
    Some(Address { device: Ifindex(message.header.index), ip, prefix_length, standing })
}

/// Where routes lead on.
#[derive(Debug, Default)]
pub(super) struct Ways {
    /// The devices of routes to a gateway, or to everything.
    pub(super) gateways: BTreeSet<Ifindex>,
    /// The best default route of each family.
    pub(super) defaults: BTreeMap<Family, BestDefault>,
}

/// A default route that none of the others beats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BestDefault {
    metric: u32,
    pub(super) device: Ifindex,
}

impl Ways {
    /// Takes note of a route.
    pub(super) fn add(&mut self, route: &RouteMessage) {
        let devices: Vec<Ifindex> = onward(route).collect();
        self.gateways.extend(&devices);
        if let (Some(family), Some(&device)) = (default_of(route), devices.first()) {
            let metric = route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Priority(metric) => Some(*metric),
                _ => None,
            });
            let found = BestDefault { metric: metric.unwrap_or(0), device };
            match self.defaults.entry(family) {
                Entry::Vacant(entry) => {
                    entry.insert(found);
                }
                Entry::Occupied(mut best) if found.metric < best.get().metric => {
                    best.insert(found);
                }
                Entry::Occupied(_) => {}
            }
        }
    }
}

/// Whether a route leads to a gateway, or to everything.
pub(super) fn leads_on(route: &RouteMessage) -> bool {
    onward(route).next().is_some()
}

/// The devices by which a route leads on.
fn onward(route: &RouteMessage) -> impl Iterator<Item = Ifindex> {
    let is_default = route.header.destination_prefix_length == 0;
    let attributes = Some(route).filter(|route| route.header.kind == RouteType::Unicast);
    let attributes = attributes.map(|route| &route.attributes[..]).unwrap_or_default();
    let single = attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) if is_default || has_gateway(attributes) => Some(Ifindex(*index)),
        _ => None,
    });
    let hops = attributes.iter().flat_map(|attribute| match attribute {
        RouteAttribute::MultiPath(hops) => &hops[..],
        _ => &[],
    });
    let hops = hops.filter(move |hop| is_default || has_gateway(&hop.attributes));
    single.into_iter().chain(hops.map(|hop| Ifindex(hop.interface_index)))
}

/// The kernel describes next hops that are objects of their own in these attributes too (`nexthop_compat_mode`).
fn has_gateway(attributes: &[RouteAttribute]) -> bool {
    attributes
        .iter()
        .any(|attribute| matches!(attribute, RouteAttribute::Gateway(_) | RouteAttribute::Via(_)))
}

/// The family of which a route is a default route, for all traffic.
fn default_of(route: &RouteMessage) -> Option<Family> {
    let RouteHeader { address_family, destination_prefix_length, source_prefix_length, table, .. } =
        route.header;
    if destination_prefix_length != 0 || source_prefix_length != 0 || table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    match address_family {
        AddressFamily::Inet => Some(Family::Ipv4),
        AddressFamily::Inet6 => Some(Family::Ipv6),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use rtnetlink::packet_route::route::{RouteAddress, RouteNextHop};

    use super::*;

    fn link(kind: Option<InfoKind>, layer: LinkLayerType, more: &[LinkAttribute]) -> Device {
        let mut message = LinkMessage::default();
        message.header.index = 7;
        message.header.link_layer_type = layer;
        message.attributes = vec![LinkAttribute::IfName("d7".to_owned())];
        message.attributes.extend(kind.map(|kind| LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)])));
        message.attributes.extend_from_slice(more);
        device(&message)
    }

    #[test]
    fn devices_are_told_apart_by_kind_and_header() {
        use LinkHeader::{Ethernet, None as L3};
        let none = LinkLayerType::None;
        let ether = LinkLayerType::Ether;
        for (kind, layer, expected) in [
            (None, ether, (DeviceKind::Other, Ethernet)),
            (Some(InfoKind::Bridge), ether, (DeviceKind::Bridge, Ethernet)),
            (Some(InfoKind::Bond), ether, (DeviceKind::Bond, Ethernet)),
            (Some(InfoKind::Team), ether, (DeviceKind::Bond, Ethernet)),
            (Some(InfoKind::Veth), ether, (DeviceKind::Joint, Ethernet)),
            (Some(InfoKind::Netkit), ether, (DeviceKind::Joint, Ethernet)),
            (Some(InfoKind::IpVlan), ether, (DeviceKind::Joint, Ethernet)),
            (Some(InfoKind::MacVtap), ether, (DeviceKind::Joint, Ethernet)),
            (Some(InfoKind::Tun), ether, (DeviceKind::Joint, Ethernet)),
            (Some(InfoKind::Tun), none, (DeviceKind::Other, L3)),
            (Some(InfoKind::Wireguard), none, (DeviceKind::Other, L3)),
            (Some(InfoKind::IpIp), LinkLayerType::Tunnel, (DeviceKind::Other, L3)),
            (Some(InfoKind::SitTun), LinkLayerType::Sit, (DeviceKind::Other, L3)),
            (Some(InfoKind::Vlan), ether, (DeviceKind::Vlan, Ethernet)),
            (Some(InfoKind::MacVlan), ether, (DeviceKind::Other, Ethernet)),
            (Some(InfoKind::Other("new".to_owned())), ether, (DeviceKind::Other, Ethernet)),
        ] {
            let found = link(kind.clone(), layer, &[]);
            assert_eq!((found.kind, found.header), expected, "{kind:?} {layer:?}");
        }
    }

    #[test]
    fn a_device_is_below_another_unless_it_is_its_other_end_or_elsewhere() {
        let below = [LinkAttribute::Link(3)];
        let lower = |kind, more: &[LinkAttribute]| link(Some(kind), LinkLayerType::Ether, more).lower;
        assert_eq!(lower(InfoKind::Vlan, &below), Some(Ifindex(3)));
        assert_eq!(lower(InfoKind::Vlan, &[]), None);
        assert_eq!(lower(InfoKind::Veth, &below), None);
        assert_eq!(lower(InfoKind::MacVlan, &[LinkAttribute::Link(3), LinkAttribute::LinkNetNsId(0)]), None);
        assert_eq!(lower(InfoKind::GreTun, &[LinkAttribute::Link(7)]), None);
        let options = InfoData::Vxlan(vec![InfoVxlan::Id(1), InfoVxlan::Link(3)]);
        let vxlan = LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(options)]);
        assert_eq!(link(None, LinkLayerType::Ether, &[vxlan]).lower, Some(Ifindex(3)));
        let port = link(None, LinkLayerType::Ether, &[LinkAttribute::Controller(4)]);
        assert_eq!(port.controller, Some(Ifindex(4)));
        assert_eq!(port.name, "d7");
    }

    #[test]
    fn a_pair_leads_into_another_namespace_unless_packets_are_queued() {
        let elsewhere = LinkAttribute::LinkNetNsId(0);
        let queue = |name: &str| LinkAttribute::Qdisc(name.to_owned());
        for (kind, more, expected) in [
            (InfoKind::Veth, &[elsewhere.clone(), queue("noqueue")][..], true),
            (InfoKind::Netkit, &[elsewhere.clone(), queue("noqueue")], true),
            (InfoKind::Veth, &[elsewhere.clone(), queue("tbf")], false),
            (InfoKind::Veth, &[queue("noqueue")], false),
            (InfoKind::Vxlan, &[elsewhere, queue("noqueue")], false),
        ] {
            let found = link(Some(kind.clone()), LinkLayerType::Ether, more).leads_into;
            assert_eq!(found, expected, "{kind:?} {more:?}");
        }
    }

    #[test]
    fn addresses_are_judged_by_scope_and_flags() {
        type F = AddressFlags;
        type S = AddressScope;
        for (ip, scope, flags, expected) in [
            ("192.0.2.1", S::Universe, F::Permanent, Standing::Preferred),
            ("192.0.2.1", S::Site, F::Permanent, Standing::Preferred),
            ("192.0.2.1", S::Universe, F::Secondary, Standing::Unfit),
            ("192.0.2.1", S::Link, F::empty(), Standing::LinkLocal),
            ("192.0.2.1", S::Universe, F::Deprecated, Standing::Deprecated),
            ("169.254.20.10", S::Universe, F::empty(), Standing::LinkLocal),
            ("127.0.0.1", S::Host, F::Permanent, Standing::Unfit),
            ("127.0.0.53", S::Universe, F::Permanent, Standing::Unfit),
            ("2001:db8::1", S::Universe, F::empty(), Standing::Preferred),
            ("2001:db8::1", S::Universe, F::Tentative, Standing::Unfit),
            ("2001:db8::1", S::Universe, F::Tentative.union(F::Optimistic), Standing::Preferred),
            ("2001:db8::1", S::Universe, F::Dadfailed, Standing::Unfit),
            ("2001:db8::1", S::Universe, F::StablePrivacy, Standing::Preferred),
            ("fe80::1", S::Link, F::Permanent, Standing::LinkLocal),
            ("::1", S::Host, F::Permanent, Standing::Unfit),
        ] {
            let ip: IpAddr = ip.parse().unwrap();
            let mut message = AddressMessage::default();
            message.header.index = 2;
            message.header.prefix_len = 24;
            message.header.scope = scope;
            message.attributes = vec![AddressAttribute::Address(ip), AddressAttribute::Flags(flags)];
            let expected = Address { device: Ifindex(2), ip, prefix_length: 24, standing: expected };
            assert_eq!(address(&message), Some(expected), "{scope:?} {flags:?}");
        }
    }

    #[test]
    fn of_a_link_with_two_ends_the_near_one_is_ours() {
        let mut message = AddressMessage::default();
        let (near, far): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        message.attributes = vec![AddressAttribute::Address(far), AddressAttribute::Local(near)];
        assert_eq!(address(&message).unwrap().ip, near);
        message.attributes.clear();
        assert_eq!(address(&message), None);
    }

    const GATEWAY: RouteAttribute = RouteAttribute::Gateway(RouteAddress::Inet(Ipv4Addr::new(192, 0, 2, 1)));

    fn route(length: u8, table: u8, attributes: &[RouteAttribute]) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.destination_prefix_length = length;
        message.header.table = table;
        message.header.kind = RouteType::Unicast;
        message.attributes = attributes.to_vec();
        message
    }

    fn hop(device: u32, attributes: &[RouteAttribute]) -> RouteNextHop {
        let mut hop = RouteNextHop::default();
        hop.interface_index = device;
        hop.attributes = attributes.to_vec();
        hop
    }

    #[test]
    fn routes_lead_on_to_gateways_and_to_everything() {
        use RouteAttribute::{MultiPath, Oif, Priority};
        let main = RouteHeader::RT_TABLE_MAIN;
        let several = MultiPath(vec![hop(4, &[GATEWAY]), hop(5, &[])]);
        for (what, message, gateways, default) in [
            ("a network", route(24, main, &[Oif(2)]), &[][..], None),
            ("a network behind a gateway", route(24, main, &[Oif(2), GATEWAY]), &[2], None),
            ("the same in another table", route(24, 52, &[Oif(2), GATEWAY]), &[2], None),
            ("everything", route(0, main, &[Oif(2), GATEWAY]), &[2], Some(2)),
            ("everything on a link", route(0, main, &[Oif(3)]), &[3], Some(3)),
            ("everything in another table", route(0, 52, &[Oif(3), GATEWAY]), &[3], None),
            ("several ways", route(24, main, std::slice::from_ref(&several)), &[4], None),
            ("several ways to everything", route(0, main, &[several, Priority(7)]), &[4, 5], Some(4)),
        ] {
            let mut ways = Ways::default();
            ways.add(&message);
            assert_eq!(ways.gateways, gateways.iter().copied().map(Ifindex).collect(), "{what}");
            let found = ways.defaults.get(&Family::Ipv4).map(|best| best.device);
            assert_eq!(found, default.map(Ifindex), "{what}");
            assert_eq!(leads_on(&message), !gateways.is_empty(), "{what}");
            let mut blocked = message;
            blocked.header.kind = RouteType::Unreachable;
            assert!(!leads_on(&blocked), "{what}");
        }
    }

    #[test]
    fn the_default_route_with_the_lowest_metric_wins() {
        let mut ways = Ways::default();
        for (device, metric) in [(2, Some(100)), (3, Some(50)), (4, Some(50)), (5, Some(200))] {
            let attributes = [Some(RouteAttribute::Oif(device)), metric.map(RouteAttribute::Priority)];
            let attributes: Vec<_> = attributes.into_iter().flatten().collect();
            ways.add(&route(0, RouteHeader::RT_TABLE_MAIN, &attributes));
        }
        assert_eq!(ways.defaults[&Family::Ipv4], BestDefault { metric: 50, device: Ifindex(3) });
        ways.add(&route(0, RouteHeader::RT_TABLE_MAIN, &[RouteAttribute::Oif(6)]));
        assert_eq!(ways.defaults[&Family::Ipv4].device, Ifindex(6));
    }
}
