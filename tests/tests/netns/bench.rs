//! The benchmarks have a figure for everything that they speak of. How fast, is not a test's business.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, anyhow, ensure};
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
    let measured = measure(env!("CARGO_BIN_EXE_bench-sockets"))
        .and_then(|report| expect_all(&report).with_context(|| format!("{report:#}")));
    measured.unwrap_or_else(|error| panic!("{error:#}"));
}

#[test]
fn the_benchmark_of_programs_has_a_figure_for_every_hook() {
    if let Err(reason) = requirements() {
        return skipped(&reason);
    }
    let out = tempfile::tempdir().unwrap();
    let measured =
        measure_with(env!("CARGO_BIN_EXE_bench-program"), &["--out", &out.path().to_string_lossy()])
            .and_then(|report| expect_programs(&report).with_context(|| format!("{report:#}")));
    measured.unwrap_or_else(|error| panic!("{error:#}"));
    for name in ["program.md", "program.svg", "program.png"] {
        assert!(out.path().join(name).metadata().unwrap().len() > 1000, "{name}");
    }
}

fn expect_programs(report: &Value) -> Result<()> {
    let cases = report["cases"].as_array().context("no cases")?;
    let mut groups = BTreeSet::new();
    for case in cases {
        let name = case["case"].as_str().context("no name")?;
        let median = case["median"].as_f64().with_context(|| format!("no figure: {case}"))?;
        // Next to nothing may come out as less than that, of so few packets.
        ensure!(median > 0.0 || name.contains("not ours") || name.contains("parse only"), "{case}");
        groups.insert(case["group"].as_str().context("no group")?);
    }
    for hook in ["tc", "XDP"] {
        for kind in ["IPv4 TCP", "IPv4 UDP", "IPv6 TCP", "IPv6 UDP"] {
            ensure!(groups.contains(format!("{hook}, {kind}").as_str()), "{hook}, {kind} in {groups:?}");
        }
    }
    ensure!(cases.iter().filter(|case| case["case"] == "new flow").count() == 4, "new flows");
    Ok(())
}

#[test]
fn the_benchmark_of_control_has_all_figures() {
    if let Err(reason) = requirements() {
        return skipped(&reason);
    }
    let measured = measure(env!("CARGO_BIN_EXE_bench-control"))
        .and_then(|report| expect_control(&report).with_context(|| format!("{report:#}")));
    measured.unwrap_or_else(|error| panic!("{error:#}"));
}

fn expect_control(report: &Value) -> Result<()> {
    let rows = report["rows"].as_array().context("no rows")?;
    ensure!(!rows.is_empty(), "nothing was measured");
    for row in rows {
        let figures = [
            "/cold/from_start",
            "/cold/from_lists",
            "/cold/cpu",
            "/again/from_start",
            "/one_change/median",
            "/one_change/p99",
            "/one_change/max",
            "/all_changes",
            "/resident",
            "/resident_peak",
            "/tables",
        ];
        for figure in figures {
            let found = row.pointer(figure).and_then(Value::as_f64).with_context(|| figure.to_owned())?;
            ensure!(found > 0.0, "{figure}: {found}");
        }
        // An agent that has nothing to do may use less than a tick of the clock that CPU time is counted by.
        ensure!(row["idle_cpu"].as_f64().is_some_and(|share| share >= 0.0), "idle_cpu");
    }
    Ok(())
}

#[test]
fn the_benchmark_of_services_has_a_figure_for_every_way() {
    let programs = ["iptables-nft-restore", "iptables-legacy-restore", "nft"];
    let missing = programs.into_iter().find(|program| {
        Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err()
    });
    let ready = requirements().and_then(|()| match missing {
        Some(program) => Err(anyhow!("{program} is not installed")),
        None => Ok(()),
    });
    if let Err(reason) = ready {
        return skipped(&reason);
    }
    if let Err(reason) = Threads::create("bench") {
        return unsupported(&reason);
    }
    let out = tempfile::tempdir().unwrap();
    let measured =
        measure_with(env!("CARGO_BIN_EXE_bench-services"), &["--out", &out.path().to_string_lossy()])
            .and_then(|report| expect_services(&report).with_context(|| format!("{report:#}")))
            .and_then(|()| expect_pictures(out.path()));
    measured.unwrap_or_else(|error| panic!("{error:#}"));
}

