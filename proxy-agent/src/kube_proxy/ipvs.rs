//! What kube-proxy's mode ipvs leaves besides rules: services of IPVS, a device with all their addresses, sets of addresses.

use std::{fs, io, path::Path};

use netlink_packet_core::NLA_F_NET_BYTEORDER;
use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_NETFILTER, NETLINK_ROUTE};
use nix::net::if_::if_nametoindex;

use super::netlink::{Body, Netlink, name};

/// The device that has the services' addresses.
pub(crate) const DEVICE: &str = "kube-ipvs0";

/// kube-proxy's sets; those of IPv6 begin with KUBE-6- instead. Others' begin with KUBE- as well.
const SETS: [&str; 17] = [
    "CLUSTER-IP",
    "EXTERNAL-IP",
    "EXTERNAL-IP-LOCAL",
    "HEALTH-CHECK-NODE-PORT",
    "IPVS-IPS",
    "LOAD-BALANCER",
    "LOAD-BALANCER-FW",
    "LOAD-BALANCER-LOCAL",
    "LOAD-BALANCER-SOURCE-CIDR",
    "LOAD-BALANCER-SOURCE-IP",
    "LOOP-BACK",
    "NODE-PORT-LOCAL-SCTP-HASH",
    "NODE-PORT-LOCAL-TCP",
    "NODE-PORT-LOCAL-UDP",
    "NODE-PORT-SCTP-HASH",
    "NODE-PORT-TCP",
    "NODE-PORT-UDP",
];

/// How many services IPVS has; none where it is not loaded.
pub(crate) fn services() -> usize {
    count(&fs::read_to_string("/proc/thread-self/net/ip_vs").unwrap_or_default())
}

/// The kernel's own list: one line each, after three of heading.
fn count(list: &str) -> usize {
    let is_service = |line: &&str| ["TCP", "UDP", "SCTP", "FWM"].iter().any(|kind| line.starts_with(kind));
    list.lines().filter(is_service).count()
}

/// Whether the device is there.
pub(crate) fn has_device() -> bool {
    if_nametoindex(DEVICE).is_ok()
}

/// Removes all services of IPVS.
pub(super) fn flush() -> io::Result<()> {
    // include/uapi/linux/genetlink.h: to the controller, what the family's number is; include/uapi/linux/ip_vs.h.
    const CONTROLLER: u16 = 0x10;
    const GET_FAMILY: u8 = 3;
    const FAMILY_ID: u16 = 1;
    const FAMILY_NAME: u16 = 2;
    const FLUSH: u8 = 17;
    let head = |command| [command, 1, 0, 0];
    let mut netlink = Netlink::open(NETLINK_GENERIC)?;
    let question = Body::new(CONTROLLER, &head(GET_FAMILY)).with_name(FAMILY_NAME, "IPVS");
    let answers = netlink.call(question)?;
    let id = answers.iter().flat_map(|answer| answer.attributes(4)).find(|(kind, _)| *kind == FAMILY_ID);
    let id = id.and_then(|(_, value)| value.try_into().ok()).map(u16::from_ne_bytes);
    let id = id.ok_or_else(|| io::Error::other("the kernel does not say what number IPVS has"))?;
    netlink.call(Body::new(id, &head(FLUSH))).map(drop)
}

/// Removes the device, with its addresses.
pub(super) fn delete_device() -> io::Result<()> {
    // include/uapi/linux/rtnetlink.h; before the attributes is `ifinfomsg`.
    const DELETE_LINK: u16 = 17;
    const NAME: u16 = 3;
    let request = Body::new(DELETE_LINK, &[0; 16]).with_name(NAME, DEVICE);
    Netlink::open(NETLINK_ROUTE)?.call(request).map(drop)
}

/// Whether a set is kube-proxy's.
fn is_kube_proxys(set: &str) -> bool {
    let own = set.strip_prefix("KUBE-").map(|rest| rest.strip_prefix("6-").unwrap_or(rest));
    own.is_some_and(|name| SETS.contains(&name))
}

// include/uapi/linux/netfilter/ipset/ip_set.h.
const DESTROY_SET: u16 = 6 << 8 | 3;
const LIST_SETS: u16 = 6 << 8 | 7;
const PROTOCOL: u16 = 1;
const SET_NAME: u16 = 2;
const FLAGS: u16 = 6 | NLA_F_NET_BYTEORDER;
/// Names alone.
const NAMES: u32 = 1 << 1;
/// Bytes of `nfgenmsg`.
const HEAD: usize = 4;

/// A request in the oldest version of the protocol, which all kernels speak.
fn request(kind: u16) -> Body {
    Body::new(kind, &[0; HEAD]).with(PROTOCOL, &[6])
}

/// kube-proxy's sets.
pub(super) fn sets() -> io::Result<Vec<String>> {
    // To ask for sets would load the module.
    if !Path::new("/sys/module/ip_set").exists() {
        return Ok(Vec::new());
    }
    let list = request(LIST_SETS).with(FLAGS, &NAMES.to_be_bytes());
    Netlink::open(NETLINK_NETFILTER)?.list(&list, |body| {
        let set = body.attributes(HEAD).find(|(kind, _)| *kind == SET_NAME).map(|(_, value)| name(value))?;
        is_kube_proxys(&set).then_some(set)
    })
}

/// Removes a set.
pub(super) fn destroy(set: &str) -> io::Result<()> {
    /// ipset's own number for a set that rules refer to.
    const BUSY: i32 = 4096 + 4;
    let request = request(DESTROY_SET).with_name(SET_NAME, set);
    match Netlink::open(NETLINK_NETFILTER)?.call(request) {
        Err(error) if error.raw_os_error() == Some(BUSY) => Err(io::Error::other("a rule refers to it")),
        result => result.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_counted_without_their_destinations() {
        let list = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  -> \
                    RemoteAddress:Port\nTCP  0A600001:01BB rr\n  -> C0000201:192B      Masq    1      0          0\n";
        assert_eq!(count(list), 1);
        assert_eq!(count(""), 0);
    }

    #[test]
    fn sets_of_network_policies_are_not_kube_proxys() {
        assert!(is_kube_proxys("KUBE-CLUSTER-IP") && is_kube_proxys("KUBE-6-NODE-PORT-TCP"));
        assert!(!is_kube_proxys("KUBE-SRC-ABC") && !is_kube_proxys("CLUSTER-IP"));
    }
}
