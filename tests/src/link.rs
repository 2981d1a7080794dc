//! What somebody can do to a link who has its pin: aya cuts no link that others hold too.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use anyhow::{Context as _, Result};
use nix::libc;

/// `enum bpf_cmd` in `include/uapi/linux/bpf.h`.
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_LINK_DETACH: libc::c_long = 34;

/// What `union bpf_attr` begins with for either command: where the pin is, or the link's descriptor; then zeros.
type Attributes = [u64; 2];

/// Cuts the link with this pin off from what it is attached to. Link and pin stay.
///
/// # Errors
///
/// If there is no such link, or it cannot be cut.
pub fn cut(pin: &Path) -> Result<()> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let link = bpf(BPF_OBJ_GET, [path.as_ptr().addr() as u64, 0]).context("open the link")?;
    // SAFETY: the kernel has just made this descriptor for us.
    let link = unsafe { OwnedFd::from_raw_fd(link) };
    bpf(BPF_LINK_DETACH, [u64::try_from(link.as_raw_fd())?, 0]).context("cut the link").map(drop)
}

fn bpf(command: libc::c_long, attributes: Attributes) -> io::Result<libc::c_int> {
    // SAFETY: the kernel reads the attributes, and the path that they may point to; both live until the call returns.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of::<Attributes>()) };
    libc::c_int::try_from(result).ok().filter(|&result| result >= 0).ok_or_else(io::Error::last_os_error)
}
