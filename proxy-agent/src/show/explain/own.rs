//! Whether a process of the node is bound to just the address that is asked about: it comes before the service.

use std::net::SocketAddr;

use procfs::{
    ProcResult,
    net::{TcpState, tcp, tcp6, udp, udp6},
};
use proxy_common::tuple::Protocol;

use super::{Target, decide::end};

/// Whether somebody in this network namespace waits there for whoever may come, as the kernel lists its sockets. What it
/// does not list is taken for nobody's, as the datapath does with what it cannot ask about.
pub(super) fn listens(target: &Target) -> bool {
    let is_it = |local: SocketAddr| end(local) == end(target.end);
    let found = match target.protocol {
        Protocol::TCP => listeners(),
        Protocol::UDP => receivers(),
        _ => Ok(Vec::new()),
    };
    found.unwrap_or_default().into_iter().any(is_it)
}

fn listeners() -> ProcResult<Vec<SocketAddr>> {
    let all = tcp()?.into_iter().chain(tcp6().unwrap_or_default());
    Ok(all.filter(|socket| socket.state == TcpState::Listen).map(|socket| socket.local_address).collect())
}

fn receivers() -> ProcResult<Vec<SocketAddr>> {
    let all = udp()?.into_iter().chain(udp6().unwrap_or_default());
    let unconnected = all.filter(|socket| socket.remote_address.port() == 0);
    Ok(unconnected.map(|socket| socket.local_address).collect())
}
