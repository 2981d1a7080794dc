//! Attaching to a cgroup: links, pinned, replaced after a restart without a gap.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use aya::programs::{
    CgroupAttachMode, ProgramError,
    links::{FdLink, LinkError, PinnedLink},
};

use super::{
    load::{Datapath, LoadError, SocketProgram},
    pins::{self, Pins},
};

/// Why a program for sockets could not be attached, or detached.
#[derive(Debug, thiserror::Error)]
pub enum SocketHookError {
    /// The program is not loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The kernel refused to attach.
    #[error("cgroup {}: cannot attach {program}", cgroup.display())]
    Attach {
        /// The cgroup.
        cgroup: PathBuf,
        /// Name of the program.
        program: &'static str,
        /// Why not.
        #[source]
        source: Box<ProgramError>,
    },
    /// The link could not be handled.
    #[error("cannot keep the link of {program}")]
    Link {
        /// Name of the program.
        program: &'static str,
        /// Why not.
        #[source]
        source: Box<LinkError>,
    },
    /// The link could not be pinned.
    #[error("cannot pin the link of {program}")]
    Pin {
        /// Name of the program.
        program: &'static str,
        /// Why not.
        #[source]
        source: aya::pin::PinError,
    },
    /// The cgroup or a pin could not be opened or changed.
    #[error("{}", path.display())]
    Io {
        /// What file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// A pinned link to a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinnedSocketHook {
    /// The program.
    pub program: SocketProgram,
    /// The kernel's id of the program that the link runs; `None` if it cannot be told.
    pub program_id: Option<u32>,
    /// The kernel's id of the cgroup, which is the inode of its directory; `None` if it cannot be told.
    pub cgroup_id: Option<u64>,
}

/// The pin of a link, such as `cgroup-sluice_connect4`.
fn pin(pins: &Pins, program: SocketProgram) -> PathBuf {
    pins.links().join(format!("cgroup-{}", program.name()))
}

/// The second pin while a link is replaced.
fn next_pin(pins: &Pins, program: SocketProgram) -> PathBuf {
    pins.links().join(format!("cgroup-{}-next", program.name()))
}

/// Attaches a program to a cgroup, in place of what an earlier run has attached. For a moment both run, which is harmless:
/// the second one is asked about a backend, which is no service. There is never a moment with none.
pub fn attach_socket(
    datapath: &mut Datapath,
    pins: &Pins,
    cgroup: &Path,
    program: SocketProgram,
) -> Result<(), SocketHookError> {
    let name = program.name();
    let refused = |source| SocketHookError::Attach {
        cgroup: cgroup.to_owned(),
        program: name,
        source: Box::new(source),
    };
    let loaded = datapath.socket_program(program)?;
    let directory =
        File::open(cgroup).map_err(|source| SocketHookError::Io { path: cgroup.to_owned(), source })?;
    // Links are always beside others (`cgroup_bpf_link_attach`); the kernel refuses to be told so, and this says nothing.
    let id = loaded.attach(directory, CgroupAttachMode::Single).map_err(refused)?;
    let link = loaded.take_link(id).map_err(refused)?;
    let link = FdLink::try_from(link)
        .map_err(|source| SocketHookError::Link { program: name, source: Box::new(source) })?;
    let (path, next) = (pin(pins, program), next_pin(pins, program));
    // An agent that ended at a bad moment may have left it, beside the first one.
    unpin(&next)?;
    link.pin(&next).map_err(|source| SocketHookError::Pin { program: name, source })?;
    // Takes the place of the old pin, which is all that held the old link.
    fs::rename(&next, &path).map_err(|source| SocketHookError::Io { path, source })
}

/// Detaches all programs for sockets. Returns how many there were. Those that give a process its backend go first.
pub fn detach_sockets(pins: &Pins) -> Result<usize, SocketHookError> {
    let mut count = 0;
    for program in SocketProgram::ALL.into_iter().rev() {
        unpin(&next_pin(pins, program))?;
        count += usize::from(unpin(&pin(pins, program))?);
    }
    Ok(count)
}

/// Removes a pin. Returns whether there was one.
fn unpin(path: &Path) -> Result<bool, SocketHookError> {
    pins::unpin(path).map_err(|source| SocketHookError::Io { path: path.to_owned(), source })
}

/// The pinned links to a cgroup.
#[must_use]
pub fn pinned_socket_hooks(pins: &Pins) -> Vec<PinnedSocketHook> {
    let hook = |program| {
        let path = pin(pins, program);
        if !path.exists() {
            return None;
        }
        let link = PinnedLink::from_pin(&path).ok().map(FdLink::from);
        let info = link.as_ref().and_then(|link| link.info().ok());
        Some(PinnedSocketHook {
            program,
            program_id: info.as_ref().map(|info| info.program_id()),
            cgroup_id: info.and_then(|info| cgroup_id(info.id())),
        })
    };
    SocketProgram::ALL.into_iter().filter_map(hook).collect()
}

/// The cgroup of a link that this process holds: aya does not tell, but the kernel describes every open link.
fn cgroup_id(link: u32) -> Option<u64> {
    let described = fs::read_dir("/proc/self/fdinfo").ok()?;
    described.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok()).find_map(|text| {
        let field = |name: &str| -> Option<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line?.trim().parse().ok()
        };
        (field("link_id") == Some(link.into())).then(|| field("cgroup_id")).flatten()
    })
}
