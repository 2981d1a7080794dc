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
    load::{Datapath, LoadError},
    pins::{self, Pins},
    program::Program,
};
use crate::devices::{Device, Ifindex, LinkHeader, LocalDelivery};

/// Where a program goes, in which order among others there.
struct Hook {
    program: Program,
    at: TcAttachType,
    order: fn() -> LinkOrder,
}

/// Outermost on both sides: what a CNI attaches sees pod addresses, as it does behind netfilter's NAT. What delivers past the stack
/// comes where the stack would, behind everybody who may have a say.
const fn hook(program: Program) -> Hook {
    match program {
        Program::Egress | Program::EgressL3 => {
            Hook { program, at: TcAttachType::Egress, order: LinkOrder::last }
        }
        Program::Delivery => Hook { program, at: TcAttachType::Ingress, order: LinkOrder::last },
        Program::Ingress | Program::IngressL3 | Program::Clock => {
            Hook { program, at: TcAttachType::Ingress, order: LinkOrder::first }
        }
    }
}

/// The programs for devices with this link header.
#[must_use]
pub const fn programs(header: LinkHeader, delivery: LocalDelivery) -> &'static [Program] {
    match (header, delivery) {
        (LinkHeader::Ethernet, LocalDelivery::Stack) => &[Program::Ingress, Program::Egress],
        (LinkHeader::Ethernet, LocalDelivery::Direct) => {
            &[Program::Ingress, Program::Egress, Program::Delivery]
        }
        (LinkHeader::None, _) => &[Program::IngressL3, Program::EgressL3],
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
pub(super) fn pin(pins: &Pins, device: Ifindex, program: &str) -> PathBuf {
    pins.links().join(format!("{}-{program}", device.0))
}

/// The pinned links, by the names of their pins.
pub fn pinned_hooks(pins: &Pins) -> Result<Vec<PinnedHook>, AttachError> {
    let of = |name: &str| Program::ALL.into_iter().find(|known| known.name() == name);
    let hooks = pinned(pins, of)?.into_iter();
    let mut hooks: Vec<_> =
        hooks.map(|(device, program, program_id)| PinnedHook { device, program, program_id }).collect();
    hooks.sort_by_key(|hook| (hook.device, hook.program.name()));
    Ok(hooks)
}

/// The pinned links of programs that somebody knows by their names: the device, the program, and the kernel's id of what the
/// link runs.
pub(super) fn pinned<P>(
    pins: &Pins,
    known: impl Fn(&str) -> Option<P>,
) -> Result<Vec<(Ifindex, P, Option<u32>)>, AttachError> {
    let dir = pins.links();
    let failed = |source| AttachError::Io { path: dir.clone(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(&dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some((device, program)) = name.split_once('-') else {
            continue;
        };
        if let (Ok(device), Some(program)) = (device.parse(), known(program)) {
            let info = PinnedLink::from_pin(&path).ok().map(FdLink::from).and_then(|link| link.info().ok());
            found.push((Ifindex(device), program, info.map(|info| info.program_id())));
        }
    }
    Ok(found)
}

/// Attaches its programs to a device, or puts this build's programs into the links that are already there. A
/// packet meets the old program or the new one, never none.
pub fn attach(
    datapath: &mut Datapath,
    pins: &Pins,
    device: &Device,
    delivery: LocalDelivery,
) -> Result<(), AttachError> {
    for hook in programs(device.header, delivery).iter().copied().map(hook) {
        let path = pin(pins, device.index, hook.program.name());
        let classifier = datapath.program(hook.program)?;
        let adopted = adopt(&path, |link| {
            let id = classifier.attach_to_link(SchedClassifierLink::try_from(link)?)?;
            // The pin holds the link; this process need not.
            classifier.take_link(id)?;
            Ok(())
        });
        match adopted.map_err(|error| unadopted(error, &hook, device))? {
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

fn unadopted(error: Unadopted, hook: &Hook, device: &Device) -> AttachError {
    let (device, program) = (device.name.clone(), hook.program.name());
    match error {
        Unadopted::Link(source) => AttachError::Link { device, program, source: Box::new(source) },
        Unadopted::Program(source) => AttachError::Replace { device, program, source: Box::new(source) },
    }
}

/// What became of a link's pin.
pub(super) enum Pinned {
    /// The link has this build's program now.
    Alive,
    /// The link's device went away, and perhaps another one has its number now.
    Dead,
    /// There is none.
    Absent,
}

/// Why a pinned link does not have this build's program.
pub(super) enum Unadopted {
    /// It cannot be used.
    Link(LinkError),
    /// The kernel refuses.
    Program(ProgramError),
}

impl From<LinkError> for Unadopted {
    fn from(error: LinkError) -> Self {
        Self::Link(error)
    }
}

impl From<ProgramError> for Unadopted {
    fn from(error: ProgramError) -> Self {
        Self::Program(error)
    }
}

/// Puts a program into a pinned link, as `put` does it with one. Only a link that the kernel calls dead may be replaced: to
/// unpin any other would let packets pass untranslated.
pub(super) fn adopt(
    path: &Path,
    put: impl FnOnce(FdLink) -> Result<(), Unadopted>,
) -> Result<Pinned, Unadopted> {
    let link = match PinnedLink::from_pin(path) {
        Ok(link) => FdLink::from(link),
        Err(LinkError::SyscallError(error)) if is(&error.io_error, Errno::ENOENT) => {
            return Ok(Pinned::Absent);
        }
        Err(error) => return Err(error.into()),
    };
    match put(link) {
        Ok(()) => Ok(Pinned::Alive),
        Err(Unadopted::Program(ProgramError::SyscallError(error))) if is(&error.io_error, Errno::ENOLINK) => {
            Ok(Pinned::Dead)
        }
        Err(error) => Err(error),
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

pub(super) fn expect_same(device: &Device) -> Result<(), AttachError> {
    match if_nametoindex(device.name.as_str()) {
        Ok(index) if index == device.index.0 => Ok(()),
        _ => Err(AttachError::Moved { device: device.name.clone(), index: device.index }),
    }
}

pub(super) fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}

/// Removes a pin. One that is gone already is no error: whoever removed it wanted the same.
pub(super) fn unpin(path: &Path) -> Result<(), AttachError> {
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
            unpin(&pin(pins, hook.device, hook.program.name()))?;
            gone.insert(hook.device);
        }
    }
    Ok(gone)
}
