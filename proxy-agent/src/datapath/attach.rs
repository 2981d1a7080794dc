//! Attaching to devices: tcx links, pinned, adopted after a restart, replaced without a gap.

use std::{collections::BTreeSet, fs, io, path::PathBuf};

use aya::programs::{
    LinkOrder, ProgramError, SchedClassifier, TcAttachType,
    links::{FdLink, LinkError, PinnedLink},
    tc::{SchedClassifierLink, TcAttachOptions},
};

use super::{
    load::{Datapath, LoadError, Program},
    pins::Pins,
};
use crate::devices::{Device, Ifindex};

/// Where a program goes, in which order among others there.
struct Hook {
    program: Program,
    at: TcAttachType,
    order: fn() -> LinkOrder,
}

/// Outermost on both sides: what a CNI attaches sees pod addresses, as it does behind netfilter's NAT.
const HOOKS: [Hook; 2] = [
    Hook { program: Program::Ingress, at: TcAttachType::Ingress, order: LinkOrder::first },
    Hook { program: Program::Egress, at: TcAttachType::Egress, order: LinkOrder::last },
];

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
    for Hook { program, at, order } in HOOKS {
        let path = pin(pins, device.index, program);
        let classifier = datapath.program(program)?;
        if path.exists() {
            if adopt(classifier, &path) {
                continue;
            }
            fs::remove_file(&path).map_err(|source| AttachError::Io { path: path.clone(), source })?;
        }
        let name = || device.name.clone();
        let refused = |source| AttachError::Attach {
            device: name(),
            program: program.name(),
            source: Box::new(source),
        };
        let id = classifier
            .attach_with_options(&device.name, at, TcAttachOptions::TcxOrder(order()))
            .map_err(refused)?;
        let link = classifier.take_link(id).map_err(refused)?;
        let link = FdLink::try_from(link).map_err(|source| AttachError::Link {
            device: name(),
            program: program.name(),
            source: Box::new(source),
        })?;
        link.pin(&path).map_err(|source| AttachError::Pin {
            device: name(),
            program: program.name(),
            source,
        })?;
    }
    Ok(())
}

/// Puts the program into a pinned link. `false` if the link is dead: its device went away, and perhaps another
/// one has its number now.
fn adopt(classifier: &mut SchedClassifier, path: &PathBuf) -> bool {
    let adopted =
        PinnedLink::from_pin(path).and_then(|link| SchedClassifierLink::try_from(FdLink::from(link)));
    let Ok(link) = adopted else {
        return false;
    };
    let Ok(id) = classifier.attach_to_link(link) else {
        return false;
    };
    // The pin holds the link; this process need not.
    classifier.take_link(id).is_ok()
}

/// Detaches from every device that is not `wanted`. The links of vanished devices are dead already; their
/// pins go too.
pub fn detach_others(pins: &Pins, wanted: &BTreeSet<Ifindex>) -> Result<Vec<Ifindex>, AttachError> {
    let mut gone = BTreeSet::new();
    for hook in pinned_hooks(pins)? {
        if wanted.contains(&hook.device) {
            continue;
        }
        let path = pin(pins, hook.device, hook.program);
        fs::remove_file(&path).map_err(|source| AttachError::Io { path, source })?;
        gone.insert(hook.device);
    }
    Ok(gone.into_iter().collect())
}
