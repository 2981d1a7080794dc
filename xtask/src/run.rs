//! `cargo xtask demo` and `cargo xtask bench`: build, then become the program.

use std::convert::Infallible;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

use crate::bpf::{self, Features, Profile};
use crate::process::{cargo, describe};

/// Builds everything and becomes the demo.
pub(crate) fn demo(arguments: &[OsString]) -> Result<Infallible> {
    bpf::build(Profile::Dev, Features::Plain)?;
    become_program(cargo().args(["run", "--quiet", "--bin", "demo", "--"]).args(arguments))
}

/// Builds everything optimized and becomes one of the test bed's benchmarks.
pub(crate) fn bench(program: &str, arguments: &[OsString]) -> Result<Infallible> {
    bpf::build(Profile::Release, Features::Plain)?;
    become_program(cargo().args(["run", "--quiet", "--release", "--bin", program, "--"]).args(arguments))
}

/// Becomes the benchmark of the model, which needs no kernel.
pub(crate) fn bench_model() -> Result<Infallible> {
    become_program(cargo().args([
        "run",
        "--quiet",
        "--release",
        "--package",
        "proxy-model",
        "--example",
        "scale",
    ]))
}

/// Replaces this process, as `cargo run` in turn does: Ctrl-C and the exit code then need no forwarding.
fn become_program(command: &mut Command) -> Result<Infallible> {
    Err(command.exec()).with_context(|| format!("cannot start {}", describe(command)))
}
