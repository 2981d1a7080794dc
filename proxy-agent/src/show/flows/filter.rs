//! Which flows are of interest.

use std::net::{IpAddr, SocketAddr};

use clap::{Args, ValueEnum};
use proxy_common::{flow::FlowState, tuple::Protocol};

use super::FlowRow;
use crate::show::{
    ShowError,
    ends::{EndFilterArgs, Ends},
    names::Names,
};

/// Which flows are shown.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Which flows")]
pub struct FlowFilterArgs {
    /// Between whom.
    #[command(flatten)]
    pub ends: EndFilterArgs,
    /// Only those in one of these states
    #[arg(long, value_enum, value_name = "STATE,...", value_delimiter = ',')]
    pub state: Vec<StateName>,
    /// Those too that are over and only take up room until the agent's next sweep
    #[arg(long)]
    pub expired: bool,
}

/// How far a flow has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateName(FlowState);

impl ValueEnum for StateName {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: [StateName; FlowState::COUNT] = [
            StateName(FlowState::UNREPLIED),
            StateName(FlowState::REPLIED),
            StateName(FlowState::SYN_SENT),
            StateName(FlowState::SYN_RECEIVED),
            StateName(FlowState::ESTABLISHED),
            StateName(FlowState::CLIENT_CLOSED),
            StateName(FlowState::BACKEND_CLOSED),
            StateName(FlowState::TIME_WAIT),
            StateName(FlowState::RESET),
            StateName(FlowState::VOID),
        ];
        &ALL
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(clap::builder::PossibleValue::new(self.0.as_str()))
    }
}

impl FlowFilterArgs {
    /// With the ids that services have at present.
    pub(in crate::show) fn resolve(&self, names: &Names) -> Result<FlowFilter, ShowError> {
        Ok(FlowFilter { ends: self.ends.resolve(names)?, state: self.state.clone(), expired: self.expired })
    }
}

/// Which flows are shown, as the tables know them.
#[derive(Clone, Debug, Default)]
pub struct FlowFilter {
    pub(super) ends: Ends,
    state: Vec<StateName>,
    expired: bool,
}

impl FlowFilter {
    /// Those between two ends that are not over.
    pub(in crate::show) fn between(client: IpAddr, frontend: SocketAddr, protocol: Protocol) -> Self {
        let state = StateName::value_variants().iter().filter(|state| !state.0.is_over()).copied().collect();
        Self { ends: Ends::between(client, frontend, protocol), state, expired: false }
    }

    /// Whether a flow is shown that is between the right ends.
    pub(super) fn admits_row(&self, row: &FlowRow) -> bool {
        let states = &self.state;
        let wanted = states.is_empty() || states.iter().any(|state| state.0.as_str() == row.state);
        // Nobody asks for what is over, unless by name.
        let is_void = row.state == FlowState::VOID.as_str() && states.is_empty();
        wanted && (self.expired || row.expires_in_seconds.is_some() && !is_void)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_can_be_asked_for_by_its_name() {
        let names: Vec<_> = StateName::value_variants().iter().map(|state| state.0.as_str()).collect();
        let all: Vec<_> = (0..).map(FlowState).take(FlowState::COUNT).map(FlowState::as_str).collect();
        assert_eq!(names, all);
    }
}
