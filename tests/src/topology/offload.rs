//! Offloads of devices, which the tools of iproute2 do not switch.

use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use nix::{
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

use crate::netns::Namespace;

/// `include/uapi/linux/sockios.h`
const SIOCETHTOOL: libc::c_ulong = 0x8946;
/// `include/uapi/linux/ethtool.h`
const ETHTOOL_STXCSUM: u32 = 0x17;
/// `include/uapi/linux/ethtool.h`
const ETHTOOL_SGRO: u32 = 0x2c;

nix::ioctl_readwrite_bad!(ethtool, SIOCETHTOOL, libc::ifreq);

/// `struct ethtool_value`
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Has the kernel finish the checksums of packets before they leave by a device of this namespace, as for a device that
/// cannot: whoever gets them looks at their checksums.
///
/// # Errors
///
/// If there is no such device, or it has no such switch.
pub fn finish_checksums(namespace: &Namespace, device: &str) -> Result<()> {
    switch(namespace, device, ETHTOOL_STXCSUM, false).with_context(|| format!("checksums of {device}"))
}

/// Has a device take its packets in batches, and look for what belongs together, as cards do.
///
/// # Errors
///
/// If there is no such device, or it has no such switch.
pub fn receive_in_batches(namespace: &Namespace, device: &str, how: bool) -> Result<()> {
    switch(namespace, device, ETHTOOL_SGRO, how).with_context(|| format!("receive offload of {device}"))
}

fn switch(namespace: &Namespace, device: &str, command: u32, on: bool) -> Result<()> {
    namespace.run(|| {
        let any: OwnedFd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        let mut value = Value { command, data: on.into() };
        // SAFETY: `ifreq` is plain bytes and a union of such; all zeros is a valid value of every member.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_data = (&raw mut value).cast();
        // SAFETY: the descriptor is open; the kernel reads the request and what it points to, which both live until the
        // call returns.
        unsafe { ethtool(any.as_raw_fd(), &raw mut request) }.map(drop).context("SIOCETHTOOL")
    })
}
