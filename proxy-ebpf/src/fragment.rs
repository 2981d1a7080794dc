//! Fragments: the ports of a datagram are learned from its first fragment and lent to the others.
//!
//! Hosts send fragments in order, but networks may not deliver them so. A fragment that overtakes the first one is lent the
//! ports of the datagram before, between the same two addresses: right for whoever sends one large datagram after the
//! other, and no worse than a loss for anybody else.

use proxy_common::{filter::AddressRoles, fragment::Ports, lb::Tables as _, tuple::Hook};

use crate::{
    maps::{self, Maps},
    parse::Parsed,
    wire::Part,
};

/// Stands for the latest datagram between two addresses, where its identification would. IPv4 has no such number, and in
/// IPv6 it may cost a datagram out of four billion.
const LATEST: u32 = u32::MAX;

/// Learns the ports of a first fragment, if it may be of a service, or gives a later one its ports. `false` if they are not
/// known.
#[inline(never)]
pub(crate) fn complete(parsed: &mut Parsed, masqueraded: bool) -> bool {
    let key = &parsed.packet.key;
    let mut datagram = parsed.datagram();
    if parsed.part == Part::First {
        let served = match key.hook {
            Hook::INGRESS => {
                Maps.roles(key.destination).intersects(AddressRoles::FRONTEND.with(AddressRoles::NODE))
            }
            // A masqueraded packet has any source.
            _ => masqueraded || Maps.roles(key.source).contains(AddressRoles::BACKEND),
        };
        if served {
            let ports = Ports { source: key.source_port, destination: key.destination_port };
            maps::remember_ports(&datagram, ports);
            datagram.id = LATEST;
            if maps::ports(&datagram) != Some(ports) {
                maps::remember_ports(&datagram, ports);
            }
        }
        return true;
    }
    let mut ports = maps::ports(&datagram);
    if ports.is_none() {
        datagram.id = LATEST;
        ports = maps::ports(&datagram);
    }
    let Some(ports) = ports else {
        return false;
    };
    parsed.packet.key.source_port = ports.source;
    parsed.packet.key.destination_port = ports.destination;
    true
}
