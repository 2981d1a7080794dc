//! Live connections that kube-proxy translated, and what keeps the kernel translating them.
//!
//! How a connection is translated stands in conntrack, and outlives the rule that said so. But the kernel applies it for as
//! long only as some rule, whosever, asks for translation in that family: with the last one its hooks go. So where nobody
//! else has such a rule, an empty chain and a rule that no packet meets stay in place of kube-proxy's, until nobody
//! needs them.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use netlink_packet_core::NLA_F_NESTED;
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::{
    leftovers::OWN_TABLE,
    netlink::{Body, Netlink, inside},
    nftables::{self, Chain, NetfilterFamily, Table},
};

/// The chains that stay.
const HOOKED: &str = "sluice-keeps-translating";
const UNREACHED: &str = "sluice-keeps-conntrack";

/// The table that stays: kube-proxy's, so that whoever looks for its leftovers finds it.
pub(super) fn table(family: NetfilterFamily) -> Table {
    Table { family, name: OWN_TABLE.to_owned() }
}

/// Whether a table is no more than what stays.
pub(super) fn is_all<'a>(mut chains: impl Iterator<Item = &'a Chain>) -> bool {
    chains.all(|chain| chain.name == HOOKED || chain.name == UNREACHED)
}

/// Requests that make it.
pub(super) fn requests(family: NetfilterFamily) -> Vec<Body> {
    /// After routing, where sources are translated (include/uapi/linux/netfilter.h): any hook brings all of them.
    const POSTROUTING: u32 = 4;
    const PRIORITY: u32 = 100;
    let table = table(family);
    let hook = Body::new(0, &[]).with(1, &POSTROUTING.to_be_bytes()).with(2, &PRIORITY.to_be_bytes());
    let hooked = nftables::new_chain(&table, HOOKED)
        .with(nftables::CHAIN_HOOK | NLA_F_NESTED, hook.bytes())
        .with_name(nftables::CHAIN_TYPE, "nat");
    let masquerade = Body::new(0, &[]).with_name(nftables::EXPRESSION_NAME, "masq");
    let expressions = Body::new(0, &[]).with(nftables::LIST_ELEMENT | NLA_F_NESTED, masquerade.bytes());
    let rule = nftables::new_rule(&table, UNREACHED)
        .with(nftables::RULE_EXPRESSIONS | NLA_F_NESTED, expressions.bytes());
    vec![nftables::new_table(&table), hooked, nftables::new_chain(&table, UNREACHED), rule]
}

/// To whom TCP connections were made that are under way to another address: `None` where that cannot be read, which counts as
/// a connection.
pub(super) fn connections(family: NetfilterFamily) -> io::Result<Vec<Option<SocketAddr>>> {
    // include/uapi/linux/netfilter/nfnetlink_conntrack.h.
    const GET: u16 = 1 << 8 | 1;
    const STATUS_MASK: u16 = 26;
    let wanted = DESTINATION_TRANSLATED.to_be_bytes();
    let list = nftables::request(GET, family).with(STATUS, &wanted).with(STATUS_MASK, &wanted);
    let translated = |body: &Body| is_translated(body, family).then(|| made_to(body));
    Netlink::open(NETLINK_NETFILTER)?.list(&list, translated)
}

/// To whom TCP connections of either family were made that netfilter leads elsewhere; none where nothing tracks connections.
///
/// # Errors
///
/// If they cannot be listed.
pub(crate) fn translated() -> io::Result<Vec<Option<SocketAddr>>> {
    if !Path::new("/proc/sys/net/netfilter/nf_conntrack_count").exists() {
        return Ok(Vec::new());
    }
    let mut found = connections(NetfilterFamily::IP)?;
    found.append(&mut connections(NetfilterFamily::IP6)?);
    Ok(found)
}

/// Attributes of a connection.
const ORIGINAL: u16 = 1;
const STATUS: u16 = 3;

/// include/uapi/linux/netfilter/nf_conntrack_common.h.
const DESTINATION_TRANSLATED: u32 = 1 << 5;

