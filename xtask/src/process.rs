//! Child processes: the environment they get and what becomes of their output.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// The directory of the workspace's `Cargo.toml`.
pub(crate) fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// A path as one would type it in the workspace.
pub(crate) fn relative(path: &Path) -> std::path::Display<'_> {
    path.strip_prefix(workspace()).unwrap_or(path).display()
}

/// The cargo that runs us, in the workspace, with the environment a user's shell would give it.
///
/// `cargo run` tells us about the xtask package in variables which every build script of the child would see in place
/// of nothing. ring's asks to be rerun when they change, so without this each switch between `cargo test` and
/// `cargo xtask test` rebuilds everything above TLS.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
    for (name, _) in env::vars_os() {
        let of_xtask =
            ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_NAME", "CARGO_CRATE_NAME", "CARGO_PRIMARY_"];
        if of_xtask.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command.current_dir(workspace());
    command
}

/// Says what is going on. On stderr as cargo does: stdout belongs to what the command was asked for.
#[expect(clippy::print_stderr, reason = "progress")]
pub(crate) fn report(line: fmt::Arguments<'_>) {
    eprintln!("{line}");
}

/// Whether this process may change the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Privilege {
    Root,
    User,
}

impl Privilege {
    /// What this process has.
    pub(crate) fn ours() -> Self {
        match query(Command::new("id").arg("-u")) {
            Some(id) if id == "0" => Self::Root,
            _ => Self::User,
        }
    }
}

/// Runs a command in the foreground; its failure is an error that names it.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = status(command)?;
    if !status.success() {
        bail!("{} failed ({status})", describe(command));
    }
    Ok(())
}

/// Runs a command in the foreground and says how it ended.
pub(crate) fn status(command: &mut Command) -> Result<ExitStatus> {
    command.status().with_context(|| format!("cannot start {}", describe(command)))
}

/// What a short query prints, or `None` when the program is missing or says no: for probing.
pub(crate) fn query(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

/// The first file of this name in `PATH`.
pub(crate) fn find_in_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    // Debian keeps `ip` and `tc` in directories that an ordinary user's PATH leaves out.
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path).chain(system).map(|directory| directory.join(name)).find(|file| file.is_file())
}

/// Takes the output of long installations, which nobody reads unless they fail.
pub(crate) struct Log {
    path: PathBuf,
    file: Option<File>,
    done: BTreeSet<String>,
}

impl Log {
    /// A log that is created (empty) by its first step.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, file: None, done: BTreeSet::new() }
    }

    /// Runs one step, printing what it is and how long it took; on failure the end of its output is in the error.
    pub(crate) fn step(&mut self, what: &str, command: &mut Command) -> Result<()> {
        let begun = Instant::now();
        let mut file = self.file()?.try_clone()?;
        writeln!(file, "$ {}", describe(command))?;
        let start = file.stream_position()?;
        report(format_args!("installing     {what}"));
        let (out, err) = (file.try_clone()?, file.try_clone()?);
        let ended = status(command.stdin(Stdio::null()).stdout(out).stderr(err));
        if matches!(&ended, Ok(status) if status.success()) {
            report(format_args!("               took {:.0} s", begun.elapsed().as_secs_f32()));
            self.done.insert(what.to_owned());
            return Ok(());
        }
        let ended = ended.map_or_else(|error| format!("{error:#}"), |status| status.to_string());
        file.seek(SeekFrom::Start(start))?;
        let output = std::io::read_to_string(file)?;
        bail!(
            "{} failed ({ended}):\n{}\nThe whole log is {}",
            describe(command),
            tail(&output),
            relative(&self.path)
        );
    }

    /// Runs a step unless it is done.
    pub(crate) fn step_once(&mut self, what: &str, command: &mut Command) -> Result<()> {
        if self.done.contains(what) { Ok(()) } else { self.step(what, command) }
    }

    fn file(&mut self) -> Result<&File> {
        let file = match self.file.take() {
            Some(file) => file,
            None => create_in_full_path(&self.path)?,
        };
        Ok(self.file.insert(file))
    }
}

fn create_in_full_path(path: &Path) -> Result<File> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    // Appending: the step's own writes and the children's share the file.
    File::options()
        .create(true)
        .append(true)
        .read(true)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The command as one would type it.
pub(crate) fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words: Vec<_> =
        std::iter::once(program).chain(command.get_args()).map(OsStr::to_string_lossy).collect();
    words.join(" ")
}

fn tail(output: &str) -> String {
    let lines: Vec<&str> = output.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].iter().map(|line| format!("    {line}\n")).collect()
}

const TAIL_LINES: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_step_shows_the_end_of_its_own_output() {
        let path = env::temp_dir().join(format!("xtask-log-{}", std::process::id()));
        let mut log = Log::new(path.clone());
        log.step("one", Command::new("sh").args(["-c", "echo first"])).unwrap();
        let error =
            log.step("two", Command::new("sh").args(["-c", "seq 30; echo wrong >&2; exit 3"])).unwrap_err();
        std::fs::remove_file(path).unwrap();
        let text = error.to_string();
        assert!(text.contains("exit status: 3"), "{text}");
        assert!(
            text.contains("    30\n    wrong\n") && !text.contains("    1\n") && !text.contains("first"),
            "{text}"
        );
    }
}
