//! The report as pictures.

use sluice_tests::{
    bench::summary::Summary,
    chart::{Bar, Chart, Group},
};

use crate::{
    changes,
    measure::{Measure, Row},
    path::Path,
    peer::{Peer, System},
    report::Report,
};

/// The goals: see docs/performance.md.
const BETTER_THAN_RULES: f64 = 1.2;
const MORE_PACKETS: f64 = 2.0;
const CHANGE: f64 = 0.010;

/// A picture, and the name of its files.
pub(crate) struct Picture {
    pub(crate) name: &'static str,
    pub(crate) chart: Chart,
}

/// All pictures for which there are figures.
pub(crate) fn all(report: &Report) -> Vec<Picture> {
    let pictures = [
        ("services-new", new_connections(report)),
        ("services-keep-alive", requests(report, Measure::KEEP_ALIVE)),
        ("services-sizes", sizes(report)),
        ("services-p99", p99(report)),
        ("services-packets", packets(report)),
        ("services-changes", changed(report)),
    ];
    let drawn =
        |(name, chart): (&'static str, Chart)| (!chart.groups.is_empty()).then_some(Picture { name, chart });
    pictures.into_iter().filter_map(drawn).collect()
}

/// One colour for each way throughout.
const fn series(peer: Peer) -> usize {
    match peer {
        Peer::Sluice => 0,
        Peer::SluicePackets => 4,
        Peer::SluiceXdp | Peer::SluiceXdpGeneric => 3,
        Peer::Iptables => 1,
        Peer::IptablesLegacy => 5,
        Peer::Nftables => 2,
        Peer::Direct => 6,
        Peer::SluiceDelivery => 3,
        Peer::DirectEmpty => 7,
    }
}

const fn series_of(system: System) -> usize {
    match system {
        System::Sluice => series(Peer::Sluice),
        System::SluiceXdp | System::SluiceXdpGeneric => series(Peer::SluiceXdp),
        System::SluiceDelivery => series(Peer::SluiceDelivery),
        System::Iptables => series(Peer::Iptables),
        System::IptablesLegacy => series(Peer::IptablesLegacy),
        System::Nftables => series(Peer::Nftables),
        System::Nothing => series(Peer::Direct),
        System::Empty => series(Peer::DirectEmpty),
    }
}

fn subtitle(report: &Report) -> String {
    let Report { cpu, kernel, rounds, .. } = report;
    format!("{cpu}, Linux {kernel}, one CPU for all; medians, half of {rounds} rounds within the line")
}

fn bar(label: &str, series: usize, figure: Summary, goal: Option<f64>) -> Bar {
    let Summary { median, low, high } = figure;
    Bar { label: label.to_owned(), series, value: median, spread: Some((low, high)), goal }
}

/// The smallest number of services.
fn first_size(report: &Report) -> Option<u32> {
    report.rows.iter().map(|row| row.services).min()
}

/// Groups of a measure by path, at the smallest number of services.
fn by_path(report: &Report, measure: Measure, draw: impl Fn(&Row, &[&Row]) -> Option<Bar>) -> Vec<Group> {
    let size = first_size(report);
    let group = |path: Path| {
        let rows: Vec<_> =
            report.of(measure).filter(|row| row.path == path && Some(row.services) == size).collect();
        let bars: Vec<_> = rows.iter().filter_map(|row| draw(row, &rows)).collect();
        (!bars.is_empty()).then(|| Group { name: path.as_str().to_owned(), bars })
    };
    Path::ALL.into_iter().filter_map(group).collect()
}

fn requests(report: &Report, measure: Measure) -> Chart {
    let groups =
        by_path(report, measure, |row, _| Some(bar(row.peer.as_str(), series(row.peer), row.rate, None)));
    Chart {
        title: format!("Requests per second: {} (more is better)", measure.as_str()),
        subtitle: subtitle(report),
        unit: "/s",
        groups,
    }
}

fn new_connections(report: &Report) -> Chart {
    let groups = by_path(report, Measure::NEW_CONNECTIONS, |row, beside| {
        let rules = beside.iter().filter(|row| row.peer.system().program().is_some());
        let best = rules.map(|row| row.rate.median).reduce(f64::max);
        let goal = best.filter(|_| row.peer == Peer::Sluice).map(|best| best * BETTER_THAN_RULES);
        Some(bar(row.peer.as_str(), series(row.peer), row.rate, goal))
    });
    Chart {
        title: "New connections per second, a request on each (more is better; red: the goal)".to_owned(),
        subtitle: subtitle(report),
        unit: "/s",
        groups,
    }
}

/// New connections by number of services, on the way to the other node.
fn by_size(report: &Report, figure: impl Fn(&Row) -> Option<Summary>) -> Vec<Group> {
    let rows = || report.of(Measure::NEW_CONNECTIONS).filter(|row| row.path == Path::PodToOther);
    let group = |peer: Peer| {
        let rows = rows().filter(|row| row.peer == peer);
        let bars =
            rows.filter_map(|row| Some(bar(&row.services.to_string(), series(peer), figure(row)?, None)));
        let bars: Vec<_> = bars.collect();
        (!bars.is_empty()).then(|| Group { name: peer.as_str().to_owned(), bars })
    };
    Peer::USUAL.into_iter().filter(|peer| *peer != Peer::Direct).filter_map(group).collect()
}

fn sizes(report: &Report) -> Chart {
    Chart {
        title: "New connections by number of services, % of a pod dialled directly (more is better)"
            .to_owned(),
        subtitle: subtitle(report),
        unit: "%",
        groups: by_size(report, |row| Some(row.share?.map(|share| share * 100.0))),
    }
}

fn p99(report: &Report) -> Chart {
    Chart {
        title: "p99 of a request with its connection, by number of services (less is better)".to_owned(),
        subtitle: subtitle(report),
        unit: "µs",
        groups: by_size(report, |row| row.latencies.map(|[_, p99, _]| p99)),
    }
}

fn packets(report: &Report) -> Chart {
    let rules = report.packets.iter().filter(|row| matches!(row.peer, Peer::Iptables | Peer::IptablesLegacy));
    let best = rules.map(|row| row.rate.median).reduce(f64::max);
    let of = |row: &crate::packets::Row| {
        let is_ours = row.peer.system() == System::SluiceXdp;
        let goal = best.filter(|_| is_ours).map(|best| best * MORE_PACKETS);
        bar(row.peer.as_str(), series(row.peer), row.rate, goal)
    };
    let bars: Vec<_> = report.packets.iter().map(of).collect();
    let group = Group { name: "outside to NodePort, other node".to_owned(), bars };
    Chart {
        title: "Packets per second that one CPU of a node sends on (more is better; red: the goal)"
            .to_owned(),
        subtitle: subtitle(report),
        unit: "/s",
        groups: if group.bars.is_empty() { Vec::new() } else { vec![group] },
    }
}

fn changed(report: &Report) -> Chart {
    let mut groups: Vec<Group> = Vec::new();
    for row in &report.programming {
        let changes::Row { services, system, made, .. } = row;
        let name = format!("{services} services");
        if groups.last().is_none_or(|group| group.name != name) {
            groups.push(Group { name, bars: Vec::new() });
        }
        let goal = (*system == System::Sluice).then_some(CHANGE * 1e3);
        let bar = bar(system.as_str(), series_of(*system), made.map(|seconds| seconds * 1e3), goal);
        groups.last_mut().into_iter().for_each(|group| group.bars.push(bar.clone()));
    }
    Chart {
        title: "Until a new service is reached, ms (less is better; red: the goal)".to_owned(),
        subtitle: subtitle(report),
        unit: "ms",
        groups,
    }
}
