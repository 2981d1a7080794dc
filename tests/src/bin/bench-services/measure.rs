//! Everything that is measured between a client and a server, by all peers in turn.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use sluice_tests::bench::{
    client::{self, Life, Load, Transport},
    summary::{Summary, rotated},
    time::{self, SoftirqThread},
};

use crate::{bed::Bed, bulk, path::Path, peer::Peer};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Measure {
    /// Requests, as many as there can be.
    Requests {
        /// By what.
        transport: Transport,
        /// How long connections live.
        life: Life,
    },
    /// One request on one new connection at a time, so that its time is that of its packets.
    FirstPacket {
        /// By what.
        transport: Transport,
    },
    /// Bytes that a client sends over one TCP connection.
    Bulk,
}

impl Measure {
    pub(crate) const NEW_CONNECTIONS: Self =
        Self::Requests { transport: Transport::Tcp, life: Life::OneRequest };
    pub(crate) const KEEP_ALIVE: Self = Self::Requests { transport: Transport::Tcp, life: Life::KeepAlive };

    /// What is measured at the first size.
    pub(crate) const ALL: [Self; 7] = [
        Self::NEW_CONNECTIONS,
        Self::KEEP_ALIVE,
        Self::Requests { transport: Transport::Udp, life: Life::OneRequest },
        Self::Requests { transport: Transport::Udp, life: Life::KeepAlive },
        Self::FirstPacket { transport: Transport::Tcp },
        Self::FirstPacket { transport: Transport::Udp },
        Self::Bulk,
    ];

    /// What is measured at the others: established connections are not looked up in tables of services.
    pub(crate) const AT_OTHER_SIZES: [Self; 2] =
        [Self::NEW_CONNECTIONS, Self::FirstPacket { transport: Transport::Tcp }];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Requests { transport: Transport::Tcp, life: Life::OneRequest } => {
                "TCP, a connection for each request"
            }
            Self::Requests { transport: Transport::Tcp, life: Life::KeepAlive } => {
                "TCP, connections that stay"
            }
            Self::Requests { transport: Transport::Udp, life: Life::OneRequest } => {
                "UDP, a socket for each request"
            }
            Self::Requests { transport: Transport::Udp, life: Life::KeepAlive } => "UDP, sockets that stay",
            Self::FirstPacket { transport: Transport::Tcp } => "first request of a TCP connection",
            Self::FirstPacket { transport: Transport::Udp } => "first request of a UDP socket",
            Self::Bulk => "bulk, one TCP connection",
        }
    }
}

/// How much of everything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    pub(crate) duration: Duration,
    pub(crate) connections: usize,
    pub(crate) cpu: usize,
    pub(crate) softirq: SoftirqThread,
}

/// One figure of one round.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Requests, or bytes, per second.
    rate: f64,
    /// Seconds of CPU time for each.
    cpu: f64,
    /// p50, p99 and p99.9 of requests, in seconds.
    latencies: Option<[f64; 3]>,
}

/// One row: what a measure shows on a path, by a peer's way, among so many services.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) services: u32,
    pub(crate) measure: Measure,
    pub(crate) path: Path,
    pub(crate) peer: Peer,
    /// Requests, or bytes, per second.
    pub(crate) rate: Summary,
    /// Microseconds of CPU time for each request, or nanoseconds for each kilobyte: of client, server and both nodes, with
    /// what the kernel does for them.
    pub(crate) cpu: Summary,
    /// The rate as a share of the direct way's, round by round, if that is measured.
    pub(crate) share: Option<Summary>,
    /// The CPU time as a share of the direct way's. Where nobody else wants the CPU it says the same as the rate's share.
    pub(crate) cpu_share: Option<Summary>,
    /// What half of the requests, 99 and 99.9 of 100 did not exceed, in microseconds.
    pub(crate) latencies: Option<[Summary; 3]>,
}

/// Ways that are compared with each other, and what each round has shown.
pub(crate) struct Group {
    services: u32,
    measure: Measure,
    path: Path,
    arms: Vec<(Peer, Vec<Sample>)>,
}

impl Group {
    /// A measure on a path; `None` if no way leads along it.
    pub(crate) fn new(
        services: u32,
        measure: Measure,
        path: Path,
        peers: &[Peer],
        beds: &[Bed],
    ) -> Option<Self> {
        let has_way = |peer: &Peer| Bed::of(beds, *peer).is_some_and(|bed| bed.stand(*peer, path).is_some());
        let arms: Vec<_> = peers
            .iter()
            .filter(|peer| peer.system().answers() && has_way(peer))
            .map(|peer| (*peer, Vec::new()))
            .collect();
        (!arms.is_empty()).then_some(Self { services, measure, path, arms })
    }

