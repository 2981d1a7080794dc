//! The Kubernetes source against an API server: one in this process, which misbehaves on demand, and a real one if
//! `KUBEBUILDER_ASSETS` names a directory with `etcd` and `kube-apiserver`.
//!
//! And what an API server is given to run the agent.
//!
//! Each test of the source ends when what was told, put together, is what the server has.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a panic is a failed test, and says what was skipped"
)]

mod api {
    mod churn;
    mod cluster;
    mod deploy;
    mod events;
    mod failover;
    mod faults;
    mod follow;
    mod gate;
    mod log;
    mod pods;
    mod real;
    mod scenarios;
}
