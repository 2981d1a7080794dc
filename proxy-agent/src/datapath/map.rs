//! Typed maps over pinned BPF maps.
#![expect(
    unsafe_code,
    reason = "the one `Pod` implementation: proxy-common knows no aya, and aya no zerocopy"
)]

use std::{
    iter,
    marker::PhantomData,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use aya::{
    Pod,
    maps::{
        Array, HashMap, Map, MapData, MapError, MapType, PerCpuArray, PerCpuHashMap, PerCpuValues, RingBuf,
        lpm_trie::{Key, LpmTrie},
    },
    util::nr_cpus,
};
use proxy_common::{
    ranges::{SourceRange, SourceRangeData},
    tables::{Growth, MapBytes, Table, TableKind},
};
use zerocopy::FromZeros as _;

use super::{batch::Batches, pins::Pins};

/// Bytes on their way into or out of a map.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Raw<T>(pub(super) T);

// SAFETY: `MapBytes` requires zerocopy's `FromBytes` and `IntoBytes`: no padding, and any bytes are a value.
unsafe impl<T: MapBytes> Pod for Raw<T> {}

/// Why a table could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// There is no such pin.
    #[error("table {table}: not pinned at {path}; has `sluice run` been started here?")]
    Absent {
        /// The table.
        table: &'static str,
        /// Where it was looked for.
        path: String,
    },
    /// The pinned map is not the map that this build expects.
    #[error("table {table}: pinned map has {field} {found}, this build expects {expected}")]
    Mismatch {
        /// The table.
        table: &'static str,
        /// What differs.
        field: &'static str,
        /// As it is.
        found: String,
        /// As it should be.
        expected: String,
    },
    /// The map has no room.
    #[error("table {table}: full ({capacity} entries)")]
    Full {
        /// The table.
        table: &'static str,
        /// Its capacity.
        capacity: u32,
    },
    /// The kernel said no.
    #[error("table {table}: {action}")]
    Kernel {
        /// The table.
        table: &'static str,
        /// What was tried.
        action: &'static str,
        /// Why not.
        #[source]
        source: MapError,
    },
}

pub(super) fn kernel<T: Table>(action: &'static str) -> impl FnOnce(MapError) -> TableError {
    move |source| TableError::Kernel { table: T::NAME, action, source }
}

/// The errno inside an aya map error.
pub(super) fn errno(error: &MapError) -> Option<i32> {
    match error {
        MapError::SyscallError(error) => error.io_error.raw_os_error(),
        MapError::IoError(error) => error.raw_os_error(),
        _ => None,
    }
}

/// Whether writing an entry failed, in particular because there is no room for it.
fn written<T: Table>(result: Result<(), MapError>, capacity: u32) -> Result<(), TableError> {
    result.map_err(|error| match errno(&error) {
        // Hash tables say the former, tries the latter.
        Some(nix::libc::E2BIG | nix::libc::ENOSPC) => TableError::Full { table: T::NAME, capacity },
        _ => kernel::<T>("cannot write an entry")(error),
    })
}

/// Whether removing an entry failed. One that is not there counts as removed.
fn removed<T: Table>(result: Result<(), MapError>) -> Result<(), TableError> {
    match result {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(error) if errno(&error) == Some(nix::libc::ENOENT) => Ok(()),
        Err(error) => Err(kernel::<T>("cannot remove an entry")(error)),
    }
}

/// An entry of a listing; `None` if it was removed between finding its key and reading its value.
fn listed<T: Table, E>(entry: Result<E, MapError>) -> Option<Result<E, TableError>> {
    match entry {
        Ok(entry) => Some(Ok(entry)),
        Err(MapError::KeyNotFound) => None,
        Err(error) => Some(Err(kernel::<T>("cannot list the entries")(error))),
    }
}

/// Compares a pin with what this build expects, and tells how many entries there is room for.
pub(super) fn capacity<T: Table>(pins: &Pins) -> Result<u32, TableError> {
    open::<T>(pins).map(|opened| opened.capacity)
}

