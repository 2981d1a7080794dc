//! Attaching to a cgroup: links, pinned, replaced after a restart without a gap.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use aya::programs::{
    CgroupAttachMode, ProgramError,
    links::{FdLink, LinkError, PinnedLink},
};

use super::{
    load::{Datapath, LoadError},
    pins::{self, Pins},
    program::SocketProgram,
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

/// How a program for sockets is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SocketHook {
    /// To a cgroup.
    Attached {
        /// The kernel's id of the program that the link runs.
        program: u32,
        /// The kernel's id of the cgroup, which is the inode of its directory; `None` if it cannot be told.
        cgroup: Option<u64>,
    },
    /// There is no pin, and so no link.
    NotPinned,
    /// There is a link, but to no cgroup: that is gone, or somebody has detached the link.
    Detached,
    /// The pin cannot be used.
    Unreadable(String),
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

/// How each program for sockets is attached.
#[must_use]
pub fn socket_hooks(pins: &Pins) -> Vec<(SocketProgram, SocketHook)> {
    // All at once, so that one look at what this process has open is enough.
    let open = |program| (program, PinnedLink::from_pin(pin(pins, program)).map(FdLink::from));
    let links = SocketProgram::ALL.map(open);
    let cgroups = cgroups();
    let hook = |(program, link): (SocketProgram, Result<FdLink, LinkError>)| {
        let found = match link.and_then(|link| link.info()) {
            Ok(info) => match cgroups.get(&info.id()).copied() {
                Some(0) => SocketHook::Detached,
                cgroup => SocketHook::Attached { program: info.program_id(), cgroup },
            },
            Err(LinkError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
                SocketHook::NotPinned
            }
            Err(error) => SocketHook::Unreadable(crate::report(&error)),
        };
        (program, found)
    };
    links.into_iter().map(hook).collect()
}

/// The cgroup of each link that this process has open: aya does not tell, but the kernel describes every open file. 0 is
/// none (`bpf_cgroup_link_show_fdinfo`).
fn cgroups() -> BTreeMap<u32, u64> {
    let Ok(open) = fs::read_dir("/proc/self/fdinfo") else {
        return BTreeMap::new();
    };
    let files = open.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok());
    let link = |text: String| -> Option<(u32, u64)> {
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        Some((field("link_id")?.trim().parse().ok()?, field("cgroup_id")?.trim().parse().ok()?))
    };
    files.filter_map(link).collect()
}
