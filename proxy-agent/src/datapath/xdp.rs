//! Attaching before the stack, at drivers: one program a device, by a pinned link that is replaced without a gap.

use std::{collections::BTreeSet, error::Error as StdError, io};

use aya::programs::{
    ProgramError, XdpMode,
    links::{FdLink, LinkError},
    xdp::XdpLink,
};
use nix::errno::Errno;
use proxy_common::xdp::{XdpDevice, XdpStand};

use super::{
    attach::{AttachError, Pinned, Unadopted, adopt, expect_same, pin, pinned, unpin},
    load::{Datapath, LoadError},
    pins::Pins,
    program::XDP_PROGRAM,
};
use crate::devices::{Device, Ifindex};

/// Why a device's packets are not met before the stack.
#[derive(Debug, thiserror::Error)]
pub enum XdpError {
    /// The program is not loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The kernel or the driver refused.
    #[error("cannot attach {XDP_PROGRAM}")]
    Refused(#[from] ProgramError),
    /// The link could not be handled.
    #[error("cannot keep the link of {XDP_PROGRAM}")]
    Link(#[from] LinkError),
    /// The link could not be pinned.
    #[error("cannot pin the link of {XDP_PROGRAM}")]
    Pin(#[from] aya::pin::PinError),
    /// The device is another one by now, or pins cannot be removed.
    #[error(transparent)]
    Attach(#[from] AttachError),
}

impl From<Unadopted> for XdpError {
    fn from(error: Unadopted) -> Self {
        match error {
            Unadopted::Link(error) => error.into(),
            Unadopted::Program(error) => error.into(),
        }
    }
}

impl XdpError {
    /// How the device stands because of this.
    #[must_use]
    pub fn stand(&self) -> XdpDevice {
        match self.errno() {
            Errno::EBUSY | Errno::EEXIST => XdpDevice::new(XdpStand::Occupied),
            errno => XdpDevice::refused((errno as i32).unsigned_abs()),
        }
    }

    /// What the kernel said, wherever in the chain of causes it stands.
    fn errno(&self) -> Errno {
        let mut cause: Option<&(dyn StdError + 'static)> = Some(self);
        while let Some(error) = cause {
            if let Some(number) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
                return Errno::from_raw(number);
            }
            cause = error.source();
        }
        Errno::UnknownErrno
    }
}

/// Attaches the program to a device, or puts this build's into the link that is already there.
pub fn attach_xdp(datapath: &mut Datapath, pins: &Pins, device: &Device) -> Result<(), XdpError> {
    let path = pin(pins, device.index, XDP_PROGRAM);
    let program = datapath.xdp_program()?;
    let adopted = adopt(&path, |link| {
        let id = program.attach_to_link(XdpLink::try_from(link)?)?;
        program.take_link(id)?;
        Ok(())
    });
    match adopted? {
        Pinned::Alive => return Ok(()),
        Pinned::Dead => unpin(&path)?,
        Pinned::Absent => {}
    }
    expect_same(device)?;
    let id = program.attach_to_if_index(device.index.0, XdpMode::Driver)?;
    let link = FdLink::try_from(program.take_link(id)?)?;
    link.pin(&path)?;
    Ok(())
}

/// The devices with a pinned link, and the kernel's id of the program that it runs.
pub fn xdp_hooks(pins: &Pins) -> Result<Vec<(Ifindex, Option<u32>)>, AttachError> {
    let found = pinned(pins, |name| (name == XDP_PROGRAM).then_some(()))?;
    Ok(found.into_iter().map(|(device, (), program)| (device, program)).collect())
}

/// Takes the program off every device but those to `keep`. Returns the others that had it. The links of vanished devices are
/// dead already; their pins go too.
pub fn detach_xdp(
    pins: &Pins,
    mut keep: impl FnMut(Ifindex) -> bool,
) -> Result<BTreeSet<Ifindex>, AttachError> {
    let mut gone = BTreeSet::new();
    for (device, _) in xdp_hooks(pins)? {
        if !keep(device) {
            unpin(&pin(pins, device, XDP_PROGRAM))?;
            gone.insert(device);
        }
    }
    Ok(gone)
}