fn open<T: Table>(pins: &Pins) -> Result<Opened, TableError> {
    let (data, capacity) = open_at::<T>(&pins.map::<T>())?;
    let fd = data.fd().as_fd().try_clone_to_owned();
    let fd = fd.map_err(|error| kernel::<T>("cannot use it")(MapError::IoError(error)))?;
    let map = Map::from_map_data(data).map_err(kernel::<T>("cannot use it"))?;
    Ok(Opened { map, fd, capacity })
}

/// Opens a pin after comparing it with what this build expects: adopting a map of another shape would
/// misread every entry, and the kernel would not object. Tells how many entries there is room for.
pub(super) fn open_at<T: Table>(path: &Path) -> Result<(MapData, u32), TableError> {
    let data = MapData::from_pin(path).map_err(|error| match errno(&error) {
        Some(nix::libc::ENOENT) => TableError::Absent { table: T::NAME, path: path.display().to_string() },
        _ => kernel::<T>("cannot open the pin")(error),
    })?;
    let info = data.info().map_err(kernel::<T>("cannot read its description"))?;
    let mismatch = |field, found: String, expected: String| TableError::Mismatch {
        table: T::NAME,
        field,
        found,
        expected,
    };
    let kind = info.map_type().map_err(kernel::<T>("cannot read its type"))?;
    let expected = match T::KIND {
        TableKind::Hash => MapType::Hash,
        TableKind::PerCpuHash => MapType::PerCpuHash,
        TableKind::LruHash => MapType::LruHash,
        TableKind::LpmTrie => MapType::LpmTrie,
        TableKind::Array => MapType::Array,
        TableKind::PerCpuArray => MapType::PerCpuArray,
        TableKind::Ring => MapType::RingBuf,
    };
    if kind != expected {
        return Err(mismatch("type", format!("{kind:?}"), format!("{expected:?}")));
    }
    let capacity = info.max_entries();
    let sizes = [
        ("key size", info.key_size() as usize, size_of::<T::Key>()),
        ("value size", info.value_size() as usize, size_of::<T::Value>()),
        (
            "capacity",
            capacity as usize,
            if T::GROWTH == Growth::Fixed { T::CAPACITY } else { capacity } as usize,
        ),
    ];
    for (field, found, expected) in sizes {
        if found != expected {
            return Err(mismatch(field, found.to_string(), expected.to_string()));
        }
    }
    Ok((data, capacity))
}

/// A map, a descriptor of it for what aya does not do, and how many entries it has room for.
struct Opened {
    map: Map,
    fd: OwnedFd,
    capacity: u32,
}

/// Opens the pin of a ring.
pub(super) fn open_ring<T: Table>(pins: &Pins) -> Result<RingBuf<MapData>, TableError> {
    RingBuf::try_from(open::<T>(pins)?.map).map_err(kernel::<T>("cannot use it"))
}

/// A hash table, opened by its pin.
pub struct HashTable<T: Table> {
    map: HashMap<MapData, Raw<T::Key>, Raw<T::Value>>,
    fd: OwnedFd,
    capacity: u32,
}

impl<T: Table> HashTable<T> {
    /// Opens the table's pin.
    pub fn open(pins: &Pins) -> Result<Self, TableError> {
        let Opened { map, fd, capacity } = open::<T>(pins)?;
        Ok(Self { map: HashMap::try_from(map).map_err(kernel::<T>("cannot use it"))?, fd, capacity })
    }

    /// Entries that there is room for.
    #[must_use]
    pub const fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The value of a key; `None` if it is absent.
    pub fn get(&self, key: &T::Key) -> Result<Option<T::Value>, TableError> {
        match self.map.get(&Raw(*key), 0) {
            Ok(Raw(value)) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(kernel::<T>("cannot read an entry")(error)),
        }
    }

    /// Writes an entry, new or not.
    pub fn put(&mut self, key: &T::Key, value: &T::Value) -> Result<(), TableError> {
        written::<T>(self.map.insert(Raw(*key), Raw(*value), 0), self.capacity)
    }

    /// Removes an entry, present or not.
    pub fn delete(&mut self, key: &T::Key) -> Result<(), TableError> {
        removed::<T>(self.map.remove(&Raw(*key)))
    }

    /// The keys of all entries. Those of entries that come or go meanwhile may be missing.
    pub fn keys(&self) -> Result<Vec<T::Key>, TableError> {
        self.entries().map(|entry| entry.map(|(key, _)| key)).collect()
    }

