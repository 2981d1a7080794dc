//! Programs that have served are pinned, so that an agent whose own the kernel refuses goes on with them: a device that
//! comes later gets them too, and only pins tell a process without `CAP_SYS_ADMIN` where they are.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    pin,
    programs::{CgroupSockAddr, CgroupSockAddrAttachType, Program as Any, ProgramError, SchedClassifier},
};

use super::{
    pins::Pins,
    program::{Program, SocketProgram},
};

/// Why a program could not be pinned.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The kernel did not pin it.
    #[error("cannot pin program {program}")]
    Pin {
        /// Its name.
        program: &'static str,
        /// Why not.
        #[source]
        source: pin::PinError,
    },
    /// The pin could not take the place of an older one.
    #[error("{}", path.display())]
    Io {
        /// What file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// A program of any kind, told by what its entry in the object is called.
pub(super) trait Kind: Copy {
    /// What aya calls such a program.
    type Loaded;

    /// Its name in the object.
    fn name(self) -> &'static str;

    /// Whether the kernel has it.
    fn is_loaded(loaded: &Self::Loaded) -> bool;

    /// Gives it to the kernel.
    fn load(loaded: &mut Self::Loaded) -> Result<(), ProgramError>;

    /// Takes what is pinned there.
    fn open(self, path: &Path) -> Result<Self::Loaded, ProgramError>;

    /// Pins it there.
    fn pin(loaded: &mut Self::Loaded, path: &Path) -> Result<(), pin::PinError>;

    /// The same, out of everything that an object may contain.
    fn select(any: &mut Any) -> Result<&mut Self::Loaded, ProgramError>;
}

impl Kind for Program {
    type Loaded = SchedClassifier;

    fn name(self) -> &'static str {
        Self::name(self)
    }

    fn is_loaded(loaded: &SchedClassifier) -> bool {
        loaded.fd().is_ok()
    }

    fn load(loaded: &mut SchedClassifier) -> Result<(), ProgramError> {
        loaded.load()
    }

    fn open(self, path: &Path) -> Result<SchedClassifier, ProgramError> {
        SchedClassifier::from_pin(path)
    }

    fn pin(loaded: &mut SchedClassifier, path: &Path) -> Result<(), pin::PinError> {
        loaded.pin(path)
    }

    fn select(any: &mut Any) -> Result<&mut SchedClassifier, ProgramError> {
        any.try_into()
    }
}

impl Kind for SocketProgram {
    type Loaded = CgroupSockAddr;

    fn name(self) -> &'static str {
        Self::name(self)
    }

    fn is_loaded(loaded: &CgroupSockAddr) -> bool {
        loaded.fd().is_ok()
    }

    fn load(loaded: &mut CgroupSockAddr) -> Result<(), ProgramError> {
        loaded.load()
    }

    fn open(self, path: &Path) -> Result<CgroupSockAddr, ProgramError> {
        let at = match self {
            Self::Connect4 => CgroupSockAddrAttachType::Connect4,
            Self::Connect6 => CgroupSockAddrAttachType::Connect6,
            Self::Sendmsg4 => CgroupSockAddrAttachType::UDPSendMsg4,
            Self::Sendmsg6 => CgroupSockAddrAttachType::UDPSendMsg6,
            Self::Recvmsg4 => CgroupSockAddrAttachType::UDPRecvMsg4,
            Self::Recvmsg6 => CgroupSockAddrAttachType::UDPRecvMsg6,
            Self::Getpeername4 => CgroupSockAddrAttachType::GetPeerName4,
            Self::Getpeername6 => CgroupSockAddrAttachType::GetPeerName6,
        };
        CgroupSockAddr::from_pin(path, at)
    }

    fn pin(loaded: &mut CgroupSockAddr, path: &Path) -> Result<(), pin::PinError> {
        loaded.pin(path)
    }

    fn select(any: &mut Any) -> Result<&mut CgroupSockAddr, ProgramError> {
        any.try_into()
    }
}

/// Pins a program in the place of the one that was there. An agent that ends meanwhile leaves one of the two.
pub(super) fn keep<K: Kind>(pins: &Pins, kind: K, loaded: &mut K::Loaded) -> Result<(), KeepError> {
    let program = kind.name();
    let (path, next) = (pins.program(program), pins.program(&format!("{program}-next")));
    let failed = |path: &Path, source| KeepError::Io { path: path.to_owned(), source };
    let dir = pins.programs();
    fs::create_dir_all(&dir).map_err(|source| failed(&dir, source))?;
    super::pins::unpin(&next).map_err(|source| failed(&next, source))?;
    K::pin(loaded, &next).map_err(|source| KeepError::Pin { program, source })?;
    fs::rename(&next, &path).map_err(|source| failed(&path, source))
}
