//! What somebody else does to the tables is put right, and told.

use anyhow::{Context as _, Result, ensure};
use proxy_agent::datapath::{HashTable, Pins};
use proxy_common::{
    frontend::{Frontend, FrontendKey},
    pod::{CgroupId, POD_NAME_BYTES, PodEntry, PodReasons},
    tables::{Frontends, Pods},
};
use sluice_tests::{agent::Agent, harness::Setup, service::Service, wait::wait_until};

use crate::{Backend, expect::expect_all_reach};

/// The verdicts that have been told so far.
fn verdicts(agent: &Agent) -> Result<[f64; 3]> {
    let scrape = agent.scrape()?;
    let told =
        |verdict| scrape.value(&format!("sluice_audits_total{{verdict={verdict:?}}}")).unwrap_or_default();
    Ok(["sound", "repaired", "incomplete"].map(told))
}

/// SYNC-06.
#[test]
fn changed_tables_are_restored_and_the_verdict_is_told() {
    Setup::new(1).telling(&["--audit-interval=1s"]).alone().run(|cluster, agents| {
        let node = &cluster.nodes[0];
        let near = Backend::on(node, "near")?;
        let client = node.add_pod("client")?;
        let service = Service::new("echo", 1).with(&near.pod);
        agents.serve(&service)?;
        let agent = &agents.agents[0];
        wait_until("an audit is over", || Ok((verdicts(agent)?[0] > 0.0).then_some(())))?;
        let before = agent.scrape()?;
        ensure!(
            before.value("sluice_audit_sound")? == 1.0 && before.sum("sluice_audit_repairs_total") == 0.0
        );
        let last = before.value("sluice_audit_last_timestamp_seconds")?;

        agent.namespace().run(|| {
            let pins = Pins::new(agent.bpffs());
            let mut frontends = HashTable::<Frontends>::open(&pins)?;
            let rows = frontends.entries().collect::<Result<Vec<_>, _>>()?;
            let (key, _) = rows.first().context("a frontend")?;
            frontends.delete(key)?;
            frontends.put(&FrontendKey::default(), &Frontend::default())?;
            HashTable::<Pods>::open(&pins)?
                .put(&CgroupId(7), &PodEntry { reason: PodReasons::NONE, name: [0; POD_NAME_BYTES] })?;
            Ok(())
        })?;
        wait_until("the tables are restored", || Ok((verdicts(agent)?[1] > 0.0).then_some(())))?;
        expect_all_reach(&client.machine, &service, "near")?;
        wait_until("the next audit finds nothing", || {
            Ok((agent.scrape()?.value("sluice_audit_sound")? == 1.0).then_some(()))
        })?;
        let after = agent.scrape()?;
        for (table, entries) in [("FRONTENDS", 2.0), ("PODS", 1.0)] {
            ensure!(
                after.value(&format!("sluice_audit_repairs_total{{table={table:?}}}"))? == entries,
                "{table}"
            );
        }
        ensure!(after.value("sluice_audit_last_timestamp_seconds")? > last);
        ensure!(verdicts(agent)?[2] == 0.0);
        Ok(())
    });
}