    pub(crate) fn name(&self) -> String {
        format!("{}, {}", self.measure.as_str(), self.path.as_str())
    }

    /// How many figures a round has.
    pub(crate) fn len(&self) -> usize {
        self.arms.len()
    }

    /// One round, in an order that changes with it.
    pub(crate) fn measure(&mut self, beds: &[Bed], effort: Effort, round: u32) -> Result<()> {
        for at in rotated(self.arms.len(), round) {
            let (peer, samples) = &mut self.arms[at];
            let sample = sample(beds, self.measure, self.path, *peer, effort);
            let what = || {
                format!(
                    "{}, {}, {}, {} services",
                    self.measure.as_str(),
                    self.path.as_str(),
                    peer.as_str(),
                    self.services
                )
            };
            samples.push(sample.with_context(what)?);
        }
        Ok(())
    }

    pub(crate) fn rows(&self) -> Result<Vec<Row>> {
        let figures = |samples: &[Sample], figure: fn(&Sample) -> f64| -> Vec<f64> {
            samples.iter().map(figure).collect()
        };
        let rate: fn(&Sample) -> f64 = |sample| sample.rate;
        let cpu: fn(&Sample) -> f64 = |sample| sample.cpu;
        let direct = self.arms.iter().find(|(peer, _)| *peer == Peer::Direct);
        let share = |samples: &[Sample], figure| {
            let (_, direct) = direct?;
            Summary::of_shares(&figures(samples, figure), &figures(direct, figure))
        };
        let row = |(peer, samples): &(Peer, Vec<Sample>)| -> Option<Row> {
            // Nanoseconds for each kilobyte are microseconds for each million bytes.
            let unit = if self.measure == Measure::Bulk { 1e12 } else { 1e6 };
            let latency = |at: usize| {
                let all = samples.iter().map(|sample| Some(sample.latencies?[at] * 1e6));
                Summary::of(all.collect::<Option<_>>()?)
            };
            Some(Row {
                services: self.services,
                measure: self.measure,
                path: self.path,
                peer: *peer,
                rate: Summary::of(figures(samples, rate))?,
                cpu: Summary::of(figures(samples, cpu))?.map(|seconds| seconds * unit),
                share: share(samples, rate),
                cpu_share: share(samples, cpu),
                latencies: latency(0).zip(latency(1)).zip(latency(2)).map(|((a, b), c)| [a, b, c]),
            })
        };
        self.arms.iter().map(|arm| row(arm).context("a way without figures")).collect()
    }
}

/// Whether a service is chosen when a socket connects: packets are its backend's then.
fn is_by_socket(measure: Measure, path: Path, peer: Peer) -> bool {
    let is_udp = matches!(
        measure,
        Measure::Requests { transport: Transport::Udp, .. }
            | Measure::FirstPacket { transport: Transport::Udp }
    );
    peer == Peer::Sluice
        && match path {
            Path::PodToSame | Path::PodToOther => !is_udp,
            Path::HostToOther => true,
            Path::OutsideToSame | Path::OutsideToOther => false,
        }
}

fn sample(beds: &[Bed], measure: Measure, path: Path, peer: Peer, effort: Effort) -> Result<Sample> {
    let bed = Bed::of(beds, peer).context("no such way")?;
    let stand = bed.stand(peer, path).context("no such way")?;
    let before = bed.traffic()?;
    let load = |to, transport, life, connections| {
        let Effort { duration, softirq, .. } = effort;
        client::run(Load { to, transport, life, connections, duration, softirq })
    };
    let (sample, opened, answered) = stand.run(|to| {
        time::stay_on(effort.cpu)?;
        let sample = match measure {
            Measure::Requests { transport, life } => load(to, transport, life, effort.connections)?,
            Measure::FirstPacket { transport } => load(to, transport, Life::OneRequest, 1)?,
            Measure::Bulk => {
                let (rate, cpu) = bulk::run(to, effort.duration, effort.softirq)?;
                return Ok((Sample { rate, cpu, latencies: None }, 1, 1.0));
            }
        };
        let latencies = Some([sample.p50, sample.p99, sample.p999]);
        let figures = Sample { rate: sample.rate(), cpu: sample.cpu_each(), latencies };
        Ok((figures, sample.opened, sample.requests))
    })?;
    // Nobody else has a service's address, so with rules an answer is proof enough.
    if let Some((before, after)) = before.zip(bed.traffic()?) {
        let (connections, packets) = (after.connections - before.connections, after.packets - before.packets);
        let is_right = if is_by_socket(measure, path, peer) {
            connections == opened && packets == 0
        } else {
            packets as f64 >= answered
        };
        ensure!(
            is_right,
            "of {opened} connections and {answered} requests, services have seen {connections} and {packets} packets"
        );
    }
    Ok(sample)
}
