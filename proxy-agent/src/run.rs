//! The one loop: changes in, table writes out, programs on every device.
//!
//! One task owns the model and the tables, so there are no locks. Whatever woke it, a round ends the same way: plan,
//! commit, and come back soon if something could not be finished.

mod audit;
mod bypass;
mod delivering;
mod layouts;
mod options;
mod placing;
mod room;
mod settings;
mod sockets;
mod stale;
mod sweeping;
mod take_up;
mod telling;

use std::{
    future::Future,
    mem,
    net::IpAddr,
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt as _};
use proxy_common::config::{SocketFlags, SocketSettings};
use proxy_model::{Change, DetectLocal, Model};
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep_until},
};
use tracing::{info, warn};

use self::{
    audit::Auditing,
    placing::Placing,
    room::{Misfits, Moves},
    settings::Settings,
    sockets::Sockets,
    stale::StaleSockets,
    take_up::TakingUp,
    telling::{Failing, Telling},
};
use crate::{
    datapath::{self, ChecksumPolicy, Datapath, KernelTables, Pins, Pressure, Resizing},
    devices::Devices,
    memory,
    metrics::Standing,
};

pub use self::{
    options::{Options, RunError, SocketOptions},
    settings::ConntrackTimeouts,
    sockets::NamespaceError,
    telling::Outlets,
};

/// How long to wait before repeating what failed.
const RETRY: Duration = Duration::from_secs(1);
/// Changes taken together into one plan, at most.
const BATCH: usize = 4096;
/// How often the loop shows that it goes round, if nothing else happens.
const BEAT: Duration = Duration::from_secs(10);

/// Runs until `stop` completes. The datapath goes on working afterwards: maps and links stay pinned.
pub async fn run(
    options: Options,
    outlets: Outlets,
    changes: impl Stream<Item = Change> + Unpin,
    stop: impl Future<Output = ()>,
) -> Result<(), RunError> {
    let mut agent = Agent::start(options, outlets)?;
    let mut devices = Devices::watch()?;
    agent.telling.start();
    agent.place(&mut devices).await?;
    agent.serve_sockets();
    agent.move_tables();
    let mut changes = changes.ready_chunks(BATCH);
    let mut sweeping = JoinSet::new();
    let mut stale = StaleSockets::new(&agent.pins, agent.sockets.protocols());
    // Outlives a round: a busy cluster must not put off what failed.
    let mut retry_at = None;
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            batch = changes.next() => agent.apply(batch.ok_or(RunError::SourceEnded)?),
            () = devices.changed() => agent.place_again(&mut devices).await,
            () = sleep_until(agent.sweep_at.into()), if sweeping.is_empty() => agent.start_sweep(&mut sweeping),
            Some(swept) = sweeping.join_next() => {
                agent.finish_sweep(swept);
                agent.look_after_programs(&mut devices).await;
            }
            () = reached(agent.auditing.due()) => agent.audit(),
            () = stale.proceed() => {}
            () = reached(retry_at) => {
                retry_at = None;
                if agent.is_misplaced() {
                    agent.place_again(&mut devices).await;
                }
                agent.serve_sockets();
                agent.move_tables();
            }
            _ = beat.tick() => {}
        }
        agent.program();
        stale.note(&agent.model.take_retired(), agent.model.resets());
        retry_at = agent.is_unfinished().then(|| retry_at.unwrap_or_else(|| Instant::now() + RETRY));
    }
    info!("stopping; the datapath goes on by itself");
    Ok(())
}