/// Whom a connection was made to.
fn made_to(body: &Body) -> Option<SocketAddr> {
    const IP: u16 = 1;
    const V4_DESTINATION: u16 = 2;
    const V6_DESTINATION: u16 = 4;
    const PROTOCOL: u16 = 2;
    const DESTINATION_PORT: u16 = 3;
    let (_, tuple) = body.attributes(nftables::HEAD).find(|(kind, _)| *kind == ORIGINAL)?;
    let addresses = inside(tuple, IP)?;
    let v4 = || inside(addresses, V4_DESTINATION).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
    let v6 = || inside(addresses, V6_DESTINATION).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
    let ip = v4().map(IpAddr::from).or_else(|| v6().map(IpAddr::from))?;
    let port = inside(inside(tuple, PROTOCOL)?, DESTINATION_PORT)?;
    Some(SocketAddr::new(ip, u16::from_be_bytes(port.try_into().ok()?)))
}

/// Whether a message describes such a connection.
fn is_translated(body: &Body, family: NetfilterFamily) -> bool {
    const PROTOCOL: u16 = 4;
    const TCP: u16 = 1;
    const TCP_STATE: u16 = 1;
    /// From the first SYN to the wait for the second FIN (nf_conntrack_tcp.h).
    const UNDER_WAY: std::ops::RangeInclusive<u8> = 1..=5;
    let (mut is_translated, mut is_under_way) = (false, false);
    for (kind, value) in body.attributes(nftables::HEAD) {
        match kind {
            STATUS => {
                let status = value.try_into().map_or(0, u32::from_be_bytes);
                is_translated = status & DESTINATION_TRANSLATED != 0;
            }
            PROTOCOL => {
                let state = inside(value, TCP).and_then(|tcp| inside(tcp, TCP_STATE));
                is_under_way = state.and_then(<[u8]>::first).is_some_and(|state| UNDER_WAY.contains(state));
            }
            _ => {}
        }
    }
    is_translated && is_under_way && nftables::family(body) == Some(family)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(family: NetfilterFamily, status: u32, state: u8) -> Body {
        let tcp = Body::new(0, &[]).with(1, &[state]);
        let protocol = Body::new(0, &[]).with(1 | NLA_F_NESTED, tcp.bytes());
        nftables::request(0, family).with(3, &status.to_be_bytes()).with(4 | NLA_F_NESTED, protocol.bytes())
    }

    #[test]
    fn connections_count_while_they_last_and_if_they_are_translated() {
        const IP: NetfilterFamily = NetfilterFamily::IP;
        assert!(is_translated(&connection(IP, 0x1ae, 3), IP));
        // Not translated, or only its source; over; of the other family; not of TCP.
        assert!(!is_translated(&connection(IP, 0x18e, 3), IP));
        assert!(!is_translated(&connection(IP, 0x19e, 3), IP));
        assert!(!is_translated(&connection(IP, 0x1ae, 7), IP));
        assert!(!is_translated(&connection(NetfilterFamily::IP6, 0x1ae, 3), IP));
        assert!(!is_translated(&nftables::request(0, IP).with(3, &0x1aeu32.to_be_bytes()), IP));
    }

    #[test]
    fn connections_tell_whom_they_were_made_to() {
        let port = Body::new(0, &[]).with(3, &80u16.to_be_bytes());
        let made_to_ip = |kind, ip: &[u8]| {
            let addresses = Body::new(0, &[]).with(kind, ip);
            let tuple = Body::new(0, &[])
                .with(1 | NLA_F_NESTED, addresses.bytes())
                .with(2 | NLA_F_NESTED, port.bytes());
            let body = nftables::request(0, NetfilterFamily::IP).with(1 | NLA_F_NESTED, tuple.bytes());
            made_to(&body).map(|end| end.to_string())
        };
        assert_eq!(made_to_ip(2, &[192, 0, 2, 1]).as_deref(), Some("192.0.2.1:80"));
        let v6 = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        assert_eq!(made_to_ip(4, &v6).as_deref(), Some("[2001:db8::1]:80"));
        assert_eq!(made_to_ip(2, &v6), None);
    }
}
