//! The benchmark of sockets goes every way that it speaks of. How fast, is not a test's business.

use std::{collections::BTreeSet, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sluice_tests::{
    agent,
    cgroup::Threads,
    harness::{requirements, skipped, unsupported},
};

#[test]
fn the_benchmark_of_sockets_has_a_figure_for_every_way() {
    if let Err(reason) = requirements() {
        return skipped(&reason);
    }
    if let Err(reason) = Threads::create("bench") {
        return unsupported(&reason);
    }
    let measured = measure().and_then(|report| expect_all(&report).with_context(|| format!("{report:#}")));
    measured.unwrap_or_else(|error| panic!("{error:#}"));
}

fn measure() -> Result<Value> {
    let output = Command::new(env!("CARGO_BIN_EXE_bench-sockets"))
        .args(["--quick", "--json"])
        .env("SLUICE_BIN", agent::binary()?)
        .output()
        .context("start the benchmark")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {errors}", output.status);
    ensure!(errors.is_empty(), "progress in a pipe: {errors}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn expect_all(report: &Value) -> Result<()> {
    let rows = |name: &str| report[name].as_array().with_context(|| format!("no {name}"));
    let ways = rows("requests")?.iter().map(|row| -> Result<[&str; 4]> {
        for figure in ["rate", "cpu", "share", "cpu_share", "p50", "p99"] {
            expect_positive(&row[figure]).with_context(|| format!("{figure} of {row}"))?;
        }
        let name = |field: &str| row[field].as_str().with_context(|| format!("{field} of {row}"));
        Ok([name("life")?, name("client")?, name("place")?, name("way")?])
    });
    let ways = ways.collect::<Result<BTreeSet<_>>>()?;
    let mut expected = BTreeSet::new();
    for life in ["keep-alive", "one-request"] {
        for place in ["same-node", "other-node"] {
            for way in ["direct", "socket"] {
                expected.extend(["host", "pod"].map(|client| [life, client, place, way]));
            }
            expected.insert([life, "pod", place, "packet"]);
        }
    }
    ensure!(ways == expected, "{ways:?}");
    let calls = rows("calls")?;
    ensure!(calls.len() == 7, "{} calls", calls.len());
    for row in calls {
        for figure in
            ["without_hooks", "no_service", "service", "among_others", "hook_no_service", "hook_service"]
        {
            expect_positive(&row[figure]).with_context(|| format!("{figure} of {row}"))?;
        }
        if row["client"] == "pod" {
            expect_positive(&row["by_packet"]).with_context(|| format!("by packet of {row}"))?;
        }
    }
    Ok(())
}

fn expect_positive(summary: &Value) -> Result<()> {
    for figure in ["low", "median", "high"] {
        let figure = summary[figure].as_f64().context("no figure")?;
        ensure!(figure > 0.0, "{figure}");
    }
    Ok(())
}
