//! The course of a run.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use sluice_tests::{
    bench::{
        progress::Progress,
        time::{self, SoftirqThread},
    },
    machine,
};

use crate::{
    Args,
    bed::Bed,
    changes, kube_proxy,
    measure::{Effort, Group, Measure},
    packets,
    path::Path,
    peer::{Peer, System},
    report::Report,
};

/// Measures everything.
pub(crate) fn run(args: &Args, peers: &[Peer], missing: Vec<Peer>, progress: Progress) -> Result<Report> {
    let (cpu, kube_proxy) = (time::cpu()?, kube_proxy::version()?);
    let effort = Effort {
        duration: Duration::from_millis(args.duration.into()),
        connections: usize::try_from(args.connections)?,
        cpu,
        softirq: SoftirqThread::find(cpu)?,
    };
    let (mut rows, mut packet_rows, mut programming) = (Vec::new(), Vec::new(), Vec::new());
    for (index, &services) in args.services.iter().enumerate() {
        let is_needed = |system: &System| index == 0 || system.answers();
        let systems: BTreeSet<System> = peers.iter().map(|peer| peer.system()).filter(is_needed).collect();
        let (mut beds, mut starts) = (Vec::new(), Vec::new());
        for system in systems {
            progress.show(&format!("{services} services: {}", system.as_str()));
            let mut bed = Bed::build(system, args.pods, services, cpu)?;
            if args.no_bridge_netfilter {
                bed.keep_bridges_from_netfilter()?;
            }
            let start =
                bed.start().with_context(|| format!("start {}, {services} services", system.as_str()))?;
            if let Some(start) = start {
                let (name, seconds) = (system.as_str(), start.seconds);
                progress.tell(&format!("{services} services: {name} serves after {seconds:.2} s"));
            }
            starts.push(start);
            beds.push(bed);
        }
        let measures = if index == 0 { &Measure::ALL[..] } else { &Measure::AT_OTHER_SIZES };
        let groups = measures.iter().flat_map(|measure| Path::ALL.map(|path| (*measure, path)));
        let mut groups: Vec<_> =
            groups.filter_map(|(measure, path)| Group::new(services, measure, path, peers, &beds)).collect();
        let mut passing = (index == 0).then(|| packets::Group::new(services, peers, &beds));
        let mut clock = Clock::new(args.rounds, &groups);
        for round in 0..args.rounds {
            for group in &mut groups {
                progress.show(&format!(
                    "{services} services, round {} of {}: {}; {}",
                    round + 1,
                    args.rounds,
                    group.name(),
                    clock.left()
                ));
                group.measure(&beds, effort, round)?;
                clock.advance(group.len());
            }
            if let Some(passing) = &mut passing {
                progress.show(&format!("round {} of {}: packets of one node", round + 1, args.rounds));
                passing.measure(&beds, effort, round)?;
            }
        }
        if let Some(passing) = passing {
            packet_rows.extend(passing.rows()?);
        }
        for group in &groups {
            rows.extend(group.rows()?);
        }
        for (bed, start) in beds.iter_mut().zip(starts) {
            let Some(start) = start.filter(|_| bed.system.answers()) else { continue };
            let name = bed.system.as_str();
            progress.show(&format!("{services} services: changes of {name}"));
            let row = changes::measure(bed, services, start, args.changes);
            programming.push(row.with_context(|| format!("changes of {name}, {services} services"))?);
        }
    }
    progress.erase();
    Ok(Report {
        kernel: machine::kernel()?,
        cpu: machine::cpu(),
        rounds: args.rounds,
        milliseconds: args.duration,
        connections: args.connections,
        missing,
        kube_proxy,
        rows,
        packets: packet_rows,
        programming,
    })
}

/// How long it will take until all figures of a number of services are there.
struct Clock {
    begin: Instant,
    done: usize,
    all: usize,
}

impl Clock {
    fn new(rounds: u32, groups: &[Group]) -> Self {
        let each: usize = groups.iter().map(Group::len).sum();
        Self { begin: Instant::now(), done: 0, all: each * usize::try_from(rounds).unwrap_or(usize::MAX) }
    }

    fn advance(&mut self, figures: usize) {
        self.done += figures;
    }

    fn left(&self) -> String {
        let each = self.begin.elapsed().as_secs_f64() / self.done.max(1) as f64;
        let left = each * (self.all - self.done) as f64;
        if self.done == 0 { String::new() } else { format!("{left:.0} s left") }
    }
}
