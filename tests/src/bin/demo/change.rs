//! Endpoints come and go while connections keep coming.

use std::{
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use sluice_tests::{
    netns::Namespace,
    service::Service,
    topology::{Family, Pod},
    traffic::{Connection, Source, Spread, UdpClient},
    wait::wait_until,
};

use crate::{
    scene::Scene,
    screen::{Screen, thousands},
};

/// Pause between datagrams.
const PACE: Duration = Duration::from_millis(1);

/// Who answered, asked when.
#[derive(Clone, Debug)]
struct Landing {
    asked: Instant,
    backend: String,
}

/// Traffic that goes on in the background: new connections one after the other, and datagrams from one port.
#[derive(Default)]
struct Record {
    connections: Mutex<Vec<Landing>>,
    datagrams: Mutex<Vec<Landing>>,
    stop: AtomicBool,
}

/// Removes one endpoint and adds another, and shows what that did to connections.
pub(crate) fn show(scene: &Scene, screen: Screen, count: usize) -> Result<()> {
    screen.heading("Endpoints change while connections keep coming");
    let from = &scene.client.machine.namespace;
    let to = scene.echo.frontend(Family::V4);
    // The sender with one port starts on the endpoint that is going to be removed, wherever that is.
    let sender = UdpClient::bind(from, Family::V4)?;
    let doomed = sender.ask(to, 0)?.backend;
    let added = scene.pods.last().context("a pod that is no endpoint")?;

    let record = Record::default();
    let (removal, addition) = thread::scope(|scope| {
        let connecting = scope.spawn(|| record.connect(from, to));
        let sending = scope.spawn(|| record.send(&sender, to));
        let changes = change(scene, &record, count, &doomed, added);
        record.stop.store(true, Ordering::Relaxed);
        let results = [connecting.join(), sending.join()];
        for result in results {
            result.map_err(|_| anyhow!("a thread that sends traffic panicked"))??;
        }
        changes
    })?;

    let connections = record.connections();
    let datagrams = record.datagrams();
    let landed = |landings: &[Landing], on: &str, since: Instant| -> Vec<Duration> {
        let there = landings.iter().filter(|landing| landing.backend == on && landing.asked > since);
        there.map(|landing| landing.asked.duration_since(since)).collect()
    };
    let last = landed(&connections, &doomed, removal.written).into_iter().max();
    let first = landed(&connections, added.name(), addition.written).into_iter().min();
    screen.note(&format!("{doomed} removed: {}", after("last connection there", last)));
    let moved = landed(&datagrams, &doomed, removal.written).into_iter().max();
    screen.note(&format!("    a UDP sender with one port: {}", after("last datagram there", moved)));
    screen.note(&format!("{} added: {}", added.name(), after("first connection there", first)));

    let phases = [
        ("before", None, Some(removal.written)),
        ("between", Some(removal.in_kernel), Some(addition.written)),
        ("after", Some(addition.in_kernel), None),
    ];
    for (name, since, until) in phases {
        let within = connections.iter().filter(|landing| {
            since.is_none_or(|since| landing.asked > since) && until.is_none_or(|until| landing.asked < until)
        });
        let mut spread = Spread::default();
        spread.extend(within.map(|landing| landing.backend.clone()));
        screen.note("");
        screen.note(&format!("{name}: {} connections", thousands(spread.total())));
        screen.bars(&spread, &scene.roles());
    }
    let stale = landed(&connections, &doomed, removal.in_kernel).len()
        + landed(&datagrams, &doomed, removal.in_kernel).len();
    ensure!(stale == 0, "{stale} flows went to {doomed} after the kernel had let go of it");
    ensure!(first.is_some(), "no connection went to {} after it was added", added.name());
    Ok(())
}

/// When a change was asked for, and when it was in the kernel.
struct Change {
    written: Instant,
    in_kernel: Instant,
}

impl Change {
    fn make(scene: &Scene, service: &Service) -> Result<Self> {
        let written = Instant::now();
        scene.agents.publish(service)?;
        scene.agents.agents.iter().try_for_each(|agent| agent.wait_for_service(service))?;
        Ok(Self { written, in_kernel: Instant::now() })
    }
}

/// Removes `doomed`, adds `added`, with enough connections before, between and after to show how they spread.
fn change(
    scene: &Scene,
    record: &Record,
    count: usize,
    doomed: &str,
    added: &Pod,
) -> Result<(Change, Change)> {
    let enough = count / 4;
    record.wait_for_more(enough)?;
    let service = scene.echo.clone().without(doomed);
    let removal = Change::make(scene, &service)?;
    record.wait_for_more(enough)?;
    let service = service.with(added);
    let addition = Change::make(scene, &service)?;
    record.wait_for_more(enough)?;
    Ok((removal, addition))
}

impl Record {
    fn connect(&self, from: &Namespace, to: SocketAddr) -> Result<()> {
        while !self.stop.load(Ordering::Relaxed) {
            let asked = Instant::now();
            let connection = Connection::open(from, to, Source::AnyPort)
                .context("a connection during the change of endpoints")?;
            push(&self.connections, Landing { asked, backend: connection.backend });
        }
        Ok(())
    }

    fn send(&self, sender: &UdpClient, to: SocketAddr) -> Result<()> {
        for number in 1.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let asked = Instant::now();
            let answer = sender.ask(to, number).context("a datagram during the change of endpoints")?;
            push(&self.datagrams, Landing { asked, backend: answer.backend });
            thread::sleep(PACE);
        }
        Ok(())
    }

    fn wait_for_more(&self, more: usize) -> Result<()> {
        let goal = self.connections().len() + more;
        wait_until("there are more connections", || Ok((self.connections().len() >= goal).then_some(())))
    }

    fn connections(&self) -> Vec<Landing> {
        all(&self.connections)
    }

    fn datagrams(&self) -> Vec<Landing> {
        all(&self.datagrams)
    }
}

/// A panic while holding one of these locks ends the demo anyway.
fn push(landings: &Mutex<Vec<Landing>>, landing: Landing) {
    landings.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(landing);
}

fn all(landings: &Mutex<Vec<Landing>>) -> Vec<Landing> {
    landings.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
}

fn after(what: &str, since: Option<Duration>) -> String {
    match since {
        Some(since) => {
            format!("{what} {:.1} ms after the manifest was written", since.as_secs_f64() * 1000.0)
        }
        None => format!("{what}: none after the manifest was written"),
    }
}
