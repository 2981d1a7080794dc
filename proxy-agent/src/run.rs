//! The one loop: changes in, table writes out, programs on every device.
//!
//! One task owns the model and the tables, so there are no locks. Whatever woke it, a round ends the same way: plan,
//! commit, and come back soon if something could not be finished.

mod placing;
mod settings;
mod sockets;

use std::{
    collections::BTreeSet,
    future::Future,
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt as _};
use proxy_common::{
    config::SocketFlags,
    tables::{Flows, Table as _},
};
use proxy_model::{Change, CommitError, DetectLocal, Model};
use tokio::{
    task::{JoinError, JoinSet},
    time::sleep_until,
};
use tracing::{debug, error, info, warn};

use self::{placing::Placing, settings::Settings, sockets::Sockets};
use crate::{
    datapath::{
        self, AttachError, Datapath, KernelTables, LoadError, Pins, Pressure, Sweep, TableError, sweep,
    },
    devices::{DeviceError, DeviceRules, Devices},
    ports::PortRange,
};

pub use self::{settings::ConntrackTimeouts, sockets::NamespaceError};

/// How long to wait before repeating what failed.
const RETRY: Duration = Duration::from_secs(1);
/// Changes taken together into one plan, at most.
const BATCH: usize = 4096;

/// What the agent runs with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory of pins.
    pub bpffs: PathBuf,
    /// What decides about services.
    pub model: proxy_model::Options,
    /// What decides about devices.
    pub devices: DeviceRules,
    /// Where the API server takes NodePorts from.
    pub node_ports: PortRange,
    /// Who is served at sockets.
    pub sockets: SocketOptions,
    /// How long flows may be silent.
    pub timeouts: ConntrackTimeouts,
    /// Where `/healthz` and `/livez` are to be served; `None`: nowhere (HZ-01).
    pub healthz_bind_address: Option<SocketAddr>,
    /// Where `/metrics` is to be served; `None`: nowhere (MAPI).
    pub metrics_bind_address: Option<SocketAddr>,
    /// Whether the agent ends if it cannot serve at these addresses, rather than try again (HZ-03).
    pub bind_address_hard_fail: bool,
    /// Half of the time after which a change that could not be programmed is bad health (HZ-05).
    pub sync_period: Duration,
}

/// Who is served at sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketOptions {
    /// What is switched on.
    pub flags: SocketFlags,
    /// The cgroup whose processes are served; if there is none, nobody is.
    pub cgroup: Option<PathBuf>,
}

/// Why the agent could not start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The datapath could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A table could not be used.
    #[error(transparent)]
    Table(#[from] TableError),
    /// Devices cannot be followed.
    #[error(transparent)]
    Devices(#[from] DeviceError),
    /// Pins cannot be kept.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// Sockets cannot be served.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// The source of changes ended, which it never should.
    #[error("the source of Services and EndpointSlices ended")]
    SourceEnded,
}

/// Runs until `stop` completes. The datapath goes on working afterwards: maps and links stay pinned.
pub async fn run(
    options: Options,
    changes: impl Stream<Item = Change> + Unpin,
    stop: impl Future<Output = ()>,
) -> Result<(), RunError> {
    let mut agent = Agent::start(options)?;
    let mut devices = Devices::watch()?;
    agent.place(&mut devices).await?;
    agent.serve_sockets();
    let mut changes = changes.ready_chunks(BATCH);
    let mut sweeping = JoinSet::new();
    // Outlives a round: a busy cluster must not put off what failed.
    let mut retry_at = None;
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            batch = changes.next() => agent.apply(batch.ok_or(RunError::SourceEnded)?),
            () = devices.changed() => agent.place_again(&mut devices).await,
            () = sleep_until(agent.sweep_at.into()), if sweeping.is_empty() => agent.start_sweep(&mut sweeping),
            Some(swept) = sweeping.join_next() => {
                agent.finish_sweep(swept);
                if agent.has_lost_programs() {
                    agent.place_again(&mut devices).await;
                }
            }
            () = reached(retry_at) => {
                retry_at = None;
                if agent.is_misplaced() {
                    agent.place_again(&mut devices).await;
                }
                agent.serve_sockets();
            }
        }
        agent.program();
        retry_at = agent.is_unfinished().then(|| retry_at.unwrap_or_else(|| Instant::now() + RETRY));
    }
    info!("stopping; the datapath goes on by itself");
    Ok(())
}

