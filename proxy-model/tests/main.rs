//! The model as the agent uses it: objects in, table writes out.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod capacity;
mod commit;
mod common;
mod external;
mod flow;
mod journeys;
mod outside;
mod pods;
mod policies;
mod property;
mod restore;
mod scenarios;
