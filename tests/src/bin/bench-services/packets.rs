//! What a node takes to send on a packet that a client outside sends to a node's port, for a pod on another node.
//!
//! The client sends as fast as it can, on flows that have been answered. Once its packets end in front of the node, and once
//! behind it, each time at the same device that nobody listens on; what lies between the two is the node's. It is measured per
//! packet and apart from sender and receiver, who take many times as much.

use std::{
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use sluice_tests::{
    bench::{
        message::{REQUEST, RESPONSE, ROOM},
        summary::{Summary, rotated},
        time,
    },
    traffic::PATIENCE,
};

use crate::{
    bed::{Bed, Ended},
    measure::Effort,
    path::Path,
    peer::Peer,
};

/// Flows that packets are of, in turn.
const FLOWS: usize = 64;
/// Answers that a flow has had before: it runs then, whatever that takes with a system.
const ANSWERS: usize = 4;
/// What a packet carries: as much as fits into the shortest frame.
const PAYLOAD: [u8; 18] = *b"one packet of many";
/// Packets between two looks at the clock.
const BATCH: usize = 256;

/// One row, of one CPU.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) services: u32,
    pub(crate) peer: Peer,
    /// Nanoseconds of CPU time for each packet that ends in front of the node.
    pub(crate) before: Summary,
    /// The same for packets that end behind it.
    pub(crate) behind: Summary,
    /// The difference, round by round: the node's own.
    pub(crate) node: Summary,
    /// Packets per second that one CPU can send on, if it does nothing else.
    pub(crate) rate: Summary,
}

/// What each round has shown of a peer: nanoseconds in front of the node, and behind it.
pub(crate) struct Group {
    services: u32,
    arms: Vec<(Peer, Vec<[f64; 2]>)>,
}

impl Group {
    pub(crate) fn new(services: u32, peers: &[Peer], beds: &[Bed]) -> Self {
        let has_way = |peer: &Peer| Bed::of(beds, *peer).is_some_and(|bed| bed.stand(*peer, PATH).is_some());
        let arms = peers.iter().copied().filter(has_way).map(|peer| (peer, Vec::new())).collect();
        Self { services, arms }
    }

    /// One round, in an order that changes with it.
    pub(crate) fn measure(&mut self, beds: &[Bed], effort: Effort, round: u32) -> Result<()> {
        for at in rotated(self.arms.len(), round) {
            let (peer, samples) = &mut self.arms[at];
            let bed = Bed::of(beds, *peer).context("no such way")?;
            samples.push(sample(bed, *peer, effort).with_context(|| format!("packets, {}", peer.as_str()))?);
        }
        Ok(())
    }

    pub(crate) fn rows(&self) -> Result<Vec<Row>> {
        let row = |(peer, samples): &(Peer, Vec<[f64; 2]>)| -> Option<Row> {
            let of = |figure: fn(&[f64; 2]) -> f64| Summary::of(samples.iter().map(figure).collect());
            Some(Row {
                services: self.services,
                peer: *peer,
                before: of(|[before, _]| *before)?,
                behind: of(|[_, behind]| *behind)?,
                node: of(|[before, behind]| behind - before)?,
                rate: of(|[before, behind]| 1e9 / (behind - before))?,
            })
        };
        self.arms.iter().map(|arm| row(arm).context("a way without figures")).collect()
    }
}

/// The way that packets take.
const PATH: Path = Path::OutsideToOther;

fn sample(bed: &Bed, peer: Peer, effort: Effort) -> Result<[f64; 2]> {
    let stand = bed.stand(peer, PATH).context("no such way")?;
    stand.run(|to| {
        time::stay_on(effort.cpu)?;
        let flows = Flows::open(to)?;
        let mut each = [0.0; 2];
        for (each, ended) in each.iter_mut().zip([Ended::BeforeNode, Ended::BehindNode]) {
            let end = bed.end_packets(ended)?;
            flows.send_for(effort.duration / 10)?;
            let (packets, cpu) = (end.packets()?, time::of_work(effort.softirq)?);
            flows.send_for(effort.duration)?;
            let (packets, cpu) = (end.packets()? - packets, time::of_work(effort.softirq)? - cpu);
            ensure!(packets > 0, "no packet to {to} ended, {ended:?}");
            *each = cpu.as_secs_f64() * 1e9 / packets as f64;
            drop(end);
            flows.be_answered()?;
        }
        Ok(each)
    })
}

struct Flows(Vec<UdpSocket>);

impl Flows {
    fn open(to: SocketAddr) -> Result<Self> {
        let open = |_| -> Result<UdpSocket> {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect(to)?;
            Ok(socket)
        };
        let flows = Self((0..FLOWS).map(open).collect::<Result<_>>()?);
        (0..ANSWERS).try_for_each(|_| flows.be_answered())?;
        Ok(flows)
    }

    fn be_answered(&self) -> Result<()> {
        let Self(sockets) = self;
        let mut buffer = [0; ROOM];
        for socket in sockets {
            socket.send(REQUEST)?;
            let count = socket.recv(&mut buffer).context("wait for an answer")?;
            ensure!(buffer.get(..count) == Some(RESPONSE), "this is not the answer");
        }
        Ok(())
    }

    fn send_for(&self, duration: Duration) -> Result<()> {
        let Self(sockets) = self;
        let begin = Instant::now();
        let mut sockets = sockets.iter().cycle();
        while begin.elapsed() < duration {
            for socket in sockets.by_ref().take(BATCH) {
                socket.send(&PAYLOAD)?;
            }
        }
        Ok(())
    }
}
