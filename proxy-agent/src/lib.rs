//! The Sluice node agent: watches services, fills the kernel tables, attaches the programs.
//!
//! ```text
//! watch --Change--> model --writes--> datapath (maps)
//! devices --------------- attach ---> datapath (links)
//!         run: the loop of it all --> health, metrics --> http
//!                                 --> events
//! ```
#![deny(unsafe_code)]

pub mod cgroup;
pub mod cli;
pub mod config;
pub mod datapath;
pub mod devices;
pub mod diag;
mod directory;
mod document;
pub mod events;
pub mod health;
pub mod http;
pub mod kube_proxy;
mod memory;
pub mod metrics;
pub mod ports;
mod random;
pub mod run;
pub mod show;
pub mod watch;

/// An error with everything that caused it, on one line.
#[must_use]
pub fn report(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Some errors quote what caused them.
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] Inner);

    #[derive(Debug, thiserror::Error)]
    #[error("inner ({0})")]
    struct Inner(#[source] io::Error);

    #[test]
    fn causes_are_told_once() {
        let error = Outer(Inner(io::Error::other("disk on fire")));
        assert_eq!(report(&error), "outer: inner (disk on fire)");
    }
}
