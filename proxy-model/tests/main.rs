//! The model as the agent uses it: objects in, table writes out.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod audit;
mod cached;
mod capacity;
mod commit;
mod common;
mod external;
mod flow;
mod health;
mod journeys;
mod maglev;
mod outside;
mod own_address;
mod pods;
mod policies;
mod property;
mod reset;
mod restore;
mod retired;
mod scenarios;
