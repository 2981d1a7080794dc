//! What a node takes to send on a packet that a client outside sends to a node's port, for a pod on another node.
//!
//! Packets come to the node's device as a driver brings them, on flows that have been answered, and end where they leave it. The
//! same packets end at once at another device, and what lies between the two is the node's: with its driver's work, and without
//! a sender's and a receiver's, who take many times as much.

use std::{
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::XdpMode;
use nix::net::if_::if_nametoindex;
use serde::Serialize;
use sluice_tests::{
    bench::{
        generator::{FRAMES, Generator, Headroom},
        message::{REQUEST, RESPONSE, ROOM},
        summary::{Summary, rotated},
        time,
    },
    packets::Frame,
    topology::receive_in_batches,
    traffic::PATIENCE,
};

use crate::{bed::Bed, measure::Effort, path::Path, peer::Peer, sink::Sink};

/// Answers that a flow has had before: it runs then, whatever that takes with a system.
const ANSWERS: usize = 4;
/// What a packet carries: as much as fits into the shortest frame.
const PAYLOAD: [u8; 18] = *b"one packet of many";
/// Packets between two looks at the clock.
const PACKETS: u32 = 4096;
/// The node's device.
const DEVICE: &str = "eth0";

/// One row, of one CPU.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) services: u32,
    pub(crate) peer: Peer,
    /// Nanoseconds of CPU time for each packet that ends at once.
    pub(crate) without: Summary,
    /// The same for packets that go through the node.
    pub(crate) through: Summary,
    /// The difference, round by round: the node's own.
    pub(crate) node: Summary,
    /// Packets per second that one CPU can send on, if it does nothing else.
    pub(crate) rate: Summary,
}

/// What each round has shown of a peer: nanoseconds without the node, and through it.
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
                without: of(|[without, _]| *without)?,
                through: of(|[_, through]| *through)?,
                node: of(|[without, through]| through - without)?,
                rate: of(|[without, through]| 1e9 / (through - without))?,
            })
        };
        self.arms.iter().map(|arm| row(arm).context("a way without figures")).collect()
    }
}

/// The way that packets take.
const PATH: Path = Path::OutsideToOther;

fn sample(bed: &Bed, peer: Peer, effort: Effort) -> Result<[f64; 2]> {
    let stand = bed.stand(peer, PATH).context("no such way")?;
    let (node, to) = (bed.first(), stand.to);
    let flows = stand.run(Flows::open)?;
    let addresses = [node.namespace.link_address(DEVICE)?, stand.namespace.link_address(DEVICE)?];
    let (headroom, last) = match peer {
        // A driver that cannot run programs leaves no room for them. What is made on its behalf is no packet that the driver of a pair
        // could show to a program unless it copied it once more, as no driver of a card does that sends it.
        Peer::SluiceXdpGeneric => (Headroom::Packets, XdpMode::Skb),
        _ => (Headroom::Programs, XdpMode::Driver),
    };
    let mut generator = Generator::load(&flows.frames(to, addresses)?, headroom)?;
    let before = (bed.traffic()?, bed.passages()?);
    let _sink = Sink::new(bed.fabric())?;
    // Only a device that takes its packets in batches takes frames that are no skb yet; one with a program does anyway.
    receive_in_batches(&node.namespace, DEVICE, true)?;
    let mut each = |ends_at, mode, enters: &str| -> Result<(f64, u64)> {
        let swallow = generator.swallow(bed.fabric(), ends_at, mode)?;
        let timed = bed.fabric().run(|| {
            time::stay_on(effort.cpu)?;
            time_each(&mut generator, if_nametoindex(enters)?, effort)
        });
        drop(swallow);
        timed
    };
    let (without, _) = each(Sink::END, XdpMode::Driver, Sink::ENTRANCE)?;
    let (with, through) = each(&node.name, last, &node.name)?;
    let figures = [without, with];
    receive_in_batches(&node.namespace, DEVICE, false)?;
    let after = (bed.traffic()?, bed.passages()?);
    stand.run(|_| flows.be_answered())?;
    if let ((Some(before), passed_before), (Some(after), passed)) = (before, after) {
        let (packets, passed) = (after.packets - before.packets, passed - passed_before);
        ensure!(packets >= through, "{through} packets have gone through, and services have {packets} more");
        let is_past = matches!(peer, Peer::SluiceXdp | Peer::SluiceXdpGeneric);
        let is_right = if is_past { passed >= through } else { passed == 0 };
        ensure!(is_right, "{passed} of {through} packets were sent on before the stack");
    }
    Ok(figures)
}

/// Nanoseconds of CPU time for each packet that enters by a device, and how many have ended.
fn time_each(generator: &mut Generator, device: u32, effort: Effort) -> Result<(f64, u64)> {
    let mut send_for = |duration: Duration| -> Result<u64> {
        let begin = Instant::now();
        let mut ended = 0;
        while begin.elapsed() < duration {
            ended += generator.send_until_ended(device, PACKETS)?;
        }
        Ok(ended)
    };
    let warm = send_for(effort.duration / 10)?;
    let cpu = time::of_work(effort.softirq)?;
    let packets = send_for(effort.duration)?;
    let cpu = time::of_work(effort.softirq)? - cpu;
    Ok((cpu.as_secs_f64() * 1e9 / packets as f64, warm + packets))
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
        let flows = Self((0..FRAMES).map(open).collect::<Result<_>>()?);
        (0..ANSWERS).try_for_each(|_| flows.be_answered())?;
        Ok(flows)
    }

    /// A packet of each flow, between link-layer addresses: of the node, and of the client.
    fn frames(&self, to: SocketAddr, addresses: [[u8; 6]; 2]) -> Result<[Vec<u8>; FRAMES]> {
        let frame = |socket: &UdpSocket| -> Result<Vec<u8>> {
            let frame = Frame { payload: PAYLOAD.to_vec(), ..Frame::udp(socket.local_addr()?, to) };
            let mut bytes = frame.bytes();
            bytes.get_mut(..12).context("an Ethernet header")?.copy_from_slice(addresses.as_flattened());
            Ok(bytes)
        };
        let frames: Vec<_> = self.0.iter().map(frame).collect::<Result<_>>()?;
        frames.try_into().map_err(|_| anyhow::anyhow!("not {FRAMES} flows"))
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
}
