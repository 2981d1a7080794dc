//! What the program tests share: every case, a loaded kernel for each, and words for what is expected.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use proxy_agent::datapath::Program;
use proxy_common::{
    backend::{BackendFlags, BackendId, Generation},
    counters::ServiceCounters,
    drop::DropReason,
    flow::{Direction, FlowEntry},
    frontend::ServiceId,
    tuple::{FlowKey, Hook, Protocol},
};
use sluice_tests::{
    harness,
    kernel::{Action, Kernel, Output, end},
    packets::{Frame, Transport, flags},
};

/// The service of every case.
pub(crate) const WEB: ServiceId = ServiceId(7);

/// One family and protocol.
pub(crate) struct Case {
    pub(crate) kernel: Kernel,
    pub(crate) protocol: Protocol,
    pub(crate) client: SocketAddr,
    pub(crate) vip: SocketAddr,
    pub(crate) backends: [SocketAddr; 2],
    /// Neither a frontend nor a backend.
    pub(crate) stranger: SocketAddr,
}

/// Runs a test for IPv4 and IPv6, each with TCP, UDP and SCTP; skips it, and says so, where programs cannot be loaded.
pub(crate) fn for_each(test: impl Fn(&mut Case) -> Result<()>) {
    if let Err(reason) = harness::requirements() {
        harness::skipped(&reason);
        return;
    }
    for v6 in [false, true] {
        for protocol in [Protocol::TCP, Protocol::UDP, Protocol::SCTP] {
            let mut case = Case::new(v6, protocol).unwrap_or_else(|error| panic!("{error:?}"));
            if let Err(error) = test(&mut case) {
                panic!("IPv{} {protocol:?}: {error:?}", if v6 { 6 } else { 4 });
            }
        }
    }
}

impl Case {
    fn new(v6: bool, protocol: Protocol) -> Result<Self> {
        let parse = |v4: &str, v6_text: &str| if v6 { v6_text.parse() } else { v4.parse() };
        let backends = [
            parse("10.244.1.5:8080", "[fd00:244:1::5]:8080")?,
            parse("10.244.2.6:9090", "[fd00:244:2::6]:9090")?,
        ];
        Ok(Self {
            kernel: Kernel::load()?,
            protocol,
            client: parse("10.244.1.9:40000", "[fd00:244:1::9]:40000")?,
            vip: parse("10.96.0.10:80", "[fd00:96::10]:80")?,
            backends,
            stranger: parse("192.0.2.77:80", "[2001:db8::77]:80")?,
        })
    }

    /// Programs the service with the first `count` backends, ids 1 and 2.
    pub(crate) fn serve(&mut self, count: usize) -> Result<()> {
        self.kernel.serve(WEB, self.vip, self.protocol, 1, &self.backends[..count])
    }

    /// A packet of the client: a SYN, or a datagram.
    pub(crate) fn first(&self) -> Frame {
        self.frame(self.client, self.vip, flags::SYN)
    }

    /// A packet with TCP flags, if it is TCP.
    pub(crate) fn frame(&self, source: SocketAddr, destination: SocketAddr, flags: u8) -> Frame {
        let transport = match self.protocol {
            Protocol::TCP => Transport::Tcp(flags),
            Protocol::SCTP => Transport::Sctp(chunk(flags)),
            _ => Transport::Udp,
        };
        Frame::new(source, destination, transport)
    }

    /// Retires a backend as the agent does: the record stays, no longer live.
    pub(crate) fn retire(&mut self, index: usize) -> Result<()> {
        let id = self.id(index);
        self.kernel.set_backend(id, WEB, self.backends[index], BackendFlags::default(), Generation(1))
    }

    /// Sends a packet both ways: what a flow needs to be established. Returns which backend it went to.
    pub(crate) fn establish(&mut self) -> Result<usize> {
        let out = self.ingress(&self.first())?;
        let index = self.chosen(&out)?;
        self.egress(&self.frame(self.backends[index], self.client, flags::SYN | flags::ACK))?;
        self.ingress(&self.frame(self.client, self.vip, flags::ACK))?;
        Ok(index)
    }

    pub(crate) fn ingress(&mut self, frame: &Frame) -> Result<Output> {
        self.kernel.run(Program::Ingress, &frame.bytes())
    }

    pub(crate) fn egress(&mut self, frame: &Frame) -> Result<Output> {
        self.kernel.run(Program::Egress, &frame.bytes())
    }

