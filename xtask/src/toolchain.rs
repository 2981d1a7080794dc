//! Which toolchain builds the kernel programs: what there can be, and the choice, without touching the machine.

use std::env;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Error, Result, anyhow, bail};

/// The bpf-linker that set-up installs.
pub(crate) const LINKER_VERSION: &str = "0.13.0";

/// The LLVM majors that this bpf-linker can be built for.
pub(crate) const LINKER_LLVM: RangeInclusive<u32> = 21..=23;

/// The two ways to build for BPF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Debian's `rustc-web`, with a precompiled `core` for the BPF target.
    Distribution,
    /// rustup's nightly compiler, which builds `core` from `rust-src`.
    Nightly,
}

impl Kind {
    /// What the user asked for, if anything.
    pub(crate) fn from_environment() -> Result<Option<Self>> {
        match env::var(OVERRIDE) {
            Ok(value) if value.is_empty() => Ok(None),
            Ok(value) => value.parse().map(Some),
            Err(env::VarError::NotPresent) => Ok(None),
            Err(error) => Err(error).context(OVERRIDE),
        }
    }
}

impl FromStr for Kind {
    type Err = Error;

    fn from_str(value: &str) -> Result<Self> {
        match value {
            "debian" => Ok(Self::Distribution),
            "nightly" => Ok(Self::Nightly),
            _ => Err(anyhow!("{OVERRIDE} is '{value}'; it can be 'debian' or 'nightly'")),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Distribution => "distribution",
            Self::Nightly => "rustup nightly",
        })
    }
}

const OVERRIDE: &str = "SLUICE_BPF_TOOLCHAIN";

/// A compiler's release and the LLVM it writes bitcode with, which the linker must be able to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rustc {
    pub(crate) release: String,
    pub(crate) llvm: u32,
}

impl FromStr for Rustc {
    type Err = Error;

    /// Reads the output of `rustc -vV`.
    fn from_str(text: &str) -> Result<Self> {
        let field = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            value.with_context(|| format!("`rustc -vV` says no '{name}'"))
        };
        let llvm = field("LLVM version")?;
        let major = llvm.split('.').next().unwrap_or_default();
        Ok(Self {
            release: field("release")?.to_owned(),
            llvm: major.parse().with_context(|| format!("unexpected LLVM version '{llvm}'"))?,
        })
    }
}

impl fmt::Display for Rustc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rustc {} (LLVM {})", self.release, self.llvm)
    }
}

/// A bpf-linker that starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Linker {
    pub(crate) path: PathBuf,
    /// As it says itself: `bpf-linker 0.13.0`.
    pub(crate) version: String,
}

/// A toolchain with nothing missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Toolchain {
    pub(crate) kind: Kind,
    pub(crate) rustc: Rustc,
    pub(crate) rustc_path: PathBuf,
    pub(crate) linker: Linker,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}, {}", self.kind, self.rustc, self.linker.version)
    }
}

/// What is there of one of the two ways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parts {
    pub(crate) kind: Kind,
    pub(crate) rustc: Option<(PathBuf, Rustc)>,
    /// `core` for the target, precompiled or as source.
    pub(crate) core: bool,
    pub(crate) linker: Option<Linker>,
}

impl Parts {
    /// The whole toolchain, or the pieces it lacks.
    pub(crate) fn complete(&self) -> Result<Toolchain, Vec<Piece>> {
        match (&self.rustc, self.core, &self.linker) {
            (Some((path, rustc)), true, Some(linker)) => Ok(Toolchain {
                kind: self.kind,
                rustc: rustc.clone(),
                rustc_path: path.clone(),
                linker: linker.clone(),
            }),
            (rustc, core, linker) => {
                let lacks = [
                    (rustc.is_none(), Piece::Compiler(self.kind)),
                    (!core, Piece::Core(self.kind)),
                    (linker.is_none(), Piece::Linker),
                ];
                Err(lacks.into_iter().filter_map(|(lacks, piece)| lacks.then_some(piece)).collect())
            }
        }
    }
}

