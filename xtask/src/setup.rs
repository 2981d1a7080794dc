//! `cargo xtask setup`: looks at the machine, installs what is missing, says what was chosen.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::install::{self, linker_directory};
use crate::process::{Log, Privilege, find_in_path, query, report, workspace};
use crate::toolchain::{Choice, Kind, Linker, Packages, Parts, Rustc, Rustup, Toolchain, choose, list};
use crate::tools::{self, Tools};

/// The triple of the kernel programs. Little-endian, as every node Kubernetes is released for but s390x.
pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// A machine that can build and run everything.
pub(crate) struct Setup {
    pub(crate) toolchain: Toolchain,
    reason: String,
    tools: Tools,
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "bpf toolchain  {}", self.toolchain)?;
        writeln!(f, "chosen         {}", self.reason)?;
        write!(f, "tools          {}", self.tools)
    }
}

/// Makes sure of toolchain and tools. Quick, and silent, when nothing is missing.
pub(crate) fn ensure() -> Result<Setup> {
    let mut log = Log::new(workspace().join("target/setup.log"));
    let packages = packages();
    let tools = tools::ensure(packages, &mut log)?;
    let (toolchain, reason) = ensure_toolchain(packages, &mut log)?;
    Ok(Setup { toolchain, reason, tools })
}

fn ensure_toolchain(packages: Packages, log: &mut Log) -> Result<(Toolchain, String)> {
    let rustup = find_in_path("rustup").map_or(Rustup::Absent, |_| Rustup::Present);
    match choose(&distribution()?, &nightly()?, Kind::from_environment()?, packages, rustup)? {
        Choice::Use(toolchain, reason) => Ok((toolchain, reason)),
        Choice::Install(kind, pieces, reason) => {
            report(format_args!("bpf toolchain  {kind} lacks {}", list(&pieces)));
            let parts = match kind {
                Kind::Distribution => {
                    install::distribution(&pieces, packages, log)?;
                    distribution()?
                }
                Kind::Nightly => {
                    install::nightly(&pieces, log)?;
                    nightly()?
                }
            };
            match parts.complete() {
                Ok(toolchain) => Ok((toolchain, reason)),
                Err(pieces) => bail!("{kind} was installed, yet there is no working {}", list(&pieces)),
            }
        }
    }
}

/// What is there of Debian's compiler.
pub(crate) fn distribution() -> Result<Parts> {
    let path = Path::new(SYSTEM_RUSTC);
    let rustc = compiler(path)?;
    let core = match &rustc {
        Some(_) => query(Command::new(path).args(["--print", "target-libdir", "--target", TARGET]))
            .is_some_and(has_core),
        None => false,
    };
    let linker = rustc.as_ref().and_then(|(_, rustc)| own_linker(rustc.llvm));
    Ok(Parts { kind: Kind::Distribution, rustc, core, linker })
}

/// What is there of rustup's nightly.
pub(crate) fn nightly() -> Result<Parts> {
    // Not `rustup run nightly`: that would install a missing toolchain while we only look.
    let path =
        query(Command::new("rustup").args(["which", "--toolchain", "nightly", "rustc"])).map(PathBuf::from);
    let rustc = path.map_or(Ok(None), |path| compiler(&path))?;
    let core = rustc.as_ref().is_some_and(|(path, _)| {
        query(Command::new(path).args(["--print", "sysroot"]))
            .is_some_and(|root| Path::new(&root).join("lib/rustlib/src/rust/library/core").is_dir())
    });
    // A linker that the user installed is a released one, linked with an LLVM of its own.
    let linker = find_in_path(LINKER)
        .and_then(linker)
        .or_else(|| rustc.as_ref().and_then(|(_, rustc)| own_linker(rustc.llvm)));
    Ok(Parts { kind: Kind::Nightly, rustc, core, linker })
}

fn compiler(path: &Path) -> Result<Option<(PathBuf, Rustc)>> {
    let version = query(Command::new(path).arg("-vV"));
    version
        .map(|text| {
            Ok((path.to_owned(), text.parse().with_context(|| format!("{} is unusable", path.display()))?))
        })
        .transpose()
}

fn has_core(directory: String) -> bool {
    let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
    files
        .map(|file| file.file_name().to_string_lossy().into_owned())
        .any(|name| name.starts_with("libcore-") && name.ends_with(".rlib"))
}

/// The linker that an earlier set-up built for this LLVM.
fn own_linker(llvm: u32) -> Option<Linker> {
    linker(linker_directory(llvm).ok()?.join("bin").join(LINKER))
}

fn linker(path: PathBuf) -> Option<Linker> {
    // It is linked with LLVM dynamically: only running it shows that the library is still there.
    let version = query(Command::new(&path).arg("--version"))?;
    Some(Linker { path, version })
}

fn packages() -> Packages {
    match (find_in_path("apt-get"), Privilege::ours()) {
        (None, _) => Packages::None,
        (Some(_), Privilege::Root) => Packages::Installable,
        (Some(_), Privilege::User) => Packages::NeedRoot,
    }
}

/// Debian's compiler, whatever rustup puts before it in `PATH`.
pub(crate) const SYSTEM_RUSTC: &str = "/usr/bin/rustc";

const LINKER: &str = "bpf-linker";
