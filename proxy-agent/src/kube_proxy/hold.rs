//! Live connections that kube-proxy translated, and what keeps the kernel translating them.
//!
//! How a connection is translated stands in conntrack, and outlives the rule that said so. But the kernel applies it for as
//! long only as some rule, whosever, asks for translation in that family: with the last one its hooks go. So where nobody
//! else has such a rule, an empty chain and a rule that no packet meets stay in place of kube-proxy's, until nobody
//! needs them.

use std::io;

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

/// How many TCP connections are under way to another address than they were made to.
pub(super) fn connections(family: NetfilterFamily) -> io::Result<usize> {
    // include/uapi/linux/netfilter/nfnetlink_conntrack.h.
    const GET: u16 = 1 << 8 | 1;
    let list = nftables::request(GET, family);
    let found =
        Netlink::open(NETLINK_NETFILTER)?.list(&list, |body| is_translated(body, family).then_some(()));
    found.map(|found| found.len())
}

/// Whether a message describes such a connection.
fn is_translated(body: &Body, family: NetfilterFamily) -> bool {
    const STATUS: u16 = 3;
    const PROTOCOL: u16 = 4;
    const TCP: u16 = 1;
    const TCP_STATE: u16 = 1;
    /// include/uapi/linux/netfilter/nf_conntrack_common.h.
    const DESTINATION_TRANSLATED: u32 = 1 << 5;
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
}