    /// All entries, in the kernel's order, each once. Those that come or go meanwhile may be missed.
    pub fn entries(&self) -> impl Iterator<Item = Result<(T::Key, T::Value), TableError>> {
        singles(Batches::<T>::new(self.fd.as_fd(), 1))
    }

    /// How many entries there are, but for those that come or go meanwhile.
    pub fn count(&self) -> Result<usize, TableError> {
        count(Batches::<T>::new(self.fd.as_fd(), 1))
    }
}

/// Counts the entries that are read.
fn count<T: Table>(mut batches: Batches<'_, T>) -> Result<usize, TableError> {
    let mut sum = 0;
    while batches.next()?.is_some() {
        sum += 1;
    }
    Ok(sum)
}

/// Entries of which each has one value.
fn singles<T: Table>(
    mut batches: Batches<'_, T>,
) -> impl Iterator<Item = Result<(T::Key, T::Value), TableError>> {
    iter::from_fn(move || {
        let entry = batches.next().map(|entry| entry.and_then(|(key, values)| Some((key, *values.first()?))));
        entry.transpose()
    })
}

/// Entries with the values of all CPUs.
fn of_all_cpus<T: Table>(
    mut batches: Batches<'_, T>,
) -> impl Iterator<Item = Result<(T::Key, Vec<T::Value>), TableError>> {
    iter::from_fn(move || {
        batches.next().map(|entry| entry.map(|(key, values)| (key, values.to_vec()))).transpose()
    })
}

/// How many values a key of a per-CPU map has.
fn cpus<T: Table>() -> Result<usize, TableError> {
    nr_cpus().map_err(|(_, error)| kernel::<T>("cannot tell the number of CPUs")(MapError::IoError(error)))
}

/// A table of source ranges, opened by its pin: a trie of prefixes.
pub struct TrieTable<T: Table<Key = SourceRange>> {
    map: LpmTrie<MapData, Raw<SourceRangeData>, Raw<T::Value>>,
    capacity: u32,
}

impl<T: Table<Key = SourceRange>> TrieTable<T> {
    /// Opens the table's pin.
    pub fn open(pins: &Pins) -> Result<Self, TableError> {
        let Opened { map, capacity, .. } = open::<T>(pins)?;
        Ok(Self { map: LpmTrie::try_from(map).map_err(kernel::<T>("cannot use it"))?, capacity })
    }

    /// The keys of all entries. Those of entries that come or go meanwhile may be missing.
    pub fn keys(&self) -> Result<Vec<SourceRange>, TableError> {
        self.entries().map(|entry| entry.map(|(range, _)| range)).collect()
    }

    /// The value of the longest range that contains this one, or is it; `None` if there is none.
    pub fn longest(&self, key: &SourceRange) -> Result<Option<T::Value>, TableError> {
        match self.map.get(&prefix(key), 0) {
            Ok(Raw(value)) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(kernel::<T>("cannot read an entry")(error)),
        }
    }

    /// Writes an entry, new or not.
    pub fn put(&mut self, key: &SourceRange, value: &T::Value) -> Result<(), TableError> {
        written::<T>(self.map.insert(&prefix(key), Raw(*value), 0), self.capacity)
    }

    /// Removes an entry, present or not.
    pub fn delete(&mut self, key: &SourceRange) -> Result<(), TableError> {
        removed::<T>(self.map.remove(&prefix(key)))
    }

    /// All entries, in the kernel's order. Entries that come or go meanwhile may be missed.
    pub fn entries(&self) -> impl Iterator<Item = Result<(SourceRange, T::Value), TableError>> {
        let range = |key: Key<Raw<SourceRangeData>>| SourceRange {
            prefix_length: key.prefix_len(),
            data: key.data().0,
        };
        self.map
            .iter()
            .filter_map(move |entry| listed::<T, _>(entry.map(|(key, Raw(value))| (range(key), value))))
    }
}

/// A range as aya knows the keys of tries; the bytes are the same.
fn prefix(range: &SourceRange) -> Key<Raw<SourceRangeData>> {
    Key::new(range.prefix_length, Raw(range.data))
}