/// One thing a toolchain is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Compiler(Kind),
    Core(Kind),
    Linker,
}

impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Compiler(Kind::Distribution) => "rustc-web",
            Self::Core(Kind::Distribution) => "libstd-rust-web-dev-bpf",
            Self::Compiler(Kind::Nightly) => "a nightly toolchain",
            Self::Core(Kind::Nightly) => "rust-src",
            Self::Linker => "bpf-linker",
        })
    }
}

/// Whether this process may install Debian packages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packages {
    /// `apt-get` is there and we are root.
    Installable,
    /// `apt-get` is there; somebody else may.
    NeedRoot,
    /// Not a Debian.
    None,
}

/// Whether rustup is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rustup {
    Present,
    Absent,
}

/// What to do about the toolchain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// Use it as it is.
    Use(Toolchain, String),
    /// Install what it lacks.
    Install(Kind, Vec<Piece>, String),
}

/// Chooses: what was asked for, else what is complete, else what can be installed.
///
/// The distribution goes first in both: a released compiler and a precompiled `core` change less under one's feet
/// than a nightly does.
pub(crate) fn choose(
    distribution: &Parts,
    nightly: &Parts,
    asked: Option<Kind>,
    packages: Packages,
    rustup: Rustup,
) -> Result<Choice> {
    let candidates: Vec<&Parts> = [distribution, nightly]
        .into_iter()
        .filter(|parts| asked.is_none_or(|kind| kind == parts.kind))
        .collect();
    let why = |fallback: &str| match asked {
        Some(_) => format!("{OVERRIDE} asks for it"),
        None => fallback.to_owned(),
    };
    let mut lacking = Vec::new();
    for parts in &candidates {
        match parts.complete() {
            Ok(toolchain) => {
                return Ok(Choice::Use(toolchain, why(&because(&lacking))));
            }
            Err(pieces) => lacking.push((parts.kind, pieces)),
        }
    }
    for (kind, pieces) in &lacking {
        if installable(*kind, pieces, packages, rustup) {
            let reason = why("none was complete, and this one could be installed here");
            return Ok(Choice::Install(*kind, pieces.clone(), reason));
        }
    }
    let ways: Vec<String> = lacking
        .iter()
        .map(|(kind, pieces)| format!("  {kind}: {} missing; {}", list(pieces), remedy(*kind, packages)))
        .collect();
    bail!("no toolchain for the BPF target, and nothing here can install one:\n{}", ways.join("\n"));
}

fn because(passed_over: &[(Kind, Vec<Piece>)]) -> String {
    match passed_over {
        [] => "it is complete; it does not change between nightlies".to_owned(),
        [(kind, pieces), ..] => format!("it is complete; {kind} lacks {}", list(pieces)),
    }
}

fn installable(kind: Kind, pieces: &[Piece], packages: Packages, rustup: Rustup) -> bool {
    match kind {
        // The linker alone needs LLVM's development files, which may be there: then it is a matter of cargo only.
        Kind::Distribution => packages == Packages::Installable || pieces == [Piece::Linker],
        Kind::Nightly => rustup == Rustup::Present,
    }
}

fn remedy(kind: Kind, packages: Packages) -> &'static str {
    match (kind, packages) {
        (Kind::Distribution, Packages::None) => "needs Debian's apt-get",
        (Kind::Distribution, _) => "run `cargo xtask setup` as root",
        (Kind::Nightly, _) => "install rustup, then run `cargo xtask setup`",
    }
}

