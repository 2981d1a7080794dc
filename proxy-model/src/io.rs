//! How the model reaches the tables, without knowing what they are.

use proxy_common::{
    frontend::ServiceId,
    tables::{AddressFilter, Addresses, Backends, Frontends, Pods, ServiceNames, Slots, SourceRanges, Table},
};

/// What all tables of one kernel have in common.
pub trait Io {
    /// Why a write failed.
    type Error: std::error::Error + 'static;

    /// Zeroes the traffic counters of a service id on every CPU, before the id means another service port.
    ///
    /// # Errors
    ///
    /// If the counters could not be written; the service port is not programmed then, and tried again.
    fn reset_traffic(&mut self, service: ServiceId) -> Result<(), Self::Error>;
}

/// A table that can be read and written.
pub trait TableIo<T: Table>: Io {
    /// Reads an entry; `None` if it is not there.
    ///
    /// # Errors
    ///
    /// If the table could not be read.
    fn get(&self, key: &T::Key) -> Result<Option<T::Value>, Self::Error>;

    /// Writes an entry, replacing what is there.
    ///
    /// # Errors
    ///
    /// If the entry was not written.
    fn put(&mut self, key: &T::Key, value: &T::Value) -> Result<(), Self::Error>;
}

/// A hash table or a trie: entries can also go away, which those of an array cannot.
pub trait HashTableIo<T: Table>: TableIo<T> {
    /// The keys of all entries, in no order.
    ///
    /// # Errors
    ///
    /// If the table could not be read.
    fn keys(&self) -> Result<Vec<T::Key>, Self::Error>;

    /// Deletes an entry. An entry that is not there counts as deleted.
    ///
    /// # Errors
    ///
    /// If the entry is still there.
    fn delete(&mut self, key: &T::Key) -> Result<(), Self::Error>;
}

/// All the tables that [`Model::commit`](crate::Model::commit) writes.
pub trait TablesIo:
    TableIo<AddressFilter>
    + TableIo<Backends>
    + TableIo<Slots>
    + HashTableIo<Frontends>
    + HashTableIo<ServiceNames>
    + HashTableIo<Addresses>
    + HashTableIo<SourceRanges>
    + HashTableIo<Pods>
{
}

impl<I> TablesIo for I where
    I: TableIo<AddressFilter>
        + TableIo<Backends>
        + TableIo<Slots>
        + HashTableIo<Frontends>
        + HashTableIo<ServiceNames>
        + HashTableIo<Addresses>
        + HashTableIo<SourceRanges>
        + HashTableIo<Pods>
{
}
