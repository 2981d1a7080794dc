//! Other capacities for tables that are pinned already.
//!
//! Where only the agent adds entries ([`Growth::Replaced`]), that is done before programs are loaded:
//!
//! ```text
//! NAME-next made ── entries copied ── renamed to NAME ── programs loaded with it ── links updated
//! ```
//!
//! Programs that are attached go on with the old map until their link is updated. It says the same: nothing is written to
//! either before that. An agent that ends half way leaves copies that the next one makes anew.
//!
//! Where programs add entries ([`Growth::Moved`]), they find the map through an array, so that all of them change over in
//! the same moment. They begin to look in both, then to write to the new one; only then are entries moved:
//!
//! ```text
//!            PRESENT  FORMER
//! before     old      -
//!            old      old
//!            new      old      every entry that is moved is in both
//!            new      old      all are; NAME-next is renamed to NAME
//! after      new      -
//! ```
//!
//! An agent that ends half way leaves NAME-next, and the next one goes on: each step may be repeated. What CPUs remember of flows
//! stays right, as a moved entry says what it said.

use std::{fs, io, path::Path};

use aya::maps::{ArrayOfMaps, HashMap, Map, MapData, MapError, PerCpuHashMap, PerCpuValues, ProgramArray};
use proxy_common::tables::{FORMER, Growth, PRESENT, Table, TableKind};
use tracing::info;
use zerocopy::IntoBytes as _;

use super::{
    list::{self, Visitor},
    map::{Raw, TableError, errno, kernel, open_at},
    pins::{self, Pins},
};

type Entries<T> = HashMap<MapData, Raw<<T as Table>::Key>, Raw<<T as Table>::Value>>;
type PerCpuEntries<T> = PerCpuHashMap<MapData, Raw<<T as Table>::Key>, Raw<<T as Table>::Value>>;

/// A pin could not be changed.
fn unpinned<T: Table>(action: &'static str) -> impl FnOnce(io::Error) -> TableError {
    move |error| kernel::<T>(action)(MapError::IoError(error))
}

/// Opens the entries of a map of any kind that has one value for each key: to the kernel's calls they are all alike.
fn entries<T: Table>(path: &Path) -> Result<Entries<T>, TableError> {
    let (data, _) = open_at::<T>(path)?;
    HashMap::try_from(Map::HashMap(data)).map_err(kernel::<T>("cannot use it"))
}

/// The same of a map that has a value for each CPU.
fn per_cpu_entries<T: Table>(path: &Path) -> Result<PerCpuEntries<T>, TableError> {
    let (data, _) = open_at::<T>(path)?;
    PerCpuHashMap::try_from(Map::PerCpuHashMap(data)).map_err(kernel::<T>("cannot use it"))
}

/// Removes what an agent has left that ended before it had copied everything.
pub(super) fn forget_copy<T: Table>(pins: &Pins) -> Result<(), TableError> {
    pins::unpin(&pins.next_map::<T>()).map_err(unpinned::<T>("cannot remove an unfinished copy")).map(drop)
}

/// Copies a table to the map that is to take its place, and lets it.
pub(super) fn replace<T: Table>(pins: &Pins) -> Result<(), TableError> {
    let (path, next) = (pins.map::<T>(), pins.next_map::<T>());
    let ((_, before), (_, after)) = (open_at::<T>(&path)?, open_at::<T>(&next)?);
    // Whatever is used lies below the capacity; an array has values beyond that nobody will ask for.
    let is_index = matches!(T::KIND, TableKind::Array | TableKind::PerCpuArray);
    let lies_beyond = |key: &T::Key| {
        let index = <[u8; 4]>::try_from(key.as_bytes()).map_or(0, u32::from_ne_bytes);
        is_index && index >= after
    };
    let read = || kernel::<T>("cannot list the entries");
    let write = || kernel::<T>("cannot copy an entry");
    match T::KIND {
        TableKind::PerCpuHash | TableKind::PerCpuArray => {
            let (from, mut to) = (per_cpu_entries::<T>(&path)?, per_cpu_entries::<T>(&next)?);
            for entry in from.iter() {
                let (key, values): (_, PerCpuValues<_>) = entry.map_err(read())?;
                if !lies_beyond(&key.0) && values.iter().any(|Raw(value)| !is_zero(value)) {
                    to.insert(key, values, 0).map_err(write())?;
                }
            }
        }
        _ => {
            let (from, mut to) = (entries::<T>(&path)?, entries::<T>(&next)?);
            for entry in from.iter() {
                let (key, value) = entry.map_err(read())?;
                let is_unused = is_index && is_zero(&value.0);
                if !lies_beyond(&key.0) && !is_unused {
                    to.insert(key, value, 0).map_err(write())?;
                }
            }
        }
    }
    fs::rename(&next, &path).map_err(unpinned::<T>("cannot replace the pin"))?;
    info!(table = T::NAME, before, after, "the table has another capacity");
    Ok(())
}

