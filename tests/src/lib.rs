//! The test bed.
//!
//! [`topology`] builds clusters out of network namespaces, [`service`] and [`manifest`] tell their nodes what to
//! serve, [`agent`] runs the real agent on them, and [`traffic`] sends real traffic and says where it went.
//! [`harness`] ties them together for tests, [`bench`](mod@bench) has what benchmarks share; [`shipped`] is what clusters are given.
//!
//! Everything lives in namespaces and file systems that end with the process ([`netns`], [`sandbox`]): however a
//! test ends, the host is as before.

pub mod agent;
pub mod apiserver;
pub mod bench;
pub mod cgroup;
pub mod chart;
pub mod contents;
pub mod counters;
pub mod deployment;
pub mod harness;
pub mod kernel;
pub mod listener;
pub mod machine;
pub mod manifest;
pub mod netns;
pub mod packets;
pub mod pod;
pub mod sandbox;
pub mod scrape;
pub mod service;
pub mod shipped;
pub mod topology;
pub mod traffic;
pub mod uplink;
pub mod variant;
pub mod view;
pub mod wait;