/// Does what needs no object and attaches nothing: sees whether the kernel takes every program, and makes the tables
/// (LIFE-10). What an earlier run has left serves on.
pub fn prepare(options: &Options) -> Result<(), RunError> {
    let pins = Pins::new(&options.bpffs);
    datapath::load(&pins, options.capacities, Resizing::Forbidden, ChecksumPolicy::WrittenIfPossible)?
        .load_all()?;
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

struct Agent {
    pins: Pins,
    datapath: Datapath,
    tables: KernelTables,
    model: Model,
    /// Those who want to know how it goes. Their clock is the model's too.
    telling: Telling,
    settings: Settings,
    /// How local traffic is detected.
    detect_local: DetectLocal,
    placing: Placing,
    sockets: Sockets,
    misfits: Misfits,
    taking_up: TakingUp,
    moves: Moves,
    /// Why devices could not be gone through at all the last time, if they could not.
    unplaced: Option<String>,
    auditing: Auditing,
    /// How long programs of other layouts go on with their flows.
    old_layouts_stay: Duration,
    /// When the flow table is to be swept again.
    sweep_at: Instant,
    /// How full the latest sweep left the flow table.
    pressure: Pressure,
    /// Whether the flow table was short of room and has not recovered.
    is_short_of_room: bool,
    /// The node's addresses, as they were listed last.
    addresses: Vec<IpAddr>,
    /// Whether the first full set of objects has been programmed.
    synced: bool,
    /// Whether whole lists of objects have come in since memory was given back last.
    has_listed: bool,
}

impl Agent {
    fn start(options: Options, outlets: Outlets) -> Result<Self, RunError> {
        let Options {
            bpffs,
            model,
            devices,
            node_ports,
            sockets,
            audit_interval,
            timeouts,
            new_flow_limit,
            dsr_port,
            capacities,
        } = options;
        let sockets = Sockets::new(sockets)?;
        let pins = Pins::new(&bpffs);
        let mut datapath =
            datapath::load(&pins, capacities, Resizing::Allowed, ChecksumPolicy::WrittenIfPossible)?;
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
            old_layouts_stay: layouts::stay(&timeouts),
            settings: Settings::start(&pins, node_ports, timeouts, new_flow_limit, dsr_port)?,
            detect_local: model.detect_local.clone(),
            placing: Placing::start(&pins, devices)?,
            sockets,
            misfits: Misfits::start(&pins)?,
            taking_up: TakingUp::default(),
            moves: Moves::Pending(None),
            model: Model::with_capacities(model, restored, KernelTables::capacities(&pins)?),
            pins,
            datapath,
            tables,
            telling: Telling::new(outlets),
            unplaced: None,
            auditing: Auditing::every(audit_interval),
            sweep_at: Instant::now(),
            pressure: Pressure::Low,
            is_short_of_room: false,
            addresses: Vec::new(),
            synced: false,
            has_listed: false,
        })
    }

    fn now(&self) -> Duration {
        self.telling.now()
    }

    fn is_misplaced(&self) -> bool {
        self.placing.is_unfinished() || self.unplaced.is_some()
    }

    fn is_unfinished(&self) -> bool {
        self.is_misplaced()
            || self.sockets.is_unfinished()
            || self.moves.is_pending()
            || self.model.is_unfinished()
            || self.telling.is_failing()
    }

    fn apply(&mut self, batch: Vec<Change>) {
        for change in batch {
            self.has_listed |= change.is_list();
            for problem in self.model.apply(change) {
                warn!("{problem}");
            }
        }
    }

    /// Plans and writes. What could not be written is tried again; what could be is written.
    fn program(&mut self) {
        let began = self.now();
        self.telling.begin_round(&self.model);
        let news = self.model.plan(began);
        let misfits = self.misfits.note(&self.model, !news.is_empty());
        for problem in news {
            warn!("{problem}");
            self.telling.misfit(&problem, &self.model);
        }
        // Before the rows of pods: whoever sees one may rely on its being looked for.
        let sockets = self.settings.set_sockets(self.socket_settings());
        let before = Instant::now();
        let failures = self.model.commit(began, &mut self.tables);
        let written = failures.is_empty();
        let mut failing = Failing::of(failures);
        let networks = self.model.pod_networks();
        failing.note(self.settings.set_pod_networks(networks, &self.detect_local));
        if self.model.leads_by_hash() {
            self.taking_up.consider(&self.pins, &mut self.settings);
        }
        failing.note(sockets);
        failing.note(misfits);
        if written && self.model.is_synced() && !self.synced {
            self.synced = true;
            let counts = self.model.counts();
            info!(
                service_ports = counts.service_ports,
                frontends = counts.frontends,
                backends = counts.backends,
                took = ?before.elapsed(),
                "synced"
            );
            self.look_after_other_layouts();
        }
        self.telling.end_round(failing, &mut self.model, &self.addresses);
        self.telling.stand(&self.standing());
        if mem::take(&mut self.has_listed) {
            memory::give_back();
        }
    }

    /// How things stand.
    fn standing(&self) -> Standing {
        Standing {
            is_synced: self.synced,
            changes: self.model.change_counts(),
            no_local_endpoints: self.model.no_local_endpoints(),
            troubles: self.model.troubles(),
            failing_writes: self.telling.failing(),
            table_entries: self.model.table_entries(),
            devices: self.placing.counts(),
            socket_programs: self.sockets.attached(),
            unfit: self.misfits.counts(),
        }
    }

    /// Who is served at sockets, with what is known of pods by now.
    fn socket_settings(&self) -> SocketSettings {
        let mut settings = self.sockets.settings();
        settings.levels = self.model.pod_levels().unwrap_or(self.settings.sockets().levels);
        if self.model.knows_pods() {
            settings.flags = settings.flags.with(SocketFlags::PODS_LISTED);
        }
        settings
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
        self.addresses = all.ips().collect();
        self.model.set_node_addresses(all.ips());
        self.sockets.note_addresses(&all);
        // Before packets get a new address as their source, answers to it must be looked for.
        self.program();
        self.placing.place(&mut self.datapath, &self.pins, &all)?;
        self.keep_programs();
        Ok(())
    }

    fn serve_sockets(&mut self) {
        self.sockets.serve(&mut self.datapath, &self.pins);
        self.keep_programs();
    }

    /// What serves now, another agent may have to go on with. Says which of this one's programs do not.
    fn keep_programs(&mut self) {
        if let Err(error) = self.datapath.keep() {
            warn!("{}; an agent whose programs are refused has none to go on with", crate::report(&error));
        }
        self.telling.refused(self.datapath.refused());
    }

    /// Moves tables that are to have another capacity, once all programs are this build's.
    fn move_tables(&mut self) {
        if !self.is_misplaced() && !self.sockets.is_unfinished() {
            self.moves.go_on(&self.pins);
        }
    }

    /// Looks at a part of the tables, if it is time.
    fn audit(&mut self) {
        let Self { auditing, model, tables, settings, placing, telling, .. } = self;
        if let Some(verdict) = auditing.go_on(model, tables, settings, placing) {
            telling.audited(&verdict);
        }
    }

    /// Puts programs back that somebody has taken off.
    async fn look_after_programs(&mut self, devices: &mut Devices) {
        let lost = self.placing.notice_losses(&self.pins).unwrap_or_else(|error| {
            warn!(error = %crate::report(&error), "cannot look after the programs");
            0
        });
        self.telling.lost_programs(lost);
        if lost > 0 {
            self.place_again(devices).await;
        }
        self.sockets.notice_losses(&self.pins);
        self.serve_sockets();
        self.look_after_other_layouts();
    }
}
