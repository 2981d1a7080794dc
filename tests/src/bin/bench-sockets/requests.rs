//! Requests per second, on every way from every client to every backend.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use sluice_tests::bench::{
    client::{self, Life, Load, Sample, Transport},
    progress::Progress,
    summary::{Summary, rotated},
    time::SoftirqThread,
};

use crate::{
    Args,
    scene::{Client, Place, Scene, Way},
};

/// One row: requests of one kind, on one way.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) life: Life,
    pub(crate) client: Client,
    pub(crate) place: Place,
    pub(crate) way: Way,
    /// Requests per second.
    pub(crate) rate: Summary,
    /// Microseconds of CPU time per request, of client and server, with what the kernel does for them at once. (It does
    /// so on their time, unless it accounts interrupts apart: `CONFIG_IRQ_TIME_ACCOUNTING`.)
    pub(crate) cpu: Summary,
    /// The rate as a share of the direct way's.
    pub(crate) share: Summary,
    /// The CPU time as a share of the direct way's. Where nobody else wants the CPU it says the same as the rate's share.
    pub(crate) cpu_share: Summary,
    /// What the share should be at least.
    pub(crate) target: Option<f64>,
    /// What half of the requests did not exceed, in microseconds.
    pub(crate) p50: Summary,
    /// What 99 of 100 requests did not exceed.
    pub(crate) p99: Summary,
}

/// What requests of a kind are called.
pub(crate) const fn title(life: Life) -> &'static str {
    match life {
        Life::KeepAlive => "Requests over connections that stay",
        Life::OneRequest => "Requests with a connection each",
    }
}

/// Both kinds of requests from everywhere.
pub(crate) fn measure(scene: &Scene, args: &Args, progress: Progress) -> Result<Vec<Row>> {
    let mut groups = Vec::new();
    for life in [Life::KeepAlive, Life::OneRequest] {
        for client in [Client::Host, Client::Pod] {
            for place in [Place::SameNode, Place::OtherNode] {
                groups.push(Group::new(life, client, place));
            }
        }
    }
    for round in 0..args.rounds {
        for group in &mut groups {
            progress.show(&format!("round {} of {}: {}", round + 1, args.rounds, group.name()));
            group.measure(scene, args, round)?;
        }
    }
    groups.iter().flat_map(Group::rows).collect()
}

/// Ways that are compared with each other, the direct one first, and what each round has shown.
struct Group {
    life: Life,
    client: Client,
    place: Place,
    arms: Vec<(Way, Vec<Sample>)>,
}

impl Group {
    fn new(life: Life, client: Client, place: Place) -> Self {
        // What a process of the node sends crosses no hook of packets.
        let ways = match client {
            Client::Host => &[Way::Direct, Way::Socket][..],
            Client::Pod => &[Way::Direct, Way::Socket, Way::Packet],
        };
        let arms = ways.iter().map(|&way| (way, Vec::new())).collect();
        Self { life, client, place, arms }
    }

    fn name(&self) -> String {
        let [life, client, place] = [title(self.life), self.client.as_str(), self.place.as_str()];
        format!("{life}, from {client} to a pod on {place}")
    }

    fn measure(&mut self, scene: &Scene, args: &Args, round: u32) -> Result<()> {
        for at in rotated(self.arms.len(), round) {
            let way = self.arms[at].0;
            let stand = scene.stand(self.client, self.place, way);
            let before = scene.traffic(way)?;
            let sample = stand
                .run(|to| {
                    client::run(Load {
                        to,
                        transport: Transport::Tcp,
                        life: self.life,
                        connections: usize::try_from(args.connections)?,
                        duration: Duration::from_millis(args.duration.into()),
                        softirq: SoftirqThread::find(scene.cpu)?,
                    })
                })
                .with_context(|| format!("{}, {}", self.name(), way.as_str()))?;
            let after = scene.traffic(way)?;
            let (connections, packets) =
                (after.connections - before.connections, after.packets - before.packets);
            let is_right = match way {
                Way::Direct | Way::DirectWithHooks => connections == 0 && packets == 0,
                Way::Socket | Way::SocketAmongOthers => connections == sample.opened && packets == 0,
                Way::Packet => connections == sample.opened && packets > connections,
            };
            ensure!(
                is_right,
                "{}, {}: {} connections were opened; services have {connections} more, and {packets} packets",
                self.name(),
                way.as_str(),
                sample.opened
            );
            self.arms[at].1.push(sample);
        }
        Ok(())
    }

    fn rows(&self) -> impl Iterator<Item = Result<Row>> {
        let figures = |samples: &[Sample], figure: fn(&Sample) -> f64| -> Vec<f64> {
            samples.iter().map(figure).collect()
        };
        let rate: fn(&Sample) -> f64 = Sample::rate;
        let cpu: fn(&Sample) -> f64 = |sample| sample.cpu_each() * 1e6;
        let direct = self.arms.first().map_or(&[][..], |(_, samples)| samples);
        let (direct_rates, direct_cpu) = (figures(direct, rate), figures(direct, cpu));
        let row = move |(way, samples): &(Way, Vec<Sample>)| -> Option<Row> {
            let rates = figures(samples, rate);
            Some(Row {
                life: self.life,
                client: self.client,
                place: self.place,
                way: *way,
                rate: Summary::of(rates.clone())?,
                cpu: Summary::of(figures(samples, cpu))?,
                share: Summary::of_shares(&rates, &direct_rates)?,
                cpu_share: Summary::of_shares(&figures(samples, cpu), &direct_cpu)?,
                target: (*way == Way::Socket).then_some(match self.life {
                    Life::KeepAlive => 0.98,
                    Life::OneRequest => 0.95,
                }),
                p50: Summary::of(figures(samples, |sample| sample.p50 * 1e6))?,
                p99: Summary::of(figures(samples, |sample| sample.p99 * 1e6))?,
            })
        };
        self.arms.iter().map(move |arm| row(arm).context("a way without figures"))
    }
}
