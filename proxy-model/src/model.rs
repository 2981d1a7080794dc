//! The whole way from objects to tables, behind one type.

mod explain;
mod outlook;
mod plan;

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    net::IpAddr,
    time::Duration,
};

use proxy_common::{
    config::Network,
    filter::{AddressRoles, FilterPosition},
    pod::Levels,
    tables::{AddressFilter, Table},
};

use crate::{
    address::unusable,
    audit::Audit,
    change::{Change, ObjectName},
    claims::Claims,
    error::{CommitError, Misfit, ObjectError, PlanError},
    health::HealthChecks,
    io::{TableIo, TablesIo},
    name::{Family, ServicePortName, Transport},
    node::ThisNode,
    options::{DetectLocal, Options},
    pods::Pods,
    programmed::{Programmed, Progress},
    restore::{Adopted, Capacities, Leftovers, Restored, adopt},
    silence::Silences,
    state::State,
    tables::{Failure, Tables},
};

pub use outlook::{Finished, Troubles};

/// Owns the parsed objects, the ids, and the picture of the kernel's tables.
///
/// One task owns it and goes round: [`Model::apply`] changes, [`Model::plan`], [`Model::commit`]. All three do
/// work in proportion to what changed. Times are monotonic, from any origin, and never go back.
#[derive(Debug)]
pub struct Model {
    options: Options,
    state: State,
    /// What the node's interfaces have, as far as it matters; `None` until somebody says so.
    node_addresses: Option<BTreeSet<IpAddr>>,
    tables: Tables,
    claims: Claims,
    programmed: BTreeMap<ServicePortName, Programmed>,
    /// Service ports whose tables may differ from what was planned.
    pending: BTreeSet<ServicePortName>,
    /// What is wrong with service ports at present.
    problems: BTreeMap<ServicePortName, Vec<Misfit>>,
    /// Services with a port that did not fit; tried again when something becomes free.
    unfit: BTreeSet<ObjectName>,
    /// Services with a port that the latest commit could not write.
    unwritten: BTreeSet<ObjectName>,
    /// What load balancers ask about.
    health_checks: HealthChecks,
    /// Who drops what only other nodes could answer.
    silences: Silences,
    /// What an earlier run of the agent left and nobody claimed.
    leftovers: Leftovers,
    /// Whether the node's addresses have changed since the last plan.
    readdressed: bool,
    /// Whether a Service has asked for its TCP connections to be reset.
    resets: bool,
    /// Whether frontends lead by hash, or have led so.
    leads_by_hash: bool,
    /// Of which protocols backends were retired since [`Model::take_retired`].
    retired: BTreeSet<Transport>,
    stage: Stage,
}

/// Whether the tables have been planned as a whole yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Not all objects have been listed; nothing may be written.
    Waiting,
    /// From now on, only changes matter.
    Running,
}

/// How much is programmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Service ports that have an id.
    pub service_ports: usize,
    /// Frontends in the kernel.
    pub frontends: usize,
    /// Backends that service ports should have.
    pub backends: usize,
}

/// Anything that is wrong at present.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// With an object.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// With fitting a service port into the tables.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

impl Model {
    /// A model that goes on from what the kernel has.
    #[must_use]
    pub fn new(options: Options, restored: Restored) -> Self {
        Self::with_capacities(options, restored, Capacities::default())
    }

    /// The same for tables that do not have their default capacities.
    #[must_use]
    pub fn with_capacities(options: Options, restored: Restored, capacities: Capacities) -> Self {
        let Adopted { tables, programmed, leftovers } = adopt(restored, capacities);
        Self {
            state: State::new(
                ThisNode::new(&options.node_name, options.bind_address),
                Pods::new(options.follow_pods),
            ),
            options,
            node_addresses: None,
            tables,
            claims: Claims::default(),
            programmed,
            pending: BTreeSet::new(),
            problems: BTreeMap::new(),
            unfit: BTreeSet::new(),
            unwritten: BTreeSet::new(),
            health_checks: HealthChecks::default(),
            silences: Silences::default(),
            leftovers,
            readdressed: false,
            resets: false,
            leads_by_hash: false,
            retired: BTreeSet::new(),
            stage: Stage::Waiting,
        }
    }

