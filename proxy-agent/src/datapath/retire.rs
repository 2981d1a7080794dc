//! What agents with another layout have left: it takes no new flows, and goes on with those that it has.
//!
//! This build cannot read another layout's tables. But whatever its keys and values mean, a program that finds neither
//! frontends nor addresses begins nothing: it passes what is new, as it passes what is not its business, and the programs
//! of this layout, which are attached beside it, begin it. What has a flow in the old table goes on by it.
#![expect(unsafe_code, reason = "aya's maps want types for keys, and these are another build's")]

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use aya::maps::{MapData, MapError};
use nix::libc;
use proxy_common::tables::{Addresses, Frontends, Table as _};

use super::pins::Pins;

/// Why another layout's programs could not be kept from beginning flows.
#[derive(Debug, thiserror::Error)]
pub enum RetireError {
    /// A table could not be opened.
    #[error("{}", path.display())]
    Table {
        /// Its pin.
        path: PathBuf,
        /// Why not.
        #[source]
        source: MapError,
    },
    /// A table could not be emptied, or that could not be noted.
    #[error("{}", path.display())]
    Io {
        /// Of what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Sees to it that these programs begin no flow. Returns how long they have not; `None` if they did until now.
pub fn retire(pins: &Pins) -> Result<Option<Duration>, RetireError> {
    let mark = pins.retired();
    let failed = |path: &Path, source| RetireError::Io { path: path.to_owned(), source };
    if let Ok(mark) = fs::metadata(&mark) {
        // A clock that was set back makes it younger.
        return Ok(Some(mark.modified().ok().and_then(|since| since.elapsed().ok()).unwrap_or_default()));
    }
    // In this order: a service's address without the service would refuse what is for it.
    for table in [Addresses::NAME, Frontends::NAME] {
        let path = pins.maps().join(table);
        let unusable = |source| RetireError::Table { path: path.clone(), source };
        let map = MapData::from_pin(&path).map_err(unusable)?;
        let size = map.info().map_err(unusable)?.key_size() as usize;
        clear(map.fd().as_fd(), size).map_err(|source| failed(&path, source))?;
    }
    fs::create_dir(&mark).map_err(|source| failed(&mark, source))?;
    Ok(None)
}

/// Removes all entries of a hash table whose keys have this many bytes.
fn clear(map: BorrowedFd<'_>, key_size: usize) -> io::Result<()> {
    let mut key = vec![0_u8; key_size];
    loop {
        match element(map, GET_NEXT_KEY, None, Some(&mut key)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        }
        match element(map, DELETE, Some(&mut key), None) {
            // Nobody else writes there, except for an agent of that layout that is about to end.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
}

/// `BPF_MAP_DELETE_ELEM`
const DELETE: libc::c_long = 3;
/// `BPF_MAP_GET_NEXT_KEY`
const GET_NEXT_KEY: libc::c_long = 4;

/// The part of `union bpf_attr` for entries of maps.
#[repr(C)]
struct Attributes {
    map: u32,
    unused: u32,
    key: u64,
    next: u64,
    flags: u64,
}

/// A command about an entry. Both buffers have the size of the map's keys.
fn element(
    map: BorrowedFd<'_>,
    command: libc::c_long,
    key: Option<&mut Vec<u8>>,
    next: Option<&mut Vec<u8>>,
) -> io::Result<()> {
    let address = |bytes: Option<&mut Vec<u8>>| bytes.map_or(0, |bytes| bytes.as_mut_ptr() as u64);
    let mut attributes = Attributes {
        map: map.as_raw_fd().cast_unsigned(),
        unused: 0,
        key: address(key),
        next: address(next),
        flags: 0,
    };
    let size = size_of::<Attributes>();
    // SAFETY: the attributes are those of the two commands that are used here. The kernel reads `key` and writes `next`, as
    // many bytes as the map's keys have, and so do both buffers, which live until it returns.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attributes, size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