fn is_zero<V: zerocopy::IntoBytes + zerocopy::Immutable>(value: &V) -> bool {
    value.as_bytes().iter().all(|byte| *byte == 0)
}

/// Opens the array that programs find a table through.
fn places<T: Table>(pins: &Pins, array: &str) -> Result<MapData, TableError> {
    MapData::from_pin(pins.maps().join(array)).map_err(kernel::<T>("cannot open the array that leads to it"))
}

/// Puts a map into a place of the array. When this returns, no program runs that found another one there.
fn put<T: Table>(pins: &Pins, array: &str, place: u32, map: &MapData) -> Result<(), TableError> {
    let failed = || kernel::<T>("cannot lead programs to it");
    let places = Map::ArrayOfMaps(places::<T>(pins, array)?);
    let mut places = ArrayOfMaps::<_, MapData>::try_from(places).map_err(failed())?;
    places.set(place, map, 0).map_err(failed())
}

/// Empties the place of the former map. aya empties places of arrays of programs only; the call is the same.
fn clear<T: Table>(pins: &Pins, array: &str) -> Result<(), TableError> {
    let failed = || kernel::<T>("cannot lead programs away from its former map");
    let places = Map::ProgramArray(places::<T>(pins, array)?);
    let mut places = ProgramArray::try_from(places).map_err(failed())?;
    match places.clear_index(&FORMER) {
        Err(error) if errno(&error) != Some(nix::libc::ENOENT) => Err(failed()(error)),
        _ => Ok(()),
    }
}

/// Leads the programs to the pinned tables, unless they are being moved: then programs find both.
pub(super) fn lead(pins: &Pins) -> Result<(), TableError> {
    struct Lead<'a>(&'a Pins);
    impl Visitor for Lead<'_> {
        type Error = TableError;

        fn visit<T: Table>(&mut self) -> Result<(), TableError> {
            let Growth::Moved(array) = T::GROWTH else { return Ok(()) };
            if self.0.next_map::<T>().exists() {
                return Ok(());
            }
            put::<T>(self.0, array, PRESENT, &open_at::<T>(&self.0.map::<T>())?.0)?;
            clear::<T>(self.0, array)
        }
    }
    list::visit(&mut Lead(pins))
}

/// Moves the entries of tables that programs write to, if they are to have other capacities. Programs that know nothing of
/// that must not be attached any more.
pub fn move_tables(pins: &Pins) -> Result<(), TableError> {
    struct Move<'a>(&'a Pins);
    impl Visitor for Move<'_> {
        type Error = TableError;

        fn visit<T: Table>(&mut self) -> Result<(), TableError> {
            match T::GROWTH {
                Growth::Moved(array) if self.0.next_map::<T>().exists() => move_table::<T>(self.0, array),
                _ => Ok(()),
            }
        }
    }
    list::visit(&mut Move(pins))
}

fn move_table<T: Table>(pins: &Pins, array: &str) -> Result<(), TableError> {
    let (path, next) = (pins.map::<T>(), pins.next_map::<T>());
    let ((old, before), (new, after)) = (open_at::<T>(&path)?, open_at::<T>(&next)?);
    put::<T>(pins, array, FORMER, &old)?;
    put::<T>(pins, array, PRESENT, &new)?;
    let entries = move_entries::<T>(&path, &next)?;
    fs::rename(&next, &path).map_err(unpinned::<T>("cannot replace the pin"))?;
    clear::<T>(pins, array)?;
    info!(table = T::NAME, before, after, entries, "the table has another capacity");
    Ok(())
}

/// Copies what nobody has written anew meanwhile. Returns how many entries those were.
fn move_entries<T: Table>(from: &Path, to: &Path) -> Result<usize, TableError> {
    const NOEXIST: u64 = 1;
    let (from, mut to) = (entries::<T>(from)?, entries::<T>(to)?);
    let failed = || kernel::<T>("cannot move an entry");
    let mut moved = 0;
    for key in from.keys() {
        let key = key.map_err(failed())?;
        let Some(mut value) = found(from.get(&key, 0)).map_err(failed())? else { continue };
        match to.insert(key, value, NOEXIST) {
            Ok(()) => moved += 1,
            Err(error) if errno(&error) == Some(nix::libc::EEXIST) => continue,
            Err(error) => return Err(failed()(error)),
        }
        // A program may have changed the old one between reading and writing. From now on, all change the new one.
        loop {
            match found(from.get(&key, 0)).map_err(failed())? {
                Some(Raw(now)) if now == value.0 => break,
                Some(now) => {
                    to.insert(key, now, 0).map_err(failed())?;
                    value = now;
                }
                None => {
                    to.remove(&key).map_err(failed())?;
                    break;
                }
            }
        }
    }
    Ok(moved)
}

fn found<V>(value: Result<V, MapError>) -> Result<Option<V>, MapError> {
    match value {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error),
    }
}
