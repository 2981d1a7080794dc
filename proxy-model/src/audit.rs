//! Looks whether the kernel's tables still contain what was written, and puts right what does not.
//!
//! Nobody else should write these tables, but a tool may, or a bug. An audit goes through them a part at a time, so that
//! changes never wait for it. Entries that wait for a write are left to that write.

use std::{collections::HashSet, hash::Hash};

use proxy_common::{
    addr::Addr,
    frontend::{FrontendKey, ServiceId},
    pod::CgroupId,
    ranges::SourceRange,
    tables::Table,
};

use crate::{
    delta::Delta,
    error::CommitError,
    io::{HashTableIo, TableIo, TablesIo},
    tables::{Failure, Tables},
};

/// An audit under way: what it has still to look at, and what it found.
#[derive(Debug)]
pub struct Audit {
    filter: Vec<u32>,
    addresses: Vec<Addr>,
    backends: Vec<u32>,
    slots: Vec<u32>,
    names: Vec<ServiceId>,
    ranges: Vec<SourceRange>,
    frontends: Vec<FrontendKey>,
    pods: Vec<CgroupId>,
    examined: usize,
    repaired: Vec<(&'static str, usize)>,
}

impl Audit {
    /// Takes down what there is to look at: everything that was written, and everything that hash tables contain.
    pub(crate) fn of<I: TablesIo>(tables: &Tables, io: &I) -> Result<Self, CommitError<I::Error>> {
        let failed = |failure: Failure<I::Error>| failure.of(None);
        Ok(Self {
            filter: keys(tables.filter.lines()),
            addresses: all_keys(tables.addresses.rows(), io).map_err(failed)?,
            backends: keys(&tables.backends),
            slots: keys(&tables.slots),
            names: all_keys(&tables.names, io).map_err(failed)?,
            ranges: all_keys(&tables.ranges, io).map_err(failed)?,
            frontends: all_keys(&tables.frontends, io).map_err(failed)?,
            pods: all_keys(&tables.pods, io).map_err(failed)?,
            examined: 0,
            repaired: Vec::new(),
        })
    }

    /// Whether everything has been looked at.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        self.filter.is_empty()
            && self.addresses.is_empty()
            && self.backends.is_empty()
            && self.slots.is_empty()
            && self.names.is_empty()
            && self.ranges.is_empty()
            && self.frontends.is_empty()
            && self.pods.is_empty()
    }

    /// How many entries have been looked at.
    #[must_use]
    pub const fn examined(&self) -> usize {
        self.examined
    }

    /// How many entries of which tables were not as they had been written, and are again.
    #[must_use]
    pub fn repaired(&self) -> &[(&'static str, usize)] {
        &self.repaired
    }

    /// Looks at so many entries at most. What frontends lead to is put right before them.
    pub(crate) fn go_on<I: TablesIo>(
        &mut self,
        most: usize,
        tables: &Tables,
        io: &mut I,
    ) -> Result<(), CommitError<I::Error>> {
        let mut turn = Turn { left: most, repaired: &mut self.repaired };
        let Tables { backends, slots, frontends, names, ranges, addresses, filter, pods, .. } = tables;
        let gone_through = turn
            .array(&mut self.filter, filter.lines(), io)
            .and_then(|()| turn.hash_table(&mut self.addresses, addresses.rows(), io))
            .and_then(|()| turn.array(&mut self.backends, backends, io))
            .and_then(|()| turn.array(&mut self.slots, slots, io))
            .and_then(|()| turn.hash_table(&mut self.names, names, io))
            .and_then(|()| turn.hash_table(&mut self.ranges, ranges, io))
            .and_then(|()| turn.hash_table(&mut self.frontends, frontends, io))
            .and_then(|()| turn.hash_table(&mut self.pods, pods, io));
        self.examined += most - turn.left;
        gone_through.map_err(|failure| failure.of(None))
    }
}

/// The keys of what was written.
fn keys<T: Table>(table: &Delta<T>) -> Vec<T::Key> {
    table.entries().map(|(&key, _)| key).collect()
}

/// These, and those of strangers.
fn all_keys<T: Table<Key: Eq + Hash>, I: HashTableIo<T>>(
    table: &Delta<T>,
    io: &I,
) -> Result<Vec<T::Key>, Failure<I::Error>> {
    let found = io.keys().map_err(|source| Failure::new(T::NAME, source))?;
    let all: HashSet<T::Key> = table.entries().map(|(&key, _)| key).chain(found).collect();
    Ok(all.into_iter().collect())
}

/// A part of an audit.
struct Turn<'a> {
    /// Entries that may still be looked at.
    left: usize,
    repaired: &'a mut Vec<(&'static str, usize)>,
}

impl Turn<'_> {
    fn array<T: Table, I: TableIo<T>>(
        &mut self,
        keys: &mut Vec<T::Key>,
        table: &Delta<T>,
        io: &mut I,
    ) -> Result<(), Failure<I::Error>> {
        // Entries of an array do not go away, so there is always something to write.
        self.go_through(keys, table, io, |io, key, written| match written {
            Some(value) => io.put(key, value),
            None => Ok(()),
        })
    }

    fn hash_table<T: Table, I: HashTableIo<T>>(
        &mut self,
        keys: &mut Vec<T::Key>,
        table: &Delta<T>,
        io: &mut I,
    ) -> Result<(), Failure<I::Error>> {
        self.go_through(keys, table, io, |io, key, written| match written {
            Some(value) => io.put(key, value),
            None => io.delete(key),
        })
    }

    fn go_through<T: Table, I: TableIo<T>>(
        &mut self,
        keys: &mut Vec<T::Key>,
        table: &Delta<T>,
        io: &mut I,
        repair: impl Fn(&mut I, &T::Key, Option<&T::Value>) -> Result<(), I::Error>,
    ) -> Result<(), Failure<I::Error>> {
        let failed = |source| Failure::new(T::NAME, source);
        while self.left > 0
            && let Some(key) = keys.pop()
        {
            self.left -= 1;
            let written = table.actual(&key);
            if table.pending(&key).is_some() || io.get(&key).map_err(failed)?.as_ref() == written {
                continue;
            }
            repair(io, &key, written).map_err(failed)?;
            self.count(T::NAME);
        }
        Ok(())
    }

    fn count(&mut self, table: &'static str) {
        match self.repaired.last_mut() {
            Some((last, count)) if *last == table => *count += 1,
            _ => self.repaired.push((table, 1)),
        }
    }
}
