//! A node that sends on before its stack what comes by its uplink: the datapath, a device with routes, and flows that run.

use std::net::SocketAddr;

use anyhow::Result;
use nix::net::if_::if_nametoindex;
use proxy_common::{
    addresses::AddressFlags,
    backend::{BackendId, Generation},
    filter::AddressRoles,
    flow::{Direction, FlowEntry, FlowFlags, FlowHead, FlowState},
    frontend::ServiceId,
    time::Ticks,
    tuple::{FlowKey, Hook, Protocol},
    xdp::XdpMode,
};

use crate::{
    kernel::{Kernel, SERVING, end},
    netns::Namespace,
    packets::{Frame, Transport, flags},
};

/// The uplink's link-layer address, which frames are sent to.
pub const OWN: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// That of the next hop towards the backend.
pub const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 3];
/// That of the next hop towards the client.
const GATEWAY: [u8; 6] = [2, 0, 0, 0, 0, 4];
/// The longest packet that goes to the client's network.
pub const NARROW: usize = 1400;
/// The service of the flows.
pub const SERVICE: ServiceId = ServiceId(7);
/// How long flows have been silent, in ticks.
pub const SILENCE: u32 = 5;

/// A node with an uplink, a client outside that asks it, and a backend on another node.
pub struct Uplink {
    /// The datapath.
    pub kernel: Kernel,
    /// The node; the thread that made it stays there.
    pub namespace: Namespace,
    /// Number of the uplink.
    pub device: u32,
    /// Whose program is run.
    pub mode: XdpMode,
    /// The flows' protocol.
    pub protocol: Protocol,
    /// Somebody outside.
    pub client: SocketAddr,
    /// What the client asks: a NodePort.
    pub frontend: SocketAddr,
    /// Who answers, on another node.
    pub backend: SocketAddr,
    /// As whom the client goes on.
    pub node: SocketAddr,
}

impl Uplink {
    /// Of one family and protocol, by its driver.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn new(v6: bool, protocol: Protocol) -> Result<Self> {
        let kernel = Kernel::load()?;
        let namespace = Namespace::new("uplink")?;
        namespace.sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
        namespace.ip(&format!(
            "link add up0 address 02:00:00:00:00:02 type veth peer name wire0\nlink set up0 up\nlink set wire0 up\n\
             link add other0 address 02:00:00:00:00:07 type veth peer name wire1\nlink set other0 up\nlink set wire1 up\n\
             addr add 192.0.2.1/24 dev up0\naddr add 2001:db8::1/64 dev up0 nodad\n\
             addr add 192.0.3.1/24 dev other0\naddr add 2001:db8:3::1/64 dev other0 nodad\n\
             neigh add 192.0.2.2 lladdr 02:00:00:00:00:03 dev up0 nud permanent\n\
             neigh add 2001:db8::2 lladdr 02:00:00:00:00:03 dev up0 nud permanent\n\
             neigh add 192.0.2.3 lladdr 02:00:00:00:00:04 dev up0 nud permanent\n\
             neigh add 2001:db8::3 lladdr 02:00:00:00:00:04 dev up0 nud permanent\n\
             neigh add 192.0.3.2 lladdr 02:00:00:00:00:05 dev other0 nud permanent\n\
             neigh add 2001:db8:3::2 lladdr 02:00:00:00:00:05 dev other0 nud permanent\n\
             route add 10.244.2.0/24 via 192.0.2.2\nroute add fd00:244:2::/64 via 2001:db8::2\n\
             route add 198.51.100.0/24 via 192.0.2.3 mtu lock {NARROW}\n\
             route add 2001:db8:100::/64 via 2001:db8::3 mtu lock {NARROW}"
        ))?;
        namespace.enter()?;
        let parse = |v4: &str, v6_text: &str| if v6 { v6_text.parse() } else { v4.parse() };
        let mut bed = Self {
            kernel,
            namespace,
            device: if_nametoindex("up0")?,
            mode: XdpMode::Native,
            protocol,
            client: parse("198.51.100.9:40000", "[2001:db8:100::9]:40000")?,
            frontend: parse("192.0.2.1:30080", "[2001:db8::1]:30080")?,
            backend: parse("10.244.2.6:9090", "[fd00:244:2::6]:9090")?,
            node: parse("192.0.2.1:50123", "[2001:db8::1]:50123")?,
        };
        bed.kernel.set_address(bed.frontend, AddressFlags::NODE, AddressRoles::NODE)?;
        bed.kernel.set_backend(BackendId(1), SERVICE, bed.backend, SERVING, Generation(1))?;
        bed.run_flows()?;
        Ok(bed)
    }

    /// The four keys: the client's at both hooks, and those of what the backend answers.
    #[must_use]
    pub fn keys(&self) -> [FlowKey; 4] {
        let key = |from, to, hook| FlowKey::new(end(from), end(to), self.protocol, hook);
        [
            key(self.client, self.frontend, Hook::INGRESS),
            key(self.client, self.backend, Hook::EGRESS),
            key(self.backend, self.node, Hook::INGRESS),
            key(self.backend, self.client, Hook::EGRESS),
        ]
    }

    /// Both flows, established: the one through the service, and the one with another source.
    ///
    /// # Errors
    ///
    /// If a table cannot be written.
    pub fn run_flows(&mut self) -> Result<()> {
        let state = if self.protocol == Protocol::TCP { FlowState::ESTABLISHED } else { FlowState::REPLIED };
        let [there, there_out, back, back_out] = self.keys();
        let last_seen = Ticks(self.kernel.now()?.0.wrapping_sub(SILENCE));
        for (key, peer, service, direction, flags) in [
            (there, back_out, SERVICE, Direction::ORIGINAL, FlowFlags::MASQUERADE),
            (back_out, there, SERVICE, Direction::REPLY, FlowFlags::default()),
            (there_out, back, ServiceId::NONE, Direction::ORIGINAL, FlowFlags::default()),
            (back, there_out, ServiceId::NONE, Direction::REPLY, FlowFlags::default()),
        ] {
            let (backend, generation) = (BackendId(1), Generation(1));
            let timeout = Ticks(1_000_000);
            let head = FlowHead {
                backend,
                generation,
                service,
                last_seen,
                timeout,
                state,
                direction,
                flags,
                reserved: 0,
            };
            self.kernel.set_flow(&key, &FlowEntry { peer, head })?;
        }
        Ok(())
    }

    fn frame(&self, from: SocketAddr, to: SocketAddr) -> Frame {
        let transport =
            if self.protocol == Protocol::TCP { Transport::Tcp(flags::ACK) } else { Transport::Udp };
        Frame::new(from, to, transport)
    }

    /// What the client sends, and what the backend answers: before and after, and to whom they go then.
    #[must_use]
    pub fn both_ways(&self) -> [(Frame, Frame, [u8; 6]); 2] {
        let Self { client, frontend, backend, node, .. } = *self;
        [
            (self.frame(client, frontend), self.frame(node, backend), ROUTER),
            (self.frame(backend, node), self.frame(frontend, client), GATEWAY),
        ]
    }

    /// Runs the program that meets packets before the stack on a frame that comes by the uplink. Returns its action and the
    /// frame afterwards.
    ///
    /// # Errors
    ///
    /// If the kernel refuses to.
    pub fn run(&mut self, frame: &[u8]) -> Result<(u32, Vec<u8>)> {
        self.kernel.run_xdp(self.mode, self.device, frame)
    }
}