/// An array table, opened by its pin: every index below the capacity exists.
pub struct ArrayTable<T: Table<Key = u32>> {
    map: Array<MapData, Raw<T::Value>>,
    fd: OwnedFd,
}

impl<T: Table<Key = u32>> ArrayTable<T> {
    /// Opens the table's pin.
    pub fn open(pins: &Pins) -> Result<Self, TableError> {
        let Opened { map, fd, .. } = open::<T>(pins)?;
        Ok(Self { map: Array::try_from(map).map_err(kernel::<T>("cannot use it"))?, fd })
    }

    /// The value at an index; `None` beyond the capacity.
    pub fn get(&self, index: u32) -> Result<Option<T::Value>, TableError> {
        match self.map.get(&index, 0) {
            Ok(Raw(value)) => Ok(Some(value)),
            Err(MapError::OutOfBounds { .. }) => Ok(None),
            Err(error) => Err(kernel::<T>("cannot read an entry")(error)),
        }
    }

    /// Writes the value at an index.
    pub fn put(&mut self, index: u32, value: &T::Value) -> Result<(), TableError> {
        self.map.set(index, Raw(*value), 0).map_err(kernel::<T>("cannot write an entry"))
    }

    /// All values with their indices.
    pub fn entries(&self) -> impl Iterator<Item = Result<(u32, T::Value), TableError>> {
        singles(Batches::<T>::new(self.fd.as_fd(), 1))
    }
}

/// A per-CPU array table, opened by its pin.
pub struct PerCpuTable<T: Table<Key = u32>> {
    map: PerCpuArray<MapData, Raw<T::Value>>,
    cpus: usize,
    table: PhantomData<T>,
}

impl<T: Table<Key = u32>> PerCpuTable<T> {
    /// Opens the table's pin.
    pub fn open(pins: &Pins) -> Result<Self, TableError> {
        let Opened { map, .. } = open::<T>(pins)?;
        Ok(Self {
            map: PerCpuArray::try_from(map).map_err(kernel::<T>("cannot use it"))?,
            cpus: cpus::<T>()?,
            table: PhantomData,
        })
    }

    /// The values of all CPUs.
    pub fn get(&self, index: u32) -> Result<Vec<T::Value>, TableError> {
        let values = self.map.get(&index, 0).map_err(kernel::<T>("cannot read an entry"))?;
        Ok(values.iter().map(|&Raw(value)| value).collect())
    }

    /// Sets every CPU's value to zero.
    pub fn clear(&mut self, index: u32) -> Result<(), TableError> {
        let failed = |error| kernel::<T>("cannot clear an entry")(MapError::IoError(error));
        let zeros = vec![Raw(T::Value::new_zeroed()); self.cpus];
        let zeros = PerCpuValues::try_from(zeros).map_err(failed)?;
        self.map.set(index, zeros, 0).map_err(kernel::<T>("cannot clear an entry"))
    }
}

/// A per-CPU hash table, opened by its pin.
pub struct PerCpuHashTable<T: Table> {
    map: PerCpuHashMap<MapData, Raw<T::Key>, Raw<T::Value>>,
    fd: OwnedFd,
    cpus: usize,
}

impl<T: Table> PerCpuHashTable<T> {
    /// Opens the table's pin.
    pub fn open(pins: &Pins) -> Result<Self, TableError> {
        let Opened { map, fd, .. } = open::<T>(pins)?;
        let map = PerCpuHashMap::try_from(map).map_err(kernel::<T>("cannot use it"))?;
        Ok(Self { map, fd, cpus: cpus::<T>()? })
    }

    /// Removes an entry, present or not.
    pub fn delete(&mut self, key: &T::Key) -> Result<(), TableError> {
        removed::<T>(self.map.remove(&Raw(*key)))
    }

    /// All entries with the values of all CPUs, in the kernel's order, each once. Those that come or go meanwhile may be
    /// missed.
    pub fn entries(&self) -> impl Iterator<Item = Result<(T::Key, Vec<T::Value>), TableError>> {
        of_all_cpus(Batches::<T>::new(self.fd.as_fd(), self.cpus))
    }

    /// How many entries there are, but for those that come or go meanwhile.
    pub fn count(&self) -> Result<usize, TableError> {
        count(Batches::<T>::new(self.fd.as_fd(), self.cpus))
    }
}
