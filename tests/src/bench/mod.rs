//! What benchmarks of traffic have in common: a server and clients that do as little as they can for each request, all on
//! one CPU, and figures of several rounds.
//!
//! The CPU that everything shares is never idle while requests are made, so a rate is the inverse of all that a request
//! costs, wherever it is spent. Clients wait for an answer before they ask again (a closed loop): what they would have asked
//! meanwhile is in no percentile.

pub mod client;
pub mod generator;
pub mod message;
pub mod process;
pub mod progress;
pub mod server;
pub mod summary;
pub mod text;
pub mod time;
