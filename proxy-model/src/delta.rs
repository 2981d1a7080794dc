//! What a table should contain against what it does.

use std::collections::HashMap;

use proxy_common::tables::Table;

/// A write that a table still needs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pending<V> {
    /// The entry must become this.
    Put(V),
    /// The entry must go.
    Delete,
}

/// The picture of one table: the entries that it has, and the writes that it needs. Where nothing is pending, both
/// sides agree, so no entry is kept twice.
///
/// ```text
///   want ----> pending ----(the caller writes)----> confirm ----> actual
/// ```
///
/// Does no I/O. An entry changes its actual side only after its write succeeded; one that failed stays pending.
#[derive(Debug)]
pub(crate) struct Delta<T: Table> {
    actual: HashMap<T::Key, T::Value>,
    pending: HashMap<T::Key, Pending<T::Value>>,
    /// How many pending writes add an entry.
    additions: usize,
}

impl<T: Table> Delta<T> {
    /// The table contains these entries, and should for now.
    pub(crate) fn restored(actual: impl IntoIterator<Item = (T::Key, T::Value)>) -> Self {
        Self { actual: actual.into_iter().collect(), pending: HashMap::new(), additions: 0 }
    }

    /// The entry should be this.
    pub(crate) fn want(&mut self, key: T::Key, value: T::Value) {
        if self.actual.get(&key) == Some(&value) {
            self.pending.remove(&key);
        } else if self.pending.insert(key, Pending::Put(value)).is_none() && !self.actual.contains_key(&key) {
            self.additions += 1;
        }
    }

    /// The entry should not be there.
    pub(crate) fn unwant(&mut self, key: T::Key) {
        if self.actual.contains_key(&key) {
            self.pending.insert(key, Pending::Delete);
        } else {
            self.revert(&key);
        }
    }

    /// The entry should stay as it is after all.
    pub(crate) fn revert(&mut self, key: &T::Key) {
        if self.pending.remove(key).is_some() && !self.actual.contains_key(key) {
            self.additions -= 1;
        }
    }

    /// What the table contains.
    pub(crate) fn actual(&self, key: &T::Key) -> Option<&T::Value> {
        self.actual.get(key)
    }

    /// What the table should contain.
    pub(crate) fn wanted(&self, key: &T::Key) -> Option<&T::Value> {
        match self.pending.get(key) {
            Some(Pending::Put(value)) => Some(value),
            Some(Pending::Delete) => None,
            None => self.actual.get(key),
        }
    }

    /// The write that the entry needs.
    pub(crate) fn pending(&self, key: &T::Key) -> Option<Pending<T::Value>> {
        self.pending.get(key).copied()
    }

    /// The pending write of the entry was made.
    pub(crate) fn confirm(&mut self, key: &T::Key) {
        match self.pending.remove(key) {
            Some(Pending::Put(value)) => {
                let is_new = self.actual.insert(*key, value).is_none();
                self.additions -= usize::from(is_new);
            }
            Some(Pending::Delete) => {
                self.actual.remove(key);
            }
            None => {}
        }
        // Everything is pending once, at the start; that room is not needed again.
        if self.pending.is_empty() {
            self.pending.shrink_to(1024);
        }
    }

    /// The entries that the table contains, in no order.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&T::Key, &T::Value)> {
        self.actual.iter()
    }

    /// The entries that need a write, in no order.
    pub(crate) fn pending_keys(&self) -> impl Iterator<Item = &T::Key> {
        self.pending.keys()
    }

    /// Whether the table contains the entry, or is about to.
    pub(crate) fn holds(&self, key: &T::Key) -> bool {
        self.actual.contains_key(key) || self.pending.contains_key(key)
    }

    /// How many entries those are.
    pub(crate) fn held(&self) -> usize {
        self.actual.len() + self.additions
    }

    /// How many entries the table contains.
    pub(crate) fn len(&self) -> usize {
        self.actual.len()
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::{backend::BackendId, tables::Slots};

    use super::*;

    #[test]
    fn nothing_is_pending_where_both_sides_agree() {
        let mut delta = Delta::<Slots>::restored([(1, BackendId(7))]);
        delta.want(1, BackendId(7));
        delta.unwant(2);
        assert_eq!(delta.pending_keys().count(), 0);
        delta.want(1, BackendId(8));
        delta.want(1, BackendId(7));
        assert_eq!(delta.pending_keys().count(), 0);
    }

    #[test]
    fn a_write_counts_once_it_is_confirmed() {
        let mut delta = Delta::<Slots>::restored([(1, BackendId(7))]);
        delta.want(1, BackendId(8));
        delta.want(2, BackendId(9));
        assert_eq!((delta.actual(&1), delta.wanted(&1)), (Some(&BackendId(7)), Some(&BackendId(8))));
        assert_eq!((delta.len(), delta.held()), (1, 2));
        delta.confirm(&1);
        assert_eq!(delta.actual(&1), Some(&BackendId(8)));
        assert_eq!(delta.pending(&2), Some(Pending::Put(BackendId(9))));
        delta.revert(&2);
        assert_eq!(delta.wanted(&2), None);
        assert_eq!((delta.len(), delta.held()), (1, 1));
    }

    #[test]
    fn an_unwanted_entry_is_there_until_its_deletion_is_confirmed() {
        let mut delta = Delta::<Slots>::restored([(1, BackendId(7))]);
        delta.unwant(1);
        assert_eq!((delta.actual(&1), delta.wanted(&1)), (Some(&BackendId(7)), None));
        assert!(delta.holds(&1) && delta.held() == 1);
        delta.confirm(&1);
        assert_eq!((delta.actual(&1), delta.len()), (None, 0));
    }
}
