//! Reading whole maps, some thousand entries with each system call.
//!
//! aya has no batches. One call for each key and one for each value take most of a second for a full flow table, and a
//! listing by keys begins anew when the key that it stands at has gone. A batch of a hash table goes on at the next bucket
//! instead: what is in the table all the time is seen exactly once.
#![expect(unsafe_code, reason = "a system call that aya does not wrap, into buffers that are made here")]

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use aya::maps::MapError;
use nix::libc;
use proxy_common::tables::Table;
use zerocopy::FromZeros as _;

use super::map::{TableError, kernel};

/// Entries of a batch. No bucket of a hash table holds as many.
const ENTRIES: u32 = 4096;

/// `BPF_MAP_LOOKUP_BATCH` of `enum bpf_cmd`, include/uapi/linux/bpf.h.
const LOOKUP_BATCH: libc::c_long = 24;

/// The part of `union bpf_attr` for batches, include/uapi/linux/bpf.h.
#[repr(C)]
struct Attributes {
    /// Where the previous batch ended; null before the first.
    in_batch: u64,
    /// Where this one ended.
    out_batch: u64,
    keys: u64,
    values: u64,
    /// Entries that there is room for, then entries that were read.
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// What a call says about where it ended: a bucket, or a key of an array.
type Position = [u32; 2];

/// A key and its values.
type Entry<'a, T> = (<T as Table>::Key, &'a [<T as Table>::Value]);

/// The entries of a map; of a per-CPU map, with the values of all CPUs one after the other.
pub(super) struct Batches<'a, T: Table> {
    map: BorrowedFd<'a>,
    /// Values that belong to a key.
    each: usize,
    keys: Vec<T::Key>,
    values: Vec<T::Value>,
    position: Option<Position>,
    /// Entries in the buffers.
    filled: usize,
    /// The first of them that was not given out yet.
    next: usize,
    is_over: bool,
    table: PhantomData<T>,
}

impl<'a, T: Table> Batches<'a, T> {
    /// Reads a map of this table's types, whose values are there `each` times: once, or for each CPU.
    pub(super) fn new(map: BorrowedFd<'a>, each: usize) -> Self {
        // The kernel rounds the value of a CPU up to eight bytes.
        assert!(each == 1 || size_of::<T::Value>().is_multiple_of(8), "{}: values with gaps", T::NAME);
        let room = ENTRIES.min(T::CAPACITY) as usize;
        Self {
            map,
            each,
            keys: vec![T::Key::new_zeroed(); room],
            values: vec![T::Value::new_zeroed(); room * each],
            position: None,
            filled: 0,
            next: 0,
            is_over: false,
            table: PhantomData,
        }
    }

    /// The next entry; `None` after the last, and after an error.
    pub(super) fn next(&mut self) -> Result<Option<Entry<'_, T>>, TableError> {
        while self.next == self.filled {
            if self.is_over {
                return Ok(None);
            }
            if let Err(error) = self.read() {
                self.is_over = true;
                return Err(kernel::<T>("cannot list the entries")(MapError::IoError(error)));
            }
        }
        let at = self.next;
        self.next += 1;
        let values = self.values.get(at * self.each..(at + 1) * self.each).unwrap_or_default();
        Ok(self.keys.get(at).map(|key| (*key, values)))
    }

    /// Reads the next batch.
    fn read(&mut self) -> io::Result<()> {
        let mut end: Position = [0; 2];
        let mut attributes = Attributes {
            in_batch: self
                .position
                .as_ref()
                .map_or(0, |position| (&raw const *position).expose_provenance() as u64),
            out_batch: (&raw mut end).expose_provenance() as u64,
            keys: self.keys.as_mut_ptr().expose_provenance() as u64,
            values: self.values.as_mut_ptr().expose_provenance() as u64,
            count: u32::try_from(self.keys.len()).unwrap_or(ENTRIES),
            map_fd: self.map.as_raw_fd().cast_unsigned(),
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: the pointers are to buffers of this object and this function, which outlive the call. They have room
        // for `count` keys and for `count` values on `each` CPU, of the map's own sizes, which were compared when it was
        // opened. Any bytes are a key and a value (`MapBytes`). A position is four bytes: a bucket's number, or an
        // array's key.
        let answer = unsafe {
            libc::syscall(libc::SYS_bpf, LOOKUP_BATCH, &raw mut attributes, size_of::<Attributes>())
        };
        if answer < 0 {
            let error = io::Error::last_os_error();
            // With the last of the entries, or after it.
            if error.raw_os_error() != Some(libc::ENOENT) {
                return Err(error);
            }
            self.is_over = true;
        }
        self.position = Some(end);
        self.next = 0;
        self.filled = (attributes.count as usize).min(self.keys.len());
        Ok(())
    }
}
