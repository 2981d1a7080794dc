//! A wire between two nodes whose ends have no Ethernet headers.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::fd::AsRawFd as _,
    os::unix::fs::OpenOptionsExt as _,
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result};
use nix::{fcntl::OFlag, libc};
use tokio::{io::unix::AsyncFd, runtime, sync::oneshot};

use super::node::Node;

/// Name of both ends.
const DEVICE: &str = "tun0";

/// Larger than any packet: the devices have ordinary MTUs.
const LARGEST: usize = 1 << 16;

nix::ioctl_write_ptr_bad!(set_interface, libc::TUNSETIFF, libc::ifreq);

/// Two TUN devices and a thread that carries packets between them.
#[derive(Debug)]
pub(super) struct Wire {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Wire {
    /// Joins two nodes, and routes the pods of each through the wire.
    pub(super) fn join(a: &Node, b: &Node) -> Result<Self> {
        let ends = (end(a)?, end(b)?);
        a.use_wire(DEVICE, b)?;
        b.use_wire(DEVICE, a)?;
        let (stop, stopped) = oneshot::channel();
        let runtime = runtime::Builder::new_current_thread().enable_io().build()?;
        let thread = thread::spawn(move || {
            runtime.block_on(async {
                let (Ok(a), Ok(b)) = (register(ends.0), register(ends.1)) else { return };
                tokio::select! {
                    () = carry(&a, &b) => {}
                    () = carry(&b, &a) => {}
                    _ = stopped => {}
                }
            });
        });
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic in there has been printed.
            drop(thread.join());
        }
    }
}

/// A new TUN device of a node. It exists for as long as the file is open.
fn end(node: &Node) -> Result<File> {
    node.namespace.run(|| {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open("/dev/net/tun")
            .context("open /dev/net/tun")?;
        // SAFETY: `ifreq` is plain bytes and a union of such; all zeros is a valid value of every member.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(DEVICE.bytes()) {
            *to = from.cast_signed();
        }
        let flags = libc::IFF_TUN | libc::IFF_NO_PI;
        request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags)?;
        // SAFETY: the descriptor is open, and the kernel reads an `ifreq`, which lives until the call returns.
        unsafe { set_interface(file.as_raw_fd(), &raw const request) }.context("make a TUN device")?;
        Ok(file)
    })
}

fn register(file: File) -> io::Result<AsyncFd<File>> {
    // SAFETY: a `File` always names the same descriptor, and keeps it open for as long as the `AsyncFd` has it.
    Ok(unsafe { AsyncFd::register(file) }?)
}

/// Carries packets until a device is gone.
async fn carry(from: &AsyncFd<File>, to: &AsyncFd<File>) {
    let mut packet = vec![0; LARGEST];
    while let Ok(mut ready) = from.readable().await {
        match ready.try_io(|file| file.get_ref().read(&mut packet)) {
            Ok(Ok(length)) => {
                // A wire may lose packets: those that find the other end down or full.
                drop(to.get_ref().write(&packet[..length]));
            }
            Ok(Err(error)) if error.kind() != io::ErrorKind::Interrupted => return,
            Ok(Err(_)) | Err(_) => {}
        }
    }
}
