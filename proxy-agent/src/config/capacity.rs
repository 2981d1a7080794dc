//! How much the tables are to have room for.

use clap::Args;
use serde::{Deserialize, Serialize};

use super::problem::Problem;
use crate::datapath::Capacities;

/// Room in tables: as flags say it, or the field `capacities` of the file.
#[derive(Args, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CapacityOptions {
    /// Service ports that can be served, one for each port and IP family of a Service [default: 16384]
    #[arg(long = "max-services", value_name = "N", help_heading = "Capacities")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub services: Option<u32>,
    /// Addresses and ports that services have: ClusterIPs, external addresses, NodePorts [default: 65536]
    #[arg(long = "max-frontends", value_name = "N", help_heading = "Capacities")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frontends: Option<u32>,
    /// Endpoints of all service ports together; one that is in two of them counts twice [default: 262144]
    #[arg(long = "max-backends", value_name = "N", help_heading = "Capacities")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backends: Option<u32>,
    /// Ranges in the loadBalancerSourceRanges of all service ports together [default: 65536]
    #[arg(long = "max-source-ranges", value_name = "N", help_heading = "Capacities")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_ranges: Option<u32>,
    /// Entries of connections and UDP flows: two for each, four where the source is rewritten [default: 524288]
    #[arg(long = "max-flow-entries", value_name = "N", help_heading = "Capacities")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flow_entries: Option<u32>,
    /// Clients whose backend is remembered for services with session affinity. The one that was away for longest is
    /// forgotten first [default: 65536]
    #[arg(long = "max-affinities", value_name = "N", help_heading = "Capacities")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinities: Option<u32>,
    /// Sockets whose peers are remembered, two entries for each. The one that was asked about least recently is forgotten
    /// first [default: 65536]
    #[arg(long = "max-sockets", value_name = "N", help_heading = "Capacities")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sockets: Option<u32>,
}

/// What can be chosen: a flag, a field, the least and the most, what was chosen, and where that goes.
struct Knob<'a> {
    flag: &'static str,
    field: &'static str,
    least: u32,
    most: u32,
    chosen: Option<u32>,
    target: &'a mut u32,
}

/// The kernel hands out the elements of tables that forget to CPUs in advance: small ones would forget at once.
const LEAST_THAT_FORGETS: u32 = 1_024;

const MILLION: u32 = 1 << 20;

impl CapacityOptions {
    /// These, and where they say nothing, those.
    pub(super) fn or(self, file: Self) -> Self {
        Self {
            services: self.services.or(file.services),
            frontends: self.frontends.or(file.frontends),
            backends: self.backends.or(file.backends),
            source_ranges: self.source_ranges.or(file.source_ranges),
            flow_entries: self.flow_entries.or(file.flow_entries),
            affinities: self.affinities.or(file.affinities),
            sockets: self.sockets.or(file.sockets),
        }
    }

    /// Whether nothing is chosen.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The capacities, with defaults where nothing is chosen.
    pub(super) fn capacities(&self) -> Capacities {
        let mut capacities = Capacities::default();
        for Knob { chosen, target, .. } in self.knobs(&mut capacities) {
            *target = chosen.unwrap_or(*target);
        }
        capacities
    }

    /// What cannot be. What `flags` do not say is in the file.
    pub(super) fn problems(&self, flags: &Self) -> Vec<Problem> {
        let (mut capacities, mut others) = (Capacities::default(), Capacities::default());
        let mut problems = Vec::new();
        for (knob, flagged) in self.knobs(&mut capacities).into_iter().zip(flags.knobs(&mut others)) {
            let Knob { flag, field, least, most, chosen, .. } = knob;
            if let Some(value) = chosen.filter(|value| !(least..=most).contains(value)) {
                let name = if flagged.chosen.is_some() { flag } else { field };
                problems.push(Problem::with_flag(
                    name,
                    value.to_string(),
                    format!("must be from {least} to {most}"),
                ));
            }
        }
        problems
    }

    fn knobs<'a>(&self, capacities: &'a mut Capacities) -> [Knob<'a>; 7] {
        let Self { services, frontends, backends, source_ranges, flow_entries, affinities, sockets } = *self;
        let knob =
            |flag, field, least, most, chosen, target| Knob { flag, field, least, most, chosen, target };
        [
            knob(
                "--max-services",
                "capacities.services",
                16,
                MILLION / 4,
                services,
                &mut capacities.services,
            ),
            knob(
                "--max-frontends",
                "capacities.frontends",
                16,
                MILLION,
                frontends,
                &mut capacities.frontends,
            ),
            knob(
                "--max-backends",
                "capacities.backends",
                16,
                4 * MILLION,
                backends,
                &mut capacities.backends,
            ),
            knob(
                "--max-source-ranges",
                "capacities.sourceRanges",
                16,
                MILLION,
                source_ranges,
                &mut capacities.source_ranges,
            ),
            knob(
                "--max-flow-entries",
                "capacities.flowEntries",
                1_024,
                32 * MILLION,
                flow_entries,
                &mut capacities.flows,
            ),
            knob(
                "--max-affinities",
                "capacities.affinities",
                LEAST_THAT_FORGETS,
                4 * MILLION,
                affinities,
                &mut capacities.affinities,
            ),
            knob(
                "--max-sockets",
                "capacities.sockets",
                LEAST_THAT_FORGETS,
                4 * MILLION,
                sockets,
                &mut capacities.sockets,
            ),
        ]
    }
}
