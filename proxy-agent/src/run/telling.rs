//! What the loop tells others about itself. It hands over and goes on: nobody who listens can hold it up.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use k8s_openapi::jiff::Timestamp;
use proxy_model::{CommitError, Family, Misfit, Model, PlanError, ServicePortName};
use tokio::sync::{mpsc, watch};
use tracing::{error, info};

use crate::{
    datapath::{Sweep, TableError},
    events::{Event, Events},
    health::{Clock, Progress},
    http::{CheckAddresses, CheckUpdate},
    metrics::{LoopMetrics, Standing, Verdict},
};

/// What is done for a Service, as Events call it.
const ACTION: &str = "Program";

/// Where the loop's news go.
#[derive(Debug)]
pub struct Outlets {
    /// Name of this node.
    pub node: String,
    /// The clock that progress is told by.
    pub clock: Clock,
    /// How far the loop has got.
    pub progress: watch::Sender<Progress>,
    /// What load balancers are to be told.
    pub checks: mpsc::UnboundedSender<CheckUpdate>,
    /// What is counted.
    pub metrics: LoopMetrics,
    /// What the cluster is told.
    pub events: Events,
}

/// Tells, and remembers what was told.
pub(super) struct Telling {
    outlets: Outlets,
    /// Writes that failed in the latest round, as they were logged.
    failing: Failing,
    /// When the present round began, if there is anything to do in it.
    began: Option<Duration>,
    /// Where health checks are answered.
    addresses: Option<CheckAddresses>,
}

/// Writes that failed, in words, and for whom they were.
#[derive(Debug, Default)]
pub(super) struct Failing(BTreeMap<String, Option<ServicePortName>>);

impl Failing {
    /// Those of a commit.
    pub(super) fn of(failures: Vec<CommitError<TableError>>) -> Self {
        Self(failures.into_iter().map(|failure| (describe(&failure), failure.port)).collect())
    }

    /// And this one, if it failed.
    pub(super) fn note(&mut self, result: Result<(), TableError>) {
        if let Err(error) = result {
            self.0.insert(crate::report(&error), None);
        }
    }

    /// Whether any is of the family, or of none in particular.
    fn concerns(&self, family: Family) -> bool {
        self.0.values().any(|port| port.as_ref().is_none_or(|port| port.family == family))
    }
}

/// A failed write in words, with its cause. The cause names the table.
pub(super) fn describe(failure: &CommitError<TableError>) -> String {
    let cause = crate::report(&failure.source);
    match &failure.port {
        Some(port) => format!("{port}: {cause}"),
        None => cause,
    }
}

impl Telling {
    pub(super) fn new(outlets: Outlets) -> Self {
        Self { outlets, failing: Failing::default(), began: None, addresses: None }
    }

    /// The time.
    pub(super) fn now(&self) -> Duration {
        self.outlets.clock.now()
    }

    /// Whether writes failed in the latest round.
    pub(super) fn is_failing(&self) -> bool {
        !self.failing.0.is_empty()
    }

    /// How many did.
    pub(super) fn failing(&self) -> usize {
        self.failing.0.len()
    }

    /// The loop begins (EVT-01).
    pub(super) fn start(&self) {
        let now = self.now();
        self.outlets.progress.send_modify(|progress| progress.start(now));
        self.outlets.metrics.queued(Timestamp::now());
        self.outlets.events.send(Event::normal("Starting", "StartKubeProxy", String::new()));
    }

    /// A round begins, before the plan.
    pub(super) fn begin_round(&mut self, model: &Model) {
        let now = self.now();
        let has_changes = model.has_changes();
        self.began = (has_changes || self.is_failing()).then_some(now);
        if has_changes {
            self.outlets.progress.send_modify(|progress| progress.queue(now));
            self.outlets.metrics.queued(Timestamp::now());
        }
    }

