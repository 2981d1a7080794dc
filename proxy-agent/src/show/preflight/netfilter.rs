//! The chains of netfilter's rules, as nftables list them: iptables' too, unless they are of the legacy kind.

use std::{io, os::fd::AsRawFd as _};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    /// The family of its table.
    pub(super) family: &'static str,
    /// The name of its table.
    pub(super) table: String,
    /// Its name.
    pub(super) name: String,
}

/// include/uapi/linux/netlink.h: a request that is answered with everything there is.
const DUMP: u16 = 0x301;
/// The answer is over; it is an error.
const DONE: u16 = 3;
const ERROR: u16 = 2;
/// include/uapi/linux/netfilter/nfnetlink.h and nf_tables.h: the subsystem above the message.
const GET_CHAIN: u16 = 10 << 8 | 4;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
/// Bytes of `nlmsghdr` and of `nfgenmsg`.
const HEADER: usize = 16;
const GENERIC: usize = 4;

/// Every chain; what went wrong if the kernel does not tell.
pub(super) fn chains() -> Result<Vec<Chain>, String> {
    list().map_err(|error| error.to_string())
}

fn list() -> io::Result<Vec<Chain>> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    // Header: length, type, flags, sequence, port. Then family (any), version, resource.
    let mut request = Vec::with_capacity(HEADER + GENERIC);
    request.extend(u32::try_from(HEADER + GENERIC).unwrap_or_default().to_ne_bytes());
    request.extend(GET_CHAIN.to_ne_bytes());
    request.extend(DUMP.to_ne_bytes());
    request.extend([0; 8]);
    request.extend([0; GENERIC]);
    sendto(socket.as_raw_fd(), &request, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut chains = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if !take_in(buffer.get(..length).unwrap_or_default(), &mut chains)? {
            return Ok(chains);
        }
    }
}

/// Takes in the messages of a datagram. Returns whether more are to come.
fn take_in(mut datagram: &[u8], chains: &mut Vec<Chain>) -> io::Result<bool> {
    while let Some((length, kind)) = u32_at(datagram, 0).zip(u16_at(datagram, 4)) {
        let length = length as usize;
        let Some(body) = datagram.get(HEADER..length) else {
            break;
        };
        match kind {
            DONE => return Ok(false),
            ERROR => {
                let code = u32_at(body, 0).unwrap_or_default().cast_signed();
                return Err(io::Error::from_raw_os_error(code.wrapping_neg()));
            }
            _ => chains.extend(chain(body)),
        }
        datagram = datagram.get(aligned(length)..).unwrap_or_default();
    }
    Ok(true)
}

/// The chain that a message describes.
fn chain(body: &[u8]) -> Option<Chain> {
    let family = match body.first()? {
        1 => "inet",
        2 => "ip",
        3 => "arp",
        5 => "netdev",
        7 => "bridge",
        10 => "ip6",
        _ => "unknown",
    };
    let (mut table, mut name) = (None, None);
    let mut attributes = body.get(GENERIC..)?;
    while let Some((length, kind)) = u16_at(attributes, 0).zip(u16_at(attributes, 2)) {
        let length = usize::from(length);
        let Some(value) = attributes.get(4..length) else {
            break;
        };
        let text = || String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
        match kind {
            CHAIN_TABLE => table = Some(text()),
            CHAIN_NAME => name = Some(text()),
            _ => {}
        }
        attributes = attributes.get(aligned(length)..).unwrap_or_default();
    }
    Some(Chain { family, table: table?, name: name? })
}

/// Messages and attributes begin at multiples of four bytes.
const fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, text: &str) -> Vec<u8> {
        let length = 4 + text.len() + 1;
        let mut bytes = Vec::new();
        bytes.extend(u16::try_from(length).unwrap().to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(text.as_bytes());
        bytes.resize(aligned(length), 0);
        bytes
    }

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(u32::try_from(HEADER + body.len()).unwrap().to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn chains_are_read_from_the_kernels_messages() {
        let body = [vec![2, 0, 0, 0], attribute(CHAIN_TABLE, "nat"), attribute(CHAIN_NAME, "KUBE-SERVICES")]
            .concat();
        let other =
            [vec![10, 0, 0, 0], attribute(CHAIN_TABLE, "kube-proxy"), attribute(CHAIN_NAME, "services")]
                .concat();
        let mut chains = Vec::new();
        let datagram = [message(GET_CHAIN, &body), message(GET_CHAIN, &other)].concat();
        assert!(take_in(&datagram, &mut chains).unwrap());
        assert!(!take_in(&message(DONE, &[0; 4]), &mut chains).unwrap());
        let chain = |family, table: &str, name: &str| Chain {
            family,
            table: table.to_owned(),
            name: name.to_owned(),
        };
        assert_eq!(chains, [chain("ip", "nat", "KUBE-SERVICES"), chain("ip6", "kube-proxy", "services")]);
        let refused = take_in(&message(ERROR, &(-1i32).to_ne_bytes()), &mut chains).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(1));
        // A message that is cut off ends the datagram.
        assert!(take_in(&datagram[..30], &mut Vec::new()).unwrap());
    }
}