    /// Takes note of a change. Returns what is newly wrong with the objects.
    pub fn apply(&mut self, change: Change) -> Vec<ObjectError> {
        self.state.apply(change)
    }

    /// The node's interfaces have these addresses now. Until this is called for the first time, what an earlier run
    /// wrote about the node's addresses stays as it is. Loopback addresses are never met on the packet path (NP-11), so
    /// they are ignored.
    pub fn set_node_addresses(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        let addresses = addresses.into_iter().map(|ip| ip.to_canonical());
        let usable = Some(addresses.filter(|ip| unusable(*ip).is_none()).collect());
        if self.node_addresses != usable {
            self.node_addresses = usable;
            self.readdressed = true;
        }
    }

    /// Whose sources are pods, if they are told by their address; for the datapath's settings. May be another after
    /// every [`Model::apply`] (DLOC-01, DLOC-02).
    ///
    /// Where kube-proxy exits when the Node gets other pod networks, this follows them.
    #[must_use]
    pub fn pod_networks(&self) -> [Network; 2] {
        let of = |family| match &self.options.detect_local {
            DetectLocal::ClusterCidr(networks) => {
                networks.iter().find(|network| network.family() == family).copied()
            }
            DetectLocal::NodeCidr => self.state.node().pod_network(family),
            DetectLocal::Off | DetectLocal::ByDevice => None,
        };
        Family::ALL.map(|family| of(family).map_or(Network::NONE, |network| network.network()))
    }

    /// Where the datapath is to look for the pod that a process belongs to, after a [`Model::plan`]; `None` as long as it
    /// may be where an earlier run found it.
    #[must_use]
    pub const fn pod_levels(&self) -> Option<Levels> {
        self.state.pods.levels()
    }

    /// Whether the pods of this node have been listed once. Nothing waits for that.
    #[must_use]
    pub fn knows_pods(&self) -> bool {
        self.state.knows_pods()
    }