/// Does what needs no object and attaches nothing: sees whether the kernel takes every program, and makes the tables
/// (LIFE-10). What an earlier run has left serves on.
pub fn prepare(options: &Options) -> Result<(), RunError> {
    let pins = Pins::new(&options.bpffs);
    datapath::load(&pins)?.load_all()?;
    info!(pins = %pins.root().display(), "the kernel takes all programs, and the tables are there; nothing was attached");
    Ok(())
}

/// Completes at that time, or never if there is none.
async fn reached(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

/// A failed write in words, with its cause. The cause names the table.
fn describe(failure: &CommitError<TableError>) -> String {
    let cause = crate::report(&failure.source);
    match &failure.port {
        Some(port) => format!("{port}: {cause}"),
        None => cause,
    }
}

/// A finished sweep, and the model's time when it began.
type Swept = Result<(Duration, Sweep), TableError>;

struct Agent {
    pins: Pins,
    datapath: Datapath,
    tables: KernelTables,
    model: Model,
    /// Origin of the model's time.
    started: Instant,
    settings: Settings,
    /// How local traffic is detected.
    detect_local: DetectLocal,
    placing: Placing,
    sockets: Sockets,
    /// Why devices could not be gone through at all the last time, if they could not.
    unplaced: Option<String>,
    /// When the flow table is to be swept again.
    sweep_at: Instant,
    /// How full the latest sweep left the flow table.
    pressure: Pressure,
    /// Whether the flow table was short of room and has not recovered.
    is_short_of_room: bool,
    /// Writes that failed in the latest round, as they were logged.
    failing: BTreeSet<String>,
    /// Whether the first full set of objects has been programmed.
    synced: bool,
}

impl Agent {
    fn start(options: Options) -> Result<Self, RunError> {
        let Options { bpffs, model, devices, node_ports, sockets, timeouts, .. } = options;
        let sockets = Sockets::new(sockets)?;
        let pins = Pins::new(&bpffs);
        let mut datapath = datapath::load(&pins)?;
        if let Some(logger) = datapath.take_logger() {
            tokio::spawn(datapath::forward_log(logger));
        }
        let tables = KernelTables::open(&pins)?;
        let restored = tables.restore()?;
        info!(
            node = model.node_name,
            pins = %pins.root().display(),
            frontends = restored.frontends.len(),
            "datapath loaded; frontends found from an earlier run go on serving"
        );
        Ok(Self {
            settings: Settings::start(&pins, node_ports, timeouts)?,
            detect_local: model.detect_local.clone(),
            placing: Placing::start(&pins, devices)?,
            sockets,
            model: Model::new(model, restored),
            pins,
            datapath,
            tables,
            started: Instant::now(),
            unplaced: None,
            sweep_at: Instant::now(),
            pressure: Pressure::Low,
            is_short_of_room: false,
            failing: BTreeSet::new(),
            synced: false,
        })
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn is_misplaced(&self) -> bool {
        self.placing.is_unfinished() || self.unplaced.is_some()
    }

    fn is_unfinished(&self) -> bool {
        self.is_misplaced()
            || self.sockets.is_unfinished()
            || self.model.is_unfinished()
            || !self.failing.is_empty()
    }

    fn apply(&mut self, batch: Vec<Change>) {
        for change in batch {
            for problem in self.model.apply(change) {
                warn!("{problem}");
            }
        }
    }

    /// Plans and writes. What could not be written is tried again; what could be is written.
    fn program(&mut self) {
        let now = self.now();
        for problem in self.model.plan(now) {
            warn!("{problem}");
        }
        let before = Instant::now();
        let failures = self.model.commit(now, &mut self.tables);
        let mut failing: BTreeSet<_> = failures.iter().map(describe).collect();
        let networks = self.model.pod_networks();
        let settled = self.settings.set_pod_networks(networks, &self.detect_local);
        failing.extend(settled.err().map(|error| crate::report(&error)));
        let settled = self.settings.set_sockets(self.sockets.settings());
        failing.extend(settled.err().map(|error| crate::report(&error)));
        self.tell_failures(failing);
        if failures.is_empty() && self.model.is_synced() && !self.synced {
            self.synced = true;
            let counts = self.model.counts();
            info!(
                service_ports = counts.service_ports,
                frontends = counts.frontends,
                backends = counts.backends,
                took = ?before.elapsed(),
                "synced"
            );
            self.remove_other_layouts();
        }
    }

    /// Ends what agents with other layouts have left. Until this agent serves, theirs must; then both translate, so
    /// the sooner one stops the better. This build cannot read their flows and so cannot take them over.
    fn remove_other_layouts(&self) {
        let removed = self.pins.others().and_then(|others| {
            others.iter().try_for_each(|other| {
                let links = other.remove()?;
                let pins = other.root().display();
                info!(
                    %pins,
                    links,
                    "removed the links and tables of another layout; connections that began through them end"
                );
                Ok(())
            })
        });
        if let Err(error) = removed {
            warn!("{}; links and tables of another layout remain", crate::report(&error));
        }
    }

    /// Logs what fails newly, and when nothing fails any more.
    fn tell_failures(&mut self, failing: BTreeSet<String>) {
        for failure in failing.difference(&self.failing) {
            error!("{failure}; will try again");
        }
        if failing.is_empty() && !self.failing.is_empty() {
            info!("all writes to the tables succeed again");
        }
        self.failing = failing;
    }

    /// As [`Agent::place`], but what fails now may succeed later: the programs that are attached go on.
    async fn place_again(&mut self, devices: &mut Devices) {
        match self.place(devices).await {
            Ok(()) => self.unplaced = None,
            Err(error) => {
                let error = crate::report(&error);
                if self.unplaced.as_ref() != Some(&error) {
                    warn!("{error}; will try again");
                }
                self.unplaced = Some(error);
            }
        }
    }

    /// Takes note of what devices and addresses there are, and serves the devices.
    async fn place(&mut self, devices: &mut Devices) -> Result<(), RunError> {
        let all = devices.list().await?;
        self.model.set_node_addresses(all.ips());
        self.sockets.note_addresses(&all);
        // Before packets get a new address as their source, answers to it must be looked for.
        self.program();
        Ok(self.placing.place(&mut self.datapath, &self.pins, &all)?)
    }

    fn serve_sockets(&mut self) {
        self.sockets.serve(&mut self.datapath, &self.pins);
    }

    fn start_sweep(&mut self, sweeping: &mut JoinSet<Swept>) {
        match self.datapath.now() {
            Ok(ticks) => {
                let (pins, started, pressure) = (self.pins.clone(), self.now(), self.pressure);
                sweeping.spawn_blocking(move || Ok((started, sweep(&pins, ticks, pressure)?)));
            }
            Err(error) => {
                warn!(error = %crate::report(&error), "cannot sweep the flow table");
                self.sweep_at = Instant::now() + self.pressure.interval();
            }
        }
    }

    fn finish_sweep(&mut self, swept: Result<Swept, JoinError>) {
        match swept {
            Ok(Ok((started, sweep))) => {
                debug!(removed = sweep.removed, left = sweep.left, "swept the flow table");
                self.model.retain_filter(started, |position| {
                    sweep.in_use.get(&position).copied().unwrap_or_default()
                });
                self.note_pressure(&sweep);
            }
            Ok(Err(error)) => warn!(error = %crate::report(&error), "cannot sweep the flow table"),
            Err(error) => warn!(%error, "the sweep of the flow table failed"),
        }
        self.sweep_at = Instant::now() + self.pressure.interval();
    }

    /// Looks whether the programs are still where they were put.
    fn has_lost_programs(&mut self) -> bool {
        self.placing.notice_losses(&self.pins).unwrap_or_else(|error| {
            warn!(error = %crate::report(&error), "cannot look after the programs");
            false
        })
    }

    /// Told once: between high and low pressure the table may go up and down with every sweep.
    fn note_pressure(&mut self, sweep: &Sweep) {
        let (left, capacity) = (sweep.left, Flows::CAPACITY);
        self.pressure = sweep.pressure();
        match self.pressure {
            Pressure::High if !self.is_short_of_room => {
                self.is_short_of_room = true;
                warn!(
                    left,
                    capacity, "the flow table fills up; flows that are over lose their entries early"
                );
            }
            Pressure::Low if self.is_short_of_room => {
                self.is_short_of_room = false;
                info!(left, capacity, "the flow table has room again");
            }
            _ => {}
        }
    }
}