/// The pieces as a phrase.
pub(crate) fn list(pieces: &[Piece]) -> String {
    let names: Vec<String> = pieces.iter().map(Piece::to_string).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rustc_version_is_read_with_its_llvm_major() {
        let text = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)\nbinary: rustc\n\
                    host: x86_64-unknown-linux-gnu\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        let rustc: Rustc = text.parse().unwrap();
        assert_eq!(rustc.to_string(), "rustc 1.96.0 (LLVM 22)");
    }

    #[test]
    fn rustc_without_llvm_is_refused() {
        let error = "rustc 1.96.0\nrelease: 1.96.0\n".parse::<Rustc>().unwrap_err();
        assert_eq!(error.to_string(), "`rustc -vV` says no 'LLVM version'");
    }

    #[test]
    fn complete_distribution_is_preferred() {
        let choice =
            choose(&full(Kind::Distribution), &full(Kind::Nightly), None, Packages::None, Rustup::Absent);
        assert_eq!(chosen(choice.unwrap()), (Kind::Distribution, vec![]));
    }

    #[test]
    fn complete_nightly_is_taken_before_anything_is_installed() {
        let lacking = Parts { core: false, ..full(Kind::Distribution) };
        let choice =
            choose(&lacking, &full(Kind::Nightly), None, Packages::Installable, Rustup::Present).unwrap();
        let Choice::Use(toolchain, why) = choice else { panic!("{choice:?}") };
        assert_eq!(toolchain.kind, Kind::Nightly);
        assert_eq!(why, "it is complete; distribution lacks libstd-rust-web-dev-bpf");
    }

    #[test]
    fn root_on_debian_installs_the_distribution() {
        let choice = choose(
            &none(Kind::Distribution),
            &none(Kind::Nightly),
            None,
            Packages::Installable,
            Rustup::Present,
        );
        let missing =
            vec![Piece::Compiler(Kind::Distribution), Piece::Core(Kind::Distribution), Piece::Linker];
        assert_eq!(chosen(choice.unwrap()), (Kind::Distribution, missing));
    }

    #[test]
    fn user_with_rustup_installs_nightly() {
        let choice = choose(
            &none(Kind::Distribution),
            &none(Kind::Nightly),
            None,
            Packages::NeedRoot,
            Rustup::Present,
        );
        assert_eq!(chosen(choice.unwrap()).0, Kind::Nightly);
    }

    #[test]
    fn linker_alone_needs_no_root() {
        let lacking = Parts { linker: None, ..full(Kind::Distribution) };
        let choice = choose(&lacking, &none(Kind::Nightly), None, Packages::NeedRoot, Rustup::Present);
        assert_eq!(chosen(choice.unwrap()), (Kind::Distribution, vec![Piece::Linker]));
    }

    #[test]
    fn override_wins_over_a_complete_toolchain() {
        let asked = Some(Kind::Nightly);
        let choice =
            choose(&full(Kind::Distribution), &none(Kind::Nightly), asked, Packages::None, Rustup::Present);
        assert_eq!(chosen(choice.unwrap()).0, Kind::Nightly);
    }

    #[test]
    fn refusal_names_every_missing_piece_and_the_remedy() {
        let lacking = Parts { core: false, ..full(Kind::Distribution) };
        let error =
            choose(&lacking, &none(Kind::Nightly), None, Packages::NeedRoot, Rustup::Absent).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no toolchain for the BPF target, and nothing here can install one:\n  \
             distribution: libstd-rust-web-dev-bpf missing; run `cargo xtask setup` as root\n  \
             rustup nightly: a nightly toolchain, rust-src, bpf-linker missing; install rustup, then run \
             `cargo xtask setup`"
        );
    }

    #[test]
    fn unknown_override_is_refused() {
        assert!("gcc".parse::<Kind>().unwrap_err().to_string().contains("'debian' or 'nightly'"));
    }

    fn chosen(choice: Choice) -> (Kind, Vec<Piece>) {
        match choice {
            Choice::Use(toolchain, _) => (toolchain.kind, vec![]),
            Choice::Install(kind, pieces, _) => (kind, pieces),
        }
    }

    fn full(kind: Kind) -> Parts {
        Parts {
            kind,
            rustc: Some(("/usr/bin/rustc".into(), Rustc { release: "1.96.0".into(), llvm: 22 })),
            core: true,
            linker: Some(Linker { path: "/bpf-linker".into(), version: "bpf-linker 0.13.0".into() }),
        }
    }

    fn none(kind: Kind) -> Parts {
        Parts { kind, rustc: None, core: false, linker: None }
    }
}
