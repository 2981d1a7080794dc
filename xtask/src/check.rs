//! `cargo xtask check`: everything that can be said without running the code.

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::bpf::{self, DATAPATH, Features};
use crate::process::{cargo, find_in_path, report, run};
use crate::setup;
use crate::steps::Steps;
use crate::{manifest, object_check, toolchain::Toolchain};

/// Runs every check and sums up.
pub(crate) fn check() -> Result<ExitCode> {
    for (program, component) in [("cargo-fmt", "rustfmt"), ("cargo-clippy", "clippy")] {
        if find_in_path(program).is_none() {
            bail!("{program} is missing: run `rustup component add {component}`");
        }
    }
    let toolchain = setup::ensure()?.toolchain;
    report(format_args!("bpf toolchain  {toolchain}"));
    let mut steps = Steps::new("check");
    steps.run("format", || run(cargo().args(["fmt", "--all", "--check"])));
    // Before clippy: the agent does not compile without the object.
    steps.run("object", || object(&toolchain));
    steps.run("clippy", || run(cargo().args(["clippy", "--all-targets", "--", "-Dwarnings"])));
    steps.run("clippy bpf", clippy_bpf);
    steps.run("manifest", manifest::check);
    steps.run("doc", || run(cargo().args(["doc", "--no-deps"]).env("RUSTDOCFLAGS", "-Dwarnings")));
    Ok(steps.finish())
}

fn object(toolchain: &Toolchain) -> Result<()> {
    for path in bpf::programs(toolchain, Features::Plain)? {
        let costs = object_check::rules(&path)?;
        if path.file_stem().is_some_and(|name| name == DATAPATH) {
            object_check::within_budget(&costs)?;
        }
    }
    Ok(())
}

/// Clippy for the kernel programs, on the host.
///
/// Debian's compiler has no clippy, and rustup's has no `core` for BPF. Clippy generates no code, though, so it is
/// enough to let the host's pass for BPF: `target_arch` chooses the kernel's side of every `cfg`, and a target without
/// an operating system does not unwind.
fn clippy_bpf() -> Result<()> {
    let as_bpf = ["-Cpanic=abort", "--cfg=target_arch=\"bpf\"", "-Aexplicit_builtin_cfgs_in_flags"];
    run(cargo().args(["clippy", "--package", "proxy-ebpf", "--bins", "--", "-Dwarnings"]).args(as_bpf))
}
