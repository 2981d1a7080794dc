//! Taking a program off at once.
//!
//! The kernel frees a link some time after its pin is gone, and until then the device has no room for another program. aya only
//! lets go of links.
#![expect(unsafe_code, reason = "system calls that aya does not wrap")]

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use nix::libc;

/// `BPF_OBJ_GET` and `BPF_LINK_DETACH` of `enum bpf_cmd`, include/uapi/linux/bpf.h.
const OBJ_GET: libc::c_long = 7;
/// See [`OBJ_GET`].
const LINK_DETACH: libc::c_long = 34;

/// The part of `union bpf_attr` for pins, include/uapi/linux/bpf.h.
#[repr(C)]
struct Pin {
    path: u64,
    fd: u32,
    flags: u32,
}

/// The part of `union bpf_attr` for [`LINK_DETACH`], include/uapi/linux/bpf.h.
#[repr(C)]
struct Link {
    fd: u32,
}

/// Detaches the link that is pinned there; link and pin stay. The link of a device that is gone is detached already.
///
/// # Errors
///
/// If there is no such link, or it cannot be detached.
pub fn detach(pin: &Path) -> io::Result<()> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let question = Pin { path: path.as_ptr().expose_provenance() as u64, fd: 0, flags: 0 };
    // SAFETY: the path ends with a zero, and outlives the call.
    let fd = unsafe { call(OBJ_GET, &question) }?;
    // SAFETY: a descriptor that nobody else knows.
    let link = unsafe { OwnedFd::from_raw_fd(fd) };
    let question = Link { fd: link.as_raw_fd().cast_unsigned() };
    // SAFETY: there is no pointer in it.
    unsafe { call(LINK_DETACH, &question) }.map(drop)
}

/// A command of the system call, and what it answers.
///
/// # Safety
///
/// `question` has to be the part of `union bpf_attr` for this command, and what it points to valid while the call lasts.
unsafe fn call<Q>(command: libc::c_long, question: &Q) -> io::Result<i32> {
    // SAFETY: the caller's promise; the kernel only reads the question of these commands.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *question, size_of::<Q>()) };
    match i32::try_from(answer) {
        Ok(answer) if answer >= 0 => Ok(answer),
        _ => Err(io::Error::last_os_error()),
    }
}
