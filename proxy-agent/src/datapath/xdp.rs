//! Attaching before the stack, at drivers or on their behalf: one program a device, by a pinned link that is replaced without a
//! gap. The mode is the link's for as long as it lives, so each mode has a program, and by its name pins of its own.

use std::{collections::BTreeSet, error::Error as StdError, io};

use aya::programs::{
    ProgramError, XdpMode as Attachment,
    links::{FdLink, LinkError},
    xdp::XdpLink,
};
use nix::errno::Errno;
use proxy_common::xdp::{XdpDevice, XdpMode, XdpStand};
use tracing::debug;

use super::{
    attach::{AttachError, Pinned, Unadopted, adopt, expect_same, pin, pinned, unpin},
    detach::detach,
    load::{Datapath, LoadError},
    pins::Pins,
    program::xdp_program_name,
};
use crate::devices::{Device, Ifindex};

/// Why a device's packets are not met before the stack.
#[derive(Debug, thiserror::Error)]
pub enum XdpError {
    /// The program is not loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The kernel or the driver refused.
    #[error("cannot attach before the stack")]
    Refused(#[from] ProgramError),
    /// The link could not be handled.
    #[error("cannot keep the link of what is attached before the stack")]
    Link(#[from] LinkError),
    /// The link could not be pinned.
    #[error("cannot pin the link of what is attached before the stack")]
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

/// Attaches the program to a device in this mode, or puts this build's into the link that is already there. A device has one
/// program: one of the other mode has to be [taken off](detach_xdp) first.
pub fn attach_xdp(
    datapath: &mut Datapath,
    pins: &Pins,
    device: &Device,
    mode: XdpMode,
) -> Result<(), XdpError> {
    let path = pin(pins, device.index, xdp_program_name(mode));
    let program = datapath.xdp_program(mode)?;
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
    let attachment = match mode {
        XdpMode::Native => Attachment::Driver,
        XdpMode::Generic => Attachment::Skb,
    };
    let id = program.attach_to_if_index(device.index.0, attachment)?;
    let link = FdLink::try_from(program.take_link(id)?)?;
    link.pin(&path)?;
    Ok(())
}

/// The devices with a pinned link, and its mode.
pub fn xdp_hooks(pins: &Pins) -> Result<Vec<(Ifindex, XdpMode)>, AttachError> {
    let of = |name: &str| XdpMode::ALL.into_iter().find(|mode| xdp_program_name(*mode) == name);
    Ok(pinned(pins, of)?.into_iter().map(|(device, mode, _)| (device, mode)).collect())
}

/// Takes the programs off every device, but for those to `keep`; devices have room for others then. Returns those that had one.
/// The links of vanished devices are dead already; their pins go too.
pub fn detach_xdp(
    pins: &Pins,
    mut keep: impl FnMut(Ifindex, XdpMode) -> bool,
) -> Result<BTreeSet<(Ifindex, XdpMode)>, AttachError> {
    let mut gone = BTreeSet::new();
    for (device, mode) in xdp_hooks(pins)? {
        if !keep(device, mode) {
            let path = pin(pins, device, xdp_program_name(mode));
            // Without its pin, a link that cannot be detached ends a moment later.
            if let Err(error) = detach(&path) {
                debug!(index = device.0, %error, "the link ends by itself");
            }
            unpin(&path)?;
            gone.insert((device, mode));
        }
    }
    Ok(gone)
}