    /// A service port cannot be as its Service says. Every node finds that out.
    pub(super) fn misfit(&self, problem: &PlanError, model: &Model) {
        let PlanError { port, reason } = problem;
        let word = match reason {
            Misfit::FrontendTaken { .. } => "AddressTaken",
            Misfit::NoRoom { .. } => "NoRoom",
            Misfit::NameTooLong => "NameTooLong",
        };
        let event = Event::warning(word, ACTION, problem.to_string()).everywhere();
        self.outlets.events.send(about(event, port, model));
    }

    /// A round is over, after the commit. These are the node's addresses.
    pub(super) fn end_round(&mut self, failing: Failing, model: &mut Model, addresses: &[IpAddr]) {
        self.tell_failures(&failing, model);
        self.failing = failing;
        let now = self.now();
        let metrics = &self.outlets.metrics;
        if let Some(began) = self.began.take() {
            metrics.round(now.saturating_sub(began));
        }
        let wall = Timestamp::now();
        let concerned = Family::ALL.map(|family| self.failing.concerns(family));
        let mut waited = [None; 2];
        self.outlets.progress.send_modify(|progress| {
            waited = progress.finish(now, concerned);
            progress.turn(now);
            progress.node_is_eligible = model.node_is_eligible();
        });
        for (family, waited) in Family::ALL.into_iter().zip(waited) {
            if let Some(waited) = waited {
                metrics.written(family, waited, wall);
            }
        }
        let finished = model.take_finished();
        finished.triggers.into_iter().for_each(|trigger| metrics.finished(trigger, wall));
        let at = Family::ALL.map(|family| model.health_check_addresses(family, addresses.iter().copied()));
        let addresses = (self.addresses.as_ref() != Some(&at)).then_some(at);
        if addresses.is_some() || !finished.health_checks.is_empty() {
            self.addresses = addresses.clone().or(self.addresses.take());
            let update = CheckUpdate { checks: finished.health_checks, addresses };
            // Nobody listens when the agent ends.
            self.outlets.checks.send(update).ok();
        }
    }

    /// Logs what fails newly, and when nothing fails any more.
    fn tell_failures(&self, failing: &Failing, model: &Model) {
        for (failure, port) in failing.0.iter().filter(|(failure, _)| !self.failing.0.contains_key(*failure))
        {
            error!("{failure}; will try again");
            if let Some(port) = port {
                let note = format!("node {} failed to program {failure}", self.outlets.node);
                self.outlets.events.send(about(Event::warning("FailedToProgram", ACTION, note), port, model));
            }
        }
        if failing.0.is_empty() && self.is_failing() {
            info!("all writes to the tables succeed again");
        }
    }

    /// This is how things stand.
    pub(super) fn stand(&self, standing: &Standing) {
        self.outlets.metrics.stand(standing);
    }

    /// An audit is over.
    pub(super) fn audited(&self, verdict: &Verdict) {
        self.outlets.metrics.audited(verdict, Timestamp::now());
    }

    /// The flow table was swept.
    pub(super) fn swept(&self, sweep: &Sweep, took: Duration) {
        self.outlets.metrics.swept(sweep, took);
    }

    /// The kernel has refused these programs, and earlier ones stand in for them.
    pub(super) fn refused(&self, programs: impl Iterator<Item = &'static str>) {
        let programs: Vec<_> = programs.collect();
        self.outlets.metrics.refused(programs.len());
        self.outlets.progress.send_if_modified(|progress| {
            let is_news = progress.refused != programs;
            progress.refused = programs;
            is_news
        });
    }

    /// Somebody has taken the programs off so many devices.
    pub(super) fn lost_programs(&self, devices: usize) {
        self.outlets.metrics.lost_programs(devices);
    }
}

/// The event, about the Service of a service port.
fn about(event: Event, port: &ServicePortName, model: &Model) -> Event {
    let uid = model.service_uid(&port.service).map(str::to_owned);
    event.about_service(port.service.clone(), uid)
}
