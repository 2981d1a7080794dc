//! What the loop does: how long it takes, how far it is behind, what it cannot do.

use std::{sync::atomic::Ordering, time::Duration};

use k8s_openapi::jiff::Timestamp;
use prometheus_client::{
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use proxy_common::tables::{Devices as DevicesTable, Flows, Table as _};
use proxy_model::{ChangeCounts, Family as IpFamily, NoLocalEndpoints, Trigger, Troubles};

use super::{
    ByFamily, Histograms, Labels, Verdict, audits::Audits, ip_family, kernel::Fills, latency_buckets,
    work_buckets,
};
use crate::datapath::{Pressure, Sweep};

/// A number of seconds.
type Seconds = Gauge<f64, std::sync::atomic::AtomicU64>;

/// What the loop counts. All of it is atomic numbers, except for histograms, whose locks are held for a few additions.
#[derive(Clone, Debug)]
pub struct LoopMetrics {
    /// Triggers from before are not of this process's making (MET-32).
    started: Timestamp,
    rounds: Histograms,
    latency: Histograms,
    triggers: Histograms,
    last_written: Family<Labels<1>, Seconds>,
    last_queued: Family<Labels<1>, Seconds>,
    slice_changes: Counter,
    slice_changes_pending: Gauge,
    service_changes: Counter,
    service_changes_pending: Gauge,
    no_local_endpoints: Family<Labels<2>, Gauge>,
    synced: Gauge,
    failing_writes: Gauge,
    troubles: Family<Labels<1>, Gauge>,
    unfit: Family<Labels<1>, Gauge>,
    devices: Family<Labels<1>, Gauge>,
    socket_programs: Gauge,
    lost_programs: Counter,
    refused_programs: Gauge,
    sweeps: Histogram,
    sweep_removals: Counter,
    pressure: Gauge,
    audits: Audits,
    pub(super) fills: Fills,
}

/// How things stand after a round.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// Whether all objects have been programmed once.
    pub is_synced: bool,
    /// Objects that came in.
    pub changes: ChangeCounts,
    /// Service ports that nobody on this node serves.
    pub no_local_endpoints: [NoLocalEndpoints; 2],
    /// What is wrong with objects.
    pub troubles: Troubles,
    /// Writes that failed in the latest round.
    pub failing_writes: usize,
    /// Entries in use, by table.
    pub table_entries: [(&'static str, usize); 6],
    /// Devices by what became of them.
    pub devices: Devices,
    /// Programs for sockets that are attached.
    pub socket_programs: usize,
    /// Service ports that found no room, by table.
    pub unfit: [(&'static str, usize); 5],
}

/// Numbers of devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Devices {
    /// With programs.
    pub attached: usize,
    /// Without, as it should be.
    pub skipped: usize,
    /// That wait for another try.
    pub unfinished: usize,
    /// That the datapath knows something of.
    pub rows: usize,
}

impl Default for LoopMetrics {
    fn default() -> Self {
        let own_latency = || Histogram::new(exponential_buckets(0.0001, 2.0, 20));
        Self {
            started: Timestamp::now(),
            rounds: Histograms::new(work_buckets),
            latency: Histograms::new(own_latency),
            triggers: Histograms::new(latency_buckets),
            last_written: Family::default(),
            last_queued: Family::default(),
            slice_changes: Counter::default(),
            slice_changes_pending: Gauge::default(),
            service_changes: Counter::default(),
            service_changes_pending: Gauge::default(),
            no_local_endpoints: Family::default(),
            synced: Gauge::default(),
            failing_writes: Gauge::default(),
            troubles: Family::default(),
            unfit: Family::default(),
            devices: Family::default(),
            socket_programs: Gauge::default(),
            lost_programs: Counter::default(),
            refused_programs: Gauge::default(),
            sweeps: work_buckets(),
            sweep_removals: Counter::default(),
            pressure: Gauge::default(),
            audits: Audits::default(),
            fills: Fills::default(),
        }
    }
}

impl LoopMetrics {
    /// Something has to be programmed.
    pub fn queued(&self, wall: Timestamp) {
        for family in IpFamily::ALL {
            self.last_queued.get_or_create(&ip_family(family)).set(seconds_since_epoch(wall));
        }
    }

    /// A round that had something to do took so long. It serves both families at once.
    pub fn round(&self, took: Duration) {
        self.rounds.by_family.iter().for_each(|histogram| histogram.observe(took.as_secs_f64()));
    }

    /// All changes of a family are in the kernel; the oldest one waited so long.
    pub fn written(&self, family: IpFamily, waited: Duration, wall: Timestamp) {
        of(&self.latency.by_family, family).observe(waited.as_secs_f64());
        self.last_written.get_or_create(&ip_family(family)).set(seconds_since_epoch(wall));
    }

    /// What a slice was written for is in the kernel (MET-06).
    pub fn finished(&self, trigger: Trigger, wall: Timestamp) {
        if trigger.time > self.started {
            let waited = wall.duration_since(trigger.time).as_secs_f64();
            of(&self.triggers.by_family, trigger.family).observe(waited.max(0.0));
        }
    }

    /// Somebody has taken the programs off so many devices.
    pub fn lost_programs(&self, devices: usize) {
        self.lost_programs.inc_by(devices as u64);
    }

    /// The kernel has refused so many programs.
    pub fn refused(&self, programs: usize) {
        set(&self.refused_programs, programs);
    }

    /// An audit of the tables is over.
    pub fn audited(&self, verdict: &Verdict, wall: Timestamp) {
        self.audits.note(verdict, wall);
    }

    /// The flow table was swept.
    pub fn swept(&self, sweep: &Sweep, took: Duration) {
        self.sweeps.observe(took.as_secs_f64());
        self.sweep_removals.inc_by(sweep.removed as u64);
        self.pressure.set(match sweep.pressure() {
            Pressure::Low => 0,
            Pressure::Rising => 1,
            Pressure::High => 2,
        });
        self.fills.set(Flows::NAME, sweep.left);
    }

    /// This is how things stand.
    pub fn stand(&self, standing: &Standing) {
        let Standing {
            is_synced,
            changes,
            no_local_endpoints,
            troubles,
            failing_writes,
            table_entries,
            devices,
            socket_programs,
            unfit,
        } = *standing;
        set(&self.synced, usize::from(is_synced));
        self.service_changes.inner().store(changes.services, Ordering::Relaxed);
        self.slice_changes.inner().store(changes.slices, Ordering::Relaxed);
        set(&self.service_changes_pending, changes.pending_services);
        set(&self.slice_changes_pending, changes.pending_slices);
        for (family, NoLocalEndpoints { internal, external }) in IpFamily::ALL.iter().zip(no_local_endpoints)
        {
            for (policy, count) in [("internal", internal), ("external", external)] {
                let [family] = ip_family(*family);
                set(&self.no_local_endpoints.get_or_create(&[family, ("traffic_policy", policy)]), count);
            }
        }
        for (what, count) in [
            ("objects", troubles.objects),
            ("service_ports", troubles.service_ports),
            ("services_without_room", troubles.services_without_room),
        ] {
            set(&self.troubles.get_or_create(&[("what", what)]), count);
        }
        for (table, ports) in unfit {
            set(&self.unfit.get_or_create(&[("table", table)]), ports);
        }
        set(&self.failing_writes, failing_writes);
        let Devices { attached, skipped, unfinished, rows } = devices;
        for (state, count) in [("attached", attached), ("skipped", skipped), ("unfinished", unfinished)] {
            set(&self.devices.get_or_create(&[("state", state)]), count);
        }
        set(&self.socket_programs, socket_programs);
        table_entries.iter().for_each(|(table, entries)| self.fills.set(table, *entries));
        self.fills.set(DevicesTable::NAME, rows);
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        self.register_as_kube_proxy(registry);
        registry.register(
            "sluice_programming_duration_seconds",
            "Time from when a change came in until all changes of its family were in the kernel",
            self.latency.all.clone(),
        );
        registry.register(
            "sluice_synced",
            "Whether all objects have been programmed once",
            self.synced.clone(),
        );
        let help = "Writes to the kernel's tables that failed in the latest round and are repeated";
        registry.register("sluice_failing_writes", help, self.failing_writes.clone());
        registry.register(
            "sluice_problems",
            "Objects with a part that cannot be used, service ports that lack a frontend or room, Services without room",
            self.troubles.clone(),
        );
        let help = "Service ports that a table has no room for; they stay as they were";
        registry.register("sluice_unfit_service_ports", help, self.unfit.clone());
        registry.register("sluice_devices", "Network devices by what became of them", self.devices.clone());
        let help = "Devices that somebody has taken the programs off";
        registry.register("sluice_lost_programs", help, self.lost_programs.clone());
        let help = "Programs that the kernel has refused, and that those of an earlier agent stand in for";
        registry.register("sluice_refused_programs", help, self.refused_programs.clone());
        let help = "Programs that are attached to sockets";
        registry.register("sluice_socket_programs", help, self.socket_programs.clone());
        registry.register(
            "sluice_flow_sweep_duration_seconds",
            "Time that a sweep of the flow table took",
            self.sweeps.clone(),
        );
        let help = "Entries of the flow table that sweeps have removed";
        registry.register("sluice_flow_sweep_removals", help, self.sweep_removals.clone());
        let help = "How the flow table is for room: 0 well, 1 filling up, 2 short";
        registry.register("sluice_flow_pressure", help, self.pressure.clone());
        self.audits.register(registry);
        self.fills.register(registry);
    }

    fn register_as_kube_proxy(&self, registry: &mut Registry) {
        let help = "Time that a round of programming took";
        registry.register("kubeproxy_sync_proxy_rules_duration_seconds", help, self.rounds.all.clone());
        let help = "Time from the change that an EndpointSlice was written for until it was programmed";
        registry.register("kubeproxy_network_programming_duration_seconds", help, self.triggers.all.clone());
        let help = "Unix time when everything was programmed last";
        let last_written = self.last_written.clone();
        registry.register("kubeproxy_sync_proxy_rules_last_timestamp_seconds", help, last_written);
        let help = "Unix time when something was to be programmed last";
        let last_queued = self.last_queued.clone();
        registry.register("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", help, last_queued);
        let help = "Changes of EndpointSlices";
        registry.register("kubeproxy_sync_proxy_rules_endpoint_changes", help, self.slice_changes.clone());
        let help = "Changes of EndpointSlices that wait to be programmed";
        let pending = self.slice_changes_pending.clone();
        registry.register("kubeproxy_sync_proxy_rules_endpoint_changes_pending", help, pending);
        let help = "Changes of Services";
        registry.register("kubeproxy_sync_proxy_rules_service_changes", help, self.service_changes.clone());
        let help = "Services whose changes wait to be programmed";
        let pending = self.service_changes_pending.clone();
        registry.register("kubeproxy_sync_proxy_rules_service_changes_pending", help, pending);
        registry.register(
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
            "Service ports with a Local traffic policy that have endpoints, but none on this node",
            self.no_local_endpoints.clone(),
        );
    }
}

fn of(by_family: &ByFamily<Histogram>, family: IpFamily) -> &Histogram {
    let [v4, v6] = by_family;
    match family {
        IpFamily::Ipv4 => v4,
        IpFamily::Ipv6 => v6,
    }
}

pub(super) fn set(gauge: &Gauge, count: usize) {
    gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
}

fn seconds_since_epoch(wall: Timestamp) -> f64 {
    wall.as_duration().as_secs_f64()
}
