//! The agent as one static file.
//!
//! With glibc rather than musl: it is the C library that every test runs with, and with musl's allocator the model takes
//! twice as long. What static glibc cannot do, load modules that /etc/nsswitch.conf names, no image of one file could:
//! names of API servers are looked up in /etc/hosts and by DNS, both of which are inside.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use object::Endianness;
use object::elf::{EM_AARCH64, EM_X86_64, ET_DYN, ET_EXEC, FileHeader64, PT_INTERP};
use object::read::elf::{FileHeader, ProgramHeader};

use super::Arch;
use crate::bpf::{self, Features};
use crate::process::{cargo, find_in_path, query, relative, report, run, workspace};
use crate::setup;

/// Builds the kernel programs, and the agent that embeds them, for that processor. Returns the file.
pub(crate) fn build(arch: Arch) -> Result<PathBuf> {
    let target = Target::of(arch);
    target.require_c()?;
    target.require_rust()?;
    let setup = setup::ensure()?;
    report(format_args!("bpf toolchain  {}", setup.toolchain));
    // The same for all processors: BPF knows two byte orders, and all of these are little-endian.
    bpf::programs(&setup.toolchain, Features::Plain)?;
    let mut command = cargo();
    command
        .args(["build", "--profile", PROFILE, "--bin", "sluice", "--target", target.triple])
        .env("CARGO_ENCODED_RUSTFLAGS", flags().join(&OsString::from("\x1f")));
    target.use_c(&mut command);
    run(&mut command)?;
    let path = workspace().join("target").join(target.triple).join(PROFILE).join("sluice");
    let bytes = fs::read(&path).with_context(|| format!("cargo built no {}", path.display()))?;
    check(&bytes, target).with_context(|| format!("{} is of no use in an image", path.display()))?;
    report(format_args!("agent          {}", relative(&path)));
    Ok(path)
}

/// What the compiler is told. It writes paths into the binary, which are nobody's business and differ between machines.
fn flags() -> Vec<OsString> {
    let mut flags = vec!["-Ctarget-feature=+crt-static".into()];
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo_home = cargo_home.or_else(|| Some(env::home_dir()?.join(".cargo")));
    for (path, name) in [(Some(workspace().to_owned()), "sluice"), (cargo_home, "cargo")] {
        if let Some(path) = path {
            let mut flag = OsString::from("--remap-path-prefix=");
            flag.push(path);
            flag.push(format!("=/{name}"));
            flags.push(flag);
        }
    }
    flags
}

/// What a processor's programs are built with.
#[derive(Clone, Copy)]
struct Target {
    arch: Arch,
    triple: &'static str,
    /// Of ELF files.
    machine: u16,
    /// Debian's name of the C compiler, where it is not this machine's own.
    cross: &'static str,
    /// What Debian has that compiler, and the C library to link, in.
    packages: &'static str,
}

impl Target {
    fn of(arch: Arch) -> Self {
        match arch {
            Arch::Amd64 => Self {
                arch,
                triple: "x86_64-unknown-linux-gnu",
                machine: EM_X86_64,
                cross: "x86_64-linux-gnu-gcc",
                packages: "gcc-x86-64-linux-gnu libc6-dev-amd64-cross",
            },
            Arch::Arm64 => Self {
                arch,
                triple: "aarch64-unknown-linux-gnu",
                machine: EM_AARCH64,
                cross: "aarch64-linux-gnu-gcc",
                packages: "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
            },
        }
    }

    fn compiler(self) -> &'static str {
        if self.arch == Arch::HOST { "cc" } else { self.cross }
    }

    /// A C compiler, for ring and to link, and a C library to link with.
    fn require_c(self) -> Result<()> {
        let (compiler, arch) = (self.compiler(), self.arch);
        let packages = if arch == Arch::HOST { "gcc libc6-dev" } else { self.packages };
        if find_in_path(compiler).is_none() {
            bail!("{compiler} is missing, the C compiler for {arch}: `apt-get install {packages}`");
        }
        let library = query(Command::new(compiler).arg("-print-file-name=libc.a"));
        // It says where the file is, or repeats the question.
        if !library.is_some_and(|path| Path::new(&path).is_absolute()) {
            bail!("{compiler} has no static C library: Debian has it in {packages}, Fedora in glibc-static");
        }
        Ok(())
    }

    /// Rust's own library for that processor.
    fn require_rust(self) -> Result<()> {
        let mut rustc = Command::new(env::var_os("RUSTC").unwrap_or("rustc".into()));
        let directory =
            query(rustc.current_dir(workspace()).args(["--print", "target-libdir", "--target", self.triple]));
        if directory.is_some_and(|directory| Path::new(&directory).is_dir()) {
            return Ok(());
        }
        report(format_args!("installing     Rust's library for {}", self.triple));
        run(Command::new("rustup").current_dir(workspace()).args(["target", "add", self.triple]))
    }

    fn use_c(self, command: &mut Command) {
        if self.arch != Arch::HOST {
            let triple = self.triple.replace('-', "_");
            command.env(format!("CC_{triple}"), self.cross);
            command.env(format!("CARGO_TARGET_{}_LINKER", triple.to_uppercase()), self.cross);
        }
    }
}

/// An image has no dynamic loader: a program that asks for one fails with "no such file", and nobody knows which.
fn check(bytes: &[u8], target: Target) -> Result<()> {
    let header = FileHeader64::<Endianness>::parse(bytes).context("not an ELF file of 64 bits")?;
    let endian = header.endian()?;
    let (machine, kind) = (header.e_machine(endian), header.e_type(endian));
    ensure!(machine == target.machine, "it is for machine {machine}, not for {}", target.arch);
    ensure!([ET_EXEC, ET_DYN].contains(&kind), "it is no program");
    let segments = header.program_headers(endian, bytes)?;
    ensure!(segments.iter().all(|segment| segment.p_type(endian) != PT_INTERP), "it is linked dynamically");
    Ok(())
}

const PROFILE: &str = "image";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_static_programs_of_the_right_processor_are_taken() {
        // This test is a program, and as dynamic as all of them.
        let own = fs::read(env::current_exe().unwrap()).unwrap();
        let refused = |bytes: &[u8], arch| format!("{:#}", check(bytes, Target::of(arch)).unwrap_err());
        assert!(refused(&own, Arch::HOST).contains("dynamically"));
        let other = if Arch::HOST == Arch::Amd64 { Arch::Arm64 } else { Arch::Amd64 };
        assert!(refused(&own, other).contains("machine"));
        assert!(refused(b"#!/bin/sh\n", Arch::HOST).contains("ELF"));
    }

    #[test]
    fn paths_of_this_machine_are_not_in_the_program() {
        let flags = flags();
        let hidden = |path: &Path, name: &str| {
            let mut flag = OsString::from("--remap-path-prefix=");
            flag.push(path);
            flag.push(name);
            flags.contains(&flag)
        };
        assert!(hidden(workspace(), "=/sluice"), "{flags:?}");
    }
}
