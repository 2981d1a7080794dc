//! agent

pub mod watch;
