//! What Kubernetes' own end-to-end tests ask of a proxy and packets (section 38 of the behaviour that is matched), each
//! under its number there. Where another file here asks the same, the test there names the number.

mod affinity;
mod networking;
mod services;
mod slices;
mod zones;

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    topology::{Ends, Family, Machine},
    traffic::{Connection, Protocol, Source},
};

use crate::expect::ask;

/// `client` reaches that backend by TCP, or nobody: it may be refused, or told that there is no way.
fn expect_tcp(client: &Machine, to: Ends, backend: Option<&str>) -> Result<()> {
    for family in Family::ALL {
        let to = to.of(family);
        if let Some(expected) = backend {
            let reached =
                ask(client, to, Protocol::Tcp).with_context(|| format!("{expected} at {to}"))?.backend;
            ensure!(reached == expected, "{to} is {reached}, not {expected}");
        } else {
            let result = Connection::open(&client.namespace, to, Source::AnyPort);
            ensure!(result.is_err(), "{to} should be nobody: {result:?}");
        }
    }
    Ok(())
}