    /// Whether the Services and the EndpointSlices have been listed once (SYNC-01). Before that, plans are empty and
    /// commits write nothing.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.state.is_synced()
    }

    /// Writes what differs, in an order in which every packet finds complete services at every moment. A failed
    /// write holds back its own service port alone, and is repeated by the next commit.
    #[must_use = "failed writes must be retried"]
    pub fn commit<I: TablesIo>(&mut self, now: Duration, io: &mut I) -> Vec<CommitError<I::Error>> {
        let mut errors = Vec::new();
        if self.stage == Stage::Waiting {
            return errors;
        }
        let Self { tables, programmed, pending, leftovers, retired, .. } = self;
        let mut installed = Vec::new();
        for port in mem::take(pending) {
            let Some(entry) = programmed.get_mut(&port) else {
                continue;
            };
            match entry.install(now, tables, io) {
                Ok(()) => installed.push(port),
                Err(failure) => {
                    errors.push(failure.of(Some(&port)));
                    pending.insert(port);
                }
            }
        }
        errors.extend(leftovers.delete_frontends(now, tables, io).map_err(|failure| failure.of(None)).err());
        let failed = !errors.is_empty();
        for port in installed {
            let Some(entry) = programmed.get_mut(&port) else {
                continue;
            };
            let leaving = entry.leaving();
            let progress = entry.retire(now, tables, io);
            // Those before the one that could not be written are retired.
            let follows = port.transport == Transport::Udp || entry.resets();
            if follows && entry.leaving() < leaving {
                retired.insert(port.transport);
            }
            match progress {
                Ok(Progress::Settled) if entry.is_unwanted() => {
                    programmed.remove(&port);
                }
                Ok(Progress::Settled) => {}
                Ok(Progress::Waiting) => {
                    pending.insert(port);
                }
                Err(failure) => {
                    errors.push(failure.of(Some(&port)));
                    pending.insert(port);
                }
            }
        }
        // A frontend that could not be replaced may still lead to any leftover backend.
        if !failed && !leftovers.is_empty() {
            retired.extend(Transport::ALL);
            errors.extend(leftovers.retire(now, tables, io).map_err(|failure| failure.of(None)).err());
        }
        for address in tables.addresses.pending() {
            errors.extend(tables.write_address(address, now, io).map_err(|failure| failure.of(None)).err());
        }
        errors.extend(tables.write_pods(io).into_iter().map(|failure| failure.of(None)));
        for (number, line) in tables.filter.all_pending() {
            match TableIo::<AddressFilter>::put(io, &number, &line) {
                Ok(()) => tables.filter.confirm(number),
                Err(source) => errors.push(Failure::new(AddressFilter::NAME, source).of(None)),
            }
        }
        self.unwritten =
            errors.iter().filter_map(|error| Some(error.port.as_ref()?.service.clone())).collect();
        errors
    }

    /// Begins to look whether the tables still contain what was written (SYNC-06); `None` before anything was.
    ///
    /// # Errors
    ///
    /// If a table cannot be listed.
    pub fn begin_audit<I: TablesIo>(&self, io: &I) -> Result<Option<Audit>, CommitError<I::Error>> {
        match self.stage {
            Stage::Waiting => Ok(None),
            Stage::Running => Audit::of(&self.tables, io).map(Some),
        }
    }

    /// Looks at so many more entries at most, and puts right what is not as it was written.
    ///
    /// # Errors
    ///
    /// If an entry cannot be read or put right. The others can still be looked at.
    pub fn go_on<I: TablesIo>(
        &self,
        audit: &mut Audit,
        most: usize,
        io: &mut I,
    ) -> Result<(), CommitError<I::Error>> {
        audit.go_on(most, &self.tables, io)
    }

    /// Of which protocols backends may have been retired since the last call that sockets must not stay with: UDP (CT-08),
    /// and TCP of Services that ask for resets; others keep their backend (CT-20). After the first full commit, all: an
    /// earlier run may have ended between retiring and this.
    #[must_use]
    pub fn take_retired(&mut self) -> BTreeSet<Transport> {
        mem::take(&mut self.retired)
    }

    /// Whether a Service has asked for its TCP connections to be reset, since this began.
    #[must_use]
    pub const fn resets(&self) -> bool {
        self.resets
    }

    /// Whether frontends lead their clients by hash, or have led so since this model was made.
    #[must_use]
    pub const fn leads_by_hash(&self) -> bool {
        self.leads_by_hash
    }

    /// Whether anything waits: for [`Model::plan`], for a write to be repeated, or for room in a table. The agent calls
    /// plan and commit again after a moment even if no change comes.
    #[must_use]
    pub fn is_unfinished(&self) -> bool {
        self.is_synced()
            && (self.state.is_dirty()
                || self.readdressed
                || self.stage == Stage::Waiting
                || self.tables.addresses.is_pending()
                || self.tables.pods.pending_keys().next().is_some()
                || !self.pending.is_empty()
                || !self.unfit.is_empty()
                || !self.leftovers.is_empty()
                || self.tables.filter.is_pending())
    }

    /// Forgets filter bits that neither a table nor a flow needs; the next commit clears them. `in_use` tells the
    /// roles needed at a position by flows that were read at or after `sweep_started`, whether their services still
    /// exist or not: the frontend role for the VIPs and the backend role for the backends of all flows, and the node
    /// role for addresses of the node that answers come back to.
    pub fn retain_filter(
        &mut self,
        sweep_started: Duration,
        in_use: impl Fn(FilterPosition) -> AddressRoles,
    ) {
        // Before the first plan, nobody has claimed what was restored.
        if self.stage == Stage::Running {
            self.tables.filter.retain(sweep_started, in_use);
        }
    }

    /// How much is programmed.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            service_ports: self.programmed.len(),
            frontends: self.tables.frontends.len(),
            backends: self.programmed.values().map(|entry| entry.live.len()).sum(),
        }
    }

    /// Everything that is wrong at present.
    pub fn problems(&self) -> impl Iterator<Item = Problem> {
        let objects = self.state.problems().cloned().map(Problem::Object);
        let ports = self.problems.iter().flat_map(|(port, reasons)| {
            reasons.iter().map(|reason| PlanError { port: port.clone(), reason: reason.clone() })
        });
        objects.chain(ports.map(Problem::Plan))
    }
}
