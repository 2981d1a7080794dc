//! Installs the pieces of a toolchain: Debian packages, rustup components, bpf-linker.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{Log, cargo, find_in_path, query};
use crate::setup;
use crate::toolchain::{Kind, LINKER_LLVM, LINKER_VERSION, Packages, Parts, Piece};

/// Installs what the distribution's toolchain lacks.
pub(crate) fn distribution(pieces: &[Piece], packages: Packages, log: &mut Log) -> Result<()> {
    if pieces != [Piece::Linker] {
        apt(&["rustc-web".into(), "libstd-rust-web-dev-bpf".into()], log)?;
    }
    if pieces.contains(&Piece::Linker) {
        let llvm = llvm_of(&setup::distribution()?)?;
        if packages == Packages::Installable && !linker_builds_with(llvm) {
            let llvm_packages = [format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev")];
            apt(&[&llvm_packages[..], &["zlib1g-dev".into(), "libzstd-dev".into()]].concat(), log)?;
        }
        linker(llvm, log)?;
    }
    Ok(())
}

/// Installs what the nightly toolchain lacks.
pub(crate) fn nightly(pieces: &[Piece], log: &mut Log) -> Result<()> {
    if pieces.contains(&Piece::Compiler(Kind::Nightly)) {
        let mut rustup = Command::new("rustup");
        rustup.args(["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"]);
        log.step("nightly with rust-src", &mut rustup)?;
    } else if pieces.contains(&Piece::Core(Kind::Nightly)) {
        let mut rustup = Command::new("rustup");
        rustup.args(["component", "add", "rust-src", "--toolchain", "nightly"]);
        log.step("rust-src", &mut rustup)?;
    }
    let parts = setup::nightly()?;
    if parts.linker.is_some() {
        return Ok(());
    }
    let llvm = llvm_of(&parts)?;
    if llvm_prefix(llvm).is_some() {
        return linker(llvm, log);
    }
    if find_in_path("cargo-binstall").is_some() {
        let package = format!("bpf-linker@{LINKER_VERSION}");
        return log.step("bpf-linker", cargo().args(["binstall", "--no-confirm", &package]));
    }
    bail!(
        "bpf-linker is missing, and so is LLVM {llvm} to build it with: \
         put a released bpf-linker in PATH, for example with `cargo binstall bpf-linker`"
    );
}

/// Installs Debian packages.
pub(crate) fn apt(packages: &[String], log: &mut Log) -> Result<()> {
    // A fresh machine has no package lists, and one that is not fresh may have lists of packages that are gone.
    log.step_once("package lists", apt_get().arg("update"))?;
    // rustc-web conflicts with Debian's own rustc and rustup: better no toolchain than to take somebody's away.
    let mut install = apt_get();
    install.args(["install", "--yes", "--no-install-recommends", "--no-remove"]).args(packages);
    log.step(&packages.join(" "), &mut install)
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    // Another apt-get (unattended upgrades on a new machine) is waited for instead of failing at once.
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["--quiet", "--option", "DPkg::Lock::Timeout=120"]);
    command
}

/// Builds bpf-linker for one LLVM, outside `target/`: it takes a minute, and `cargo clean` should not cost it.
fn linker(llvm: u32, log: &mut Log) -> Result<()> {
    if !LINKER_LLVM.contains(&llvm) {
        let (oldest, newest) = (LINKER_LLVM.start(), LINKER_LLVM.end());
        bail!(
            "the compiler uses LLVM {llvm}; bpf-linker {LINKER_VERSION} can be built for {oldest} to {newest}"
        );
    }
    let prefix = llvm_prefix(llvm).with_context(|| {
        format!("the development files of LLVM {llvm} are missing: apt-get install llvm-{llvm}-dev libpolly-{llvm}-dev")
    })?;
    let mut install = cargo();
    install
        .args(["install", "bpf-linker", "--locked", "--version", LINKER_VERSION])
        .args(["--no-default-features", "--features", &format!("llvm-{llvm}")])
        .arg("--root")
        .arg(linker_directory(llvm)?)
        // One that is there but does not start, because its libLLVM went away, is built again.
        .arg("--force")
        .env("LLVM_PREFIX", prefix)
        // Its release profile asks for full debug information, of no use to us.
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false");
    log.step(&format!("bpf-linker {LINKER_VERSION} for LLVM {llvm}"), &mut install)
}

/// Where the linker for this LLVM is kept.
pub(crate) fn linker_directory(llvm: u32) -> Result<PathBuf> {
    let cache = match env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
        Some(cache) => PathBuf::from(cache),
        None => env::home_dir()
            .context("HOME is not set, so there is no place to keep bpf-linker")?
            .join(".cache"),
    };
    Ok(cache.join("sluice").join(format!("bpf-linker-{LINKER_VERSION}-llvm-{llvm}")))
}

fn llvm_of(parts: &Parts) -> Result<u32> {
    let (_, rustc) =
        parts.rustc.as_ref().with_context(|| format!("the {} compiler does not start", parts.kind))?;
    Ok(rustc.llvm)
}

fn linker_builds_with(llvm: u32) -> bool {
    // The libraries that libLLVM's static archives want besides themselves; the packages come together or not at all.
    llvm_prefix(llvm).is_some_and(|prefix| prefix.join("lib/libPolly.a").exists())
        && Path::new("/usr/include/zstd.h").exists()
        && Path::new("/usr/include/zlib.h").exists()
}

/// Where the development files of this LLVM are.
fn llvm_prefix(llvm: u32) -> Option<PathBuf> {
    let places = [format!("/usr/lib/llvm-{llvm}"), format!("/usr/lib64/llvm{llvm}"), "/usr".to_owned()];
    let ours = |prefix: &Path| {
        let version = query(Command::new(prefix.join("bin/llvm-config")).arg("--version"));
        version.is_some_and(|version| version.split('.').next() == Some(&llvm.to_string()))
            && prefix.join("include/llvm-c/Core.h").is_file()
    };
    places.into_iter().map(PathBuf::from).find(|prefix| ours(prefix))
}
