//! `cargo xtask image`: the agent, alone in a container image. An image is a tar and three JSON files, so it is written
//! here, without any engine or daemon.

mod binary;
mod layout;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use crate::process::{query, relative, report, workspace};

use layout::{Content, Image, Layout};

pub(crate) use binary::build;

/// What becomes of the image.
#[derive(Args)]
pub(crate) struct ImageOptions {
    /// Processors that it is for. Several make one image with a variant for each
    #[arg(long, value_enum, value_delimiter = ',', value_name = "ARCH,...", default_value = Arch::HOST.name())]
    arch: Vec<Arch>,
    /// Where to write it: an archive if this ends in `.tar`, else a directory
    #[arg(long, value_name = "FILE.tar|DIR", default_value = "target/sluice-image.tar")]
    output: PathBuf,
    /// What it is called. Nobody publishes images of this name
    #[arg(long, value_name = "NAME:TAG", default_value = concat!("localhost/sluice:", env!("CARGO_PKG_VERSION")))]
    tag: String,
}

/// A processor that nodes have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arch {
    Amd64,
    Arm64,
}

impl Arch {
    /// This machine's.
    #[cfg(target_arch = "x86_64")]
    pub(crate) const HOST: Self = Self::Amd64;
    /// This machine's.
    #[cfg(target_arch = "aarch64")]
    pub(crate) const HOST: Self = Self::Arm64;

    /// What Go, and thus everything around containers, calls it.
    const fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Builds the agent for each processor and puts it into an image.
pub(crate) fn image(options: &ImageOptions) -> Result<()> {
    let origin = Origin::of_workspace();
    let mut images = Vec::new();
    for &arch in &options.arch {
        let path = build(arch)?;
        let program = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let content = Content { program: &program, arch, origin: &origin };
        images.push(Image::new(&content)?);
    }
    let layout = Layout::new(&options.tag, &images);
    let output = workspace().join(&options.output);
    write(&layout, &output).with_context(|| format!("cannot write {}", output.display()))?;
    report(format_args!("image          {}", options.tag));
    report(format_args!("digest         {}", layout.digest()));
    report(format_args!("written to     {}", relative(&output)));
    Ok(())
}

fn write(layout: &Layout, output: &Path) -> Result<()> {
    if output.extension().is_some_and(|extension| extension == "tar") {
        if let Some(directory) = output.parent() {
            fs::create_dir_all(directory)?;
        }
        let mut file = fs::File::create(output)?;
        layout.write_archive(&mut file)
    } else {
        layout.write_directory(output)
    }
}

/// Where the source comes from. Nothing else in an image depends on when or where it was made.
#[derive(Clone, Debug, Default)]
struct Origin {
    /// The commit.
    revision: Option<String>,
    /// When that was, in RFC 3339.
    created: Option<String>,
}

impl Origin {
    /// The commit that is checked out; nothing if this is no clone, or if files differ from it.
    fn of_workspace() -> Self {
        let git = |arguments: &[&str]| {
            let mut git = Command::new("git");
            query(git.current_dir(workspace()).env("TZ", "UTC").args(arguments))
        };
        if git(&["status", "--porcelain"]).is_none_or(|changes| !changes.is_empty()) {
            return Self::default();
        }
        let format = "--date=format-local:%Y-%m-%dT%H:%M:%SZ";
        Self { revision: git(&["rev-parse", "HEAD"]), created: git(&["log", "-1", format, "--format=%cd"]) }
    }
}
