//! What came in, and since when it waits: the material of metrics, of no influence on the tables.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

use k8s_openapi::{api::discovery::v1::EndpointSlice, jiff::Timestamp};

use crate::{change::ObjectName, name::Family};

/// When the change happened that made the controller write the slice, in RFC 3339 (MET-32).
const TRIGGER_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// The change in the cluster that a slice was written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trigger {
    /// Family of the slice.
    pub family: Family,
    /// When it happened, by the clock of whoever saw it.
    pub time: Timestamp,
}

/// How many objects changed, and how many of these changes no plan has seen yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChangeCounts {
    /// Events about Services, of interest or not (MET-10).
    pub services: u64,
    /// Events about slices of families that are served (MET-08).
    pub slices: u64,
    /// Services whose changes wait (MET-09).
    pub pending_services: usize,
    /// Changes of slices that wait (MET-07).
    pub pending_slices: usize,
}

/// Keeps count.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    services: u64,
    slices: u64,
    pending_services: BTreeSet<ObjectName>,
    pending_slices: usize,
    /// By Service.
    triggers: BTreeMap<ObjectName, Vec<Trigger>>,
}

impl Journal {
    /// An event about a Service.
    pub(crate) fn saw_service(&mut self) {
        self.services += 1;
    }

    /// An event about a slice of a family that is served.
    pub(crate) fn saw_slice(&mut self) {
        self.slices += 1;
    }

    /// The Service is not what it was.
    pub(crate) fn service_changed(&mut self, service: &ObjectName) {
        self.pending_services.insert(service.clone());
    }

    /// A slice of the Service is not what it was.
    pub(crate) fn slice_changed(&mut self, service: &ObjectName, family: Family, slice: &EndpointSlice) {
        self.pending_slices += 1;
        let annotations = slice.metadata.annotations.as_ref();
        let time = annotations.and_then(|all| all.get(TRIGGER_ANNOTATION)?.parse().ok());
        if let Some(time) = time {
            self.triggers.entry(service.clone()).or_default().push(Trigger { family, time });
        }
    }

    /// A slice of the Service is gone. When that happened nobody says, and the annotations of the family's slices speak
    /// of earlier changes: they are discarded, as upstream does (MET-32).
    pub(crate) fn slice_gone(&mut self, service: &ObjectName, family: Family) {
        self.pending_slices += 1;
        if let Some(triggers) = self.triggers.get_mut(service) {
            triggers.retain(|trigger| trigger.family != family);
        }
    }

    /// A plan has seen everything so far.
    pub(crate) fn planned(&mut self) {
        self.pending_services.clear();
        self.pending_slices = 0;
    }

    /// The counts.
    pub(crate) fn counts(&self) -> ChangeCounts {
        ChangeCounts {
            services: self.services,
            slices: self.slices,
            pending_services: self.pending_services.len(),
            pending_slices: self.pending_slices,
        }
    }

    /// The triggers since the last call, but not those of Services that are `held_back`.
    pub(crate) fn take_triggers(&mut self, held_back: impl Fn(&ObjectName) -> bool) -> Vec<Trigger> {
        let (kept, done): (BTreeMap<_, _>, BTreeMap<_, _>) =
            mem::take(&mut self.triggers).into_iter().partition(|(service, _)| held_back(service));
        self.triggers = kept;
        done.into_values().flatten().collect()
    }
}