fn expect_services(report: &Value) -> Result<()> {
    let rows = report["rows"].as_array().context("no rows")?;
    let mut found: BTreeMap<(u64, String), BTreeSet<(String, String)>> = BTreeMap::new();
    for row in rows {
        for figure in ["rate", "cpu", "share", "cpu_share"] {
            expect_positive(&row[figure]).with_context(|| format!("{figure} of {row}"))?;
        }
        let measure = row["measure"].to_string();
        for latency in row["latencies"].as_array().into_iter().flatten() {
            expect_positive(latency).with_context(|| format!("latencies of {row}"))?;
        }
        ensure!(row["latencies"].is_array() != measure.contains("bulk"), "latencies of {row}");
        let services = row["services"].as_u64().context("no services")?;
        let name = |field: &str| row[field].as_str().with_context(|| format!("{field} of {row}"));
        let way = (name("path")?.to_owned(), name("peer")?.to_owned());
        ensure!(found.entry((services, measure)).or_default().insert(way), "twice: {row}");
    }
    let mut ways = BTreeSet::new();
    for path in ["pod-to-same", "pod-to-other", "host-to-other", "outside-to-same", "outside-to-other"] {
        for peer in ["direct", "sluice", "iptables", "iptables-legacy", "nftables"] {
            ways.insert((path.to_owned(), peer.to_owned()));
        }
        if path.starts_with("pod") {
            ways.insert((path.to_owned(), "sluice-packets".to_owned()));
        }
    }
    ensure!(found.len() == 9, "{:?}", found.keys());
    for (what, found) in &found {
        ensure!(*found == ways, "{what:?}: {found:?}");
    }
    let packets = report["packets"].as_array().context("no packets")?;
    ensure!(packets.len() == 7, "packets by {} ways", packets.len());
    for row in packets {
        // What the node takes is the difference of two short measurements here, which may come out as anything.
        for figure in ["without", "through"] {
            expect_positive(&row[figure]).with_context(|| format!("{figure} of {row}"))?;
        }
        ensure!(row["node"]["median"].is_f64() && row["rate"]["median"].is_f64(), "{row}");
    }
    let programming = report["programming"].as_array().context("no programming")?;
    ensure!(programming.len() == 8, "{} systems at two sizes", programming.len());
    for row in programming {
        for figure in ["made", "gone"] {
            expect_positive(&row[figure]).with_context(|| format!("{figure} of {row}"))?;
        }
        ensure!(row["start"]["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{row}");
        let has_process = row["start"]["process_bytes"].as_u64().is_some_and(|bytes| bytes > 0);
        ensure!(has_process == (row["system"] == "sluice"), "{row}");
    }
    Ok(())
}

/// The page has every picture that is beside it.
fn expect_pictures(dir: &Path) -> Result<()> {
    let page = fs::read_to_string(dir.join("services.html"))?;
    let names = ["new", "keep-alive", "sizes", "p99", "packets", "changes"];
    ensure!(page.matches("<svg").count() == names.len(), "pictures of the page");
    for name in names {
        let [svg, png] = ["svg", "png"].map(|kind| dir.join(format!("services-{name}.{kind}")));
        let svg = fs::read_to_string(&svg).with_context(|| svg.display().to_string())?;
        ensure!(page.contains(&svg), "{name} is not on the page");
        let png = fs::read(&png).with_context(|| png.display().to_string())?;
        ensure!(png.starts_with(b"\x89PNG"), "{name}");
    }
    let text = fs::read_to_string(dir.join("services.md"))?;
    ensure!(text.lines().any(|line| line.starts_with('|')), "{text}");
    serde_json::from_str::<Value>(&fs::read_to_string(dir.join("services.json"))?)?;
    Ok(())
}

fn measure(benchmark: &str) -> Result<Value> {
    measure_with(benchmark, &[])
}

fn measure_with(benchmark: &str, arguments: &[&str]) -> Result<Value> {
    let output = Command::new(benchmark)
        .args(["--quick", "--json"])
        .args(arguments)
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
