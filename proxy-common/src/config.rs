//! What the agent sets and the datapath obeys.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{flow::FlowState, time::Ticks};

/// Settings of the datapath; value of the settings table.
///
/// A table rather than read-only memory of the programs, because ticks per second are known only after asking
/// the running kernel, by a program of the same object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NodeSettings {
    /// How long flows may stay silent.
    pub timeouts: Timeouts,
    /// Ticks of the kernel's clock per second.
    pub ticks_per_second: u32,
}

impl NodeSettings {
    /// The defaults for a kernel whose clock ticks `hz` times a second.
    #[must_use]
    pub const fn new(hz: u32) -> Self {
        Self { timeouts: Timeouts::kube_proxy(hz), ticks_per_second: hz }
    }

    /// A duration in ticks.
    #[must_use]
    #[inline(always)]
    pub const fn ticks(&self, seconds: u32) -> Ticks {
        Ticks(seconds.saturating_mul(self.ticks_per_second))
    }
}

/// How long a flow may stay silent, by state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Timeouts {
    by_state: [Ticks; SLOTS],
}

/// Room for every state, rounded up to a power of two: the index is masked, so neither a branch nor the
/// verifier has to bound it.
const SLOTS: usize = 16;
const _: () = assert!(FlowState::COUNT <= SLOTS);

impl Timeouts {
    /// kube-proxy's settings where it sets one (CT-32, CT-33), else the kernel's conntrack defaults, for a
    /// kernel whose clock ticks `hz` times a second.
    #[must_use]
    pub const fn kube_proxy(hz: u32) -> Self {
        let mut seconds = [0u32; FlowState::COUNT];
        seconds[FlowState::UNREPLIED.0 as usize] = 30;
        seconds[FlowState::REPLIED.0 as usize] = 120;
        seconds[FlowState::SYN_SENT.0 as usize] = 120;
        seconds[FlowState::SYN_RECEIVED.0 as usize] = 60;
        seconds[FlowState::ESTABLISHED.0 as usize] = 86_400;
        seconds[FlowState::CLIENT_CLOSED.0 as usize] = 3_600;
        seconds[FlowState::BACKEND_CLOSED.0 as usize] = 3_600;
        seconds[FlowState::TIME_WAIT.0 as usize] = 120;
        seconds[FlowState::RESET.0 as usize] = 10;
        seconds[FlowState::VOID.0 as usize] = 0;
        let mut by_state = [Ticks(0); SLOTS];
        let mut at = 0;
        while at < FlowState::COUNT {
            by_state[at] = Ticks(seconds[at] * hz);
            at += 1;
        }
        Self { by_state }
    }

    /// The timeout of a state; 0 for a state that does not exist.
    #[must_use]
    #[inline(always)]
    pub fn of(&self, state: FlowState) -> Ticks {
        self.by_state.get(usize::from(state.0) & (SLOTS - 1)).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_but_void_has_a_timeout() {
        let timeouts = Timeouts::kube_proxy(250);
        assert_eq!(timeouts.of(FlowState::ESTABLISHED), Ticks(86_400 * 250));
        for state in (0..FlowState::VOID.0).map(FlowState) {
            assert_ne!(timeouts.of(state), Ticks(0), "{state:?}");
        }
        assert_eq!(timeouts.of(FlowState(FlowState::VOID.0 + 1)), Ticks(0));
    }
}
