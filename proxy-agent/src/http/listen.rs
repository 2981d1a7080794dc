//! Sockets that listen.

use std::{
    io,
    net::{Ipv6Addr, SocketAddr},
};

use nix::{
    libc,
    sys::socket::{setsockopt, sockopt::Ipv6V6Only},
};
use tokio::net::{TcpListener, TcpSocket};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 128;

/// Listens at an address. A wildcard of either family stands for both, as it does in Go and so in kube-proxy (HZ-02).
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    if address.ip().is_unspecified() {
        let both = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), address.port());
        match open(both, Reach::BothFamilies) {
            // This kernel has no IPv6.
            Err(error) if address.is_ipv4() && error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
            result => return result,
        }
    }
    open(address, Reach::OwnFamily)
}

/// Listens at an address, for its own family only (HC-01).
pub(super) fn listen_to_family(address: SocketAddr) -> io::Result<TcpListener> {
    open(address, Reach::OwnFamily)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    OwnFamily,
    BothFamilies,
}

fn open(address: SocketAddr, reach: Reach) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if address.is_ipv6() {
        // Whatever net.ipv6.bindv6only says.
        setsockopt(&socket, Ipv6V6Only, &(reach == Reach::OwnFamily))?;
    }
    // Connections of an agent that has just ended do not keep the port.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use tokio::net::TcpStream;

    use super::*;

    async fn reaches(listener: &TcpListener, ip: &str) -> bool {
        let to = SocketAddr::new(ip.parse::<IpAddr>().unwrap(), listener.local_addr().unwrap().port());
        TcpStream::connect(to).await.is_ok()
    }

    #[tokio::test]
    async fn wildcards_stand_for_both_families_unless_one_is_meant() {
        for wildcard in ["0.0.0.0:0", "[::]:0"] {
            let listener = listen(wildcard.parse().unwrap()).unwrap();
            assert!(reaches(&listener, "127.0.0.1").await && reaches(&listener, "::1").await, "{wildcard}");
        }
        let v4 = listen_to_family("0.0.0.0:0".parse().unwrap()).unwrap();
        assert!(reaches(&v4, "127.0.0.1").await && !reaches(&v4, "::1").await);
        // Both can have the same port then.
        let port = v4.local_addr().unwrap().port();
        let v6 = listen_to_family(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)).unwrap();
        assert!(reaches(&v6, "::1").await);
        drop(v4);
        assert!(!reaches(&v6, "127.0.0.1").await);
        let one = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        assert!(reaches(&one, "127.0.0.1").await && !reaches(&one, "127.0.0.2").await);
    }
}
