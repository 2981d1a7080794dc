//! Service ports that found no room, as the agent leaves word of them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::tables::NAME_BYTES;

/// Room for the longest name of a table.
const TABLE_BYTES: usize = 16;

/// A service port that a table has no room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Misfit {
    /// The service port, as the table of service names has it.
    pub port: [u8; NAME_BYTES],
    /// Name of the table, padded with zeros.
    table: [u8; TABLE_BYTES],
    /// How many more entries it was to have.
    pub wanted: u32,
}

impl Misfit {
    /// The table called `table` has no room for so many more entries of a service port.
    #[must_use]
    pub fn new(port: [u8; NAME_BYTES], table: &str, wanted: u32) -> Self {
        let mut name = [0; TABLE_BYTES];
        name.iter_mut().zip(table.bytes()).for_each(|(to, byte)| *to = byte);
        Self { port, table: name, wanted }
    }

    /// Name of the table.
    #[must_use]
    pub fn table(&self) -> &str {
        let name = self.table.split(|byte| *byte == 0).next().unwrap_or_default();
        core::str::from_utf8(name).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::{ServiceTraffic, Table as _};

    #[test]
    fn the_name_of_the_table_is_kept() {
        assert_eq!(Misfit::new([1; NAME_BYTES], ServiceTraffic::NAME, 3).table(), ServiceTraffic::NAME);
    }
}