    /// The id of a backend that [`Case::serve`] programmed.
    pub(crate) fn id(&self, index: usize) -> BackendId {
        BackendId(if index == 0 { 1 } else { 2 })
    }

    /// Which of the two backends the client's first packet went to.
    pub(crate) fn chosen(&self, out: &Output) -> Result<usize> {
        let first = self.first();
        let index = self.backends.iter().position(|&backend| *out == passed(&first.clone().to(backend)));
        index.with_context(|| format!("not to a backend: {out:02x?}"))
    }

    /// Key of the client's direction.
    pub(crate) fn request_key(&self) -> FlowKey {
        FlowKey::new(end(self.client), end(self.vip), self.protocol, Hook::INGRESS)
    }

    /// Key of a backend's direction.
    pub(crate) fn reply_key(&self, backend: SocketAddr) -> FlowKey {
        FlowKey::new(end(backend), end(self.client), self.protocol, Hook::EGRESS)
    }

    /// Both entries of the client's flow to a backend; fails unless they name each other and agree.
    pub(crate) fn flow(&self, backend: SocketAddr) -> Result<FlowEntry> {
        let (request, reply) = (self.request_key(), self.reply_key(backend));
        let original = self.kernel.flow(&request)?.ok_or_else(|| anyhow::anyhow!("no entry {request:?}"))?;
        let answer = self.kernel.flow(&reply)?.ok_or_else(|| anyhow::anyhow!("no entry {reply:?}"))?;
        anyhow::ensure!(original.peer == reply && answer.peer == request, "{original:?} and {answer:?}");
        anyhow::ensure!(
            original.head.state == answer.head.state && original.head.timeout == answer.head.timeout,
            "{original:?} {answer:?}"
        );
        anyhow::ensure!(
            original.head.direction == Direction::ORIGINAL && answer.head.direction == Direction::REPLY,
            "directions"
        );
        Ok(original)
    }

    /// Does something and demands that it changes exactly these counters, and no others.
    pub(crate) fn counting<T>(
        &mut self,
        traffic: ServiceCounters,
        drops: &[(DropReason, u64)],
        act: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let before = self.kernel.traffic(WEB)?;
        anyhow::ensure!(
            self.kernel.drops()?.is_empty() || !drops.is_empty(),
            "drops before: {:?}",
            self.kernel.drops()?
        );
        let result = act(self)?;
        anyhow::ensure!(
            self.kernel.traffic(WEB)? == before.plus(traffic),
            "traffic: {before:?} + {traffic:?} is not {:?}",
            self.kernel.traffic(WEB)?
        );
        anyhow::ensure!(self.kernel.drops()? == drops, "drops: {:?} is not {drops:?}", self.kernel.drops()?);
        Ok(result)
    }
}

/// The SCTP chunk that comes closest to TCP flags (RFC 9260 3.2).
fn chunk(flags: u8) -> u8 {
    const SYN_ACK: u8 = flags::SYN | flags::ACK;
    match flags {
        flags::SYN => 1,
        SYN_ACK => 2,
        // SHUTDOWN, ABORT, COOKIE ECHO.
        flags if flags & flags::FIN != 0 => 7,
        flags if flags & flags::RST != 0 => 6,
        _ => 10,
    }
}

/// Passed on as these bytes.
pub(crate) fn passed(frame: &Frame) -> Output {
    Output { action: Action::Next, frame: frame.bytes() }
}

/// Counters after one packet of a client that opened a flow.
pub(crate) fn opened(frame: &Frame) -> ServiceCounters {
    ServiceCounters { connections: 1, ..sent(frame) }
}

/// Counters after one packet of a client.
pub(crate) fn sent(frame: &Frame) -> ServiceCounters {
    ServiceCounters { packets: 1, bytes: frame.bytes().len() as u64, ..ServiceCounters::default() }
}

/// Counters after one packet of a backend.
pub(crate) fn answered(frame: &Frame) -> ServiceCounters {
    ServiceCounters {
        reply_packets: 1,
        reply_bytes: frame.bytes().len() as u64,
        ..ServiceCounters::default()
    }
}

/// Nothing counted.
pub(crate) const NOTHING: ServiceCounters =
    ServiceCounters { connections: 0, packets: 0, bytes: 0, reply_packets: 0, reply_bytes: 0, drops: 0 };
