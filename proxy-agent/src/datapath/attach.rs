//! Attaching to devices: tcx links, pinned, adopted after a restart, replaced without a gap.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use aya::programs::{
    LinkOrder, ProgramError, SchedClassifier, TcAttachType,
    links::{FdLink, LinkError, PinnedLink},
    tc::{SchedClassifierLink, TcAttachOptions},
};
use nix::{errno::Errno, net::if_::if_nametoindex};

use super::{
    load::{Datapath, LoadError, Program},
    pins::{self, Pins},
};
use crate::devices::{Device, Ifindex, LinkHeader};

/// Where a program goes, in which order among others there.
struct Hook {
    program: Program,
    at: TcAttachType,
    order: fn() -> LinkOrder,
}

/// Outermost on both sides: what a CNI attaches sees pod addresses, as it does behind netfilter's NAT.
const fn hooks(header: LinkHeader) -> [Hook; 2] {
    let [ingress, egress] = programs(header);
    [
        Hook { program: ingress, at: TcAttachType::Ingress, order: LinkOrder::first },
        Hook { program: egress, at: TcAttachType::Egress, order: LinkOrder::last },
    ]
}

/// The programs for devices with this link header: at ingress, at egress.
#[must_use]
pub const fn programs(header: LinkHeader) -> [Program; 2] {
    match header {
        LinkHeader::Ethernet => [Program::Ingress, Program::Egress],
        LinkHeader::None => [Program::IngressL3, Program::EgressL3],
    }
}

/// Why a device could not be served.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The program is not loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The kernel refused to attach.
    #[error("device {device}: cannot attach {program}")]
    Attach {
        /// Name of the device.
        device: String,
        /// Name of the program.
        program: &'static str,
        /// Why not.
        #[source]
        source: Box<ProgramError>,
    },
    /// The program could not be put into the link that is there.
    #[error("device {device}: cannot replace the program behind the link of {program}")]
    Replace {
        /// Name of the device.
        device: String,
        /// Name of the program.
        program: &'static str,
        /// Why not.
        #[source]
        source: Box<ProgramError>,
    },
    /// The device is not the one that was listed: it was renamed, or is gone.
    #[error("device {device}: no longer has index {}", index.0)]
    Moved {
        /// Its name when it was listed.
        device: String,
        /// Its number.
        index: Ifindex,
    },
    /// The link could not be handled.
    #[error("device {device}: cannot keep the link of {program}")]
    Link {
        /// Name of the device.
        device: String,
        /// Name of the program.
        program: &'static str,
        /// Why not.
        #[source]
        source: Box<LinkError>,
    },
    /// The link could not be pinned.
    #[error("device {device}: cannot pin the link of {program}")]
    Pin {
        /// Name of the device.
        device: String,
        /// Name of the program.
        program: &'static str,
        /// Why not.
        #[source]
        source: aya::pin::PinError,
    },
    /// The directory of pins could not be read or changed.
    #[error("{}", path.display())]
    Io {
        /// What file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// A pinned link, told by the name of its pin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinnedHook {
    /// The device.
    pub device: Ifindex,
    /// The program.
    pub program: Program,
    /// The kernel's id of the program that the link runs; `None` if it cannot be told.
    pub program_id: Option<u32>,
}

/// The pin of a link, such as `7-sluice_ingress`; bpffs keeps names with dots for itself.
fn pin(pins: &Pins, device: Ifindex, program: Program) -> PathBuf {
    pins.links().join(format!("{}-{}", device.0, program.name()))
}

/// The pinned links, by the names of their pins.
pub fn pinned_hooks(pins: &Pins) -> Result<Vec<PinnedHook>, AttachError> {
    let dir = pins.links();
    let failed = |source| AttachError::Io { path: dir.clone(), source };
    let mut hooks = Vec::new();
    for entry in fs::read_dir(&dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some((device, program)) = name.split_once('-') else {
            continue;
        };
        let program = Program::ALL.into_iter().find(|known| known.name() == program);
        if let (Ok(device), Some(program)) = (device.parse(), program) {
            let program_id =
                PinnedLink::from_pin(&path).ok().map(FdLink::from).and_then(|link| link.info().ok());
            hooks.push(PinnedHook {
                device: Ifindex(device),
                program,
                program_id: program_id.map(|info| info.program_id()),
            });
        }
    }
    hooks.sort_by_key(|hook| (hook.device, hook.program.name()));
    Ok(hooks)
}

