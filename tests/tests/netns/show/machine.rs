//! `sluice preflight` and `sluice top`.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sluice_tests::{
    agent::{Agent, binary},
    harness::Setup,
    listener::Listener,
    service::Service,
    topology::Family,
    traffic::Connection,
};

use super::list;
use crate::Backend;

/// What a command prints, and whether it ends well.
fn outcome(agent: &Agent, arguments: &[&str]) -> Result<(bool, Value)> {
    let output = agent.namespace().run(|| Ok(Command::new(binary()?).args(arguments).output()?))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let value = serde_json::from_str(&text).with_context(|| format!("{arguments:?}: {output:?}"))?;
    Ok((output.status.success(), value))
}

#[test]
fn a_machine_that_runs_an_agent_passes_the_preflight() {
    Setup::new(1).alone().run(|_, agents| {
        let agent = &agents.agents[0];
        let answer = agent.ask_json(&["preflight"])?;
        ensure!(answer["ready"] == true, "{answer:#}");
        let check = |answer: &Value, name: &str| -> Result<Value> {
            let found = list(answer, "checks").iter().find(|check| check["name"] == name);
            found.cloned().with_context(|| format!("{name}: {answer:#}"))
        };
        for name in ["kernel", "capabilities", "bpffs", "features", "programs"] {
            ensure!(check(&answer, name)?["status"] == "ok", "{answer:#}");
        }
        let programs = check(&answer, "programs")?;
        ensure!(
            programs["found"].as_str().is_some_and(|found| found.contains("sluice_ingress")),
            "{programs:#}"
        );
        // Nothing was pinned or attached by it.
        let status = agent.ask_json(&["status"])?;
        ensure!(list(&status, "other_layouts").is_empty(), "{status:#}");

        let (is_ready, answer) = outcome(agent, &["preflight", "-o", "json", "--bpffs", "/dev/shm/sluice"])?;
        ensure!(!is_ready && answer["ready"] == false, "{answer:#}");
        let bpffs = check(&answer, "bpffs")?;
        ensure!(bpffs["status"] == "failed" && bpffs["remedy"].is_string(), "{bpffs:#}");
        Ok(())
    });
}

#[test]
fn top_counts_what_goes_on_per_second() {
    Setup::new(1).alone().run(|cluster, agents| {
        let pod = cluster.nodes[0].add_pod("pod")?;
        let near = Backend::on(&cluster.nodes[0], "near")?;
        let agent = &agents.agents[0];
        let service = Service::new("echo", 1).with(&near.pod);
        agents.serve(&service)?;
        let listener =
            Listener::start(agent, &["top", "--interval", "1", "--service", "default/echo:tcp/TCP/IPv4"])?;
        // Every line is about the one service port, busy or not.
        let is_one = |line: &Value| {
            list(line, "services").len() == 1
                && list(line, "services")[0]["service"] == "default/echo:tcp/TCP/IPv4"
        };
        listener.wait_for("an idle second", |line| {
            is_one(line) && list(line, "services")[0]["connections"] == 0.0
        })?;
        let connections = Connection::open_many(&pod.machine.namespace, service.frontend(Family::V4), 50)?;
        let busy = listener.wait_for("a busy second", |line| {
            list(line, "services").first().is_some_and(|row| row["connections"].as_f64() > Some(0.0))
        })?;
        let row = &list(&busy, "services")[0];
        let number = |field: &str| row[field].as_f64().unwrap_or_default();
        ensure!(
            number("packets") >= number("connections") && number("bits") > number("packets") * 8.0 * 40.0,
            "{busy:#}"
        );
        ensure!(number("reply_packets") > 0.0 && number("drops") == 0.0, "{busy:#}");
        listener.wait_for("they have all been made", |line| {
            list(line, "services").first().is_some_and(|row| row["connections"] == 0.0)
        })?;
        listener.kill()?;
        drop(connections);
        let text = agent.ask(&["top", "--once", "--interval", "1"])?;
        ensure!(text.starts_with("SERVICE") && text.contains("default/echo:tcp TCP/IPv4"), "{text}");
        Ok(())
    });
}
