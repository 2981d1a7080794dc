//! `cargo xtask build`: the kernel programs, then the agent that embeds them.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::{cargo, relative, report, run, workspace};
use crate::setup::{self, TARGET};
use crate::toolchain::{Kind, Toolchain};

/// How the host crates are built; the kernel programs are always optimized, the verifier would refuse them otherwise.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Dev,
    Release,
}

impl Profile {
    /// What to tell cargo.
    pub(crate) fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Dev => &[],
            Self::Release => &["--release"],
        }
    }

    fn directory(self) -> &'static str {
        match self {
            Self::Dev => "debug",
            Self::Release => "release",
        }
    }
}

/// What the kernel programs are built with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Features {
    Plain,
    /// Each translated packet is logged.
    Log,
}

/// Builds everything and says where it is.
pub(crate) fn build(profile: Profile, features: Features) -> Result<()> {
    let setup = setup::ensure()?;
    report(format_args!("bpf toolchain  {}", setup.toolchain));
    for object in programs(&setup.toolchain, features)? {
        report(format_args!("bpf object     {}", relative(&object)));
    }
    run(cargo().args(["build", "--bin", "sluice"]).args(profile.arguments()))?;
    report(format_args!("agent          target/{}/sluice", profile.directory()));
    Ok(())
}

/// Builds the kernel programs into `target/bpf/*.o`, the datapath first.
///
/// An object whose bytes are the same as before is left alone: the agent embeds it, and a new time stamp alone would
/// make cargo build the agent and every test again.
pub(crate) fn programs(toolchain: &Toolchain, features: Features) -> Result<Vec<PathBuf>> {
    let directory = workspace().join("target/bpf");
    let mut command = compiler(toolchain);
    command
        .args(["build", "--release", "--package", "proxy-ebpf", "--bins", "--target", TARGET, "--target-dir"])
        .arg(&directory);
    if features == Features::Log {
        command.args(["--features", "log"]);
    }
    run(&mut command)?;
    let built = directory.join(TARGET).join("release");
    let mut objects = Vec::new();
    for name in [DATAPATH, BENCH] {
        let (from, to) = (built.join(name), directory.join(format!("{name}.o")));
        if name == DATAPATH || from.exists() {
            copy_if_changed(&from, &to)?;
            objects.push(to);
        }
    }
    Ok(objects)
}

/// A cargo that compiles for BPF with this toolchain.
///
/// The caller's flags, wrappers and profile settings are meant for host code, and each of them would either break the
/// link or give an object that differs from everybody else's; only where and how cargo downloads is kept.
fn compiler(toolchain: &Toolchain) -> Command {
    let mut command = match toolchain.kind {
        Kind::Distribution => cargo(),
        // Its own cargo: build-std needs the cargo of the same nightly.
        Kind::Nightly => {
            let mut command = Command::new(toolchain.rustc_path.with_file_name("cargo"));
            command.current_dir(workspace()).args(["-Z", "build-std=core"]);
            command
        }
    };
    for (name, _) in std::env::vars_os() {
        if leaks(&name.to_string_lossy()) {
            command.env_remove(name);
        }
    }
    let linker = toolchain.linker.path.display();
    let flags = [&format!("-Clinker={linker}"), "-Clink-arg=--btf", "-Cdebuginfo=2", "-Ctarget-cpu=v3"]
        .map(OsString::from);
    command
        .env("RUSTC", &toolchain.rustc_path)
        // A released compiler refuses the `asm!` of BPF, which is unstable on every channel.
        .env("RUSTC_BOOTSTRAP", "1")
        // These two also override `build.rustc-wrapper` of a user's cargo configuration.
        .env("RUSTC_WRAPPER", "")
        .env("RUSTC_WORKSPACE_WRAPPER", "")
        // Unlike RUSTFLAGS this takes paths with spaces, and it comes before everything a configuration file says.
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join(&OsString::from("\x1f")));
    command
}

fn leaks(variable: &str) -> bool {
    let kept = ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTR", "CARGO_SOURCE_", "CARGO_TERM_"];
    ["CARGO", "RUSTC", "RUSTFLAGS", "RUSTUP_TOOLCHAIN"].iter().any(|prefix| variable.starts_with(prefix))
        && !kept.iter().any(|prefix| variable.starts_with(prefix))
}

fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(from).with_context(|| format!("cargo built no {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    // Renamed into place: a compilation of the agent that runs at the same time sees the old or the new one, whole.
    let partial = to.with_extension("partial");
    fs::write(&partial, bytes)
        .and_then(|()| fs::rename(&partial, to))
        .with_context(|| format!("cannot write {}", to.display()))
}

/// The kernel programs that the agent embeds.
pub(crate) const DATAPATH: &str = "sluice-datapath";
const BENCH: &str = "sluice-bench";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_compiler_settings_do_not_leak() {
        for name in
            ["CARGO_ENCODED_RUSTFLAGS", "RUSTFLAGS", "RUSTC", "CARGO_PROFILE_RELEASE_LTO", "CARGO_TARGET_DIR"]
        {
            assert!(leaks(name), "{name}");
        }
    }

    #[test]
    fn proxies_and_registries_are_kept() {
        for name in ["CARGO_HOME", "CARGO_HTTP_CAINFO", "CARGO_REGISTRIES_CORP_INDEX", "PATH", "HTTPS_PROXY"]
        {
            assert!(!leaks(name), "{name}");
        }
    }
}