/// Attaches both programs to a device, or puts this build's programs into the links that are already there. A
/// packet meets the old program or the new one, never none.
pub fn attach(datapath: &mut Datapath, pins: &Pins, device: &Device) -> Result<(), AttachError> {
    for hook in hooks(device.header) {
        let path = pin(pins, device.index, hook.program);
        let classifier = datapath.program(hook.program)?;
        match adopt(classifier, &hook, &path, device)? {
            Pinned::Alive => continue,
            Pinned::Dead => unpin(&path)?,
            Pinned::Absent => {}
        }
        let link = create(classifier, &hook, device)?;
        link.pin(&path).map_err(|source| AttachError::Pin {
            device: device.name.clone(),
            program: hook.program.name(),
            source,
        })?;
    }
    Ok(())
}

/// What became of a link's pin.
enum Pinned {
    /// The link has this build's program now.
    Alive,
    /// The link's device went away, and perhaps another one has its number now.
    Dead,
    /// There is none.
    Absent,
}

/// Puts the program into a pinned link. Only a link that the kernel calls dead may be replaced: to unpin any other
/// would let packets pass untranslated.
fn adopt(
    classifier: &mut SchedClassifier,
    hook: &Hook,
    path: &Path,
    device: &Device,
) -> Result<Pinned, AttachError> {
    let unusable = |source| AttachError::Link {
        device: device.name.clone(),
        program: hook.program.name(),
        source: Box::new(source),
    };
    let refused = |source| AttachError::Replace {
        device: device.name.clone(),
        program: hook.program.name(),
        source: Box::new(source),
    };
    let link = match PinnedLink::from_pin(path) {
        Ok(link) => FdLink::from(link),
        Err(LinkError::SyscallError(error)) if is(&error.io_error, Errno::ENOENT) => {
            return Ok(Pinned::Absent);
        }
        Err(error) => return Err(unusable(error)),
    };
    let link = SchedClassifierLink::try_from(link).map_err(unusable)?;
    match classifier.attach_to_link(link) {
        // The pin holds the link; this process need not.
        Ok(id) => classifier.take_link(id).map(|_| Pinned::Alive).map_err(refused),
        Err(ProgramError::SyscallError(error)) if is(&error.io_error, Errno::ENOLINK) => Ok(Pinned::Dead),
        Err(error) => Err(refused(error)),
    }
}

/// Attaches anew. aya goes by the device's name and the pin by its number, so a device that is renamed meanwhile
/// must not leave a link under another one's number; unpinned, it ends with this function.
fn create(classifier: &mut SchedClassifier, hook: &Hook, device: &Device) -> Result<FdLink, AttachError> {
    let refused = |source| AttachError::Attach {
        device: device.name.clone(),
        program: hook.program.name(),
        source: Box::new(source),
    };
    expect_same(device)?;
    let id = classifier
        .attach_with_options(&device.name, hook.at, TcAttachOptions::TcxOrder((hook.order)()))
        .map_err(refused)?;
    let link = classifier.take_link(id).map_err(refused)?;
    expect_same(device)?;
    FdLink::try_from(link).map_err(|source| AttachError::Link {
        device: device.name.clone(),
        program: hook.program.name(),
        source: Box::new(source),
    })
}

fn expect_same(device: &Device) -> Result<(), AttachError> {
    match if_nametoindex(device.name.as_str()) {
        Ok(index) if index == device.index.0 => Ok(()),
        _ => Err(AttachError::Moved { device: device.name.clone(), index: device.index }),
    }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}

/// Removes a pin. One that is gone already is no error: whoever removed it wanted the same.
fn unpin(path: &Path) -> Result<(), AttachError> {
    match pins::unpin(path) {
        Ok(_was_there) => Ok(()),
        Err(source) => Err(AttachError::Io { path: path.to_owned(), source }),
    }
}

/// Removes every link but those to `keep`. Returns the devices that lost one. The links of vanished devices are dead
/// already; their pins go too.
pub fn detach_others(
    pins: &Pins,
    mut keep: impl FnMut(&PinnedHook) -> bool,
) -> Result<BTreeSet<Ifindex>, AttachError> {
    let mut gone = BTreeSet::new();
    for hook in pinned_hooks(pins)? {
        if !keep(&hook) {
            unpin(&pin(pins, hook.device, hook.program))?;
            gone.insert(hook.device);
        }
    }
    Ok(gone)
}
